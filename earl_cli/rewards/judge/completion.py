"""One question to a chat model: its messages, the parameters that its server takes, and what it says, in words.

A parameter that a server refuses is renamed or left out, the question asked again, and that is remembered for this
model of this server as long as the process lives.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import openai
from PIL import Image

from earl_cli.console import console
from earl_cli.rewards.judge.declarations import Declaration
from earl_cli.rewards.reward import Pixels

RENAMED = {"max_tokens": "max_completion_tokens"}
"""What newer models call it."""
UNSUPPORTED = ("unsupported_parameter", "unsupported_value", "unknown_parameter", "extra_forbidden")
_REFUSED = re.compile(
    r"(?:un|not |n't )support|un(?:known|recogni[sz]ed|expected)|not (?:permitted|allowed|accepted|available|valid)"
    r"|extra (?:inputs|fields)|(?:doesn't|does not|can't|cannot) (?:take|accept|have|be (?:set|used|specified))"
    r"|deprecated|invalid (?:parameter|argument|field|property|key)|cannot find field|remove (?:the|this)",
    re.IGNORECASE,
)
_RANGE = re.compile(r"must|should|has to|may only|only .{0,40}(?:default|value)|positive|greater", re.IGNORECASE)
_refused: dict[tuple[str, str], set[str]] = {}
"""Parameters that were refused, by the server's address and the model."""


@dataclass(frozen=True)
class ModelReply:
    """What a model answered: its text, and where there is none or not all of it, ``lacking`` says why."""

    text: str
    lacking: str = ""


async def complete(
    client: openai.AsyncOpenAI, model: str, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> ModelReply:
    """The model's answer. Raises what openai raises, and ValueError for an answer that is no chat completion."""
    refused = _refused.setdefault((str(client.base_url), model), set())
    while True:
        sent = _accepted(settings, refused)
        try:
            completion: Any = await client.chat.completions.create(model=model, messages=list(messages), **sent)  # type: ignore[arg-type]
            return _saying(completion)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            name = refused_parameter(error, sent, _words(messages))
            if name is None:
                raise
            if name not in refused:
                refused.add(name)
                instead = RENAMED.get(name)
                how = f"with {instead} in its place" if instead else "without it, by the model's own"
                console.warn(f"{model} takes no {name} of {sent[name]:g}: it is asked {how}")


def messages_of(text: str, pictures: Sequence[Pixels], declaration: Declaration, role: str) -> list[dict[str, Any]]:
    """The messages with these words and pictures uint8[h, w, 3]; ``role`` is that of the words."""
    shown = [{"type": "image_url", "image_url": {"url": data_url(each, declaration)}} for each in pictures]
    if role == "system":
        return [{"role": "system", "content": text}, {"role": "user", "content": shown}]
    words = [{"type": "text", "text": text}]
    return [{"role": "user", "content": [*words, *shown] if declaration.pictures == "after" else [*shown, *words]}]


def data_url(picture: Pixels, declaration: Declaration) -> str:
    """A picture uint8[h, w, 3] as a data URL of a JPEG; equal for equal pictures."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=declaration.quality, subsampling=declaration.chroma)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def refused_parameter(error: openai.APIStatusError, sent: Mapping[str, Any], words: str) -> str | None:
    """The one of the parameters that were ``sent`` which the server minds; None if it minds something else.

    ``words`` is the question, which servers quote in messages about other things.
    """
    body = error.body if isinstance(error.body, Mapping) else {}
    said = str(body.get("message") or body or error)
    for line in words.splitlines():
        said = said.replace(line.strip(" \"'"), " ") if line.strip(" \"'") else said
    named = [name for name in sent if re.search(rf"\b{name}\b", said)]
    named.sort(key=lambda name: re.search(rf"\b{name}\b", said).start())  # type: ignore[union-attr]
    name = error.param if error.param in sent else next(iter(named), None)
    if name is None:
        return None
    is_value = name == "temperature" and _RANGE.search(said)
    return name if error.code in UNSUPPORTED or _REFUSED.search(said) or is_value else None


def _accepted(settings: Mapping[str, Any], refused: set[str]) -> dict[str, Any]:
    sent = {}
    for name, value in settings.items():
        taken: str | None = name
        while taken in refused:
            taken = RENAMED.get(taken)
        if taken is not None:
            sent[taken] = value
    return sent


def _words(messages: Sequence[Mapping[str, Any]]) -> str:
    parts = [part for message in messages for part in _parts(message["content"])]
    return "\n".join(part.get("text", "") for part in parts)


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _saying(completion: Any) -> ModelReply:
    try:
        choice = completion.choices[0]
        message = choice.message
        content = message.content
    except (AttributeError, IndexError, TypeError):
        problem = getattr(completion, "error", None)
        said = problem.get("message", problem) if isinstance(problem, Mapping) else problem
        raise ValueError(f"the server's answer is no chat completion{f': {said}' if said else ''}") from None
    text = _text(content)
    refusal = getattr(message, "refusal", None) or _text(content, "refusal")
    if not text.strip() and isinstance(refusal, str) and refusal.strip():
        return ModelReply("", f"it refuses: {' '.join(refusal.split())[:200]}")
    thoughts = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    finish = getattr(choice, "finish_reason", None)
    if finish == "length":
        return ModelReply(
            text, "all its tokens were used up" + (" for thoughts" if thoughts and not text.strip() else "")
        )
    if finish == "content_filter":
        return ModelReply(text, "its server's filter stopped it")
    return ModelReply(text, "it only thought" if thoughts and not text.strip() else "")


def _text(content: Any, kind: str = "text") -> str:
    """The text of a message's content, a string or a list of parts; of ``kind`` "refusal" that of such parts."""
    if isinstance(content, str):
        return content if kind == "text" else ""
    parts = [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
    return "".join(str(part.get(kind) or "") for part in parts if part.get("type") in (kind, f"output_{kind}"))
