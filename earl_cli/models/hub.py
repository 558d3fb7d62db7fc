"""From the name of a model (a folder, a Hub id with a revision, or "embedded") to its folder; no code is downloaded.

Also uploads a folder as a revision on the Hub.
"""

from __future__ import annotations

import difflib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path

from earl_cli.console import log
from earl_cli.errors import ModelError, first_line

EMBEDDED = "embedded"
HUB_ID = re.compile(r"(?P<repo>[\w][\w.-]*/[\w.-]+?)(@(?P<revision>[\w./-]+))?")

CONFIGS_AND_WEIGHTS = ("*.json", "*.safetensors", "*.tiktoken", "emu3_vision_tokens.txt")
TOKENIZER_FILES = ("*.tiktoken", "emu3_vision_tokens.txt", "tokenizer.json")


def is_embedded(source: str | Path | None) -> bool:
    """Whether this is the model that ships with the package: None, or "embedded" in upper or lower case.

    A folder of that name in the current directory is ``./embedded``.
    """
    return source is None or (isinstance(source, str) and source.lower() == EMBEDDED)


def display_name(source: str | None) -> str:
    """A model's name in results: "embedded", the name of its folder, or its Hub id."""
    if source is None or is_embedded(source):
        return EMBEDDED
    folder = Path(source).expanduser()
    return folder.resolve().name if folder.is_dir() else source


def locate(
    source: str | Path | None,
    revision: str | None = None,
    *,
    allow: tuple[str, ...] = CONFIGS_AND_WEIGHTS,
    subfolder: str | None = None,
) -> Path:
    """The folder of a model: the embedded one's, ``source`` itself, or the Hub's cache with ``org/name[@revision]``.

    Of a Hub repository only files matching ``allow`` are fetched, from its root or from ``subfolder``; the path is the
    root's. An existing folder wins over a Hub id of the same spelling, and the embedded model (`is_embedded`) over a
    folder. Raises ModelError for a path that isn't there, a repository that can't be reached, isn't cached while
    offline, or doesn't exist.
    """
    if source is None or is_embedded(source):
        return _embedded(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(
            "this is a file; a model is a folder", where=str(source), hint="name the folder that holds config.json"
        )
    match = HUB_ID.fullmatch(str(source))
    if isinstance(source, Path) or match is None:
        near = difflib.get_close_matches(str(source).lower(), [EMBEDDED], 1)
        hint = f"did you mean {EMBEDDED}?" if near else f"a model is a folder, a Hub id org/name, or {EMBEDDED}"
        raise ModelError("there is no such folder", where=str(source), hint=hint)
    found = _snapshot(match["repo"], revision or match["revision"], allow, subfolder)
    if subfolder is None and allow == CONFIGS_AND_WEIGHTS and not any(found.glob("*.safetensors")):
        found = _snapshot(match["repo"], revision or match["revision"], ("*.json", "pytorch_model*.bin"), None)
    return found


def _embedded(source: str | Path | None) -> Path:
    folder = Path(str(files("earl_cli.models") / "embedded"))
    if not (folder / "config.json").is_file():
        what, hint = "the embedded model isn't in this installation", "install earl-cli again, or name a model"
        raise ModelError(what, where=str(folder), hint=hint)
    if source is not None and (Path(source) / "config.json").is_file():
        _warn_shadowed(Path(source).absolute())
    return folder


@cache
def _warn_shadowed(other: Path) -> None:
    """Warn once that the name means the embedded model where a folder has it too."""
    log.warning(f"{other.name} is the model that ships with earl; the folder {other} is ./{other.name}")


def push_to_hub(folder: Path, repository: str, revision: str) -> None:
    """Upload a model folder to the Hub, to a private repository (created if necessary), as ``revision``.

    Raises ModelError if the upload fails.
    """
    from huggingface_hub import HfApi, errors

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.create_branch(repository, branch=revision, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, revision=revision, commit_message=revision)
    except (errors.HTTPError, errors.OfflineModeIsEnabled, OSError, ValueError) as error:  # type: ignore[attr-defined]
        what = f"the upload of this checkpoint to the Hub failed: {first_line(error)}"
        raise ModelError(what, where=f"{repository}@{revision}", hint=f"check the network; {_LOG_IN}") from error


def _snapshot(repo: str, revision: str | None, allow: tuple[str, ...], subfolder: str | None) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    name = f"{repo}@{revision}" if revision else repo
    patterns = [f"{subfolder}/{pattern}" for pattern in allow] if subfolder else list(allow)
    try:
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=patterns, ignore_patterns=None if subfolder else ["*/*"]
        )
    except errors.GatedRepoError:
        raise ModelError("this model on the Hub is gated", where=name, hint=_LOG_IN) from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"the Hub has no revision {revision!r} of this model", where=name) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            "no such folder here and no such public model on the Hub", where=name, hint=f"check the spelling; {_LOG_IN}"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        offline = constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else "the Hub can't be reached"
        raise ModelError(
            f"no such folder here, and the model isn't in the Hub's cache, and {reason}",
            where=name,
            hint="unset HF_HUB_OFFLINE once to fetch it" if offline else "check the network, or give a local folder",
        ) from None
    except errors.HTTPError as error:  # type: ignore[attr-defined]  # the network library's own ones among them
        what = f"the download of this model from the Hub failed: {first_line(error)}"
        raise ModelError(what, where=name, hint="check the network, and try again") from None
    except (ValueError, OSError) as error:
        raise ModelError(f"the download of this model from the Hub failed: {first_line(error)}", where=name) from None
    return Path(folder)


_LOG_IN = "for a private or gated model, accept its terms on its page and log in with `hf auth login`"
