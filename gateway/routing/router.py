"""The router: hands out leases on ready workers, each by the policy of its model and role.

Threads: every HTTP loop leases and releases, the engine thread publishes states and reports loads and cached blocks,
the watch reads. `_lock` guards what changes when workers come, go or change their state, and who reads that finds dicts
that are replaced whole; leases take no lock but the chosen candidate's. What is cached is the engine thread's.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from engine_adapters.base import KvEvent, KvStored, Load, RankLoad
from gateway import log
from gateway.errors import Unavailable
from gateway.routing.blocks import BlockIndex, seed_for
from gateway.routing.breaker import Breaker, BreakerRules
from gateway.routing.candidate import Candidate
from gateway.routing.fleet import Fleet, Memory, Query
from gateway.routing.lease import Cache, Lease
from gateway.routing.policies import Choose, Policies
from gateway.routing.ring import Ring
from gateway.routing.worker import Worker, WorkerState

DEFAULT_BLOCK_SIZE = 32
"""TensorRT-LLM's, for engines that do not say."""
PREDICTED_BLOCK_SIZE = 128
"""The least, in tokens, where what is cached is only believed: that need not be exact, and every block costs a request
some 3 µs to be hashed, noted and forgotten."""

type Pool = tuple[str, str]
"""(model, role)"""


class NameTaken(ValueError):
    """There is a worker of that name; the message says so."""


class Router:
    """`now` is a clock, for who wants to make time pass. Without `rules` there are no circuit breakers."""

    def __init__(
        self,
        policies: Policies | None = None,
        now: Callable[[], float] = time.monotonic,
        rules: BreakerRules | None = None,
    ) -> None:
        self.policies = policies or Policies()
        self.now = now
        self._rules = rules
        self._lock = threading.Lock()
        self._states: dict[Worker, WorkerState] = {}
        self._candidates: dict[Worker, tuple[Candidate, ...]] = {}
        self._pools: dict[Worker, Pool] = {}
        self._weights: dict[Worker, float] = {}
        self._roles: dict[Worker, str] = {}
        """Those that an operator has given."""
        self._labels: dict[Worker, dict[str, str]] = {}
        self._breakers: dict[Worker, Breaker] = {}
        self._former: dict[Worker, tuple[Candidate, ...]] = {}
        """Candidates that are no more, and may have requests in flight."""
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

    def add(self, worker: Worker, labels: Mapping[str, str] | None = None) -> None:
        """Raises NameTaken."""
        with self._lock:
            if any(each.name == worker.name for each in self._states):
                raise NameTaken(f"there is a worker {worker.name!r} already")
            self._states = {**self._states, worker: WorkerState("starting", "not reached yet")}
            self._labels[worker] = dict(labels or {})
            if self._rules is not None:
                self._breakers[worker] = Breaker(self._rules, self.now)
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
            for known in (self._pools, self._weights, self._roles, self._labels, self._breakers, self._former):
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
                state = replace(state, role=self._roles.get(worker, state.role))
                if self._states[worker].info is None and worker in self._breakers:
                    self._breakers[worker].try_now()
                self._admit(worker, state)
                if worker in self._draining:
                    state = replace(state, state="draining", reason="by an operator")
            self._states = {**self._states, worker: state}
            self._fleets = {}
            listeners = list(self._listeners)
        if state.info is None and state.state != "ready":
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

    def set_role(self, worker: Worker, role: str) -> None:
        """One of ROLES, in place of what its URL or its engine says; what it has in flight goes on."""
        with self._lock:
            state = self._states.get(worker)
            if state is None:
                return
            self._roles[worker] = role
        if state.state in ("ready", "draining"):
            self.publish(worker, replace(state, state="ready", reason=""))

    def labels(self, worker: Worker) -> dict[str, str]:
        """What an operator wants to know of a worker; not to be changed."""
        return self._labels.get(worker, {})

    def set_labels(self, worker: Worker, labels: Mapping[str, str]) -> None:
        with self._lock:
            if worker in self._states:
                self._labels[worker] = dict(labels)

    def breakers(self) -> dict[Worker, Breaker]:
        return self._breakers.copy()

    def breaker(self, worker: Worker) -> Breaker | None:
        return self._breakers.get(worker)

    def tick(self) -> None:
        """Let time pass for the circuit breakers."""
        for worker, breaker in self._breakers.copy().items():
            if breaker.tick():
                self.look_again(worker)

    def look_again(self, worker: Worker) -> None:
        """Its circuit breaker has changed its mind."""
        breaker = self.breaker(worker)
        if breaker is not None:
            level = logging.WARNING if breaker.state == "open" else logging.INFO
            log.event(level, f"the circuit breaker of worker {worker.name} is {breaker.state.replace('_', ' ')}")
        with self._lock:
            self._fleets = {}
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

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
        candidates = (*self._candidates.get(worker, ()), *self._former.get(worker, ()))
        return sum(candidate.in_flight for candidate in candidates)

    def ready_roles(self, model: str) -> set[str]:
        """Those that ready workers of `model` have whose circuit breakers are not open."""
        ready = ((w, state) for w, state in self._states.items() if state.state == "ready" and state.model == model)
        return {state.role for worker, state in ready if not self._is_open(worker)}

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
        while True:
            pool, fleets = (model, role), self._fleets
            # Not `get`: see blocks.Holders.
            fleet, choose = fleets[pool] if pool in fleets else self._new_fleet(model, role)
            candidate = choose(without(tried, fleet) if tried else fleet, query)
            lease = Lease(self, candidate, query, role)
            if candidate.breaker is None or candidate.breaker.admit(lease):
                break
            with self._lock:
                self._fleets = {}  # without those whose breakers admit nothing now
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
        if not is_told:
            block_size = max(block_size, PREDICTED_BLOCK_SIZE)
        pool = (state.model, state.role)
        before, kept = self._pools.get(worker, pool), self._candidates[worker][:ranks]
        if before[0] != pool[0]:
            kept = ()
        former = self._candidates[worker][len(kept) :]
        self._retire(former)
        still = (candidate for candidate in self._former.get(worker, ()) if candidate.in_flight)
        self._former[worker] = (*still, *former)
        weight, tally = self._weights[worker], self._memories.setdefault(pool, Memory()).tally
        if before != pool:
            for candidate in kept:
                candidate.move(tally)
        breaker = self._breakers.get(worker)
        candidates = kept + tuple(
            Candidate(worker, rank, self._new_slot(), weight, tally, breaker) for rank in range(len(kept), ranks)
        )
        self._candidates = {**self._candidates, worker: candidates}
        self._pools[worker] = pool
        index = self._indexes.setdefault((state.model, block_size), BlockIndex(block_size))
        for candidate in candidates:
            cache = self._caches.get(candidate)
            if self.policies.uses_blocks(state.model) and (cache is None or cache.index is not index):
                self._caches[candidate] = Cache(index, candidate, is_told)

    def _is_open(self, worker: Worker) -> bool:
        breaker = self._breakers.get(worker)
        return breaker is not None and breaker.state == "open"

    def _admits(self, worker: Worker) -> bool:
        breaker = self._breakers.get(worker)
        return breaker is None or breaker.admits

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
            serving = (w for w, state in self._states.items() if _serves(state, pool) and self._admits(w))
            ready = candidates_of(serving, self._candidates)
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
