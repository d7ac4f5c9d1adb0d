"""What a policy looks at: the request, the candidates as they are now, and what is remembered from request to request.

Threads: a `Query` is its request's alone and a `Fleet` never changes; what both refer to says for itself who writes it.
"""

import random
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from gateway.routing.blocks import BlockIndex, block_keys, seed_for
from gateway.routing.candidate import Candidate, Tally
from gateway.routing.ring import Ring

SAMPLE = 16
"""As many of a group are looked at: the best of them is among the best sixth with a chance of 95 %, whatever
its size."""


LEAST_OF = 32
"""As many, and at most twice as many, are compared to find the least loaded. Many gateways that look at the same old
reports do not all find the same one, where there are more."""


class Query:
    """What of a request says where it should go. `apart` is what keeps equal prompts from sharing cached blocks, as
    `seed_for` takes it: the LoRA's id, the cache salt, and the hashes of images, if there are any."""

    __slots__ = ("_keys", "answers", "cached_tokens", "routing_key", "seed", "token_ids")

    def __init__(
        self,
        token_ids: bytes,
        apart: tuple[int, str] = (0, ""),
        routing_key: str = "",
        answers: int = 1,
    ) -> None:
        self.token_ids = token_ids
        self.seed = seed_for(*apart)
        self.routing_key = routing_key
        self.answers = answers
        self.cached_tokens = 0
        """What a policy believes the candidate it chose has of the prompt; it sets this."""
        self._keys: dict[int, list[int]] = {}

    @property
    def tokens(self) -> int:
        return len(self.token_ids) // 4

    def keys(self, block_size: int) -> list[int]:
        """The keys of the prompt's whole blocks; worked out once, also for another attempt."""
        if block_size not in self._keys:
            self._keys[block_size] = block_keys(self.token_ids, block_size, self.seed)
        return self._keys[block_size]

    def reusable_keys(self, block_size: int) -> list[int]:
        """Those of the blocks that can come from a cache: the last token must be read, the first answer follows it."""
        return self.keys(block_size)[: (self.tokens - 1) // block_size]


class Turns:
    """Numbers, each once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = -1

    def next(self) -> int:
        with self._lock:
            self._last += 1
            return self._last


class Stickies:
    """Which candidate a routing key belongs to, until it has not been used for `idle_seconds`, or for longest of many.

    Threads: HTTP loops; `_lock` guards `_homes`, oldest use first.
    """

    def __init__(self, idle_seconds: float = 4 * 3600.0, most: int = 100_000) -> None:
        self._idle_seconds = idle_seconds
        self._most = most
        self._lock = threading.Lock()
        self._homes: dict[str, tuple[Candidate, float]] = {}

    def __len__(self) -> int:
        return len(self._homes)

    def home(
        self, key: str, otherwise: Candidate, by_slot: Mapping[int, Candidate], now: float | None = None
    ) -> Candidate:
        """Where `key` belongs, if that is there; else it belongs to `otherwise` from now on."""
        now = time.monotonic() if now is None else now
        with self._lock:
            home, used = self._homes.pop(key, (otherwise, now))
            is_there = home.slot in by_slot and by_slot[home.slot] is home
            if not is_there or now - used > self._idle_seconds:
                home = otherwise
            self._homes[key] = home, now
            if len(self._homes) > self._most:
                del self._homes[next(iter(self._homes))]
        return home


class Lengths:
    """How long prompts were lately, so that their work can be divided by length.

    Threads: HTTP loops; `_lock` guards the window, `_table` is replaced whole.
    """

    WINDOW = 512
    RENEW = 64

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._window: list[int] = []
        self._count = 0
        self._table: tuple[list[int], list[int]] = [], [0]

    def note(self, tokens: int) -> None:
        with self._lock:
            self._window.append(tokens)
            self._count += 1
            if self._count % self.RENEW == 0 or self._count == 1:
                del self._window[: -self.WINDOW]
                ordered = sorted(self._window)
                self._table = ordered, [*accumulate(ordered, initial=0)]

    def share(self, tokens: int) -> tuple[float, float]:
        """Of all tokens, the share in shorter prompts, and that in shorter and equal ones."""
        ordered, sums = self._table
        total = sums[-1] or 1
        return sums[bisect_left(ordered, tokens)] / total, sums[bisect_left(ordered, tokens + 1)] / total


class Memory:
    """What the policies of one model and role remember."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.stickies = Stickies()
        self.lengths = Lengths()
        self.tally = Tally()


@dataclass(frozen=True, slots=True, eq=False)
class Fleet:
    """The ready candidates of a model and role, at least one, in the order in which they came. `available` are their
    bits. `ring` holds those that are not ready just now, too, so that keys stay where they are."""

    candidates: tuple[Candidate, ...]
    available: int
    by_slot: dict[int, Candidate]
    ring: Ring
    indexes: tuple[BlockIndex, ...]
    memory: Memory
    weight: float
    heaviest: float

    @classmethod
    def of(
        cls, candidates: tuple[Candidate, ...], ring: Ring, indexes: tuple[BlockIndex, ...], memory: Memory
    ) -> "Fleet":
        return cls(
            candidates=candidates,
            available=sum(candidate.bit for candidate in candidates),
            by_slot={candidate.slot: candidate for candidate in candidates},
            ring=ring,
            indexes=indexes,
            memory=memory,
            weight=sum(candidate.weight for candidate in candidates),
            heaviest=max(candidate.weight for candidate in candidates),
        )

    def least(self) -> Candidate:
        """Who has the least load, and among equals was chosen the longest ago. Of a large fleet, of every so many."""
        candidates = self.candidates
        stride = len(candidates) // LEAST_OF
        if stride > 1:
            candidates = candidates[int(random.random() * stride) :: stride]
        best, least = candidates[0], candidates[0].load
        for candidate in candidates:
            load = candidate.load
            if load < least or (load == least and candidate.turn < best.turn):
                best, least = candidate, load
        return best

    def some(self, bits: int) -> Iterator[Candidate]:
        """Those of `bits`, or SAMPLE of them when they are more."""
        if bits.bit_count() > SAMPLE:
            bits = _rotated_sample(bits)
        while bits:
            low = bits & -bits
            bits ^= low
            yield self.by_slot[low.bit_length() - 1]


def _rotated_sample(bits: int) -> int:
    """SAMPLE of more bits: those that follow a random place."""
    start = random.randrange(bits.bit_length())
    above = bits >> start << start
    sample = 0
    for part in (above, bits ^ above):
        while part and sample.bit_count() < SAMPLE:
            low = part & -part
            part ^= low
            sample |= low
    return sample
