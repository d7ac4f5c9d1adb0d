"""One request and its answer, between a connection's bytes and an ASGI application."""

import asyncio
import http
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Protocol
from urllib.parse import unquote

from gateway import log
from gateway.http1.chunks import Chunks
from gateway.http1.head import Head
from gateway.http_loop import READ_NOW, WHEN_LEFT, WRITE_NOW

type Message = MutableMapping[str, Any]
type App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

BODY_BUFFER_BYTES = 256 * 1024
"""Reading pauses while the application has this much of a body to take."""
PHRASES = {status.value: status.phrase.encode() for status in http.HTTPStatus}


class Connection(Protocol):
    """What an exchange needs of the connection it is on."""

    serving: "Serving"
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    client: Any
    server: Any
    scheme: str
    can_write: bool

    async def drain(self) -> None:
        """Wait while the client is slow to read."""

    def end_exchange(self, keeps_alive: bool) -> None:
        """The exchange at hand has been answered."""

    def close_if_idle(self) -> None:
        """Close it unless it is in an exchange."""


@dataclass(eq=False)
class Serving:
    """What the connections of one loop share. `switch_to_http2` takes over a transport and what it has sent.

    A connection above `max_connections` is closed, and so is one whose client reads next to nothing of what waits for
    it in `slow_reader_seconds`.
    """

    app: App
    state: dict[str, Any]
    switch_to_http2: Callable[[asyncio.Transport, bytes], None]
    max_connections: int = sys.maxsize
    slow_reader_seconds: float = 30.0
    connections: set["Connection"] = field(default_factory=set)
    is_stopping: bool = False
    _date: bytes = b""
    _date_at: int = 0

    def stop(self) -> None:
        """Close every connection, the busy ones after their answer."""
        self.is_stopping = True
        for connection in list(self.connections):
            connection.close_if_idle()

    def date(self) -> bytes:
        """For the header of that name."""
        now = int(time.time())
        if now != self._date_at:
            self._date, self._date_at = formatdate(now, usegmt=True).encode(), now
        return self._date


