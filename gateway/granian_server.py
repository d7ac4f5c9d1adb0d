"""HTTP on one event loop by granian, whose HTTP is Rust: `--server granian`, with the extra of that name installed.

granian speaks RSGI to us, which `Exchange` turns into ASGI. Its own ASGI loses requests without a GIL, and so would a
plain `await` of what RSGI gives us: see `settled`.

Threads: `serve` runs on its caller's loop, as does every request; granian has threads of its own for the sockets.
"""

import asyncio
import socket
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from granian._granian import RSGIProtocolClosed, SocketHolder
from granian.asgi import LifespanProtocol
from granian.constants import Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.server.embed import Server

from gateway.http_loop import BACKLOG, KEEP_ALIVE_SECONDS, WHEN_LEFT, WRITE_NOW, Message, ServerSettings

PLAIN = ServerSettings(None, max_connections=16384, slow_reader_seconds=30.0)
"""granian's own limit for connections is its backlog of 128, with which 256 of them hung."""
WATCH_AFTER_SECONDS = 0.05
"""To ask granian whether a client has left costs two hops between threads, which short requests do without. Nothing is
missed by it: granian remembers."""
ASGI = {"version": "3.0", "spec_version": "2.3"}
HTTP_VERSIONS = {"1": "1.0"}
"""RSGI's names for versions of HTTP, where they are not ASGI's."""
HAS_LEFT = {"type": "http.disconnect"}


async def serve(app: Any, listener: socket.socket, stopping: asyncio.Event, settings: ServerSettings = PLAIN) -> None:
    """Serve `app` on `listener` until `stopping` is set, then until the last open connection ends.

    The ASGI lifespan runs once around it.
    """
    lifespan = LifespanProtocol(app)  # type: ignore[no-untyped-call]
    await lifespan.startup()  # type: ignore[no-untyped-call]
    if lifespan.exc is not None:
        raise lifespan.exc
    server = Listener(Exchanges(app, lifespan.state), listener, settings)
    serving = asyncio.create_task(server.serve())
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    server.stop()  # type: ignore[no-untyped-call]
    await serving
    await lifespan.shutdown()  # type: ignore[no-untyped-call]


class Listener(Server):
    """granian's embeddable server, on a socket of ours."""

    def __init__(self, app: Any, listener: socket.socket, settings: ServerSettings) -> None:
        certificate, key = settings.tls.paths if settings.tls else (None, None)
        super().__init__(
            app,
            interface=Interfaces.RSGI,
            backlog=BACKLOG,
            backpressure=settings.max_connections,
            http1_settings=HTTP1Settings(header_read_timeout=int(KEEP_ALIVE_SECONDS * 1000)),
            websockets=False,
            log_enabled=False,
            ssl_cert=certificate,
            ssl_key=key,
            ssl_protocol_min=SSLProtocols.tls12,
        )
        listener.setblocking(False)
        self._listener = listener

    def _init_shared_socket(self) -> None:
        # The stubs know neither this constructor nor that the attribute is one.
        self._shd = SocketHolder(self._listener.detach(), False, BACKLOG)  # type: ignore[call-arg,assignment]


class Exchanges:
    """An ASGI application as an RSGI one."""

    def __init__(self, app: Any, state: dict[str, Any]) -> None:
        self._app = app
        self._state = state
        self._multiplexed: dict[str, set[Exchange]] = {}
        """The open exchanges of each HTTP/2 connection, by the client's address."""

    async def __call__(self, request: Any, protocol: Any) -> None:
        exchange = Exchange(request, protocol)
        siblings = self._join(request.client, exchange) if exchange.scope["http_version"] == "2" else None
        exchange.scope["state"] = self._state.copy()
        try:
            await self._app(exchange.scope, exchange.receive, exchange.send)
        finally:
            exchange.close()
            if siblings is not None:
                siblings.discard(exchange)
                if not siblings:
                    self._multiplexed.pop(request.client, None)

    def _join(self, client: str, exchange: "Exchange") -> "set[Exchange]":
        """granian tells only one of a connection's exchanges that it has ended, and that one tells the others."""
        siblings = self._multiplexed.setdefault(client, set())
        siblings.add(exchange)
        exchange.siblings = siblings
        return siblings


