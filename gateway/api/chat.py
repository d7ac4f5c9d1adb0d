"""/v1/chat/completions: its body lowered to a GenerateRequest, its events folded to one reply or to a stream."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from engine_adapters.base import Sampling
from gateway.api.body import Fields, read_json
from gateway.api.reply import Scope, Send, event_of, quoted, send_events, send_json
from gateway.generate import Gateway, generate
from gateway.http_loop import Receive
from gateway.types import ChatInput, Done, Event, GenerateRequest, Text, Usage

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MAX_STOPS = 16
MAX_TOKENS = 1 << 31
MAX_SEED = 1 << 63


@dataclass(frozen=True, slots=True)
class Shape:
    """How the client wants its answer."""

    stream: bool
    include_usage: bool


class ChatCompletions:
    """The endpoint, as an ASGI application."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway, loop, record = self._gateway, scope["state"]["loop"], scope["record"]
        fields = await read_json(receive, gateway.config.max_body_mb << 20, gateway.tokenize)
        request, shape = lower(fields, record.request_id)
        record.model = gateway.model(request.model).name
        async with loop.answering(receive):
            events = generate(gateway, loop, request, record)
            answer = Answer(request)
            if shape.stream:
                await send_events(scope, send, answer.stream(events, shape.include_usage))
            else:
                await send_json(scope, send, await answer.whole(events))


def lower(fields: Fields, request_id: str) -> tuple[GenerateRequest, Shape]:
    """Raises BadRequest with the path of what is wrong."""
    model = fields.text("model")
    messages = fields.each("messages", read_message)
    max_tokens = fields.integer("max_completion_tokens", 1, MAX_TOKENS) or fields.integer("max_tokens", 1, MAX_TOKENS)
    sampling = Sampling(
        temperature=fields.number("temperature", 0, 2),
        top_p=fields.number("top_p", 0, 1),
        seed=fields.integer("seed", -MAX_SEED, MAX_SEED - 1),
    )
    request = GenerateRequest(
        request_id=request_id,
        model=model,
        input=ChatInput(messages),
        sampling=sampling,
        max_tokens=max_tokens,
        stop=fields.texts("stop", MAX_STOPS),
    )
    options = fields.object("stream_options")
    return request, Shape(stream=fields.boolean("stream"), include_usage=options.boolean("include_usage"))


def read_message(fields: Fields) -> dict[str, Any]:
    """A message as the chat template takes it: its content one text, all other fields as they are."""
    role = fields.text("role")
    if role not in ROLES:
        fields.refuse("role", f"must be one of {', '.join(ROLES)}")
    content = fields.values.get("content")
    if content is None and role != "assistant":
        fields.refuse("content", "is required")
    if isinstance(content, list):
        content = "".join(fields.each("content", read_text_part))
    elif content is not None and not isinstance(content, str):
        fields.refuse("content", "must be a string or a list of parts")
    return {**fields.values, "content": content}


def read_text_part(fields: Fields) -> str:
    kind = fields.text("type")
    if kind != "text":
        fields.refuse("type", f"is {kind!r}, but this model takes only text")
    text = fields.values.get("text")
    if not isinstance(text, str):
        fields.refuse("text", "must be a string")
    return text


class Answer:
    """The folds of one answer."""

    def __init__(self, request: GenerateRequest) -> None:
        self._head = {"id": f"chatcmpl-{request.request_id}", "created": int(time.time()), "model": request.model}

    async def whole(self, events: AsyncGenerator[Event]) -> dict[str, Any]:
        parts: list[str] = []
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Text):
                    parts.append(event.text)
                else:
                    finish = event
        message = {"role": "assistant", "content": "".join(parts), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish.finish_reason}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage_body(finish.usage)}

    async def stream(self, events: AsyncGenerator[Event], include_usage: bool) -> AsyncGenerator[bytes]:
        """Each part goes out in one write. The head and the tail of a text's event are made once."""
        usage_field = {"usage": None} if include_usage else {}
        before, after = self._frame(usage_field)
        first = self._chunk({"role": "assistant", "content": ""}, None, usage_field)
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Text):
                    yield first + (before + quoted(event.text) + after).encode()
                else:
                    yield first + self._end(event, usage_field, include_usage)
                first = b""

    def _frame(self, usage_field: dict[str, Any]) -> tuple[str, str]:
        """What stands before and after the quoted text of each event."""
        mark = "\x00"
        before, after = self._chunk({"content": mark}, None, usage_field).decode().split(quoted(mark))
        return before, after

    def _end(self, event: Done, usage_field: dict[str, Any], include_usage: bool) -> bytes:
        end = self._chunk({}, event.finish_reason, usage_field)
        if include_usage:
            usage = {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage_body(event.usage)}
            end += event_of(usage)
        return end + b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, str], finish_reason: str | None, usage_field: dict[str, Any]) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": [choice], **usage_field}
        return event_of(chunk)


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
