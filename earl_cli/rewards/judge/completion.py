"""One chat completion: its messages, the parameters that the server accepts, and the text of the reply.

A parameter that the server refuses is renamed or left out and the prompt sent again; this is remembered for that model
of that server until the process ends.
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

from earl_cli.console import log
from earl_cli.rewards.judge.declarations import Declaration
from earl_cli.rewards.reward import Pixels

RENAMED = {"max_tokens": "max_completion_tokens"}
"""To what newer models call it."""
UNSUPPORTED = ("unsupported_parameter", "unsupported_value", "unknown_parameter", "extra_forbidden")
_REFUSED = re.compile(
    r"(?:un|not |n't )support|un(?:known|recogni[sz]ed|expected)|not (?:permitted|allowed|accepted|available|valid)"
    r"|extra (?:inputs|fields)|(?:doesn't|does not|can't|cannot) (?:take|accept|have|be (?:set|used|specified))"
    r"|deprecated|invalid (?:parameter|argument|field|property|key)|cannot find field|remove (?:the|this)",
    re.IGNORECASE,
)
_RANGE = re.compile(r"must|should|has to|may only|only .{0,40}(?:default|value)|positive|greater", re.IGNORECASE)
_refused: dict[tuple[str, str], set[str]] = {}
"""Parameters that were refused, by server address and model."""


@dataclass(frozen=True)
class ModelCompletion:
    """A model's text; where it is empty or cut off, ``incomplete`` says why."""

    text: str
    incomplete: str = ""


async def complete(
    client: openai.AsyncOpenAI, model: str, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> ModelCompletion:
    """The model's reply. Raises what openai raises, and ValueError for a response that is no chat completion."""
    refused = _refused.setdefault((str(client.base_url), model), set())
    while True:
        sent = _accepted(settings, refused)
        try:
            completion: Any = await client.chat.completions.create(model=model, messages=list(messages), **sent)  # type: ignore[arg-type]
            return _parsed(completion)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            name = refused_parameter(error, sent, _texts(messages))
            if name is None:
                raise
            if name not in refused:
                refused.add(name)
                new_name = RENAMED.get(name)
                how = f"{new_name} is sent in its place" if new_name else "it is left to the server's default"
                log.warning(f"{model} takes no {name} of {sent[name]:g}: {how}")


def build_messages(text: str, images: Sequence[Pixels], declaration: Declaration, role: str) -> list[dict[str, Any]]:
    """The messages of this text and images uint8[h, w, 3]; ``role`` is that of the text."""
    image_parts = [{"type": "image_url", "image_url": {"url": data_url(each, declaration)}} for each in images]
    if role == "system":
        return [{"role": "system", "content": text}, {"role": "user", "content": image_parts}]
    text_part = {"type": "text", "text": text}
    parts = [text_part, *image_parts] if declaration.images == "after" else [*image_parts, text_part]
    return [{"role": "user", "content": parts}]


def data_url(image: Pixels, declaration: Declaration) -> str:
    """An image uint8[h, w, 3] as a data URL of a JPEG; equal images give equal URLs."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=declaration.quality, subsampling=declaration.chroma)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def refused_parameter(error: openai.APIStatusError, sent: Mapping[str, Any], prompt: str) -> str | None:
    """The one of the ``sent`` parameters that the server refuses; None if it refuses something else.

    ``prompt`` is the prompt's text, which servers quote in messages about other things.
    """
    body = error.body if isinstance(error.body, Mapping) else {}
    message = str(body.get("message") or body or error)
    for line in prompt.splitlines():
        message = message.replace(line.strip(" \"'"), " ") if line.strip(" \"'") else message
    named = [name for name in sent if re.search(rf"\b{name}\b", message)]
    named.sort(key=lambda name: re.search(rf"\b{name}\b", message).start())  # type: ignore[union-attr]
    name = error.param if error.param in sent else next(iter(named), None)
    if name is None:
        return None
    is_range_error = name == "temperature" and _RANGE.search(message)
    return name if error.code in UNSUPPORTED or _REFUSED.search(message) or is_range_error else None


def _accepted(settings: Mapping[str, Any], refused: set[str]) -> dict[str, Any]:
    """The settings by names that weren't refused; those without such a name are left out."""
    accepted = {}
    for setting, value in settings.items():
        name: str | None = setting
        while name in refused:
            name = RENAMED.get(name)
        if name is not None:
            accepted[name] = value
    return accepted


def _texts(messages: Sequence[Mapping[str, Any]]) -> str:
    parts = [part for message in messages for part in _parts(message["content"])]
    return "\n".join(part.get("text", "") for part in parts)


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _parsed(completion: Any) -> ModelCompletion:
    try:
        choice = completion.choices[0]
        message = choice.message
        content = message.content
    except (AttributeError, IndexError, TypeError):
        problem = getattr(completion, "error", None)
        why = problem.get("message", problem) if isinstance(problem, Mapping) else problem
        raise ValueError(f"the server's response is no chat completion{f': {why}' if why else ''}") from None
    text = _text(content)
    refusal = getattr(message, "refusal", None) or _text(content, "refusal")
    if not text.strip() and isinstance(refusal, str) and refusal.strip():
        return ModelCompletion("", f"it refuses: {' '.join(refusal.split())[:200]}")
    reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    is_reasoning_only = bool(reasoning) and not text.strip()
    finish_reason = getattr(choice, "finish_reason", None)
    if finish_reason == "length":
        return ModelCompletion(text, "all its tokens were used up" + (" for reasoning" if is_reasoning_only else ""))
    if finish_reason == "content_filter":
        return ModelCompletion(text, "its server's content filter stopped it")
    return ModelCompletion(text, "it is reasoning only" if is_reasoning_only else "")


def _text(content: Any, kind: str = "text") -> str:
    """The text of a message's content, a string or a list of parts; with ``kind`` "refusal", of the refusal parts."""
    if isinstance(content, str):
        return content if kind == "text" else ""
    parts = [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
    return "".join(str(part.get(kind) or "") for part in parts if part.get("type") in (kind, f"output_{kind}"))
