"""The router: hands out leases on ready workers, each by the policy of its model and role.

Threads: every HTTP loop leases and releases, the engine thread publishes states and reports loads and cached blocks,
the watch reads. `_lock` guards what changes when workers come, go or change their state, and who reads that finds dicts
that are replaced whole; leases take no lock but the chosen candidate's. What is cached is the engine thread's.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from engine_adapters.base import KvEvent, KvStored, Load, RankLoad
from gateway.errors import Unavailable
from gateway.routing.blocks import PREDICTED_BLOCKS, BlockIndex, CachedBlocks, seed_for
from gateway.routing.candidate import Candidate
from gateway.routing.fleet import Fleet, Memory, Query
from gateway.routing.policies import Choose, Policies
from gateway.routing.ring import Ring
from gateway.routing.worker import Worker, WorkerState

DEFAULT_BLOCK_SIZE = 32
"""TensorRT-LLM's, for engines that do not say."""
RECENT_BLOCKS = 1024
"""Of an engine that tells what it caches, so many blocks are believed in before it says so."""

type Pool = tuple[str, str]
"""(model, role)"""


class Lease:
    """One request's place on a candidate, in the role it has. `begin` when its prompt has been read, `release` to give
    it back, once.

    `sent`, `ended` and `withdraw` are the engine thread's.
    """

    __slots__ = ("_expected", "_new", "_query", "_router", "candidate", "has_begun", "role", "tokens")

    def __init__(self, router: "Router", candidate: Candidate, query: Query, role: str) -> None:
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

    def release(self) -> None:
        self.candidate.give_back(self._query.answers, None if self.has_begun else self.tokens)

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
        """The engine has said how much of the prompt was cached."""
        cache = self._router.cache_of(self.candidate)
        if cache is not None and self._expected:
            cache.index.correct(cache.blocks, self._expected, cached_tokens // cache.index.block_size)
            self._expected = 0

    def withdraw(self) -> None:
        """The request ended early: unless an answer has begun, its prompt may not have been read."""
        cache = self._router.cache_of(self.candidate)
        if cache is not None and not self.has_begun:
            cache.index.withdraw(cache.blocks, self._new)


class Cache:
    """A candidate's prefix cache: its blocks in the index of its model. `is_told`: the engine tells what it caches."""

    __slots__ = ("blocks", "index", "is_told")

    def __init__(self, index: BlockIndex, candidate: Candidate, is_told: bool) -> None:
        self.index = index
        self.is_told = is_told
        self.blocks = CachedBlocks(candidate.bit, RECENT_BLOCKS if is_told else PREDICTED_BLOCKS)


class Router:
    """`now` is a clock, for who wants to make time pass."""

    def __init__(self, policies: Policies | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.policies = policies or Policies()
        self.now = now
        self._lock = threading.Lock()
        self._states: dict[Worker, WorkerState] = {}
        self._candidates: dict[Worker, tuple[Candidate, ...]] = {}
        self._pools: dict[Worker, Pool] = {}
        self._weights: dict[Worker, float] = {}
        self._draining: frozenset[Worker] = frozenset()
        self.leaving: frozenset[Worker] = frozenset()
        """Those to be removed as soon as they have nothing in flight."""
        self._slots = 0
        self._free_slots: list[int] = []
        self._fleets: dict[Pool, tuple[Fleet, Choose]] = {}
        self._rings: dict[Pool, Ring] = {}
        self._memories: dict[Pool, Memory] = {}
        self._indexes: dict[tuple[str, int], BlockIndex] = {}
        self._caches: dict[Candidate, Cache] = {}
        self._listeners: set[Callable[[], None]] = set()

    def __repr__(self) -> str:
        parts = (f"{w.name} {state.state} {self.in_flight(w)} in flight" for w, state in self.snapshot().items())
        return f"<Router: {', '.join(parts)}>"

    def add(self, worker: Worker) -> None:
        with self._lock:
            self._states = {**self._states, worker: WorkerState("starting", "not reached yet")}
            self._candidates = {**self._candidates, worker: ()}
            self._weights[worker] = worker.address.weight

    def remove(self, worker: Worker) -> None:
        """Forget a worker; leases on it are still to be released. Engine thread."""
        with self._lock:
            self._states = {each: state for each, state in self._states.items() if each is not worker}
            self._draining, self.leaving = self._draining - {worker}, self.leaving - {worker}
            self._fleets = {}
            self._retire(self._candidates[worker])
            self._candidates = {each: ones for each, ones in self._candidates.items() if each is not worker}
            for known in (self._pools, self._weights):
                known.pop(worker, None)
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def publish(self, worker: Worker, state: WorkerState) -> None:
        """Replace what is known of a worker; nothing happens when it has been removed."""
        with self._lock:
            if worker not in self._states:
                return
            if state.state == "ready":
                self._admit(worker, state)
                if worker in self._draining:
                    state = replace(state, state="draining", reason="by an operator")
            self._states = {**self._states, worker: state}
            self._fleets = {}
            listeners = list(self._listeners)
        if state.state in ("unfit", "lost"):
            self._forget_caches(worker)
        for listener in listeners:
            listener()

    def drain(self, worker: Worker, draining: bool) -> None:
        """Let a worker finish what it has and give it nothing new, or give it requests again."""
        with self._lock:
            state = self._states.get(worker)
            if state is None:
                return
            self._draining = self._draining | {worker} if draining else self._draining - {worker}
            self.leaving = self.leaving & self._draining
        if state.state in ("ready", "draining"):
            self.publish(worker, replace(state, state="ready", reason=""))

    def leave(self, worker: Worker) -> None:
        """Drain a worker for good: the watch removes it when it has nothing in flight."""
        self.drain(worker, True)
        with self._lock:
            self.leaving = self.leaving | (self._draining & {worker})

    def weight(self, worker: Worker) -> float:
        return self._weights.get(worker, worker.address.weight)

    def set_weight(self, worker: Worker, weight: float) -> None:
        with self._lock:
            if worker in self._states:
                self._weights[worker] = weight
            for candidate in self._candidates.get(worker, ()):
                candidate.set_weight(weight)
            self._fleets, self._rings = {}, {}

    def snapshot(self) -> dict[Worker, WorkerState]:
        """All workers; the dict is never changed."""
        return self._states

    def state(self, worker: Worker) -> WorkerState | None:
        """What is known of a worker; None once it is gone."""
        states = self._states
        # Not by `get`: on 3.13t that takes 20 µs for what another thread made (docs/performance.md).
        return states[worker] if worker in states else None

    def candidates(self, worker: Worker) -> tuple[Candidate, ...]:
        """A worker's data-parallel ranks; none before it was ready for the first time."""
        return self._candidates[worker]

    def in_flight(self, worker: Worker) -> int:
        return sum(candidate.in_flight for candidate in self._candidates.get(worker, ()))

    def ready_roles(self, model: str) -> set[str]:
        """Those that ready workers of `model` have."""
        return {state.role for state in self._states.values() if state.state == "ready" and state.model == model}

    def splits(self, model: str) -> bool:
        """Whether a prefill and a decode worker are there to share requests."""
        return {"prefill", "decode"} <= self.ready_roles(model)

    def unready(self, model: str) -> str:
        """Why a request for `model` would have to wait; empty when it need not."""
        if "any" in self.ready_roles(model) or self.splits(model):
            return ""
        return _missing(model, self.ready_roles(model))

    def lease(self, model: str, tried: set[Worker], query: Query, role: str = "any") -> Lease:
        """A place on a ready worker of `model` with this role, on one of `tried` only if there is no other.

        Raises Unavailable.
        """
        pool, fleets = (model, role), self._fleets
        # Not `get`: see blocks.Holders.
        fleet, choose = fleets[pool] if pool in fleets else self._new_fleet(model, role)
        candidate = choose(without(tried, fleet) if tried else fleet, query)
        lease = Lease(self, candidate, query, role)
        candidate.take(lease.tokens, query.answers, self.now())
        if role == "decode":
            lease.begin()  # its prompt has been read elsewhere
        return lease

    def report(self, worker: Worker, load: Load) -> None:
        """What an engine says of itself. Engine thread."""
        candidates = self._candidates[worker]
        ranks: Sequence[Load | RankLoad] = load.ranks or (load,)
        for candidate, rank_load in zip(candidates, ranks, strict=False):
            candidate.note(rank_load)
        for candidate in candidates:
            cache = self._caches.get(candidate)
            if cache is not None and not cache.is_told and load.kv_tokens_total:
                cache.blocks.bound(load.kv_tokens_total // len(candidates) // cache.index.block_size)

    def note_kv_events(self, worker: Worker, events: Iterable[KvEvent], is_first: bool) -> int:
        """How an engine's prefix cache changes; returns how many events made no sense. Engine thread."""
        if is_first:
            self._forget_caches(worker)
        caches = [self._caches.get(candidate) for candidate in self._candidates[worker]]
        faults = 0
        for event in events:
            cache = caches[event.dp_rank] if event.dp_rank < len(caches) else None
            if cache is not None:
                seed = seed_for(event.lora_id, event.cache_salt) if isinstance(event, KvStored) else 0
                faults += not cache.index.apply(cache.blocks, event, seed)
        return faults

    def cache_of(self, candidate: Candidate) -> Cache | None:
        """None when the policies do not care."""
        return self._caches.get(candidate)

    def known_blocks(self) -> dict[str, int]:
        """How many different blocks are known or believed to be cached, by model."""
        counts: dict[str, int] = {}
        for (model, _), index in self._indexes.copy().items():
            counts[model] = counts.get(model, 0) + len(index)
        return counts

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have `listener` called, on any thread, after each change of a worker's state; returns the unsubscription."""
        with self._lock:
            self._listeners.add(listener)

        def unsubscribe() -> None:
            with self._lock:
                self._listeners.discard(listener)

        return unsubscribe

    def _admit(self, worker: Worker, state: WorkerState) -> None:
        """Make a ready worker's candidates, unless it is as before."""
        ranks = state.info.dp_size if state.info else 1
        block_size = (state.info.kv_block_size if state.info else 0) or DEFAULT_BLOCK_SIZE
        is_told = state.info is not None and "kv_events" in state.info.features
        pool = (state.model, state.role)
        had = self._candidates[worker]
        if self._pools.get(worker, pool) != pool:
            self._retire(had)
            had = ()
        weight, tally = self._weights[worker], self._memories.setdefault(pool, Memory()).tally
        new = tuple(Candidate(worker, rank, self._new_slot(), weight, tally) for rank in range(len(had), ranks))
        candidates = had[:ranks] + new
        self._retire(had[ranks:])
        self._candidates = {**self._candidates, worker: candidates}
        self._pools[worker] = pool
        index = self._indexes.setdefault((state.model, block_size), BlockIndex(block_size))
        for candidate in candidates:
            cache = self._caches.get(candidate)
            if self.policies.uses_blocks(state.model) and (cache is None or cache.index is not index):
                self._caches[candidate] = Cache(index, candidate, is_told)

    def _new_slot(self) -> int:
        if self._free_slots:
            return self._free_slots.pop()
        self._slots += 1
        return self._slots - 1

    def _retire(self, candidates: Iterable[Candidate]) -> None:
        for candidate in candidates:
            cache = self._caches.pop(candidate, None)
            if cache is not None:
                cache.index.clear(cache.blocks)
            self._free_slots.append(candidate.slot)

    def _forget_caches(self, worker: Worker) -> None:
        for candidate in self._candidates[worker]:
            cache = self._caches.get(candidate)
            if cache is not None:
                cache.index.clear(cache.blocks)

    def _new_fleet(self, model: str, role: str) -> tuple[Fleet, Choose]:
        """Of who is ready now; raises Unavailable."""
        pool = (model, role)
        with self._lock:
            if pool in self._fleets:
                return self._fleets[pool]
            known = candidates_of((w for w in self._pools if self._pools[w] == pool), self._candidates)
            ready = candidates_of((w for w, state in self._states.items() if _serves(state, pool)), self._candidates)
            if not ready:
                raise Unavailable(_missing(model, self.ready_roles(model)))
            ring = self._rings.get(pool)
            if ring is None or ring.candidates != known:
                ring = self._rings[pool] = Ring(known)
            indexes = tuple(index for (name, _), index in self._indexes.items() if name == model)
            fleet = Fleet.of(ready, ring, indexes, self._memories.setdefault(pool, Memory()))
            entry = self._fleets[pool] = fleet, self.policies.policy_for(model, role).choose
        return entry


def candidates_of(
    workers: Iterable[Worker], candidates: Mapping[Worker, tuple[Candidate, ...]]
) -> tuple[Candidate, ...]:
    return tuple(candidate for worker in workers for candidate in candidates[worker])


def without(tried: set[Worker], fleet: Fleet) -> Fleet:
    """A fleet of those not tried yet, or of all again."""
    rest = tuple(candidate for candidate in fleet.candidates if candidate.worker not in tried)
    return Fleet.of(rest, fleet.ring, fleet.indexes, fleet.memory) if rest else fleet


def _serves(state: WorkerState, pool: Pool) -> bool:
    return state.state == "ready" and (state.model, state.role) == pool


def _missing(model: str, roles: set[str]) -> str:
    """What to say when a model's ready workers, which have these roles, cannot serve a request."""
    lonely = next((role for role in ("prefill", "decode") if role in roles), None)
    if lonely is None:
        return f"no worker of model {model!r} is ready"
    other = "decode" if lonely == "prefill" else "prefill"
    return f"no {other} worker of model {model!r} is ready, and its {lonely} workers need one"
