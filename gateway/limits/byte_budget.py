"""How many bytes of request bodies may be in memory at once.

Threads: every HTTP loop; `_lock` is held for arithmetic.
"""

import threading

from gateway.errors import Overloaded


class ByteBudget:
    """At most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._taken = 0

    @property
    def taken(self) -> int:
        return self._taken

    def take(self, size: int) -> None:
        """Raises Overloaded and takes nothing."""
        with self._lock:
            if self._taken + size <= self._limit:
                self._taken += size
                return
        raise Overloaded(f"request bodies fill the {self._limit >> 20} MiB that they may (--max-bodies-mb)")

    def give(self, size: int) -> None:
        with self._lock:
            self._taken -= size
