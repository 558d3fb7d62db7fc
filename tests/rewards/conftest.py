"""A judge's client that waits for nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_server import MODEL, JudgeServer

from earl_cli.openai_client.retry import Backoff
from earl_cli.rewards.judge.client import Judge


@pytest.fixture
def ask(judge: JudgeServer) -> Callable[..., Judge]:
    """Makes a client of ``judge`` that backs off for milliseconds; settings of `Judge` may be given."""

    def make(cache: Path | None = None, **settings: Any) -> Judge:
        quick = {"timeout": 5.0, "backoff": Backoff(first_delay=0.002), **settings}
        return Judge(judge.api_base, MODEL, cache, **quick)

    return make
