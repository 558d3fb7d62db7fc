"""Keys of the training configs: a sentence about each, its value in the published code, and its other names.

A key has one name in `earl sft` and `earl rl`. The names of the published code and those of older versions of EARL are
aliases: they load from a file, from ``--set`` and in Python.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from earl_cli.config.sampling import PARAMETERS

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Amount = Annotated[float, Field(ge=0)]
Above = Annotated[float, Field(gt=0)]

SAME: Any = object()
"""The published value is the default."""


@dataclass(frozen=True)
class KeyInfo:
    """What `key` notes of a field. ``name`` is the published name, None if it is the key's own, "" if there is none."""

    published: Any = None
    has_published: bool = False
    name: str | None = None
    note: str = ""
    aliases: tuple[str, ...] = ()


_OWN = object()


def key(
    default: Any,
    sentence: str,
    *,
    published: Any = _OWN,
    name: str | None = None,
    note: str = "",
    aliases: Sequence[str] = (),
    **limits: Any,
) -> Any:
    """A field of a config: its default (... if it is required), a sentence about it, and limits as of `pydantic.Field`.

    ``published`` is the value of the published code, left out where EARL's is the only one; ``name`` its name there,
    None if it is the key's own and "" if it has none; ``note`` says which published runs have another value.
    ``aliases`` are names that older versions of EARL had.
    """
    value = default if published is SAME else None if published is _OWN else published
    info = KeyInfo(value, published is not _OWN, name, note, tuple(aliases))
    extra: dict[str, Any] = {"key": info}
    return Field(default, description=sentence, json_schema_extra=extra, **limits)


class TrainingConfig(BaseModel):
    """A config that takes the aliases of its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _take_aliases(cls, values: Any) -> Any:
        return present_names(cls, values) if isinstance(values, Mapping) else values


def aliases_of(kind: type[BaseModel]) -> dict[str, str]:
    """The aliases of a config's keys, published and older names, each with its key."""
    found: dict[str, str] = {}
    for key_name, field in kind.model_fields.items():
        info = _info(field)
        found |= dict.fromkeys((*filter(None, (info.name,)), *info.aliases), key_name)
    return {alias: key_name for alias, key_name in found.items() if alias != key_name}


def present_names(kind: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by the present names of their keys. Raises ValueError for a key given by two of its names."""
    aliases = aliases_of(kind)
    found: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for name, value in values.items():
        present = aliases.get(name, name)
        if present in spelled:
            raise ValueError(f"{spelled[present]} and {name} are two names of one key: leave one out")
        found[present], spelled[present] = value, name
    return found


def nearest_key(kind: type[BaseModel], name: str, cutoff: float = 0.6) -> str | None:
    """The key with the most similar name or alias; None if none is as similar as ``cutoff``, from 0 to 1."""
    aliases = aliases_of(kind)
    near = difflib.get_close_matches(name.lower().replace("-", "_"), [*kind.model_fields, *aliases], 1, cutoff)
    return aliases.get(near[0], near[0]) if near else None


@dataclass(frozen=True)
class ConfigKey:
    """A key as the reference shows it. Values are as in JSON.

    ``published`` is None also where the published code has no such key (`has_published`); ``published_name`` is its
    name there, None if it has none, and ``note`` says which published runs have another value.
    """

    name: str
    type: str
    required: bool
    default: Any
    has_published: bool
    published: Any
    published_name: str | None
    note: str
    sentence: str
    aliases: tuple[str, ...]

    @property
    def default_text(self) -> str:
        """The default as ``--set`` takes it."""
        return "required" if self.required else shown_value(self.default)

    @property
    def published_text(self) -> str:
        """The published value, with its note; "-" if the published code has no such key."""
        return shown_value(self.published) + (f" ({self.note})" if self.note else "") if self.has_published else "-"


def keys_of(kind: type[BaseModel]) -> list[ConfigKey]:
    """The keys of a config, in their order."""
    aliases = aliases_of(kind)
    sampling = {parameter.name: parameter.metadata for parameter in PARAMETERS}
    found = []
    for name, field in kind.model_fields.items():
        info = _info(field)
        words = type_in_words(field.annotation, field.metadata)
        if name in sampling and not field.metadata:
            allowed = sampling[name]["allowed"]
            words = allowed if words == "integer" else f"{words} {allowed}"
        required = field.is_required()
        found.append(
            ConfigKey(
                name=name,
                type=words,
                required=required,
                default=None if required else field.get_default(call_default_factory=True),
                has_published=info.has_published,
                published=info.published,
                published_name=(name if info.name is None else info.name or None) if info.has_published else None,
                note=info.note,
                sentence=field.description or sampling[name]["help"],
                aliases=tuple(alias for alias, present in aliases.items() if present == name),
            )
        )
    return found


def shown_value(value: Any) -> str:
    """A value as ``--set`` takes it: text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _info(field: FieldInfo) -> KeyInfo:
    extra = field.json_schema_extra
    found = extra.get("key") if isinstance(extra, dict) else None
    return found if isinstance(found, KeyInfo) else KeyInfo()


_SIMPLE = {int: "integer", float: "number", bool: "true or false", str: "text", Path: "path", NoneType: "null"}
_SIGNS = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}", "min_length": "with {} at least"}


def type_in_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in words, with its limits: "integer > 0", "one of none, 4bit", "list of path"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    limits = [limit for each in metadata for limit in (each.metadata if isinstance(each, FieldInfo) else [each])]
    found = [
        sign.format(getattr(each, name)) for each in limits for name, sign in _SIGNS.items() if hasattr(each, name)
    ]
    return " ".join([_bare_type(annotation, origin, inner), ", ".join(found)]).strip()


def _bare_type(annotation: Any, origin: Any, inner: tuple[Any, ...]) -> str:
    if origin is Annotated:
        return type_in_words(inner[0], inner[1:])
    if origin is Literal:
        return f"one of {', '.join(map(shown_value, inner))}"
    if origin in (Union, UnionType):
        return " or ".join(map(type_in_words, inner))
    if origin is tuple:
        number = "list of" if inner[-1] is Ellipsis else f"{len(inner)} ×"
        return f"{number} {type_in_words(inner[0])}"
    if origin is dict:
        return "object" if inner[1] is Any else f"object of {type_in_words(inner[1])}"
    if issubclass(annotation, Enum):
        return f"one of {', '.join(each.value for each in annotation)}"
    return _SIMPLE[annotation]
