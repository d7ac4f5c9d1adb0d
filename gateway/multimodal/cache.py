"""Images that have been preprocessed: a byte budget for all models and threads, the least recently used goes first.

Threads: any thread of the vision pool calls `get`. `_lock` guards the entries, their order and the flights, and is held
for arithmetic only; who asks for what another thread is computing waits for that thread.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Protocol

MAX_FILES = 256
"""Entries that keep a file open (a memfd) are no more than this."""


class Sized(Protocol):
    """What is kept: its size, and whether it keeps a file open."""

    @property
    def nbytes(self) -> int: ...

    @property
    def keeps_file(self) -> bool: ...


class ImageCache[Value: Sized]:
    """`budget` bytes at most, what is larger than half of it is not kept."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self._files = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, Value] = OrderedDict()
        self._flights: dict[Hashable, Future[Value]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, make: Callable[[], Value]) -> tuple[Value, bool]:
        """(what `make()` has made for the key, whether that was known); raises what `make` raises. Concurrent calls for
        one key have it made once."""
        with self._lock:
            if key in self._entries:  # not by `get`: on 3.13t that takes 20 µs for a key another thread has made
                self._entries.move_to_end(key)
                return self._entries[key], True
            is_first = key not in self._flights
            if is_first:
                self._flights[key] = Future()
            flight = self._flights[key]
        if is_first:
            self._fly(key, flight, make)
        return flight.result(), not is_first

    def _fly(self, key: Hashable, flight: "Future[Value]", make: Callable[[], Value]) -> None:
        try:
            value = make()
        except BaseException as error:
            self._land(key, None)
            flight.set_exception(error)
        else:
            self._land(key, value)
            flight.set_result(value)

    def _land(self, key: Hashable, value: Value | None) -> None:
        with self._lock:
            del self._flights[key]
            if value is None or value.nbytes > self.budget // 2:
                return
            self._entries[key] = value
            self.bytes += value.nbytes
            self._files += value.keeps_file
            while self.bytes > self.budget or self._files > MAX_FILES:
                _, oldest = self._entries.popitem(last=False)
                self.bytes -= oldest.nbytes
                self._files -= oldest.keeps_file
