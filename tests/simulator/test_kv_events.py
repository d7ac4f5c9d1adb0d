"""Whatever a scheduler is asked: its KV events say exactly what its caches hold, and every answer comes whole."""

import itertools
from array import array
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine_adapters.base import FinishReason, KvStored, Submission
from engine_adapters.simulator.kv_cache import block_hashes, root_hash
from engine_adapters.simulator.rank import Capacity
from engine_adapters.simulator.run import Plan
from engine_adapters.simulator.scheduler import Costs, Scheduler
from engine_adapters.step.kv_index import KvIndex

BLOCK_SIZE = 4
CAPACITY = Capacity(
    max_running=4, context_length=1000, kv_tokens=25 * BLOCK_SIZE, block_size=BLOCK_SIZE, prefill_chunk=11, dp_size=2
)
STEPS = [(token_id, token_id) if token_id % 3 == 0 else (token_id,) for token_id in range(20)]
SPOKEN = [*itertools.chain.from_iterable(STEPS * 3)]
PROMPTS = st.builds(
    lambda kind, size: array("I", [kind, *range(size)]).tobytes(), st.integers(0, 2), st.integers(0, 60)
)


def plan_for(_submission: Submission, index: int) -> Plan:
    return Plan(STEPS, delays={2: 1.5} if index else {}, repeats=True)


class Engine(RuleBasedStateMachine):
    """Streams come and go at any moment of a step, with too few blocks and places for all of them."""

    @initialize()
    def start(self) -> None:
        self.scheduler: Scheduler[int] = Scheduler(plan_for, Costs(), CAPACITY, frozenset())
        self.index = KvIndex()
        self.now = 0.0
        self.ends_at: float | None = None
        self.keys = itertools.count()
        self.said: dict[int, list[int]] = {}
        self.limits: dict[int, int] = {}

    @rule(
        prompt=PROMPTS,
        max_tokens=st.integers(1, 30),
        n=st.integers(1, 5),
        priority=st.integers(-1, 1),
        cache_salt=st.sampled_from(["", "salt"]),
        dp_rank=st.integers(0, 1),
    )
    def submit(self, prompt: bytes, max_tokens: int, n: int, **more: Any) -> None:
        keys = [*itertools.islice(self.keys, n)]
        assert self.scheduler.submit(keys, Submission("r", prompt, max_tokens, n=n, **more)) is None
        limit = min(max_tokens, CAPACITY.kv_tokens - len(prompt) // 4 + 1)
        self.said |= {key: [] for key in keys}
        self.limits |= dict.fromkeys(keys, limit)

    @precondition(lambda self: self.said)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.said)))
        finish = self.scheduler.abort(key)
        assert finish is not None and finish.reason is FinishReason.ABORTED
        assert finish.completion_tokens == len(self.said.pop(key))

    @rule()
    def clear(self) -> None:
        self.scheduler.clear_cache()

    @precondition(lambda self: self.ends_at is None)
    @rule()
    def begin_step(self) -> None:
        self.ends_at = self.scheduler.begin_step(self.now)
        if self.ends_at is None:
            resumes = self.scheduler.next_ready_at()
            assert resumes is not None or not self.said, "somebody waits for ever"
            self.now = max(self.now, resumes or 0.0)

    @precondition(lambda self: self.ends_at is not None)
    @rule()
    def end_step(self) -> None:
        assert self.ends_at is not None
        self.now, self.ends_at = self.ends_at, None
        for key, token_ids, finish in self.scheduler.end_step():
            self.said[key] += token_ids
            assert self.said[key] == SPOKEN[: len(self.said[key])]
            if finish is not None:
                assert finish.reason is FinishReason.LENGTH
                assert finish.completion_tokens == len(self.said.pop(key)) == self.limits[key]

    @invariant()
    def events_say_what_is_cached(self) -> None:
        for event in self.scheduler.take_kv_events():
            self.index.apply(event)
        stored: dict[int, set[int]] = {0: set(), 1: set()}
        for event in self.index.snapshot():
            parents = stored[event.dp_rank]
            assert event.parent_hash == 0 or event.parent_hash in parents
            previous = event.parent_hash or root_hash(event.cache_salt)
            assert [*event.block_hashes] == [*block_hashes(event.token_ids, BLOCK_SIZE, previous)]
            parents.update(event.block_hashes)
        for rank, hashes in zip(self.scheduler.ranks, stored.values(), strict=True):
            assert len(rank.cache) == len(hashes) and all(block_hash in rank.cache for block_hash in hashes)

    @invariant()
    def nothing_is_given_out_twice(self) -> None:
        loads = [rank.load for rank in self.scheduler.ranks]
        assert sum(load.running + load.waiting for load in loads) == len(self.said)
        for rank, load in zip(self.scheduler.ranks, loads, strict=True):
            assert load.running <= CAPACITY.max_running
            assert 0 <= rank.cache.used <= rank.cache.blocks
            assert load.running or not rank.cache.used

    def teardown(self) -> None:
        for _ in range(3000):
            if not self.said:
                break
            self.begin_step() if self.ends_at is None else self.end_step()
            self.events_say_what_is_cached()
        assert not self.said, "some answers never came"
        self.nothing_is_given_out_twice()


TestEngine = Engine.TestCase
TestEngine.settings = settings(max_examples=30, stateful_step_count=50)


def test_a_snapshot_of_a_cache_holds_each_chain_in_one_event() -> None:
    index = KvIndex()
    index.apply(KvStored(0, (11, 12), b"\0" * 32))
    index.apply(KvStored(12, (13,), b"\1" * 16))
    assert [*index.snapshot()] == [KvStored(0, (11, 12, 13), b"\0" * 32 + b"\1" * 16)]
