"""The sampling parameters: how commands, configs, forms, model folders and engines say how to sample.

A parameter is one field of `SamplingParams`. The options of the commands (`earl_cli.commands._options`), the fields of
the HTTP form and the entries of earl.json are derived from these fields. `earl_cli.generation.sampling` applies them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

from earl_cli.errors import UsageError

SEEDS = 2**31  # a seed is from 0 to SEEDS - 1
ALWAYS_WRITTEN = ("temperature", "top_k", "top_p")
"""Written even where they are the default; results folders are named by a digest of these three."""
SHOWN = 40  # characters of a value that isn't allowed


def _parameter(default: float, help: str, allowed: str, allows: Callable[[float], bool]) -> Any:
    return field(default=default, metadata={"help": help, "allowed": allowed, "allows": allows})


@dataclass(frozen=True)
class SamplingParams:
    """How one of the allowed tokens is sampled, in the order of the fields; the defaults are the published values.

    Raises UsageError, with the parameter's name as the place, for a value that isn't allowed.
    """

    temperature: float = _parameter(
        1.0,
        "Divides the logits; 0 takes the likeliest token.",
        "0 (greedy) or at least 0.000001",
        lambda value: value == 0 or 1e-6 <= value < float("inf"),
    )
    top_k: int = _parameter(
        2048,
        "Sample among the k likeliest tokens; 0 is no limit.",
        "a whole number below 2147483648 (0: no limit)",
        lambda value: abs(value) < 2**31,
    )
    top_p: float = _parameter(
        1.0,
        "Sample among the likeliest tokens whose probabilities sum to p.",
        "above 0 and at most 1",
        lambda value: 0 < value <= 1,
    )
    min_p: float = _parameter(
        0.0,
        "Leave out tokens below this share of the likeliest one's probability; 0 leaves out none.",
        "from 0 (off) to 1",
        lambda value: 0 <= value <= 1,
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if wrong := problem(each, value):
                raise UsageError(wrong, where=each.name)
            if kind_of(each) is int:
                object.__setattr__(self, each.name, int(value))  # JSON may have a whole number as 64.0

    def updated(self, values: Any) -> SamplingParams:
        """These parameters, but those that the mapping ``values`` has by name. Raises UsageError for anything else."""
        if not isinstance(values, Mapping):
            raise UsageError(f"must be an object with sampling parameters, not {_shown(values)}")
        known = [each.name for each in fields(self)]
        for name in values:
            if name not in known:
                raise UsageError(f"there is no sampling parameter {_shown(name)}", hint=f"there are {', '.join(known)}")
        return replace(self, **values)

    def to_dict(self) -> dict[str, float]:
        """By name, ready for JSON; parameters that were added later are in it only where they aren't the default."""
        return {
            each.name: value
            for each in fields(self)
            if (value := getattr(self, each.name)) != each.default or each.name in ALWAYS_WRITTEN
        }

    @classmethod
    def from_dict(cls, values: Any) -> SamplingParams:
        """The inverse of `to_dict`; what is missing is the default. Raises UsageError as `updated` does."""
        return cls().updated(values)

    def __str__(self) -> str:
        """One line for people: "temperature 1, top-k 2048, top-p 1"."""
        return ", ".join(
            f"{name.replace('_', '-')} {value if isinstance(value, int) else format(value, 'g')}"
            for name, value in self.to_dict().items()
        )


PARAMETERS: tuple[Field[Any], ...] = fields(SamplingParams)
"""In order: ``name``, ``default``, and ``metadata`` with "help" and "allowed" in words."""


def kind_of(parameter: Field[Any]) -> type[int] | type[float]:
    """The type of a parameter's values."""
    return type(parameter.default)  # type: ignore[return-value]


def problem(parameter: Field[Any], value: object) -> str | None:
    """What is wrong with a value, as "must be above 0 and at most 1, not 1.5"; None if it is allowed."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = kind_of(parameter) is float or (is_number and value == value // 1)  # type: ignore[operator]
    if is_number and whole and parameter.metadata["allows"](value):
        return None
    return f"must be {parameter.metadata['allowed']}, not {_shown(value)}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
