"""/v1/chat/completions: its body lowered to a GenerateRequest, its events folded to one reply or to a stream."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from engine_adapters.base import Sampling
from gateway.api.body import Fields, read_json
from gateway.api.reply import Scope, Send, json_text, quoted, send_events, send_json
from gateway.generate import Gateway, generate
from gateway.http_loop import Receive
from gateway.types import ChatInput, Event, GenerateRequest, Text, Usage

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
        self._id = f"chatcmpl-{request.request_id}"
        self._created = int(time.time())
        self._model = request.model

    async def whole(self, events: AsyncGenerator[Event]) -> dict[str, Any]:
        parts: list[str] = []
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Text):
                    parts.append(event.text)
                else:
                    finish = event
        message = {"role": "assistant", "content": "".join(parts), "refusal": None}
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [
                {"index": 0, "message": message, "logprobs": None, "finish_reason": finish.finish_reason},
            ],
            "usage": usage_body(finish.usage),
        }

    async def stream(self, events: AsyncGenerator[Event], include_usage: bool) -> AsyncGenerator[bytes]:
        """Each part goes out in one write. What all events of the stream have in common is written out once."""
        head = (
            f'data: {{"id":{quoted(self._id)},"object":"chat.completion.chunk","created":{self._created},'
            f'"model":{quoted(self._model)},"choices":['
        )
        tail = '],"usage":null}\n\n' if include_usage else "]}\n\n"
        before, after = head + '{"index":0,"delta":{"content":', '},"logprobs":null,"finish_reason":null}' + tail
        opening = head + ROLE_CHOICE + tail
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Text):
                    yield f"{opening}{before}{quoted(event.text)}{after}".encode()
                else:
                    usage = f'{head}],"usage":{json_text(usage_body(event.usage))}}}\n\n' if include_usage else ""
                    choice = END_CHOICE % quoted(event.finish_reason)
                    yield f"{opening}{head}{choice}{tail}{usage}data: [DONE]\n\n".encode()
                opening = ""


ROLE_CHOICE = '{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
END_CHOICE = '{"index":0,"delta":{},"logprobs":null,"finish_reason":%s}'


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
