"""How answers are written: one JSON body, or server-sent events."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from json.encoder import encode_basestring
from typing import Any

from gateway.errors import GatewayError
from gateway.types import RequestRecord

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
LINE_BREAKS = {"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"}
"""What some clients take for the end of a line of the stream, though neither SSE nor JSON does."""


def quoted(text: str) -> str:
    """A string as JSON, with only the escapes that it needs."""
    result: str = encode_basestring(text)
    if not text.isascii():
        for character, escape in LINE_BREAKS.items():
            if character in result:
                result = result.replace(character, escape)
    return result


EVENT_HEADERS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))


def event_of(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


json_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""A value as JSON. (`json.dumps` with options makes a new encoder for every call.)"""


def to_json(value: Any) -> bytes:
    # A client's own odd characters may come back to it in an error; they must not break the reply.
    return json_text(value).encode("utf-8", "backslashreplace")


def stages(record: RequestRecord) -> dict[str, float]:
    """What a request waited for up to its first token, in seconds."""
    passed = {"queue": record.queue_seconds, "render": record.render_seconds, "tokenize": record.tokenize_seconds}
    if record.routed:
        passed["route"] = record.routed - record.prepared
    if record.first_token:
        passed["engine"] = record.first_token - record.routed
    return passed


def server_timing(record: RequestRecord) -> str:
    """The stages a request has passed, as the header of that name has them: milliseconds each."""
    passed = stages(record)
    if record.first_token and record.last_token:
        passed["decode"] = record.last_token - record.first_token
    return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in passed.items())


async def send_json(scope: Scope, send: Send, value: Any, status: int = 200) -> None:
    await send_body(scope, send, to_json(value), b"application/json", status)


async def send_body(scope: Scope, send: Send, body: bytes, content_type: bytes, status: int = 200) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await _start(scope, send, headers, status)
    await send({"type": "http.response.body", "body": body})


async def send_error(scope: Scope, send: Send, error: GatewayError) -> None:
    """The error as the response, or, when one has begun to stream, as its last event."""
    if scope["record"].status == 0:
        await send_json(scope, send, error.body(), error.status)
    elif scope["record"].is_streaming:
        await send({"type": "http.response.body", "body": event_of(error.body())})


async def send_events(scope: Scope, send: Send, parts: AsyncGenerator[bytes]) -> None:
    """Stream `parts`, each one or more whole events.

    The response starts with the first part, so that what fails before it still gets its own status.
    """
    started = False
    async with aclosing(parts):
        async for part in parts:
            if not started:
                await _start(scope, send, list(EVENT_HEADERS))
                scope["record"].is_streaming = started = True
            await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _start(scope: Scope, send: Send, headers: list[tuple[bytes, bytes]], status: int = 200) -> None:
    record = scope["record"]
    record.status = status
    headers.append((b"x-request-id", record.request_id.encode()))
    if record.prepared:
        headers.append((b"server-timing", server_timing(record).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
