"""What of granian's a test over HTTP cannot bring about at will: the moment when two threads meet."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("granian", reason="granian is optional")

from gateway.granian_server import settled


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
