"""HTTP on one event loop: hypercorn's protocols, with a short way out for streamed chunks and timers instead of tasks.

hypercorn's own path from `send` to the socket makes three event objects and passes h11's state machine for each chunk,
and keeps a task per idle connection. On 3.13t that is most of what a streamed token costs (docs/performance.md). The
subclasses here replace those two things only; parsing, HTTP/2, limits and errors stay hypercorn's.

Threads: everything runs on the loop that `serve` was called on.
"""

import asyncio
import contextlib
import logging
import socket
import sys
from typing import Any

import h11
from hypercorn.asyncio.lifespan import Lifespan
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Request
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.typing import ASGISendEvent, ConnectionState
from hypercorn.utils import parse_socket_addr, wrap_app

from gateway import log
from gateway.http_loop import WRITE_NOW

BACKLOG = 4096
KEEP_ALIVE_SECONDS = 75


async def serve(app: Any, listener: socket.socket, stopping: asyncio.Event) -> None:
    """Serve `app` on `listener` until `stopping` is set, then until the last open connection ends.

    The ASGI lifespan runs once around it.
    """
    loop, config = asyncio.get_running_loop(), settings()
    state: dict[str, Any] = {}
    wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
    lifespan = Lifespan(wrapped, config, loop, state)
    lifespan_task = loop.create_task(lifespan.handle_lifespan())
    await lifespan.wait_for_startup()
    context, connections = WorkerContext(None), set[Connection]()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(wrapped, loop, config, context, state, reader, writer)
        connections.add(connection)
        try:
            await connection.run()
        finally:
            connections.discard(connection)

    server = await asyncio.start_server(connected, sock=listener, backlog=config.backlog)
    await stopping.wait()
    server.close()
    await context.terminated.set()
    for connection in connections:
        connection.close_if_idle()
    await server.wait_closed()
    await lifespan.wait_for_shutdown()
    lifespan_task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await lifespan_task


def settings() -> Config:
    """What hypercorn's protocols need to know."""
    config = Config()
    config.backlog = BACKLOG
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.keep_alive_max_requests = sys.maxsize
    config.include_server_header = False
    server_log = log.logger.getChild("http")
    server_log.setLevel(logging.WARNING)
    config.errorlog = server_log
    return config


class Connection(TCPServer):
    """One client's connection. Its keep-alive is a timer of the loop, where hypercorn has a task for each."""

    _idle_timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        connection = self.writer.get_extra_info("socket")
        try:
            client = parse_socket_addr(connection.family, connection.getpeername())
            server = parse_socket_addr(connection.family, connection.getsockname())
            async with TaskGroup(self.loop) as self._task_group:
                self.protocol = Protocols(
                    self.app,
                    self.config,
                    self.context,
                    self._task_group,
                    ConnectionState(self.state),
                    False,
                    client,
                    server,
                    self.protocol_send,
                )
                self.protocol.use_writer(self.writer)
                self._set_idle(True)
                await self._read_data()
        except OSError:
            pass  # the client left
        finally:
            self._set_idle(False)
            await self._close()

    def close_if_idle(self) -> None:
        if self._idle_timer is not None:
            self.writer.close()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            try:
                self.writer.write(event.data)
                await self.writer.drain()
            except (ConnectionError, RuntimeError):
                await self.protocol.handle(Closed())
        elif isinstance(event, Updated):
            self._set_idle(event.idle)
        elif isinstance(event, Closed):
            await self._close()

    def _set_idle(self, is_idle: bool) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if is_idle:
            seconds = 0 if self.context.terminated.is_set() else self.config.keep_alive_timeout
            self._idle_timer = self.loop.call_later(seconds, self.writer.close)


class Protocols(ProtocolWrapper):
    """HTTP/1.1 as below; HTTP/2, which hypercorn switches to when a client begins with it, as it is."""

    protocol: Any

    def use_writer(self, writer: asyncio.StreamWriter) -> None:
        self.protocol = Http1(
            writer,
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.state,
            self.ssl,
            self.client,
            self.server,
            self.send,
        )


class Http1(H11Protocol):
    """h11, whose streams may write the chunks of a body themselves."""

    def __init__(self, writer: asyncio.StreamWriter, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._writer = writer

    async def _create_stream(self, request: h11.Request) -> None:
        self.stream = ChunkedStream(
            self._writer,
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1


class ChunkedStream(HTTPStream):
    """Parts of a chunked body go to the socket in their framing at once; h11's state does not depend on them."""

    def __init__(self, writer: asyncio.StreamWriter, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._writer = writer
        self._transport = writer.transport
        self._is_chunked = False

    async def handle(self, event: StreamEvent) -> None:
        await super().handle(event)
        if isinstance(event, Request):
            # Not too late: the application begins to run when this one waits for the next time.
            self.scope["extensions"][WRITE_NOW] = self.write_now  # type: ignore[assignment]

    def write_now(self, body: bytes) -> bool:
        """Write a part of a chunked body, unless there is something to wait for."""
        if not self._is_chunked or self.closed or self._transport.get_write_buffer_size():
            return False
        self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    async def app_send(self, message: ASGISendEvent | None) -> None:
        if self._is_chunked and message is not None and message.get("more_body"):
            body: bytes = message["body"]  # type: ignore[typeddict-item]  # only body messages have more_body
            if body and not self.closed and not self.write_now(body):
                self._writer.write(b"%x\r\n%b\r\n" % (len(body), body))
                with contextlib.suppress(ConnectionError, RuntimeError):  # the reading side will tell
                    await self._writer.drain()
            return
        await super().app_send(message)
        if message is not None and message["type"] == "http.response.start":
            has_length = any(name == b"content-length" for name, _ in message["headers"])
            self._is_chunked = not has_length and self.scope["http_version"] == "1.1" and self.scope["method"] != "HEAD"
        elif self.state is not ASGIHTTPState.RESPONSE:
            self._is_chunked = False
