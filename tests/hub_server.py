"""A Hub to test against: a web server on this machine that speaks the read part of the Hub's protocol over real files.

The real client libraries work with it, in this process and in others. It serves no Xet, so they use plain HTTP, and it
is their proxy for every other host, so that no test reaches one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from local_server import MOMENT, LocalHandler, LocalServer

TOKEN = "hf_of_somebody_with_access"
LARGE_FILES = (".arrow", ".bin", ".parquet", ".safetensors", ".tiktoken", ".zip")
CHUNK = 1 << 16
TIMEOUT = 5
WHEN = "2025-01-01T00:00:00.000Z"
API = re.compile(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass(frozen=True)
class Repository:
    """What ``id`` is on the Hub: for each revision's name the folder with its files; "main" is the default one.

    ``gated`` shows the file list to everyone and gives files out with `TOKEN` only; ``private`` shows nothing without.
    """

    id: str
    revisions: Mapping[str, Path]
    kind: Literal["model", "dataset"] = "model"
    gated: bool = False
    private: bool = False

    def sha(self, name: str = "main") -> str:
        """The 40 hex digits of the commit that revision ``name`` is at."""
        return hashlib.sha1(f"{self.kind} {self.id} {name} {self.revisions[name]}".encode()).hexdigest()


@dataclass
class Request:
    """One request as the server saw it: ``sent`` counts the bytes of the body, ``range`` is its Range header."""

    method: str
    path: str
    range: str | None = None
    status: int = 0
    sent: int = 0


@dataclass
class Hub:
    """The server, from `start` to `stop`; ``home`` is where its clients keep their cache, ``endpoint`` its address."""

    home: Path
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    endpoint: str = ""
    cuts: dict[tuple[str, str], float] = field(default_factory=dict)

    def start(self) -> Hub:
        """Listens on a free port of 127.0.0.1."""
        self.server = LocalServer(self, _Handler).start()
        self.endpoint = self.server.address
        return self

    def stop(self) -> None:
        """Ends every connection and listens no more; a second time is nothing."""
        self.server.stop()

    def add(self, repository: Repository) -> Repository:
        """Serves one more repository, or another in place of the one with this kind and id."""
        self.repositories[repository.kind, repository.id] = repository
        return repository

    def break_off(self, repo_id: str, path: str, times: float = float("inf")) -> None:
        """Ends the connection after half of the promised bytes of a file, for the next so many requests."""
        self.cuts[repo_id, path] = times

    def heal(self) -> None:
        """Ends what `break_off` began."""
        self.cuts.clear()

    def forget(self) -> None:
        """Empties the list of requests."""
        self.requests.clear()

    def sent(self, path: str) -> int:
        """How many bytes of a file went out so far, over all requests."""
        return sum(request.sent for request in self.requests if urlsplit(request.path).path.endswith("/" + path))

    @property
    def environment(self) -> dict[str, str]:
        """The whole environment for a process that is to know only this Hub."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().startswith(("HF_", "HUGGING", "TRANSFORMERS_")) and "proxy" not in name.lower()
        }
        return {
            **kept,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "HF_HUB_ETAG_TIMEOUT": str(TIMEOUT),
            "HF_HUB_DOWNLOAD_TIMEOUT": str(TIMEOUT),
            **self.proxies,
        }

    @property
    def proxies(self) -> dict[str, str]:
        """Variables that lead requests for other hosts here, to be refused: ``datasets`` calls one that can't exist."""
        return {"http_proxy": self.endpoint, "https_proxy": self.endpoint, "no_proxy": "127.0.0.1"}


class _RefusalError(Exception):
    """Answers with an error as the Hub words it: status, X-Error-Code, X-Error-Message."""


