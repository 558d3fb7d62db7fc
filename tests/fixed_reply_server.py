"""A server to test against that gives every request the same reply, which a test may set."""

from __future__ import annotations

import json

from local_server import LocalHandler, LocalServer

REPLY = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "[8, 6]"}, "finish_reason": "stop"}]}


class FixedReplyServer:
    """A chat completion at first; a status from 300 on becomes one where its Location leads. ``seen`` are paths."""

    def __init__(self) -> None:
        self.status, self.body, self.headers = 200, json.dumps(REPLY).encode(), dict[str, str]()
        self.seen: list[str] = []

    def start(self) -> FixedReplyServer:
        """Listens on a free port of 127.0.0.1."""
        self.server = LocalServer(self, _Handler).start()
        return self


class _Handler(LocalHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        owner: FixedReplyServer = self.server.owner
        owner.seen.append(self.path)
        if owner.status >= 300 and owner.headers.get("Location", "").endswith(self.path):
            self.send(200, json.dumps(REPLY).encode(), {})
        else:
            self.send(owner.status, owner.body, owner.headers)
