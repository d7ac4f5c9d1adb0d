"""What one HTTP event loop owns, and the requests it is answering.

Threads: an `HttpLoop` is made on its loop, by the server's lifespan, and lives as long. Its fields are for that loop
alone, except `end_all`, `count_active` and the mailbox's `post`, which other threads call.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from gateway.config import Config
from gateway.errors import ClientLeft, DeadlineExceeded, GatewayError
from gateway.fetch import Fetcher
from gateway.metrics import Cells
from gateway.retries import RetryBudget
from gateway.streams import LoopStreams
from gateway.threads import Command, Outbox
from gateway.tls import ServerTls

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
BACKLOG = 4096
"""Connections that wait to be accepted."""
KEEP_ALIVE_SECONDS = 75.0
"""How long a connection may be without a request, or a request's head without its end."""
WRITE_NOW = "gateway.write_now"
"""An extension of the ASGI scope: `(bytes) -> bool` writes a part of the body at once, or says that one must wait."""
READ_NOW = "gateway.read_now"
"""An extension of the ASGI scope: `() -> bytes | None` gives the whole body if all of it is here and none has been
read, which spares a timer and a wait."""
WHEN_LEFT = "gateway.when_left"
"""An extension of the ASGI scope: `(callback) -> None` has `callback()` called once on the loop if the client leaves
before its answer is complete, but never from within `write_now`. It replaces the callback given before, and spares a
task that waits in `receive`."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What the HTTP servers are told: connections to one loop at most, and how long a client may read too slowly."""

    tls: ServerTls | None
    max_connections: int
    slow_reader_seconds: float

    @classmethod
    def of(cls, config: Config, tls: ServerTls | None) -> Self:
        return cls(tls, config.max_connections, config.dead_client_seconds)


class HttpLoop:
    """`outbox` is this loop's own way to the engine thread, `budgets` what of a model's requests it may send again."""

    def __init__(self, cells: Cells, outbox: Outbox[Command], budgets: dict[str, RetryBudget]) -> None:
        self.name = threading.current_thread().name
        self.cells = cells
        self.warned: set[str] = set()
        """What this loop need not tell the log again."""
        self.outbox = outbox
        self.budgets = budgets
        self._loop = asyncio.get_running_loop()
        self.fetcher: Fetcher | None = None
        """Made when the first image is to be fetched."""
        self.streams = LoopStreams()
        self._active: set[ActiveRequest] = set()

    def __repr__(self) -> str:
        return f"<HttpLoop {self.name}: {len(self._active)} requests>"

    def count_active(self) -> int:
        return len(self._active)

    def answering(self, scope: Message, receive: Receive) -> "ActiveRequest":
        """`async with` it around all work for one request whose body has been read."""
        return ActiveRequest(self._active, scope, receive)

    def end_all(self, error: GatewayError) -> None:
        """From any thread: every request in progress ends with `error`."""
        self.post(partial(self._end_all, error))

    def _end_all(self, error: GatewayError) -> None:
        for request in list(self._active):
            request.end(error)

    def post(self, command: Callable[[], None]) -> None:
        """From any thread: have `command()` called on the loop, if it is still there."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(command)


class ActiveRequest:
    """Work that others may end: the client by leaving, the gateway by shutting down.

    Whoever ends it gives a GatewayError; the work is cancelled wherever it waits, and the `async with` raises the
    error in its place. A plain cancellation from outside passes through untouched.
    """

    __slots__ = ("_active", "_deadline", "_error", "_receive", "_scope", "_task", "_watch")

    def __init__(self, active: set["ActiveRequest"], scope: Message, receive: Receive) -> None:
        self._active = active
        self._scope = scope
        self._receive = receive
        self._error: GatewayError | None = None
        self._task: asyncio.Task[Any] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._active.add(self)
        when_left = self._scope["extensions"].get(WHEN_LEFT)
        if when_left is not None:
            when_left(self._client_left)
        else:
            self._watch = asyncio.create_task(self._watch_client())
        record = self._scope["record"]
        if record.ends_at:
            seconds = record.ends_at - record.received
            late = DeadlineExceeded(f"the request took longer than {seconds:.6g} s ({record.limited_by})")
            self._deadline = asyncio.get_running_loop().call_at(record.ends_at, self.end, late)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._active.discard(self)
        task, self._task = self._task, None
        if self._watch is not None:
            self._watch.cancel()
        if self._deadline is not None:
            self._deadline.cancel()
        if self._error is None or task is None:
            return
        was_ended = kind is not None and issubclass(kind, asyncio.CancelledError)
        if task.uncancel() == 0 and was_ended:
            raise self._error from None

    def end(self, error: GatewayError) -> None:
        """On the request's loop: stop the work with `error`; only the first call counts."""
        if self._error is None and self._task is not None:
            self._error = error
            self._task.cancel()

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass  # a body part nobody asked for
        self._client_left()

    def _client_left(self) -> None:
        self.end(ClientLeft("the client closed the connection"))


def count_active(loops: Iterable[HttpLoop]) -> int:
    return sum(loop.count_active() for loop in loops)
