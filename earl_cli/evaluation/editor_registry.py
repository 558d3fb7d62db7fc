"""Editors by name: a model, a baseline, an endpoint, finished images, or the unchanged source."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urldefrag

from earl_cli.errors import UsageError
from earl_cli.evaluation.editors import BenchmarkEditor, EditorOutput, EditTask, OnFraction

if TYPE_CHECKING:
    from earl_cli.generation.editor import EngineName
    from earl_cli.tokens.layout import Mode

COPY, FINISHED = "copy", "results:"
OutputSize = Literal["source", "model"]
_LABEL = re.compile(r"([\w.+-]+)=(.+)")


@dataclass(frozen=True)
class EditorOptions:
    """Settings of all editors; None stands for the default of the model or the benchmark."""

    device: str = "auto"
    mode: Mode = "edit"
    sampling: Mapping[str, float] = field(default_factory=dict)
    image_area: int | None = None
    size: OutputSize | None = None
    engine: EngineName = "auto"
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    endpoint_key_variable: str = "OPENAI_API_KEY"
    endpoint_seed: bool = True
    on_load: Callable[[str], None] = lambda _: None


def find_editor(spec: str, options: EditorOptions) -> Callable[[OutputSize], BenchmarkEditor]:
    """The editor for ``[NAME=]WHAT``, as a function of a benchmark's output size; a model is loaded only once.

    WHAT is `COPY`, a baseline (``instruct-pix2pix``, or ``instruct-pix2pix:PLACE`` with other weights),
    ``results:FOLDER``, ``https://HOST/v1#MODEL``, or a model as `load_model` finds it. Raises UsageError or
    MissingExtraError.
    """
    labelled = _LABEL.fullmatch(spec)
    label, what = (labelled[1], labelled[2]) if labelled else (None, spec)
    editor = _special_editor(what, options)
    if editor is not None:
        named = editor if label is None else _Named(label, editor)
        return lambda _: named
    return _model_editor(label, what, options)


def is_endpoint(spec: str) -> bool:
    """Whether a spec of `find_editor` names a server that edits images."""
    labelled = _LABEL.fullmatch(spec)
    return (labelled[2] if labelled else spec).partition(":")[0] in ("http", "https")


def _special_editor(what: str, options: EditorOptions) -> BenchmarkEditor | None:
    from earl_cli.evaluation.baselines import BASELINES, open_baseline

    kind, _, place = what.partition(":")
    if what == COPY:
        from earl_cli.evaluation.editors import copy_editor

        return copy_editor()
    if kind in BASELINES:
        return open_baseline(kind, place or None, options.device)
    if what.startswith(FINISHED):
        from earl_cli.evaluation.editors import open_finished

        return open_finished(Path(place).expanduser())
    if is_endpoint(what):
        from earl_cli.evaluation.endpoint import open_endpoint

        address, model = urldefrag(what)
        if not model:
            raise UsageError("which of its models?", where=what, hint=f"{address}#MODEL")
        return open_endpoint(address, model, options.endpoint_key_variable, send_seed=options.endpoint_seed)
    return None


def _model_editor(label: str | None, what: str, options: EditorOptions) -> Callable[[OutputSize], BenchmarkEditor]:
    from earl_cli.evaluation.editors import EarlEditor
    from earl_cli.generation.editor import load_editor
    from earl_cli.models.hub import display_name

    load = cache(
        partial(
            load_editor,
            what,
            device=options.device,
            sampling=options.sampling,
            mode=options.mode,
            image_area=options.image_area,
            engine=options.engine,
            engine_args=options.engine_args,
        )
    )
    name = label or display_name(what)
    return lambda size: EarlEditor(
        name=name,
        spec=what,
        size=options.size or size,
        load=load,
        mode=options.mode,
        sampling=options.sampling,
        image_area=options.image_area,
        engine_args=options.engine_args,
        on_load=options.on_load,
    )


@dataclass(frozen=True)
class _Named:
    """An editor under another name."""

    name: str
    editor: BenchmarkEditor

    @property
    def batch_size(self) -> int:
        return self.editor.batch_size

    def describe(self) -> Mapping[str, Any]:
        return {**self.editor.describe(), "name": self.name}

    def edit(self, tasks: Sequence[EditTask], on_progress: OnFraction | None = None) -> list[EditorOutput]:
        return self.editor.edit(tasks, on_progress)
