"""What an editor is to the harness: pictures and instructions in, edited pictures out, whoever draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL.Image import Image

OnProgress = Callable[[float], None]
"""Called with the share of the tasks that is done, 0 to 1."""


@dataclass(frozen=True, eq=False)
class Task:
    """An edit to be made of an upright RGB ``picture``; ``seed`` is all that its randomness may come from.

    ``id`` is the sample's own name in its benchmark.
    """

    id: str
    picture: Image
    instruction: str
    seed: int


@dataclass(frozen=True, eq=False)
class Drawn:
    """What came of a task: an RGB picture of any size, or None and in ``problem`` why there is none.

    ``reasoning`` is what the model wrote before it drew; places in it are pixels of a picture of the size ``seen``
    (width, height), None if that isn't known.
    """

    image: Image | None
    reasoning: str = ""
    problem: str = ""
    seen: tuple[int, int] | None = None


class Editor(Protocol):
    """Makes edits, ``at_once`` of them at a time at best; what comes of a task doesn't depend on its company.

    Nothing heavy is loaded before the first `edit`.
    """

    @property
    def name(self) -> str:
        """As tables name it."""
        ...

    @property
    def at_once(self) -> int: ...

    def describe(self) -> Mapping[str, Any]:
        """All that its edits depend on, ready for JSON: model, fingerprint or revision, settings, versions.

        Results of two descriptions are never mixed.
        """
        ...

    def edit(self, tasks: Sequence[Task], on_progress: OnProgress | None = None) -> list[Drawn]:
        """One `Drawn` for each task, in order. Raises EarlError where no task can be met, as with a server that is
        down; a task that alone fails comes back with its problem.
        """
        ...