class Exchange:
    """One request and its answer, as ASGI's scope, receive and send."""

    __slots__ = (
        "_chunks",
        "_connection",
        "_framing",
        "_has_left",
        "_head",
        "_is_answered",
        "_is_chunked",
        "_is_read",
        "_keeps_alive",
        "_on_left",
        "_parts",
        "_rest",
        "_size",
        "_start",
        "_task",
        "_waiter",
    )

    def __init__(self, connection: Connection, head: Head) -> None:
        self._connection = connection
        self._head = head
        self._rest = head.length or 0
        self._chunks = Chunks() if head.length is None else None
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._is_read = False
        """The application has had the whole body."""
        self._has_left = False
        self._on_left: Callable[[], None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._start: bytes | None = None
        """The answer's head, until it is written with what comes next."""
        self._is_chunked = False
        self._is_answered = False
        self._framing = ""
        """How the end of the answer's body is told; empty until the answer has begun."""
        self._keeps_alive = False
        self._task: asyncio.Task[None] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether something of the answer may have been written."""
        return bool(self._framing) and self._start is None

    def start(self) -> None:
        """Have the application answer."""
        connection = self._connection
        path, _, query = self._head.target.partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.1"},
            "http_version": self._head.version,
            "method": self._head.method,
            "scheme": connection.scheme,
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": self._head.headers,
            "client": connection.client,
            "server": connection.server,
            "state": connection.serving.state.copy(),
            "extensions": {READ_NOW: self.read_now, WRITE_NOW: self.write_now, WHEN_LEFT: self.when_left},
        }
        self._task = connection.loop.create_task(self._run(scope))

    async def _run(self, scope: Message) -> None:
        connection = self._connection
        try:
            await connection.serving.app(scope, self.receive, self.send)
        except Exception as error:
            log.logger.error("the application failed", exc_info=error)
        if self._is_answered or self._has_left:
            return
        if self.has_begun:
            connection.transport.abort()  # cut off, so that nobody takes half an answer for a whole one
        else:
            await self.send({"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"0")]})
            await self.send({"type": "http.response.body", "body": b""})

    # --- the request ------------------------------------------------------------------------------------------------

    @property
    def _has_come(self) -> bool:
        return self._chunks.is_complete if self._chunks is not None else self._rest == 0

    def feed(self, buffer: bytearray) -> None:
        """Take what belongs to the body; raises Malformed."""
        if self._has_come:
            return
        if self._chunks is not None:
            part = self._chunks.take(buffer)
        else:
            part = bytes(buffer[: self._rest])
            del buffer[: self._rest]
            self._rest -= len(part)
        if part:
            self._parts.append(part)
            self._size += len(part)
            if self._size > BODY_BUFFER_BYTES:
                self._connection.transport.pause_reading()
        self._wake()

    def leave(self) -> None:
        """The client is gone."""
        self._has_left = True
        self._wake()
        if self._on_left is not None:
            self._on_left()

    def when_left(self, callback: Callable[[], None]) -> None:
        """Have `callback()` called if the client leaves before its answer is complete, at once if it has."""
        self._on_left = callback
        if self._has_left:
            callback()

    def read_now(self) -> bytes | None:
        """The whole body, if it is here."""
        if not self._has_come or self._is_read or self._has_left or len(self._parts) != 1:
            return None
        if self._size > BODY_BUFFER_BYTES:
            self._connection.transport.resume_reading()
        self._is_read, self._size = True, 0
        return self._parts.popleft()

    async def receive(self) -> Message:
        """ASGI's."""
        while not (self._parts or self._has_left or self._is_answered or (self._has_come and not self._is_read)):
            await self._wait()
        if self._has_left or self._is_answered:
            return {"type": "http.disconnect"}
        part = self._parts.popleft() if self._parts else b""
        self._size -= len(part)
        if self._size <= BODY_BUFFER_BYTES:
            self._connection.transport.resume_reading()
        self._is_read = self._has_come and not self._parts
        return {"type": "http.request", "body": part, "more_body": not self._is_read}

    async def _wait(self) -> None:
        if self._head.expects_continue and not self._framing:
            self._head.expects_continue = False
            self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._waiter = self._connection.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- the answer -------------------------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """ASGI's."""
        if self._is_answered or self._has_left:
            return
        if message["type"] == "http.response.start":
            self._start = self._framed_start(message["status"], message.get("headers", ()))
            return
        if not self._framing:
            raise RuntimeError("a body before http.response.start")
        self._write(message.get("body", b""), is_last=not message.get("more_body", False))
        if not self._connection.can_write:
            await self._connection.drain()

    def write_now(self, body: bytes) -> bool:
        """Write part of a chunked body, unless there is something to wait for."""
        if not self._is_chunked or self._is_answered or self._has_left or not self._connection.can_write:
            return False
        if self._start is not None:
            return False
        if self._connection.transport.is_closing():
            return True  # the client is gone, of which we shall be told
        self._connection.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    def _framed_start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        lines = [b"%b: %b\r\n" % header for header in headers]
        names = {name for name, _ in headers}
        self._framing = self._framing_of(status, b"content-length" in names)
        self._is_chunked = self._framing == "chunked"
        if self._is_chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        # What is still to come of a body would have to be read, however long it is.
        has_come, is_stopping = self._has_come, self._connection.serving.is_stopping
        self._keeps_alive = self._head.keeps_alive and self._framing != "close" and has_come and not is_stopping
        if not self._keeps_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"date: %b\r\n" % self._connection.serving.date())
        phrase = PHRASES[status] if status in PHRASES else b""
        return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, phrase, b"".join(lines))

    def _framing_of(self, status: int, has_length: bool) -> str:
        if self._head.method == "HEAD" or status in (204, 304):
            return "none"
        if has_length:
            return "length"
        return "chunked" if self._head.version == "1.1" else "close"

    def _write(self, body: bytes, is_last: bool) -> None:
        data = b"" if self._framing == "none" else body
        if self._is_chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if is_last:
                data += b"0\r\n\r\n"
        if self._start is not None:
            data, self._start = self._start + data, None
        if data:
            self._connection.transport.write(data)
        if is_last:
            self._is_answered = True
            self._on_left = None
            self._wake()
            self._connection.end_exchange(self._keeps_alive)
