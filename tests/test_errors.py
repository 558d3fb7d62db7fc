"""Errors for people: the same after they came from another process."""

from __future__ import annotations

import pickle
import pkgutil
from collections.abc import Iterator
from importlib import import_module

import pytest

import earl_cli
from earl_cli.data.sources.base import BadRowError
from earl_cli.errors import EarlError

ELSEWHERE = ("vllm", "__main__")


def classes(of: type[EarlError]) -> Iterator[type[EarlError]]:
    yield of
    for each in of.__subclasses__():
        yield from classes(each)


@pytest.mark.slow  # it imports every module, to know every class
def test_every_error_is_the_same_after_it_came_from_another_process() -> None:
    for module in pkgutil.walk_packages(earl_cli.__path__, "earl_cli."):
        if not any(part in module.name for part in ELSEWHERE):
            import_module(module.name)
    found = list(classes(EarlError))
    assert len(found) > 9
    for each in found:
        first = ("data",) if each is BadRowError else ()
        error = each(*first, "it broke", where="a.png", hint="mend it")
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.args, again.__dict__) == (each, error.args, error.__dict__)
        assert str(again) == "a.png: it broke (mend it)"


def test_a_bad_row_keeps_its_kind_in_another_process() -> None:
    again = pickle.loads(pickle.dumps(BadRowError("url", "gone", where="row 3")))
    assert (again.kind, str(again)) == ("url", "row 3: gone")
