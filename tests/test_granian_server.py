"""What of granian's a test over HTTP cannot bring about at will: the moment when two threads meet."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("granian", reason="granian is optional")

from gateway import granian_server
from gateway.granian_server import Exchange, settled


class Future:
    """As granian's: its own thread completes it, here at the moment that a test chooses."""

    def __init__(self) -> None:
        self.is_done = self.is_cancelled = False
        self.callbacks: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.callbacks.append(callback)

    def done(self) -> bool:
        return self.is_done

    def cancel(self) -> None:
        self.is_cancelled = True

    def result(self) -> bytes:
        assert self.is_done
        return b"body"

    def complete(self) -> None:
        self.is_done = True
        for callback in self.callbacks:
            callback(self)


class LostFuture(Future):
    """Completed after its state was looked at and before the callback was there to be called."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.is_done = True


class SeenFuture(Future):
    """Completed right after the callback was stored, which is called soon."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.is_done = True
        asyncio.get_running_loop().call_soon(callback, self)


class LateFuture(Future):
    """Completed later."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        super().add_done_callback(callback)
        asyncio.get_running_loop().call_soon(self.complete)


@pytest.mark.parametrize("kind", [LostFuture, SeenFuture, LateFuture])
def test_a_future_is_never_missed(kind: type[Future]) -> None:
    async def wait() -> Any:
        async with asyncio.timeout(5):
            result = await settled(kind())
        await asyncio.sleep(0)  # a callback that comes after the result harms nothing
        return result

    assert asyncio.run(wait()) == b"body"


def test_who_waits_no_longer_takes_the_future_back() -> None:
    async def give_up() -> Future:
        future = Future()
        task = asyncio.create_task(settled(future))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return future

    assert asyncio.run(give_up()).is_cancelled


class Request:
    http_version, method, scheme, path, query_string = "1.1", "GET", "http", "/", ""
    client, authority = "127.0.0.1:1", None

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}


class Protocol:
    def client_disconnect(self) -> Future:
        return Future()


class State(dict[str, Any]):
    """A dict that can be referred to weakly."""


@pytest.mark.parametrize("is_watched", [True, False])
def test_an_exchange_that_is_over_is_freed_without_the_collector(
    monkeypatch: pytest.MonkeyPatch, is_watched: bool
) -> None:
    monkeypatch.setattr(granian_server, "WATCH_AFTER_SECONDS", 0 if is_watched else 60)

    async def story() -> None:
        state = State()
        exchange = Exchange(Request(), Protocol())
        exchange.scope["state"] = state
        exchange.when_left(lambda: None)
        for _ in range(3):
            await asyncio.sleep(0)  # the timer, and what it calls
        exchange.close()
        freed = weakref.ref(state)
        del exchange, state
        await asyncio.sleep(0)
        assert freed() is None

    gc.disable()
    try:
        asyncio.run(story())
    finally:
        gc.enable()
