"""A lease: one request's place on a candidate, and what becomes of it there.

Threads: HTTP loops make, begin and release leases; the rest is the engine thread's. What both change guards itself.
"""

from collections.abc import Callable
from typing import Protocol

from gateway.routing.blocks import BlockIndex, CachedBlocks
from gateway.routing.breaker import Trial
from gateway.routing.candidate import Candidate
from gateway.routing.fleet import Query
from gateway.routing.worker import Worker

PREDICTED_TOKENS = 1 << 18
"""How much a rank is believed to keep while it has not told its size."""
RECENT_BLOCKS = 1024
"""Of an engine that tells what it caches, so many blocks are believed in before it says so."""


class Cache:
    """A candidate's prefix cache: its blocks in the index of its model. `is_told`: the engine tells what it caches."""

    __slots__ = ("blocks", "index", "is_told")

    def __init__(self, index: BlockIndex, candidate: Candidate, is_told: bool) -> None:
        self.index = index
        self.is_told = is_told
        self.blocks = CachedBlocks(candidate.bit, RECENT_BLOCKS if is_told else PREDICTED_TOKENS // index.block_size)


class Owner(Protocol):
    """The router, as far as a lease knows it."""

    now: Callable[[], float]

    def cache_of(self, candidate: Candidate) -> Cache | None:
        """A candidate's prefix cache; None when the policies do not care."""

    def look_again(self, worker: Worker) -> None:
        """A worker's circuit breaker has changed its mind."""


class Lease(Trial):
    """One request's place on a candidate, in the role it has. `begin` when its prompt has been read, `release` to give
    it back, once.

    `sent`, `ended`, `failed` and `withdraw` are the engine thread's.
    """

    __slots__ = ("_expected", "_new", "_query", "_router", "candidate", "has_begun", "role", "tokens")

    def __init__(self, router: Owner, candidate: Candidate, query: Query, role: str) -> None:
        super().__init__()
        self._router = router
        self._query = query
        self.tokens = 0 if role == "decode" else query.tokens - query.cached_tokens
        """Those that it must read."""
        self._expected = 0
        self._new: list[int] = []
        self.candidate = candidate
        self.role = role
        self.has_begun = False

    @property
    def worker(self) -> Worker:
        return self.candidate.worker

    @property
    def dp_rank(self) -> int:
        return self.candidate.dp_rank

    def begin(self) -> None:
        if not self.has_begun:
            self.has_begun = True
            self.candidate.begin(self.tokens)
            self._worked()

    def release(self) -> None:
        self.candidate.give_back(self._query.answers, None if self.has_begun else self.tokens)
        breaker = self.candidate.breaker
        if breaker is not None and breaker.left(self):
            self._router.look_again(self.worker)

    def sent(self) -> None:
        """The request is on its way, and its prompt is going to be cached."""
        cache = self._router.cache_of(self.candidate)
        if cache is not None:
            now = self._router.now()
            size, index, blocks = cache.index.block_size, cache.index, cache.blocks
            if not cache.is_told:
                self._expected = index.expected(blocks, self._query.reusable_keys(size), now)
            self._new = index.predict(blocks, self._query.keys(size), now)

    def ended(self, cached_tokens: int) -> None:
        """The answer is complete, and the engine has said how much of the prompt was cached."""
        self._worked()
        cache = self._router.cache_of(self.candidate)
        if cache is not None and self._expected:
            cache.index.correct(cache.blocks, self._expected, cached_tokens // cache.index.block_size)
            self._expected = 0

    def failed(self) -> None:
        """The engine is at fault."""
        breaker = self.candidate.breaker
        if breaker is not None and breaker.failed(self):
            self._router.look_again(self.worker)
        self.withdraw()

    def withdraw(self) -> None:
        """The request ended early: unless an answer has begun, its prompt may not have been read."""
        cache = self._router.cache_of(self.candidate)
        if cache is not None and not self.has_begun:
            cache.index.withdraw(cache.blocks, self._new)

    def _worked(self) -> None:
        breaker = self.candidate.breaker
        if breaker is not None and breaker.succeeded(self):
            self._router.look_again(self.worker)
