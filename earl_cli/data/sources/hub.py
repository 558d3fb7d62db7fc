"""Data sets on the Hub, streamed or from its cache; no code of a repository is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earl_cli.data.sources.base import ALL_SPLITS, choose_split
from earl_cli.data.sources.hf_disk import saved_source
from earl_cli.data.sources.hub_files import fetch, hub_errors
from earl_cli.data.sources.parquet import open_parquet
from earl_cli.data.sources.webdataset import open_tars
from earl_cli.errors import InputError, UsageError
from earl_cli.models.hub import HUB_ID

if TYPE_CHECKING:
    from earl_cli.data.sources.base import Source


def open_hub(
    spec: str,
    *,
    subset: str | None = None,
    split: str | None = None,
    data_files: Sequence[str] = (),
    revision: str | None = None,
    streaming: bool = False,
) -> Source:
    """The rows of a split of ``org/name[@revision]``.

    ``data_files`` are patterns of files in the repository. ``streaming`` reads Parquet in place instead of downloading
    it. Raises InputError if the data set doesn't exist or can't be reached, UsageError for a missing or ambiguous
    split.
    """
    repo, revision = _repo(spec, revision)
    where = f"{repo}@{revision}" if revision else repo
    from datasets import concatenate_datasets, load_dataset, load_dataset_builder

    settings: dict[str, Any] = {"name": subset, "revision": revision, "data_files": list(data_files) or None}
    with hub_errors(where):
        try:
            builder = load_dataset_builder(repo, **settings)
        except ValueError as error:
            raise _unclear_subset(error, repo, revision, subset, where) or error from None
        splits = {str(name): [str(file) for file in files] for name, files in (builder.config.data_files or {}).items()}
        chosen = list(splits) if split == ALL_SPLITS else [choose_split(list(splits), split, where)]
        files = [file for name in chosen for file in splits[name]]
        module = type(builder).__module__.rpartition(".")[2]
        if module == "parquet":
            return open_parquet(repo, files, None, streaming=streaming)
        if streaming:
            what = f"only Parquet can be streamed, this data set is of the kind {module}"
            raise UsageError(what, where=where, hint="leave out --streaming")
        if module == "webdataset":
            return open_tars(repo, [Path(fetch(file)) for file in files])
        parts = [load_dataset(repo, split=name, **settings) for name in chosen]
        return saved_source(repo, concatenate_datasets(parts) if len(parts) > 1 else parts[0], None)


def fetch_published(spec: str, subset: str | None, split: str | None) -> Path:
    """The folder in the Hub's cache with the tokenized data of ``subset``/``split`` of ``org/name[@revision]``.

    Raises InputError that lists the folders of the data set if there is no such one.
    """
    repo, revision = _repo(spec, None)
    part = "/".join(filter(None, (subset, split)))
    from huggingface_hub import HfApi, snapshot_download

    patterns = [f"{part}/*"] if part else None
    with hub_errors(spec):
        folder = Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=patterns))
    if not (folder / part).exists():
        with hub_errors(spec):
            files = HfApi().list_repo_files(repo, repo_type="dataset", revision=revision)
        available = sorted({"/".join(file.split("/")[:2]) for file in files if file.count("/") > 1})
        raise InputError(
            f"there is no folder {part}", where=spec, hint=f"there are {', '.join(available[:20]) or 'none'}"
        )
    return folder / part


def is_hub_id(text: str) -> bool:
    """Whether this has the form ``org/name[@revision]``."""
    return HUB_ID.fullmatch(text) is not None


def _repo(spec: str, revision: str | None) -> tuple[str, str | None]:
    match = HUB_ID.fullmatch(spec)
    if match is None:
        raise UsageError("this is no folder or file, and no Hub id org/name", where=spec)
    return match["repo"], revision or match["revision"]


def _unclear_subset(
    error: ValueError, repo: str, revision: str | None, subset: str | None, where: str
) -> UsageError | None:
    """The error for a missing or unknown configuration, with those that exist; None if ``error`` is about something
    else."""
    from datasets import get_dataset_config_names

    if "config" not in str(error).lower():
        return None
    available = ", ".join(get_dataset_config_names(repo, revision=revision))
    what = f"there is no configuration {subset!r}" if subset else "the data set has several configurations"
    return UsageError(what, where=where, hint=f"--subset is one of {available}")