class _Handler(LocalHandler):
    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_CONNECT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.request_seen = Request(self.command, self.path, self.headers.get("Range"))
        self.server.owner.requests.append(self.request_seen)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self._route(body)
        except _RefusalError as refusal:
            status, code, message = refusal.args
            content = json.dumps({"error": message}).encode()
            self._send(status, content, {"X-Error-Code": code, "X-Error-Message": message}, "application/json")

    def _route(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        if file := FILE.fullmatch(path):
            kind = "dataset" if file[1] else "model"
            return self._file(*self._find(kind, file[2], file[3]), unquote(file[4]))
        api = API.fullmatch(path)
        if not api:
            raise _RefusalError(HTTPStatus.NOT_FOUND, "NotFound", "there is nothing at this address")
        repository, name = self._find(api[1], api[2], api[4] or "main")
        folder = repository.revisions[name]
        if api[3] == "tree":
            return self._json(_tree(folder, unquote(api[5] or ""), parse_qs(query)))
        if api[3] == "paths-info":
            requested = parse_qs(body.decode())
            found = [folder / path for path in requested.get("paths", []) if (folder / path).exists()]
            return self._json([_entry(folder, path, requested) for path in found])
        return self._json(_info(repository, name))

    def _find(self, kind: str, repo_id: str, revision: str) -> tuple[Repository, str]:
        """The repository and its revision's name; ``revision`` is that name or the commit."""
        repository = self.server.owner.repositories.get((kind, repo_id))
        if repository is None or (repository.private and not self._has_access()):
            # The Hub doesn't tell strangers which of both; from an https address its clients know without the code.
            if self.headers.get("Authorization"):
                raise _RefusalError(HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
            raise _RefusalError(HTTPStatus.UNAUTHORIZED, "RepoNotFound", "Invalid username or password.")
        for name in repository.revisions:
            if unquote(revision) in (name, repository.sha(name)):
                return repository, name
        raise _RefusalError(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {unquote(revision)}")

    def _has_access(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _file(self, repository: Repository, name: str, path: str) -> None:
        if repository.gated and not self._has_access():
            about = f"Access to {repository.kind} {repository.id} is restricted"
            if self.headers.get("Authorization"):
                raise _RefusalError(
                    HTTPStatus.FORBIDDEN, "GatedRepo", f"{about} and you are not in the authorized list."
                )
            what = f"{about}. You must have access to it and be authenticated to access it. Please log in."
            raise _RefusalError(HTTPStatus.UNAUTHORIZED, "GatedRepo", what)
        file = repository.revisions[name] / path
        commit = {"X-Repo-Commit": repository.sha(name)}
        if not file.is_file() or ".." in PurePosixPath(path).parts:
            missing = {**commit, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self._send(HTTPStatus.NOT_FOUND, b"Entry not found", missing)
        content = file.read_bytes()
        blob, sha256 = _digests(file)
        headers = {**commit, "ETag": f'"{blob}"', "Accept-Ranges": "bytes"}
        if file.suffix in LARGE_FILES:
            headers |= {"ETag": f'"{sha256}"', "X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
        status, size = HTTPStatus.OK, len(content)
        if requested := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first = int(requested[1]) if requested[1] else size - int(requested[2])
            last = min(int(requested[2]), size - 1) if requested[1] and requested[2] else size - 1
            if first >= size:
                return self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", {"Content-Range": f"bytes */{size}"})
            status, content = HTTPStatus.PARTIAL_CONTENT, content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        if self.command == "GET" and self.server.owner.cuts.get((repository.id, path), 0) > 0:
            self.server.owner.cuts[repository.id, path] -= 1
            self._send(status, content, headers, upto=len(content) // 2)
            return self.drop()
        return self._send(status, content, headers)

    def _json(self, value: object) -> None:
        self._send(HTTPStatus.OK, json.dumps(value).encode(), {}, "application/json")

    def _send(
        self,
        status: int,
        content: bytes,
        headers: Mapping[str, str],
        type: str = "application/octet-stream",
        upto: int | None = None,
    ) -> None:
        self.request_seen.status = status
        self.send_response(status)
        for name, value in {**headers, "Content-Type": type, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        content = content[:upto]
        for start in range(0, len(content), CHUNK):
            part = content[start : start + CHUNK]
            self.request_seen.sent += len(part)
            self.wfile.write(part)


def _info(repository: Repository, name: str) -> dict[str, object]:
    folder = repository.revisions[name]
    files = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        "_id": hashlib.sha1(repository.id.encode()).hexdigest()[:24],
        "id": repository.id,
        "author": repository.id.split("/", maxsplit=1)[0],
        "sha": repository.sha(name),
        "private": repository.private,
        "gated": "auto" if repository.gated else False,
        "disabled": False,
        "lastModified": WHEN,
        "createdAt": WHEN,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": [{"rfilename": file} for file in files],
    } | ({"modelId": repository.id} if repository.kind == "model" else {})


def _tree(folder: Path, under: str, requested: Mapping[str, list[str]]) -> list[dict[str, object]]:
    start = folder / under
    if not start.is_dir():
        raise _RefusalError(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{under} does not exist on this revision")
    found = start.rglob("*") if _is_set(requested, "recursive") else start.iterdir()
    return [_entry(folder, path, requested) for path in sorted(found)]


def _entry(folder: Path, path: Path, requested: Mapping[str, list[str]]) -> dict[str, object]:
    """A file or folder as the Hub lists it; ``expand`` among the fields ``requested`` adds the last commit."""
    name = str(path.relative_to(folder))
    commit = (
        {"lastCommit": {"id": "0" * 40, "title": "add files", "date": WHEN}} if _is_set(requested, "expand") else {}
    )
    if path.is_dir():
        return {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0, "path": name} | commit
    (blob, sha256), size = _digests(path), path.stat().st_size
    large = {"lfs": {"oid": sha256, "size": size, "pointerSize": 134}} if path.suffix in LARGE_FILES else {}
    return {"type": "file", "oid": blob, "size": size, "path": name} | large | commit


def _is_set(requested: Mapping[str, list[str]], name: str) -> bool:
    return requested.get(name, [""])[0].lower() in ("true", "1")


def _digests(file: Path) -> tuple[str, str]:
    """A file's name in git and its SHA-256."""
    state = file.stat()
    return _digests_of(file, state.st_mtime_ns, state.st_size)


@cache
def _digests_of(file: Path, changed: int, size: int) -> tuple[str, str]:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % size + content).hexdigest(), hashlib.sha256(content).hexdigest()


def lead_here(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    """Makes ``hub`` the only one that the client libraries in this process know, with an empty cache and short waits.

    They read the environment when they are imported, so it is their constants that change; they must be imported
    before, lest one that reads them later keeps an address that is gone.
    """
    import datasets.config
    import transformers.utils.hub  # noqa: F401
    from huggingface_hub import constants, file_download, hf_api
    from huggingface_hub.utils import _detect_agent, _http

    home = hub.home
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_ETAG_TIMEOUT": TIMEOUT,
        "HF_HUB_DOWNLOAD_TIMEOUT": TIMEOUT,
    }.items():
        patch.setattr(constants, name, value)
    for name, value in {
        "HF_ENDPOINT": hub.endpoint,
        "HUB_DATASETS_URL": hub.endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "HF_CACHE_HOME": str(home),
        "HF_DATASETS_CACHE": home / "datasets",
        "HF_MODULES_CACHE": home / "modules",
        "DOWNLOADED_DATASETS_PATH": home / "datasets" / "downloads",
        "EXTRACTED_DATASETS_PATH": home / "datasets" / "downloads" / "extracted",
        "HF_HUB_OFFLINE": False,
        "HF_UPDATE_DOWNLOAD_COUNTS": False,
        "STREAMING_READ_RETRY_INTERVAL": MOMENT,
        "STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL": MOMENT,
    }.items():
        patch.setattr(datasets.config, name, value)
    patch.setattr(hf_api.api, "endpoint", hub.endpoint)
    patch.setattr(_detect_agent, "_registry", _detect_agent._EMPTY_REGISTRY)
    hurried = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: time.sleep(min(seconds, MOMENT))})
    patch.setattr(file_download, "time", hurried)
    patch.setattr(_http, "time", hurried)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", *(name for name in os.environ if "proxy" in name.lower())):
        patch.delenv(name, raising=False)
    for name, value in hub.proxies.items():
        patch.setenv(name, value)
    leave()


def leave() -> None:
    """Ends the connections that the client libraries of this process hold, and what they remember of listings."""
    from huggingface_hub import HfFileSystem, close_session

    close_session()
    HfFileSystem.clear_instance_cache()
