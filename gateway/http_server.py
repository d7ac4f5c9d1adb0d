"""HTTP on one event loop: HTTP/1.1 by gateway.http1, HTTP/2 and the lifespan by hypercorn.

Threads: everything runs on the loop that `serve` was called on.
"""

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from hypercorn.asyncio.lifespan import Lifespan
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.protocol import h2
from hypercorn.typing import AppWrapper
from hypercorn.utils import wrap_app

from gateway import log
from gateway.errors import ClientLeft
from gateway.http1 import Connection, Serving
from gateway.http_loop import BACKLOG, KEEP_ALIVE_SECONDS, Message, Receive, ServerSettings
from gateway.tls import HANDSHAKE_SECONDS

type Send = Callable[[Message], Awaitable[None]]
PLAIN = ServerSettings(None, max_connections=sys.maxsize, slow_reader_seconds=30.0)
PART_BYTES = 64 * 1024
PROTOCOLS = ("h2", "http/1.1")


async def serve(app: Any, listener: socket.socket, stopping: asyncio.Event, settings: ServerSettings = PLAIN) -> None:
    """Serve `app` on `listener` until `stopping` is set, then until the last open connection ends.

    The ASGI lifespan runs once around it.
    """
    loop, config = asyncio.get_running_loop(), hypercorn_settings()
    state: dict[str, Any] = {}
    wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
    lifespan = Lifespan(wrapped, config, loop, state)
    lifespan_task = loop.create_task(lifespan.handle_lifespan())
    await lifespan.wait_for_startup()
    slowest = settings.slow_reader_seconds
    in_time: Any = InTime(app, slowest)
    http2 = Http2(wrap_app(in_time, config.wsgi_max_body_size, "asgi"), config, state)
    serving = Serving(app, state, http2.take_over, settings.max_connections, slowest)
    tls = settings.tls.context(PROTOCOLS) if settings.tls else None
    server = await loop.create_server(
        lambda: Connection(serving),
        sock=listener,
        backlog=BACKLOG,
        ssl=tls,
        ssl_handshake_timeout=HANDSHAKE_SECONDS if tls else None,
    )
    await stopping.wait()
    server.close()
    serving.stop()
    await http2.context.terminated.set()
    await server.wait_closed()
    await lifespan.wait_for_shutdown()
    lifespan_task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await lifespan_task


class PacedBuffer(h2.StreamBuffer):
    """What a stream has not sent yet, such that its writer waits while that is much.

    hypercorn's own (0.18) lets the writer go on whenever little was taken out, also when that was because the client
    takes nothing: then all of an answer gathers here.
    """

    async def push(self, data: bytes) -> None:
        if self._complete:
            raise h2.BufferCompleteError()
        self.buffer.extend(data)
        await self._is_empty.clear()
        if len(self.buffer) >= h2.BUFFER_HIGH_WATER:
            await self._paused.clear()
            await self._paused.wait()

    async def pop(self, max_length: int) -> bytes:
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if len(self.buffer) < h2.BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


h2.StreamBuffer = PacedBuffer  # type: ignore[misc]


class InTime:
    """An application whose clients must read on: over HTTP/2, one that leaves its window closed has left."""

    def __init__(self, app: Any, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, partial(self._send, send))

    async def _send(self, send: Send, message: Message) -> None:
        body = message.get("body", b"")
        while len(body) > PART_BYTES:  # each part has its time
            await self._send_in_time(send, {**message, "body": body[:PART_BYTES], "more_body": True})
            body = body[PART_BYTES:]
        await self._send_in_time(send, {**message, "body": body} if body else message)

    async def _send_in_time(self, send: Send, message: Message) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await send(message)
        except TimeoutError:
            raise ClientLeft("the client reads too slowly") from None


class Http2:
    """hypercorn's HTTP/2, for the connections of clients that begin with it (prior knowledge)."""

    def __init__(self, app: AppWrapper, config: Config, state: dict[str, Any]) -> None:
        self.context = WorkerContext(None)
        self._arguments = (app, asyncio.get_running_loop(), config, self.context, state)

    def take_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """Serve the client of `transport`, of which `data` has been read."""
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader, self._connected)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await TCPServer(*self._arguments, reader, writer)


def hypercorn_settings() -> Config:
    """What hypercorn's protocols need to know."""
    config = Config()
    config.keep_alive_timeout = int(KEEP_ALIVE_SECONDS)
    config.keep_alive_max_requests = sys.maxsize
    config.include_server_header = False
    server_log = log.logger.getChild("http")
    server_log.setLevel(logging.WARNING)
    config.errorlog = server_log
    return config
