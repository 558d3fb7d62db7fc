"""Single files of data sets on the Hub, from its cache or read in place, and the errors of its packages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from earl_cli.errors import InputError, first_line

HUB = "hf://"
_FILE = re.compile(r"hf://datasets/(?P<repo>[^/]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<path>.+)")


def fetch(file: str) -> str:
    """The path in the Hub's cache of an ``hf://datasets/…`` file, downloaded if necessary. Raises InputError if it
    can't be."""
    from huggingface_hub import hf_hub_download

    match = _FILE.fullmatch(file)
    assert match, file
    with hub_errors(file):
        return hf_hub_download(match["repo"], match["path"], repo_type="dataset", revision=match["revision"])


def open_in_place(file: str) -> Any:
    """A seekable stream of an ``hf://`` file that downloads only the ranges that are read."""
    from huggingface_hub import HfFileSystem

    return HfFileSystem().open(file, block_size=1 << 20)


@contextmanager
def hub_errors(where: str) -> Iterator[None]:
    """Errors of the Hub's packages as InputError."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError, DatasetsError
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    login = "for a private or gated data set, accept its terms on its page and log in with `hf auth login`"
    try:
        yield
    except (DatasetNotFoundError, errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        if str(error).startswith("Revision"):
            raise InputError("the Hub has no such revision of this data set", where=where) from None
        gated = isinstance(error, errors.GatedRepoError) or "gated" in str(error)
        what = "this data set is gated: its terms have to be accepted" if gated else "there is no such public data set"
        raise InputError(what, where=where, hint=login) from None
    except errors.RevisionNotFoundError:
        raise InputError("the Hub has no such revision of this data set", where=where) from None
    except DatasetGenerationError as error:  # downloaded, but it can't be read as one table
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        hint = "download it with `hf download` and name its folder: then only bad rows are left out"
        raise InputError(f"`datasets` can't read this data: {first_line(cause)}", where=where, hint=hint) from None
    except (DatasetsError, HTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        hint = "start again when the Hub can be reached; finished shards are kept"
        raise InputError(f"the Hub's data can't be read: {first_line(error)}", where=where, hint=hint) from None
