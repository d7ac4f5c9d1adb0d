"""One client's HTTP/1.1 connection: its requests, read and answered one after the other.

Threads: everything here belongs to the loop that the connection was accepted on.
"""

import asyncio
import json
from typing import Any

from gateway.errors import BadRequest
from gateway.http1.exchange import PHRASES, Exchange, Serving
from gateway.http1.head import Malformed, parse_head
from gateway.http_loop import KEEP_ALIVE_SECONDS

LINGER_SECONDS = 2.0
"""How long we read what a client still sends after an answer that did not wait for it: closing at once would reset the
connection, and the client might never see the answer."""
SLOWEST_BYTES = 16 * 1024
"""What a client has to read in `Serving.slow_reader_seconds` while we wait for it."""
HEAD_BYTES = 32 * 1024
PREFACE = b"PRI * HTTP/2.0"


class Connection(asyncio.Protocol):
    """A client's requests, answered one after the other."""

    transport: asyncio.Transport

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self.loop = asyncio.get_running_loop()
        self.is_lost = False
        self.can_write = True
        self.client: Any = None
        self.server: Any = None
        self.scheme = "http"
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
        self.scheme = "http" if transport.get_extra_info("sslcontext") is None else "https"
        self.serving.connections.add(self)
        self._timer = self.loop.call_later(KEEP_ALIVE_SECONDS, self._check_idle)
        if self.client is None or len(self.serving.connections) > self.serving.max_connections:
            transport.abort()  # it left before we came to look; or there are too many

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
        """Wait while the client is slow to read, and cut it when it is too slow."""
        while not self.can_write and not self.is_lost:
            unread = self.transport.get_write_buffer_size()
            if self._writable is None or self._writable.done():
                self._writable = self.loop.create_future()
            await asyncio.wait((self._writable,), timeout=self.serving.slow_reader_seconds)
            if not self.can_write and unread - self.transport.get_write_buffer_size() < SLOWEST_BYTES:
                self.transport.abort()
                return

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

    def end_exchange(self, keeps_alive: bool) -> None:
        """The exchange at hand has been answered."""
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
            raise Malformed(431, f"the request's head is larger than {HEAD_BYTES >> 10} KiB")
        data = bytes(self._buffer[:end])
        if data == PREFACE:
            self._switch_to_http2()
            return
        head = parse_head(data)
        del self._buffer[: end + 4]
        exchange = self._exchange = Exchange(self, head)
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
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.leave()  # its body broke off: for the application the client has left
            if exchange.has_begun:
                self.transport.abort()  # cut off, so that nobody takes half an answer for a whole one
                return
        body = json.dumps(BadRequest(str(error)).body()).encode()
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (error.status, PHRASES[error.status], len(body), body)
        )
        self._linger()

    def _linger(self) -> None:
        self._is_lingering = True
        self._buffer.clear()
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():  # not so with TLS
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
