"""What one API key may use: requests and tokens a minute, and requests at a time.

Threads: every HTTP loop that answers the key's requests; `_lock` is held for arithmetic. `set_limits` is the reloading
thread's.
"""

import math
import threading
import time
from dataclasses import dataclass

from gateway.errors import RateLimited


class Bucket:
    """A token bucket: holds a minute's worth, and refills all the time. `per_minute` 0 is no limit.

    Its balance may be below zero, when more was used than had been reserved: then time must make that good first.
    """

    __slots__ = ("_at", "_balance", "per_minute")

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._balance = float(per_minute)
        self._at = now

    def set_limit(self, per_minute: int) -> None:
        """What is in it stays, as far as it fits; who had no limit begins with a full one."""
        self._balance = min(self._balance, per_minute) if self.per_minute else float(per_minute)
        self.per_minute = per_minute

    def take(self, amount: float, now: float) -> float:
        """0.0 if `amount` has been taken, else in how many seconds it could be."""
        if not self.per_minute:
            return 0.0
        rate = self.per_minute / 60
        self._balance = min(self.per_minute, self._balance + (now - self._at) * rate)
        self._at = now
        if self._balance < amount:
            return (amount - self._balance) / rate
        self._balance -= amount
        return 0.0

    def give(self, amount: float) -> None:
        """Give back what was not used after all; below zero, take what was used besides."""
        if self.per_minute:
            self._balance = min(self.per_minute, self._balance + amount)


@dataclass(frozen=True, slots=True)
class Limits:
    """0 is no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0


class Quota:
    """A key's use of its limits."""

    def __init__(self, limits: Limits) -> None:
        now = time.monotonic()
        self._lock = threading.Lock()
        self._limits = limits
        self._requests = Bucket(limits.requests_per_minute, now)
        self._tokens = Bucket(limits.tokens_per_minute, now)
        self._active = 0

    @property
    def active(self) -> int:
        return self._active

    def set_limits(self, limits: Limits) -> None:
        with self._lock:
            self._limits = limits
            self._requests.set_limit(limits.requests_per_minute)
            self._tokens.set_limit(limits.tokens_per_minute)

    def begin(self) -> None:
        """A request comes; raises RateLimited, and otherwise asks for an `end`."""
        with self._lock:
            most = self._limits.concurrency
            if most and self._active >= most:
                raise RateLimited(f"this key may have {most} requests at a time", retry_after=1)
            seconds = self._requests.take(1, time.monotonic())
            if not seconds:
                self._active += 1
                return
            limit = self._limits.requests_per_minute
        raise RateLimited(f"this key may make {limit} requests a minute", retry_after=math.ceil(seconds))

    def end(self) -> None:
        with self._lock:
            self._active -= 1

    def reserve(self, tokens: int) -> int:
        """Before a request is answered: set aside what it may take at most; raises RateLimited.

        Returns how much that is: no more than a minute's tokens, so that no request is too large for ever.
        """
        with self._lock:
            limit = self._limits.tokens_per_minute
            tokens = min(tokens, limit)
            seconds = self._tokens.take(tokens, time.monotonic())
        if seconds:
            raise RateLimited(
                f"this key may use {limit} tokens a minute, and this request may take {tokens}",
                retry_after=math.ceil(seconds),
            )
        return tokens

    def settle(self, reserved: int, used: int) -> None:
        """Afterwards: what it really took counts."""
        with self._lock:
            self._tokens.give(reserved - used)
