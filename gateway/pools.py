"""Bounded thread pools for CPU work, whose sizes can change while they run.

Threads: `run` is called on event loops, `share` by jobs, jobs run on the pool's threads, `resize` comes from anywhere.
`_condition` guards the queue and the counts and is never held while a job runs. A job's result returns to the loop that
asked.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from engine_adapters.priority import give_way
from gateway import log
from gateway.errors import Overloaded
from gateway.threads import Supervisor

INLINE_CHARACTERS = 2000
"""Below this a prompt is prepared on its event loop: that blocks it for less than a millisecond (0.2-0.4 µs a character
with a warm tokenizer), while a hop to a pool costs 170 µs of CPU."""
GROW_SECONDS = 0.05
SHRINK_SECONDS = 10.0


class _Job:
    __slots__ = ("arguments", "created", "function", "future", "loop")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function = function
        self.arguments = arguments
        self.created = time.monotonic()
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()

    def perform(self) -> None:
        if self.future.cancelled():
            return
        try:
            result, error = self.function(*self.arguments), None
        except Exception as raised:  # whatever a job raises belongs to the one who asked for it
            result, error = None, raised
        try:
            self.loop.call_soon_threadsafe(_settle, self.future, result, error)
        except RuntimeError:
            log.event(logging.DEBUG, "the loop that asked for a job has closed")


class _Shared:
    """One function to be called with many items, by all threads that `perform` it."""

    __slots__ = ("_function", "_left", "_lock", "_todo", "created", "done", "errors", "results")

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.created = time.monotonic()
        self.results: list[Any] = [None] * len(items)
        self.errors: list[Exception] = []
        self.done = threading.Event()
        self._function = function
        self._todo = deque(enumerate(items))
        self._lock = threading.Lock()
        self._left = len(items)

    def perform(self) -> None:
        while True:
            try:
                number, item = self._todo.popleft()
            except IndexError:
                return  # the rest is in other hands
            try:
                self.results[number] = self._function(item)
            except Exception as raised:  # it belongs to the one who shared the work
                self.errors.append(raised)
            with self._lock:
                self._left -= 1
                if not self._left:
                    self.done.set()


class Pool:
    """`threads` workers over one queue of at most `queue_limit` jobs.

    `cores` is shared by all pools of the process: however many threads they have together, no more jobs than that
    run at once, since oversubscribed tokenizer threads drown in futex calls.

    What a thread has made and others let go of is freed by that thread, on 3.13t, when it runs the next time: one with
    nothing to do looks up every `rest_seconds`. That is for results that are large. `gives_way` is for jobs that hold a
    core for long: event loops get it first.
    """

    def __init__(
        self,
        name: str,
        threads: int,
        supervisor: Supervisor,
        cores: threading.Semaphore,
        queue_limit: int = 4096,
        rest_seconds: float | None = None,
        gives_way: bool = False,
    ) -> None:
        self.name = name
        self._gives_way = gives_way
        self._rest_seconds = rest_seconds
        self._supervisor = supervisor
        self._cores = cores
        self._queue_limit = queue_limit
        self._condition = threading.Condition()
        self._queue: deque[_Job | _Shared] = deque()
        self._idle_threads = 0
        self._running_threads = 0
        self._wanted_threads = 0
        self._spawned = 0
        self._bounds = (threads, threads)
        self._quiet_since = time.monotonic()
        self.resize(threads)

    def __repr__(self) -> str:
        with self._condition:
            return f"<Pool {self.name}: {self._wanted_threads} threads, {len(self._queue)} jobs waiting>"

    @property
    def threads(self) -> int:
        """How many there are to be; those that are too many end with their job."""
        return self._wanted_threads

    @property
    def bounds(self) -> tuple[int, int]:
        """Between how many threads `adapt` moves."""
        return self._bounds

    @property
    def idle_threads(self) -> int:
        return self._idle_threads

    @property
    def depth(self) -> int:
        """Jobs waiting for a thread."""
        return len(self._queue)

    async def run[*Arguments, Result](self, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """`function(*arguments)` on a thread of the pool; raises Overloaded when the queue is full.

        Cancelling the caller drops the job if it has not begun.
        """
        job = _Job(function, arguments)
        with self._condition:
            if len(self._queue) >= self._queue_limit:
                raise Overloaded(f"the {self.name} queue is full ({self._queue_limit} jobs); retry later")
            self._queue.append(job)
            self._condition.notify()
        result: Result = await job.future
        return result

    def share[Item, Result](self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """`function` of every item, in order, on this thread and on those of the pool that have nothing to do.

        Meant for a job that can be divided. This thread works too, and in the end waits only for calls that run
        already: a pool that is busy or has shrunk leaves all to it. Raises the first error, once all calls are over.
        """
        if len(items) < 2:
            return [function(item) for item in items]
        shared = _Shared(function, items)
        with self._condition:
            helpers = min(self._idle_threads - len(self._queue), len(items) - 1)
            for _ in range(helpers):
                self._queue.append(shared)
                self._condition.notify()
        shared.perform()
        shared.done.wait()
        if shared.errors:
            raise shared.errors[0]
        return shared.results

    def oldest_wait(self) -> float:
        """Seconds that the job at the head of the queue has waited; 0.0 when there is none."""
        with self._condition:
            return time.monotonic() - self._queue[0].created if self._queue else 0.0

    def set_bounds(self, minimum: int, maximum: int) -> None:
        """Have between `minimum` and `maximum` threads from now on."""
        self._bounds = (minimum, maximum)
        self.resize(min(max(self._wanted_threads, minimum), maximum))

    def adapt(self) -> None:
        """Called now and then, by one thread: one more while jobs wait too long, one less after a quiet while."""
        minimum, maximum = self._bounds
        now = time.monotonic()
        if self.depth:
            self._quiet_since = now
        if self.oldest_wait() > GROW_SECONDS and self._wanted_threads < maximum:
            self.resize(self._wanted_threads + 1)
        elif now - self._quiet_since > SHRINK_SECONDS and self._wanted_threads > minimum:
            self._quiet_since = now
            self.resize(self._wanted_threads - 1)

    def resize(self, threads: int) -> None:
        """Grow now; shrink as threads come free."""
        with self._condition:
            self._wanted_threads = threads
            missing = threads - self._running_threads
            self._running_threads += max(0, missing)
            first = self._spawned
            self._spawned += max(0, missing)
            self._condition.notify_all()
        for number in range(first, first + missing):
            self._supervisor.spawn(f"{self.name}-{number}", self._work, may_return=True)

    def _work(self) -> None:
        if self._gives_way:
            give_way()
        while (job := self._next_job()) is not None:
            with self._cores:
                job.perform()
            del job  # a thread that waits for the next one would keep its result

    def _next_job(self) -> _Job | _Shared | None:
        """The next job, or None when this thread is one too many."""
        with self._condition:
            while True:
                if self._running_threads > self._wanted_threads:
                    self._running_threads -= 1
                    return None
                if self._queue:
                    return self._queue.popleft()
                self._idle_threads += 1
                self._condition.wait(self._rest_seconds)
                self._idle_threads -= 1


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
