"""Threads that cannot die unnoticed, and mailboxes that carry work to an event loop in batches.

Threads: one thread waits for an `Alarm`, any may ring it. Any thread may call `Supervisor.spawn` and `fail`; the first
failure is kept and handed to `on_failure`.
`Mailbox.post` may be called from any thread, `handle` runs on the loop's own; `_lock` guards `_pending` only.
"""

import asyncio
import contextlib
import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Iterable

from gateway import log

type Command = Callable[[], object]


class Supervisor:
    """Starts the gateway's threads; the unexpected end of any of them is the end of the gateway.

    One that `holds` starts them all at once, when `begin` is called.
    """

    def __init__(self, on_failure: Callable[[str], None] = lambda reason: None, *, holds: bool = False) -> None:
        self._lock = threading.Lock()
        self._on_failure = on_failure
        self._held: list[threading.Thread] | None = [] if holds else None
        self.failure: str | None = None
        self.ending = False
        """Set once the process is meant to end: threads may return from then on."""

    def spawn(self, name: str, run: Callable[[], None], *, may_return: bool = False) -> threading.Thread:
        """Run `run` in a daemon thread; an exception is a failure, a return too unless `ending` or `may_return`."""
        thread = threading.Thread(target=self._guarded, args=(name, run, may_return), name=name, daemon=True)
        if self._held is None:
            thread.start()
        else:
            self._held.append(thread)
        return thread

    def begin(self) -> None:
        """Of one that holds: start what has been spawned, and what will be, at once."""
        held, self._held = self._held, None
        for thread in held or ():
            thread.start()

    def fail(self, reason: str) -> None:
        """Record why the gateway cannot go on; only the first reason counts."""
        with self._lock:
            if self.failure is not None:
                return
            self.failure = reason
        log.event(logging.ERROR, reason)
        self._on_failure(reason)

    def _guarded(self, name: str, run: Callable[[], None], may_return: bool) -> None:
        try:
            run()
        except BaseException as error:
            # BaseException: whatever ends a thread of ours, SystemExit included, must be known.
            log.logger.debug("thread %s", name, exc_info=True)
            self.fail(f"thread {name} died: {type(error).__name__}: {error}")
        else:
            if not (may_return or self.ending):
                self.fail(f"thread {name} ended")


class Alarm:
    """What the main thread waits for: other threads ring it, and so do signals.

    A pipe and no `threading.Event`: a signal that another thread takes does not end the main thread's wait for a lock,
    so that its handler might never run; `signal.set_wakeup_fd(alarm.fd)` has the signal itself write into the pipe.
    """

    def __init__(self) -> None:
        self._read_fd, self.fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self.fd, False)
        self._poll = select.poll()
        self._poll.register(self._read_fd, select.POLLIN)

    def ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it rings already
            os.write(self.fd, b"!")

    def wait(self, timeout: float | None = None) -> bool:
        """Until it rings, or for `timeout` seconds; it goes on ringing until `clear`."""
        return bool(self._poll.poll(None if timeout is None else timeout * 1000))

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read_fd, 4096):
                pass


class Mailbox[Item]:
    """Items for one event loop: however many are posted, at most one wake-up of the loop is pending.

    A wake-up costs its sender a system call and the receiver a turn of its loop; items posted meanwhile ride along.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, handle: Callable[[Item], None]) -> None:
        self.loop = loop
        self._handle = handle
        self._items: deque[Item] = deque()
        self._pending = False
        self._lock = threading.Lock()

    def post(self, item: Item) -> bool:
        """Have `handle(item)` called on the loop; False when the loop is closed and nobody will."""
        self._items.append(item)
        return self._wake()

    def post_all(self, items: Iterable[Item]) -> bool:
        """Several at once, as `post` does one."""
        self._items.extend(items)
        return self._wake()

    def _wake(self) -> bool:
        with self._lock:
            if self._pending:
                return not self.loop.is_closed()
            self._pending = True
        try:
            self.loop.call_soon_threadsafe(self._drain)
        except RuntimeError:
            return False
        return True

    def _drain(self) -> None:
        with self._lock:
            self._pending = False
        # Only what is here now: items posted while we work come with their own wake-up and others get a turn.
        for _ in range(len(self._items)):
            self._handle(self._items.popleft())


class Outbox[Item]:
    """What one event loop posts to the mailbox of another: all of a turn of the loop at once.

    Requests that arrive together are submitted together: one wake-up, and one frame on the wire, for all of them.

    Threads: belongs to the loop that it is made on.
    """

    def __init__(self, mailbox: Mailbox[Item]) -> None:
        self._mailbox = mailbox
        self._loop = asyncio.get_running_loop()
        self._items: list[Item] = []

    def post(self, item: Item) -> None:
        """Have `item` handled by the mailbox's loop, after those posted before."""
        if not self._items:
            self._loop.call_soon(self._flush)
        self._items.append(item)

    def post_now(self, item: Item) -> None:
        """The same without waiting for the turn's end: what must not be lost when the loop stops."""
        self._items.append(item)
        self._flush()

    def _flush(self) -> None:
        items, self._items = self._items, []
        if items:  # `post_now` has taken along what waited for the turn's end
            self._mailbox.post_all(items)
