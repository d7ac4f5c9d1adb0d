"""How answers are written: one JSON body, or server-sent events."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from json.encoder import encode_basestring
from typing import Any

from gateway.errors import GatewayError, Headers
from gateway.http_loop import WRITE_NOW
from gateway.types import Event, RequestRecord, Text

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
LINE_BREAKS = {"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"}
"""What some clients take for the end of a line of the stream, though neither SSE nor JSON does."""


def quoted(text: str) -> str:
    """A string as JSON, with only the escapes that it needs."""
    result: str = encode_basestring(text)
    return result if text.isascii() else on_one_line(result)


def on_one_line(json_of_text: str) -> str:
    """JSON whose strings hold nothing that a client might take for the end of a line."""
    for character, escape in LINE_BREAKS.items():
        if character in json_of_text:
            json_of_text = json_of_text.replace(character, escape)
    return json_of_text


JSON = b"application/json"
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
    """What a request waited for up to its first token, and between the two workers that shared it, in seconds."""
    passed = {"queue": record.queue_seconds, "render": record.render_seconds, "tokenize": record.tokenize_seconds}
    if record.admission_seconds:
        passed["admission"] = record.admission_seconds
    if record.routed:
        passed["route"] = record.routed - record.prepared
    if record.first_token:
        passed["engine"] = record.first_token - record.routed
    if record.handoff_seconds:
        passed["handoff"] = record.handoff_seconds
    return passed


def server_timing(record: RequestRecord) -> str:
    """The stages a request has passed, as the header of that name has them: milliseconds each.

    What the token cache knew of the prompt (hit, part, miss, off) is the description of `tokenize`.
    """
    passed = stages(record)
    if record.first_token and record.last_token:
        passed["decode"] = record.last_token - record.first_token
    entries = {name: f"{name};dur={seconds * 1000:.3f}" for name, seconds in passed.items()}
    if record.token_cache:
        entries["tokenize"] += f';desc="{record.token_cache}"'
    return ", ".join(entries.values())


async def send_json(scope: Scope, send: Send, value: Any, status: int = 200) -> None:
    await send_body(scope, send, to_json(value), JSON, status)


async def send_body(
    scope: Scope, send: Send, body: bytes, content_type: bytes, status: int = 200, others: Headers | None = None
) -> None:
    """`others` are further headers."""
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *(others or ())]
    await _start(scope, send, headers, status)
    await send({"type": "http.response.body", "body": body})


async def send_error(scope: Scope, send: Send, error: GatewayError) -> None:
    """The error as the response, or, when one has begun to stream, as its last event."""
    if scope["record"].status == 0:
        await send_body(scope, send, to_json(error.body()), JSON, error.status, error.headers())
    elif scope["record"].is_streaming:
        await send({"type": "http.response.body", "body": event_of(error.body())})


class EventWriter:
    """An `Output` that streams: what `parts_of` makes of each event goes out in one write.

    Text goes out at once where the server has a way to write without waiting, and nothing is waiting already; all else
    gathers for the next `flush` or the `end`. The response starts with the first part, so that what fails before it
    still gets its own status. Only one `flush` at a time.
    """

    def __init__(self, scope: Scope, send: Send, parts_of: Callable[[Event], bytes]) -> None:
        self._scope = scope
        self._send = send
        self._parts_of = parts_of
        self._write_now: Callable[[bytes], bool] | None = scope["extensions"].get(WRITE_NOW)
        self._unsent: list[bytes] = []

    def put(self, event: Event) -> bool:
        part = self._parts_of(event)
        if not part:
            return True
        if self._write_now is not None and not self._unsent and type(event) is Text and self._write_now(part):
            return True
        self._unsent.append(part)
        return False

    async def flush(self) -> None:
        await self._write(more=True)

    async def end(self) -> None:
        """What has gathered, and the end of the response."""
        await self._write(more=False)

    async def _write(self, more: bool) -> None:
        if not self._scope["record"].is_streaming:
            await _start(self._scope, self._send, list(EVENT_HEADERS))
            self._scope["record"].is_streaming = True
        parts, self._unsent = self._unsent, []
        if parts or not more:
            await self._send({"type": "http.response.body", "body": b"".join(parts), "more_body": more})


async def _start(scope: Scope, send: Send, headers: list[tuple[bytes, bytes]], status: int = 200) -> None:
    record = scope["record"]
    record.status = status
    headers.append((b"x-request-id", record.request_id.encode()))
    if record.prepared:
        headers.append((b"server-timing", server_timing(record).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
