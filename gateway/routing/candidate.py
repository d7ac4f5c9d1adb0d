"""Who can take a request: one data-parallel rank of one worker, and how much it has to do.

Threads: HTTP loops and the engine thread change a candidate under its own lock, for arithmetic only, so that they meet
only at the same one; policies read without it. What they read may be one request old, never torn: each value is
replaced whole.
"""

import random
import threading

from engine_adapters.base import Load, RankLoad
from gateway.routing.breaker import Breaker
from gateway.routing.worker import Worker

REQUEST_TOKENS = 64.0
"""What a running answer costs those beside it, in prompt tokens: it slows every step down, and holds memory."""
PRESSURE_TOKENS = 256.0
"""What a half full KV cache costs; at nine tenths it is nine times as much."""
FULLEST = 0.99
MEAN_PROMPT = 512.0
"""How long a prompt is taken to be while nothing is known."""
SMOOTHING = 0.05


class Candidate:
    """`worker`'s rank `dp_rank`. `bit` is its alone among all candidates of the router, 1 << `slot`.

    `load` is the work ahead of a newcomer, in prompt tokens for a weight of 1: the tokens of ours that wait to be read,
    what others have waiting as far as the engine's report tells, the answers that run, and how full the KV cache is.
    `turn` is when it was last chosen; before that it is at random, so that gateways do not all begin with the same.
    """

    __slots__ = (
        "_kv_total",
        "_kv_used",
        "_leased",
        "_lock",
        "_mean_prompt",
        "_others",
        "_others_waiting",
        "_reading",
        "_tally",
        "answers",
        "bit",
        "breaker",
        "dp_rank",
        "in_flight",
        "load",
        "reading",
        "slot",
        "turn",
        "weight",
        "worker",
    )

    def __init__(
        self,
        worker: Worker,
        dp_rank: int,
        slot: int,
        weight: float = 1.0,
        tally: "Tally | None" = None,
        breaker: Breaker | None = None,
    ) -> None:
        self.worker = worker
        self.breaker = breaker
        self.dp_rank = dp_rank
        self.slot = slot
        self.bit = 1 << slot
        self.weight = weight
        self.in_flight = 0
        """Requests of ours."""
        self.answers = 0
        self.reading = 0.0
        """Prompt tokens of ours that are not cached, of requests without their first token."""
        self.load = 0.0
        self.turn = -random.random()
        self._reading = 0
        self._mean_prompt = MEAN_PROMPT
        self._others = self._others_waiting = 0
        self._kv_used = self._kv_total = self._leased = 0.0
        self._lock = threading.Lock()
        self._tally = tally or Tally()

    def __repr__(self) -> str:
        return f"<{self.name}: {self.in_flight} in flight, load {self.load:.0f}>"

    @property
    def name(self) -> str:
        return f"{self.worker.name}#{self.dp_rank}"

    def take(self, tokens: float, answers: int, now: float) -> None:
        """A request goes here, of whose prompt `tokens` must be read."""
        with self._lock:
            self.in_flight += 1
            self.answers += answers
            self._reading += 1
            self.reading += tokens
            self._leased += tokens
            self._mean_prompt += SMOOTHING * (tokens - self._mean_prompt)
            self.turn = now
            self._weigh()
            self._tally.add(1)

    def begin(self, tokens: float) -> None:
        """A request's prompt has been read."""
        with self._lock:
            self._reading -= 1
            self.reading -= tokens
            self._weigh()

    def give_back(self, answers: int, unread: float | None = None) -> None:
        """A request is over; `unread` are its prompt's tokens if they have not been read."""
        with self._lock:
            self.in_flight -= 1
            self.answers -= answers
            if unread is not None:
                self._reading -= 1
                self.reading -= unread
            self._weigh()
            self._tally.add(-1)

    def note(self, load: RankLoad | Load) -> None:
        """What the engine says of itself; what is not ours in it comes from other gateways."""
        with self._lock:
            self._others = max(0, load.running + load.waiting - self.answers)
            self._others_waiting = min(self._others, max(0, load.waiting - self._reading))
            self._kv_used, self._kv_total = load.kv_tokens_used, load.kv_tokens_total
            self._leased = 0.0
            self._weigh()

    def set_weight(self, weight: float) -> None:
        with self._lock:
            self.weight = weight
            self._weigh()

    def move(self, tally: "Tally") -> None:
        """It is of another pool now, with the requests that it has."""
        with self._lock:
            self._tally.add(-self.in_flight)
            self._tally = tally
            tally.add(self.in_flight)

    def _weigh(self) -> None:
        work = self.reading + self._others_waiting * self._mean_prompt
        work += REQUEST_TOKENS * (self.answers + self._others)
        if self._kv_total:
            use = min(FULLEST, (self._kv_used + self._leased) / self._kv_total)
            work += PRESSURE_TOKENS * use / (1.0 - use)
        self.load = work / self.weight


class Tally:
    """The requests in flight on all candidates of a pool."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.in_flight = 0

    def add(self, change: int) -> None:
        with self._lock:
            self.in_flight += change
