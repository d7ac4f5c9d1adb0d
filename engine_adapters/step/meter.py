"""How fast an engine generates.

Threads: none of its own; the event loop of whoever asks.
"""

import time
from collections import deque


class TokenMeter:
    """Tokens generated over the last second, told by a count that only grows."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()
        self._count_before = 0

    def note(self, count: int) -> None:
        self._counts.append((time.monotonic(), count))

    def rate(self) -> float:
        oldest = time.monotonic() - 1
        while self._counts and self._counts[0][0] < oldest:
            self._count_before = self._counts.popleft()[1]
        return float(self._counts[-1][1] - self._count_before) if self._counts else 0.0
