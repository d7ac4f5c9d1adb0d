"""How often, and how soon, a request that failed before its first token is sent again.

Threads: a budget is one HTTP loop's.
"""

import random
import time
from collections.abc import Callable

FLOOR = 100.0
"""A budget that was not used for long allows so many at once: those of a worker that is lost with its requests."""
FLOOR_PER_SECOND = 10.0
MOST = 1000.0
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0


class RetryBudget:
    """A token bucket: each request puts `share` of a token in, each retry takes one out; a few more come with time."""

    def __init__(self, share: float, now: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._now = now
        self._tokens = FLOOR
        self._filled_at = now()

    def earn(self) -> None:
        """A request has come."""
        self._tokens = min(MOST, self._tokens + self._share)

    def spend(self) -> bool:
        """Whether one more may be sent again."""
        now = self._now()
        if self._tokens < FLOOR:
            self._tokens = min(FLOOR, self._tokens + FLOOR_PER_SECOND * (now - self._filled_at))
        self._filled_at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def pause_before(retry: int) -> float:
    """Seconds to wait before the first, second … retry: twice as long each time, and never equal for two."""
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (retry - 1)) * random.uniform(0.5, 1.0))
