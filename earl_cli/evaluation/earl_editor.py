"""EARL's own models as editors, by the same path as ``earl edit``: every model folder or Hub id, through any engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from earl_cli.evaluation.editors import Drawn, OnProgress, Task
from earl_cli.images.resize import shapes

if TYPE_CHECKING:
    from earl_cli.generation.editing import Draft
    from earl_cli.generation.editor import Editor
    from earl_cli.tokens.layout import Mode

TOGETHER, MANY = 8, 128


@dataclass(frozen=True)
class EarlEditor:
    """``spec`` None is the embedded model; ``sampling`` has only what was said, the rest is the model's own choice.

    ``size`` "model" gives pictures as the model drew them, "source" as ``earl edit`` composes them. ``load`` gives the
    same loaded model whenever it is called.
    """

    name: str
    spec: str | None
    size: Literal["source", "model"]
    load: Callable[[], Editor]
    mode: Mode = "edit"
    sampling: Mapping[str, float] = field(default_factory=dict)
    image_area: int | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    on_load: Callable[[str], None] = lambda _: None

    @property
    def at_once(self) -> int:
        """As `Editor.at_once`; vLLM fills its batch by itself, so it gets many."""
        loaded = self.__dict__.get("_loaded")
        return MANY if loaded is not None and loaded.engine_name == "vllm" else TOGETHER

    def describe(self) -> Mapping[str, Any]:
        """As `Editor.describe`; the device isn't in it, as far as pictures don't depend on it."""
        from earl_cli.generation.editor import sampling_of
        from earl_cli.models.abilities import fingerprint as abilities_digest
        from earl_cli.models.bundle import identify
        from earl_cli.models.hub import called

        description, fingerprint = identify(self.spec)
        abilities = description.content.get("abilities")
        return {
            "name": self.name,
            "kind": "earl",
            "model": called(self.spec),
            "fingerprint": fingerprint,
            "sampling": asdict(sampling_of(description.content.get("sampling") or {}, self.sampling)),
            "mode": self.mode,
            "image_area": self.image_area or description.image_area,
            "shapes": shapes(() if self.image_area else description.grids),
            "size": self.size,
            **({"abilities": abilities_digest(abilities)} if abilities else {}),
            **({"engine_args": dict(self.engine_args)} if self.engine_args else {}),
        }

    def edit(self, tasks: Sequence[Task], on_progress: OnProgress | None = None) -> list[Drawn]:
        """As `Editor.edit`: one batch, whose first pictures are decoded while the last ones are drawn."""
        from earl_cli.generation.editing import Job, draft
        from earl_cli.generation.postprocess import Beside

        def progress(done: int, expected: int) -> None:
            if on_progress and expected:
                on_progress(done / expected)

        jobs = [Job(task.picture, task.instruction, (task.seed,)) for task in tasks]
        drawn: dict[int, Future[Drawn]] = {}
        loaded = self._loaded
        with Beside() as beside:

            def take(number: int, drafts: Sequence[Draft]) -> None:
                drawn[number] = beside.submit(self._drawn, tasks[number], drafts[0])

            draft(loaded.model, loaded.engine, jobs, loaded.settings, progress, take)
            return [drawn[number].result() for number in range(len(tasks))]

    def _drawn(self, task: Task, draft: Draft) -> Drawn:
        from earl_cli.generation.editing import decoded, render
        from earl_cli.models.vision import spatial_factor

        answer, model = draft.answer, self._loaded.model
        height, width = (spatial_factor(model.vision) * side for side in draft.source.shape)
        reasoning, seen = answer.thoughts or "", (width, height)
        if answer.codes is None:
            return Drawn(None, reasoning, answer.problem or "no picture was drawn", seen)
        edited = render(model, task.picture, decoded(model, draft.source), draft, self.size)
        return Drawn(edited.image, reasoning, edited.problem or "", seen)

    @cached_property
    def _loaded(self) -> Editor:
        loaded = self.load()
        self.on_load(f"{self.name}: {loaded.model.plan} · {loaded.engine_name}")
        return loaded
