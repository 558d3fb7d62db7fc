"""nginx for tests: found on this machine, or the test is skipped and says how to get one.

EARL_NGINX names another program; with EARL_NEEDS_NGINX=1 a test without one fails instead.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

HEAD = """
daemon off;
pid {room}/pid;
{user}
events {{}}
http {{
  access_log off;
  client_body_temp_path {room}/body;
  proxy_temp_path {room}/proxy;
  fastcgi_temp_path {room}/fastcgi;
  uwsgi_temp_path {room}/uwsgi;
  scgi_temp_path {room}/scgi;
  {servers}
}}
"""


def find_nginx() -> str | None:
    """The program, None if it isn't there; it makes its certificate with openssl."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    return shutil.which("openssl") and shutil.which(os.environ.get("EARL_NGINX") or "nginx", path=path)


@contextmanager
def proxying(room: Path, servers: str, port: int) -> Iterator[None]:
    """nginx with these server blocks, once it listens on ``port``; ``{room}/localhost.pem`` and ``.key`` are made."""
    program = find_nginx()
    if program is None:
        missing = "no nginx with openssl was found: `make nginx` installs both on Debian, EARL_NGINX names another"
        if os.environ.get("EARL_NEEDS_NGINX") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    certify(room)
    config = room / "nginx.conf"
    config.write_text(HEAD.format(room=room, user="user root;" if os.geteuid() == 0 else "", servers=servers))
    process = subprocess.Popen([program, "-e", "stderr", "-p", str(room), "-c", str(config)], stderr=subprocess.PIPE)
    try:
        while not listens(port):
            if process.poll() is not None:
                assert process.stderr is not None
                raise RuntimeError(process.stderr.read().decode())
        yield
    finally:
        process.terminate()
        process.communicate()


def certify(room: Path) -> None:
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    where = ["-keyout", f"{room}/localhost.key", "-out", f"{room}/localhost.pem"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(["openssl", "req", "-x509", *kind, *where, *names], check=True, capture_output=True)


def listens(port: int) -> bool:
    with closing(socket.socket()) as connection:
        connection.settimeout(0.05)
        return connection.connect_ex(("127.0.0.1", port)) == 0
