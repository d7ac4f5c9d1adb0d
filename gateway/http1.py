"""HTTP/1.1 on one connection: requests parsed and checked, answers framed (RFC 9112).

h11, which checks the same, takes most of a short request's time on 3.13t: it looks handlers up by tuples of classes
and makes an object of each event.

Threads: a `Connection` belongs to its loop.
"""

import asyncio
import http
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import unquote

from gateway import log
from gateway.http_loop import WRITE_NOW

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

KEEP_ALIVE_SECONDS = 75.0
LINGER_SECONDS = 2.0
"""How long we read what a client still sends after an answer that did not wait for it: closing at once would reset the
connection, and the client might never see the answer."""
HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
BODY_BUFFER_BYTES = 256 * 1024
"""Reading pauses while the application has this much of a body to take."""
PREFACE = b"PRI * HTTP/2.0"

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
TARGET = re.compile(rb"[!-~]+")
VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")


class Malformed(Exception):
    """A request that cannot be answered in earnest, with the status that says so."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(slots=True)
class Head:
    """The head of a request. `length` of the body is None if it comes in chunks."""

    method: str
    target: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    length: int | None
    keeps_alive: bool
    expects_continue: bool


def parse_head(data: bytes) -> Head:
    """What stands before the empty line; raises Malformed."""
    line, *lines = data.split(b"\r\n")
    method, target, version = parse_request_line(line)
    if len(lines) > MAX_HEADERS:
        raise Malformed(431, f"more than {MAX_HEADERS} header lines")
    headers = [parse_header(line) for line in lines]
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if name not in fields:
            fields[name] = value
        elif name in (b"host", b"content-length", b"transfer-encoding"):
            raise Malformed(400, f"more than one {name.decode()}")
    if version == "1.1" and b"host" not in fields:
        raise Malformed(400, "no host")
    connection = fields.get(b"connection", b"").lower()
    return Head(
        method=method,
        target=target,
        version=version,
        headers=headers,
        length=parse_length(fields, version),
        keeps_alive=version == "1.1" and b"close" not in connection,
        expects_continue=fields.get(b"expect", b"").lower() == b"100-continue" and version == "1.1",
    )


def parse_request_line(line: bytes) -> tuple[str, bytes, str]:
    method, _, rest = line.partition(b" ")
    target, _, version = rest.partition(b" ")
    if not TOKEN.fullmatch(method) or not TARGET.fullmatch(target):
        raise Malformed(400, "no request line")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise Malformed(505 if version.startswith(b"HTTP/") else 400, "not HTTP/1.1")
    return method.decode(), target, version[5:].decode()


def parse_header(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    value = value.strip(b" \t")
    # A name must not end in blanks, and a line must not continue the one before: both have smuggled requests.
    if not colon or not TOKEN.fullmatch(name) or not VALUE.fullmatch(value):
        raise Malformed(400, "a malformed header line")
    return name.lower(), value


def parse_length(fields: dict[bytes, bytes], version: str) -> int | None:
    length, coding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or version != "1.1":
            raise Malformed(400, "transfer-encoding with content-length, or before HTTP/1.1")
        if coding.lower() != b"chunked":
            raise Malformed(501, "a transfer-encoding other than chunked")
        return None
    if length is None:
        return 0
    if not length.isdigit() or len(length) > 15:
        raise Malformed(400, "content-length is no number")
    return int(length)


class Chunks:
    """Decodes a chunked body as it comes."""

    def __init__(self) -> None:
        self._rest = 0
        """Of the chunk at hand, with the line break behind it."""
        self._in_trailer = False
        self.is_complete = False

    def take(self, buffer: bytearray) -> bytes:
        """What of the body is in `buffer`, from which all that was understood is removed; raises Malformed."""
        parts: list[bytes] = []
        while not self.is_complete and (self._take_data(buffer, parts) if self._rest else self._take_line(buffer)):
            pass
        return b"".join(parts)

    def _take_data(self, buffer: bytearray, parts: list[bytes]) -> bool:
        size = min(len(buffer), self._rest - 2)
        if size > 0:
            parts.append(bytes(buffer[:size]))
            del buffer[:size]
            self._rest -= size
        if self._rest == 2 and len(buffer) >= 2:
            if not buffer.startswith(b"\r\n"):
                raise Malformed(400, "a chunk that does not end where it said")
            del buffer[:2]
            self._rest = 0
        return self._rest == 0

    def _take_line(self, buffer: bytearray) -> bool:
        end = buffer.find(b"\r\n")
        if end < 0:
            if len(buffer) > HEAD_BYTES:
                raise Malformed(400, "a chunk's size without an end")
            return False
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        if self._in_trailer:
            self.is_complete = not line
            return True
        size = CHUNK_SIZE.fullmatch(line)
        if size is None:
            raise Malformed(400, "a chunk without a size")
        length = int(size[1], 16)
        self._in_trailer = length == 0
        self._rest = length + 2 if length else 0
        return True


@dataclass(eq=False)
class Serving:
    """What the connections of one loop share. `switch_to_http2` takes over a transport and what it has sent."""

    app: App
    state: dict[str, Any]
    switch_to_http2: Callable[[asyncio.Transport, bytes], None]
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
        now = int(time.time())
        if now != self._date_at:
            self._date, self._date_at = formatdate(now, usegmt=True).encode(), now
        return self._date


class Connection(asyncio.Protocol):
    """One client's connection; its requests are answered one after the other."""

    transport: asyncio.Transport

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self.loop = asyncio.get_running_loop()
        self.is_lost = False
        self.can_write = True
        self._buffer = bytearray()
        self._exchange: Exchange | None = None
        self._writable: asyncio.Future[None] | None = None
        self._is_lingering = False
        self._idle_since = self.loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.client = transport.get_extra_info("peername")
        self.server = transport.get_extra_info("sockname")
        self.serving.connections.add(self)
        self._timer = self.loop.call_later(KEEP_ALIVE_SECONDS, self._check_idle)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        self.serving.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._exchange is not None:
            self._exchange.leave()
        self.resume_writing()

    def eof_received(self) -> bool:
        return False  # a client that says no more does not listen either

    def pause_writing(self) -> None:
        self.can_write = False

    def resume_writing(self) -> None:
        self.can_write = True
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    async def drain(self) -> None:
        """Wait while the client is slow to read."""
        while not self.can_write and not self.is_lost:
            if self._writable is None or self._writable.done():
                self._writable = self.loop.create_future()
            await asyncio.shield(self._writable)

    def data_received(self, data: bytes) -> None:
        if self._is_lingering or self.transport.is_closing():
            return
        self._buffer += data
        try:
            if self._exchange is None:
                self._begin()
            else:
                self._exchange.feed(self._buffer)
                self._limit_pipelining()
        except Malformed as error:
            self._refuse(error)

    def next_request(self, keeps_alive: bool) -> None:
        """The exchange at hand is over."""
        self._exchange = None
        self._idle_since = self.loop.time()
        if not keeps_alive:
            self._linger()
        elif self.serving.is_stopping:
            self.transport.close()
        else:
            self.transport.resume_reading()
            if self._buffer:
                # Not from here: an application that never waits would make a client's pipeline one deep recursion.
                self.loop.call_soon(self.data_received, b"")

    def close_if_idle(self) -> None:
        if self._exchange is None:
            self.transport.close()

    def _begin(self) -> None:
        while self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 and len(self._buffer) <= HEAD_BYTES:
            return
        if not 0 <= end <= HEAD_BYTES:
            raise Malformed(431, "a request's head is too large")
        data = bytes(self._buffer[:end])
        if data == PREFACE:
            self._switch_to_http2()
            return
        head = parse_head(data)
        del self._buffer[: end + 4]
        self._exchange = exchange = Exchange(self, head)
        exchange.feed(self._buffer)
        exchange.start()

    def _limit_pipelining(self) -> None:
        if len(self._buffer) > HEAD_BYTES:
            self.transport.pause_reading()

    def _switch_to_http2(self) -> None:
        self.serving.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self.serving.switch_to_http2(self.transport, bytes(self._buffer))

    def _refuse(self, error: Malformed) -> None:
        if self._exchange is not None:
            # Its body broke off; the application sees the client leave.
            self._exchange.leave()
            self.transport.close()
            return
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            % (error.status, http.HTTPStatus(error.status).phrase.encode())
        )
        self._linger()

    def _linger(self) -> None:
        self._is_lingering = True
        if self.transport.is_closing():
            return
        self.transport.write_eof()
        self.transport.resume_reading()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _check_idle(self) -> None:
        # One timer a connection, set again when it fires: requests need not touch it.
        rest = KEEP_ALIVE_SECONDS
        if self._exchange is None:
            rest -= self.loop.time() - self._idle_since
            if rest <= 0:
                self.transport.close()
                return
        self._timer = self.loop.call_later(rest, self._check_idle)


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
        self._waiter: asyncio.Future[None] | None = None
        self._start: bytes | None = None
        """The answer's head, until it is written with what comes next."""
        self._is_chunked = False
        self._is_answered = False
        self._framing = ""
        """How the end of the answer's body is told; empty until the answer has begun."""
        self._keeps_alive = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        connection = self._connection
        path, _, query = self._head.target.partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.1"},
            "http_version": self._head.version,
            "method": self._head.method,
            "scheme": "http",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": self._head.headers,
            "client": connection.client,
            "server": connection.server,
            "state": connection.serving.state.copy(),
            "extensions": {WRITE_NOW: self.write_now},
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
        if self._framing:
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

    async def receive(self) -> Message:
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
        self._connection.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    def _framed_start(self, status: int, headers: Any) -> bytes:
        lines = [b"%b: %b\r\n" % header for header in headers]
        names = {name.lower() for name, _ in headers}
        has_body = self._head.method != "HEAD" and status not in (204, 304)
        self._framing = "length" if b"content-length" in names else "close" if has_body else "none"
        if self._framing == "close" and self._head.version == "1.1":
            self._framing = "chunked"
            lines.append(b"transfer-encoding: chunked\r\n")
        if not has_body:
            self._framing = "none"
        self._is_chunked = self._framing == "chunked"
        # What is still coming of a body would have to be read, however long it is.
        self._keeps_alive = self._head.keeps_alive and self._framing != "close" and self._has_come
        if not self._keeps_alive:
            lines.append(b"connection: close\r\n")
        if b"date" not in names:
            lines.append(b"date: %b\r\n" % self._connection.serving.date())
        return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, PHRASES.get(status, b""), b"".join(lines))

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
            self._wake()
            self._connection.next_request(self._keeps_alive)


PHRASES = {status.value: status.phrase.encode() for status in http.HTTPStatus}
