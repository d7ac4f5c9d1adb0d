"""A worker's circuit breaker: while too many of its requests fail it gets none, and then a few that try it.

    closed     all requests; opens when of enough requests in the window a share failed
    open       none, for a pause that doubles with each failed trial
    half_open  PROBES at a time; SUCCESSES of them close it, one failure opens it again

Only what is the engine's fault is a failure: requests that it refused, that the client left or that ran out of their
own time say nothing about it.

Threads: HTTP loops admit requests and tell of first tokens, the engine thread tells of failures, the watch lets time
pass. `_lock` guards all of it, for arithmetic only; `state` is read without it.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

STATES = ("closed", "open", "half_open")
PROBES = 3
SUCCESSES = 2
LONGEST_PAUSE = 60.0
SLOTS = 10
"""A window moves on by one part in this many."""


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """A breaker opens when of at least `requests` in `window_seconds` a share of `error_rate` failed, for
    `open_seconds` at first."""

    error_rate: float = 0.5
    requests: int = 10
    window_seconds: float = 30.0
    open_seconds: float = 5.0


class Trial:
    """A request as its breaker counts it. `outcome` is "" until it is known, "ok" from the first token on."""

    __slots__ = ("is_probe", "outcome")

    def __init__(self) -> None:
        self.outcome = ""
        self.is_probe = False


class Window:
    """How many requests there were in the last `seconds`, and how many of them failed."""

    def __init__(self, seconds: float) -> None:
        self._width = seconds / SLOTS
        self._slots: deque[list[int]] = deque()
        self.requests = 0
        self.failures = 0

    def add(self, now: float, requests: int, failures: int) -> None:
        number = int(now / self._width)
        if not self._slots or self._slots[-1][0] < number:
            self._begin(number)
        slot = self._slots[-1]
        slot[1] += requests
        slot[2] += failures
        self.requests += requests
        self.failures += failures

    def _begin(self, number: int) -> None:
        """A slot, and forget those that are too old."""
        while self._slots and self._slots[0][0] <= number - SLOTS:
            _, requests, failures = self._slots.popleft()
            self.requests -= requests
            self.failures -= failures
        self._slots.append([number, 0, 0])


class Breaker:
    """One worker's. What returns bool says whether the state has changed, so that the router must look again."""

    def __init__(self, rules: BreakerRules, now: Callable[[], float]) -> None:
        self.state = "closed"
        self.opened = 0
        """How often."""
        self._rules = rules
        self._now = now
        self._lock = threading.Lock()
        self._window = Window(rules.window_seconds)
        self._pause = rules.open_seconds
        self._opened_at = 0.0
        self._probes = 0
        self._successes = 0

    def __repr__(self) -> str:
        return f"<Breaker: {self.state}, {self._window.failures} of {self._window.requests} failed>"

    @property
    def admits(self) -> bool:
        """Whether a request may go there now."""
        return self.state == "closed" or (self.state == "half_open" and self._probes < PROBES)

    def admit(self, trial: Trial) -> bool:
        """Whether this request may go there; its outcome, or that it has none, must be told."""
        if self.state == "closed":
            return True
        with self._lock:
            if not self.admits:
                return False
            trial.is_probe = self.state == "half_open"
            self._probes += trial.is_probe
            return True

    def succeeded(self, trial: Trial) -> bool:
        """A first token has come, or a whole answer without one."""
        with self._lock:
            if trial.outcome:
                return False
            trial.outcome = "ok"
            if not trial.is_probe:
                self._window.add(self._now(), 1, 0)
                return False
            self._probes -= 1
            self._successes += 1
            if self.state == "half_open" and self._successes >= SUCCESSES:
                self._close()
            return True

    def failed(self, trial: Trial) -> bool:
        """The engine is at fault; also after a first token."""
        with self._lock:
            before, trial.outcome = trial.outcome, "failed"
            if before == "failed":
                return False
            if trial.is_probe and not before:
                self._probes -= 1
            if self.state == "closed":
                self._window.add(self._now(), not before, 1)
                return self._is_too_much() and self._open(self._rules.open_seconds)
            if self.state == "half_open" and trial.is_probe:
                return self._open(min(2 * self._pause, LONGEST_PAUSE))
            return False

    def left(self, trial: Trial) -> bool:
        """It ended and says nothing about the engine."""
        if not trial.is_probe:
            return False
        with self._lock:
            if trial.outcome:
                return False
            trial.outcome = "none"
            self._probes -= 1
            return self.state == "half_open"

    def tick(self) -> bool:
        """Let time pass: an open breaker's pause ends."""
        if self.state != "open" or self._now() - self._opened_at < self._pause:
            return False
        return self.try_now()

    def try_now(self) -> bool:
        """The worker has come back: do not wait until the pause is over."""
        with self._lock:
            if self.state != "open":
                return False
            self.state = "half_open"
            self._successes = 0
            return True

    def _is_too_much(self) -> bool:
        # A failure may be counted later than its request, which has left the window.
        requests = max(self._window.requests, self._window.failures)
        return requests >= self._rules.requests and self._window.failures >= self._rules.error_rate * requests

    def _open(self, pause: float) -> bool:
        self.state = "open"
        self.opened += 1
        self._pause = pause
        self._opened_at = self._now()
        return True

    def _close(self) -> None:
        self.state = "closed"
        self._window = Window(self._rules.window_seconds)