class Exchange:
    """One request and its answer: granian's request and protocol as ASGI's scope, receive and send.

    Nothing waits for a slow reader: what a client has not read is kept by granian, at most the whole of its answer.
    """

    __slots__ = (
        "_head",
        "_loop",
        "_on_left",
        "_parts",
        "_protocol",
        "_timer",
        "_transport",
        "_unread",
        "_watch",
        "has_left",
        "scope",
        "siblings",
    )

    def __init__(self, request: Any, protocol: Any) -> None:
        self.scope = scope_of(request)
        self.scope["extensions"] = {WRITE_NOW: self.write_now, WHEN_LEFT: self.when_left}
        self.siblings: Collection[Exchange] = (self,)
        self.has_left = False
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._parts: Any = None
        self._unread = body_size(request)
        self._head: tuple[int, list[tuple[str, str]]] | None = None
        self._transport: Any = None
        self._on_left: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watch: Any = None

    async def receive(self) -> Message:
        if self._unread is None or self._unread > 0:
            return await self._receive_part()
        if self._parts is None:
            self._parts = ()
            return {"type": "http.request", "body": b"", "more_body": False}
        left = self._loop.create_future()
        self.when_left(partial(wake, left))
        await left
        return HAS_LEFT

    async def _receive_part(self) -> Message:
        if self._parts is None:
            self._parts = aiter(self._protocol)
        try:
            part: bytes = await settled(anext(self._parts))
        except StopAsyncIteration:  # the end of a body whose length was not told
            part, self._unread = b"", 0
        if self._unread is not None:
            if not part and self._unread:
                return HAS_LEFT
            self._unread -= len(part)
        return {"type": "http.request", "body": part, "more_body": self._unread != 0}

    async def send(self, message: Message) -> None:
        body: bytes = message.get("body", b"")
        if message["type"] == "http.response.start":
            headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]]
            self._head = message["status"], headers
            if not any(name == "content-length" for name, _ in headers):
                self._transport = self._protocol.response_stream(*self._head)
        elif self._transport is None:
            assert self._head is not None and not message.get("more_body"), "a body of a known length comes whole"
            self._protocol.response_bytes(*self._head, body)
        else:
            if body:
                self.write_now(body)
            if not message.get("more_body"):
                self._transport = None  # dropping it ends the body

    def write_now(self, body: bytes) -> bool:
        """Write a part of a streamed body, which never waits."""
        if self._transport is None:
            return False
        try:
            next(self._transport.send_bytes(body), None)  # an awaitable for RSGI's sake, and ready
        except RSGIProtocolClosed:
            self._loop.call_soon(self.leave)  # not now: the caller is in the midst of handing out tokens
        return True

    def when_left(self, callback: Callable[[], None]) -> None:
        self._on_left = callback
        if self.has_left:
            callback()
        elif self._timer is None:
            self._timer = self._loop.call_later(WATCH_AFTER_SECONDS, self._begin_watch)

    def _begin_watch(self) -> None:
        self._watch = self._protocol.client_disconnect()
        self._watch.add_done_callback(self._seen)
        self._seen(self._watch)

    def _seen(self, watch: Any) -> None:
        if watch.done() and watch is self._watch:  # not taken back by `close`
            for exchange in list(self.siblings):
                exchange.leave()

    def leave(self) -> None:
        """The client is gone."""
        if not self.has_left:
            self.has_left = True
            if self._on_left is not None:
                self._on_left()

    def close(self) -> None:
        """The answer is complete, or there will be none.

        Everything is let go now and not by the garbage collector: so granian learns that the rest of a body is not
        wanted. (It does with its next request: until then its thread, whose object it was, sees to no references.)
        """
        self.scope["extensions"].clear()
        self.siblings = ()
        self._on_left = self._transport = self._parts = self._protocol = None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()


def scope_of(request: Any) -> dict[str, Any]:
    """ASGI's scope, but for what the server knows."""
    headers = [(name.encode(), value.encode()) for name, value in request.headers.items()]
    if request.authority is not None and b"host" not in dict(headers):  # HTTP/2 has it apart
        headers.append((b"host", request.authority.encode()))
    host, _, port = request.client.rpartition(":")
    return {
        "type": "http",
        "asgi": ASGI,
        "http_version": HTTP_VERSIONS.get(request.http_version, request.http_version),
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "query_string": request.query_string.encode(),
        "root_path": "",
        "headers": headers,
        "client": (host.strip("[]"), int(port)),
    }


def body_size(request: Any) -> int | None:
    """Of a request's body, in bytes; None when only its end will tell."""
    if "transfer-encoding" in request.headers:
        return None
    length: str | None = request.headers.get("content-length")
    if length is None:
        return None if request.http_version == "2" else 0
    return int(length.partition(",")[0])  # said twice, it is the same twice


async def settled(future: Any) -> Any:
    """The result of one of granian's futures.

    A plain `await` may sleep for ever when the GIL is off: `add_done_callback` finds the future pending and stores the
    callback, and if granian's thread completes the future in between, it finds no callback to call. So we store ours
    and look again. Either granian's thread has seen it, or we see that the future is done; both may happen.
    """
    waiter = asyncio.get_running_loop().create_future()
    future.add_done_callback(partial(wake, waiter))
    try:
        if not future.done():
            await waiter
    except asyncio.CancelledError:
        future.cancel()
        raise
    return future.result()


def wake(waiter: asyncio.Future[None], _: Any = None) -> None:
    if not waiter.done():
        waiter.set_result(None)
