"""Admission: how many requests are answered at a time, who waits for a place, who gets the next one, who is refused.

A freed place goes to a class by weighted fair queueing: each class has a clock, which a turn moves by one over its
weight, and the class with the earliest clock is next. Within a class, keys take turns; within a key, the first comes
first. When a class's queue is full, room for a newcomer is made by the newest request of whoever has the most in it
(longest queue drop, as routers do), unless that would be the newcomer. So a flood waits for itself, and loses its own.

Threads: every HTTP loop; `_lock` is held for arithmetic. A place is handed to a waiter of another loop through
`call_soon_threadsafe`, and belongs to that waiter from then on.
"""

import asyncio
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable

from gateway.errors import GatewayError, Overloaded, QueueTimeout
from gateway.limits.priority import PRIORITIES

SMOOTHING = 0.1
"""The weight of the newest wait in what is taken for the usual one."""


class Waiter:
    """A request that waits. `state` is "waiting", then "admitted" or "refused"."""

    __slots__ = ("_future", "_loop", "since", "state", "who")

    def __init__(self, who: str) -> None:
        self.who = who
        self.state = "waiting"
        self.since = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    async def wait(self) -> None:
        await self._future

    def wake(self) -> bool:
        """From any thread; False when its loop is closed and nobody waits there."""
        try:
            self._loop.call_soon_threadsafe(self._settle)
        except RuntimeError:
            return False
        return True

    def _settle(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


class Line:
    """One class's queue: a first-in, first-out queue for each key, which take turns."""

    def __init__(self, weight: int) -> None:
        self.clock = 0.0
        self.length = 0
        self._weight = weight
        self._queues: OrderedDict[str, deque[Waiter]] = OrderedDict()

    def append(self, waiter: Waiter, now: float) -> None:
        """`now` is the clock of the class that had the last turn: who was away has not saved up turns meanwhile."""
        if not self.length:
            self.clock = max(self.clock, now)
        self._queues.setdefault(waiter.who, deque()).append(waiter)
        self.length += 1

    def pop(self) -> Waiter:
        who, queue = next(iter(self._queues.items()))
        waiter = queue.popleft()
        self._queues.move_to_end(who)
        self._forget(who, queue)
        self.clock += 1 / self._weight
        return waiter

    def remove(self, waiter: Waiter) -> None:
        queue = self._queues[waiter.who]
        queue.remove(waiter)
        self._forget(waiter.who, queue)

    def pop_newest_of_longest(self) -> Waiter:
        who, queue = max(self._queues.items(), key=_length)
        waiter = queue.pop()
        self._forget(who, queue)
        return waiter

    def has_its_share(self, who: str, size: int) -> bool:
        """Whether `who` has as many in a full queue of `size` as each would have if all had the same."""
        own = len(self._queues[who]) if who in self._queues else 0
        return (own + 1) * (len(self._queues) + (own == 0)) > size

    def _forget(self, who: str, queue: deque[Waiter]) -> None:
        self.length -= 1
        if not queue:
            del self._queues[who]


def _length(item: tuple[str, deque[Waiter]]) -> int:
    return len(item[1])


class Admission:
    """At most `limit` requests at a time (0: any number); of each class `queue_size` may wait, for `queue_seconds`."""

    def __init__(self, limit: int = 0, queue_size: int = 0, queue_seconds: float = 1.0) -> None:
        self.limit = limit
        self._queue_size = queue_size
        self._queue_seconds = queue_seconds
        self._lock = threading.Lock()
        self._active = 0
        self._clock = 0.0
        self._usual_wait = 0.0
        self._lines = {name: Line(weight) for name, weight in PRIORITIES.items()}

    def __repr__(self) -> str:
        return f"<Admission: {self._active} of {self.limit}, {sum(length for _, length in self.waiting())} waiting>"

    @property
    def active(self) -> int:
        """Places that are taken; not counted without a limit."""
        return self._active

    def waiting(self) -> Iterable[tuple[str, int]]:
        """(class, how many wait)"""
        return [(name, line.length) for name, line in self._lines.items()]

    def refuse_if_hopeless(self, who: str, priority: str) -> None:
        """Raises Overloaded if `enter` would do so now: said before a body is read, it costs nearly nothing."""
        if self._active < self.limit:
            return
        line = self._lines[priority]
        with self._lock:
            if line.length >= self._queue_size and line.has_its_share(who, self._queue_size):
                raise self._overloaded(priority)

    async def enter(self, who: str, priority: str) -> float:
        """Wait for a place, to be given up by `leave`; returns the seconds waited. Raises Overloaded, QueueTimeout.

        Whoever is cancelled has left the queue, and if a place had just become theirs, it is the next one's.
        """
        line, dropped = self._lines[priority], None
        with self._lock:
            if self._active < self.limit:
                self._active += 1
                self._note_wait(0.0)
                return 0.0
            if line.length >= self._queue_size:
                if line.has_its_share(who, self._queue_size):
                    raise self._overloaded(priority)
                dropped = line.pop_newest_of_longest()
                dropped.state = "refused"
            waiter = Waiter(who)
            line.append(waiter, self._clock)
        if dropped is not None:
            dropped.wake()
        return await self._wait(waiter, line, priority)

    async def _wait(self, waiter: Waiter, line: Line, priority: str) -> float:
        try:
            async with asyncio.timeout(self._queue_seconds):
                await waiter.wait()
        except TimeoutError:
            if self._withdraw(waiter, line):
                raise QueueTimeout(
                    f"no place came free within {self._queue_seconds:g} s (--queue-seconds)",
                    retry_after=math.ceil(self._queue_seconds),
                ) from None
        except BaseException:
            if not self._withdraw(waiter, line) and waiter.state == "admitted":
                self.leave()
            raise
        if waiter.state == "refused":
            raise self._overloaded(priority)
        return time.monotonic() - waiter.since

    def _withdraw(self, waiter: Waiter, line: Line) -> bool:
        """False when it does not wait any more."""
        with self._lock:
            if waiter.state != "waiting":
                return False
            waiter.state = "refused"
            line.remove(waiter)
            return True

    def leave(self) -> None:
        """Hand the place on."""
        while True:
            with self._lock:
                waiter = self._next()
                if waiter is None:
                    self._active -= 1
                    return
                waiter.state = "admitted"
                self._note_wait(time.monotonic() - waiter.since)
            if waiter.wake():
                return

    def _next(self) -> Waiter | None:
        lines = [line for line in self._lines.values() if line.length]
        if not lines:
            return None
        line = min(lines, key=_clock)
        self._clock = line.clock
        return line.pop()

    def _note_wait(self, seconds: float) -> None:
        self._usual_wait += SMOOTHING * (seconds - self._usual_wait)

    def _overloaded(self, priority: str) -> GatewayError:
        return Overloaded(
            f"{self._queue_size} requests of class {priority!r} wait already (--queue-size)",
            retry_after=max(1, math.ceil(self._usual_wait)),
        )


def _clock(line: Line) -> float:
    return line.clock
