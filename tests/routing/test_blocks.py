"""The block index: against a naive model, against the simulator's own cache, and within its bounds."""

from array import array
from collections.abc import Sequence
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_adapters.base import KvCleared, KvEvent, KvRemoved, KvStored
from engine_adapters.simulator.kv_cache import KvCache, block_hashes
from gateway.routing.blocks import (
    LEAST_PREDICTED,
    SETTLED_SECONDS,
    BlockIndex,
    CachedBlocks,
    block_keys,
    seed_for,
)

SIZE = 2
CAPACITY = 8192
SEED = seed_for(0, "")
BLOCKS = st.lists(st.integers(0, 2), min_size=1, max_size=5)
"""A prompt, by its blocks; few kinds, so that many begin alike."""


def tokens(blocks: Sequence[int]) -> bytes:
    return array("I", [token for block in blocks for token in (block, block + 100)]).tobytes()


def keys(blocks: Sequence[int], seed: int = SEED) -> list[int]:
    return block_keys(tokens(blocks), SIZE, seed)


def depths(index: BlockIndex, blocks: Sequence[int], caches: Sequence[CachedBlocks]) -> list[int]:
    """How much of a prompt each of `caches` has, by what the index says."""
    found = dict.fromkeys((cache.bit for cache in caches), 0)
    for count, bits in index.matches(keys(blocks), sum(found)):
        for bit in found:
            if bits & bit:
                assert not found[bit], "each is told once"
                found[bit] = count
    return [found[cache.bit] for cache in caches]


def some_caches(count: int = 3) -> list[CachedBlocks]:
    return [CachedBlocks(1 << slot, CAPACITY) for slot in range(count)]


def test_a_key_stands_for_all_blocks_before_it_and_their_seed() -> None:
    assert keys([1, 2, 3])[:2] == keys([1, 2])
    assert keys([1, 2])[1] != keys([2, 2])[1]
    assert set(keys([1, 2])).isdisjoint(keys([1, 2], seed_for(0, "salt")) + keys([1, 2], seed_for(7, "")))
    assert block_keys(tokens([1, 2])[:-4], SIZE, SEED) == keys([1]), "only whole blocks count"
    assert all(0 <= key < 1 << 60 for key in keys([0, 1, 2]))


class Naive:
    """Caches as sets of block sequences."""

    def __init__(self, count: int) -> None:
        self.caches: list[set[tuple[int, ...]]] = [set() for _ in range(count)]

    def depth(self, cache: int, blocks: Sequence[int]) -> int:
        prefixes = accumulate(([block] for block in blocks), lambda one, other: one + other)
        count = 0
        for prefix in prefixes:
            if tuple(prefix) not in self.caches[cache]:
                return count
            count += 1
        return count


def name_of(prefix: Sequence[int]) -> int:
    """An engine's hash of the last block of `prefix`."""
    return int("1" + "".join(map(str, prefix)))


STORE = st.tuples(st.just("store"), st.integers(0, 2), BLOCKS)
REMOVE = st.tuples(st.just("remove"), st.integers(0, 2), BLOCKS)
CLEAR = st.tuples(st.just("clear"), st.integers(0, 2), st.just([0]))


@given(st.lists(STORE | REMOVE | CLEAR, max_size=40), st.lists(BLOCKS, min_size=1, max_size=5))
@settings(max_examples=60)
def test_it_knows_what_a_naive_model_knows(steps: list[tuple[str, int, list[int]]], prompts: list[list[int]]) -> None:
    index, naive, caches = BlockIndex(SIZE), Naive(3), some_caches()
    for kind, cache, blocks in steps:
        held = naive.caches[cache]
        if kind == "store":
            have = naive.depth(cache, blocks)
            if have == len(blocks):
                continue
            names = tuple(name_of(blocks[: end + 1]) for end in range(have, len(blocks)))
            parent = name_of(blocks[:have]) if have else 0
            event: KvEvent = KvStored(parent, names, tokens(blocks[have:]))
            held.update(tuple(blocks[: end + 1]) for end in range(have, len(blocks)))
        elif kind == "remove":
            gone = {prefix for prefix in held if prefix[: len(blocks)] == tuple(blocks)}
            event = KvRemoved(tuple(map(name_of, sorted(gone, key=len, reverse=True))))
            held -= gone
        else:
            event = KvCleared()
            held.clear()
        assert index.apply(caches[cache], event, SEED)

    for blocks in prompts:
        assert depths(index, blocks, caches) == [naive.depth(cache, blocks) for cache in range(3)]
    assert len(index) == len(set.union(*naive.caches))


@given(st.lists(BLOCKS, min_size=1, max_size=30), BLOCKS)
@settings(max_examples=60)
def test_it_follows_the_simulators_cache_by_its_events(prompts: list[list[int]], asked: list[int]) -> None:
    engine, index, cache = KvCache(blocks=8), BlockIndex(SIZE), CachedBlocks(1, CAPACITY)
    for blocks in prompts:
        hashes = [*block_hashes(tokens(blocks), SIZE, 0)]
        known = engine.match(hashes)
        engine.hold(hashes[:known])
        assert engine.take(len(hashes) - known)
        parent = hashes[known - 1] if known else 0
        engine.store(parent, hashes[known:], tokens(blocks[known:]), "")
        engine.release(hashes, 0)
        for event in engine.events:
            assert index.apply(cache, event, SEED)
        engine.events.clear()

    assert len(cache.stored) == len(engine)
    assert depths(index, asked, [cache]) == [engine.match([*block_hashes(tokens(asked), SIZE, 0)])]


def test_blocks_behind_one_that_is_not_known_are_not_taken_for_a_beginning() -> None:
    index, cache = BlockIndex(SIZE), CachedBlocks(1, CAPACITY)

    assert not index.apply(cache, KvStored(99, (1,), tokens([1])), SEED)
    assert not index.apply(cache, KvStored(0, (1, 2), tokens([1])), SEED), "blocks of another size"
    assert len(index) == 0


def test_what_is_sent_is_believed_until_the_engine_removes_it() -> None:
    index, cache = BlockIndex(SIZE), CachedBlocks(1, CAPACITY)
    assert len(index.predict(cache, keys([1, 2]), now=0)) == 2
    assert index.predict(cache, keys([1, 2]), now=0) == []
    assert depths(index, [1, 2, 3], [cache]) == [2]

    assert index.apply(cache, KvStored(0, (11, 12), tokens([1, 2])), SEED)
    assert not cache.predicted, "now it is known"
    assert index.predict(cache, keys([1, 2]), now=0) == []
    assert index.apply(cache, KvRemoved((12,)), SEED)
    assert depths(index, [1, 2, 3], [cache]) == [1]


def test_a_prompt_that_was_not_read_is_forgotten_but_not_what_others_share_with_it() -> None:
    index, cache = BlockIndex(SIZE), CachedBlocks(1, CAPACITY)
    index.predict(cache, keys([1, 2]), now=0)
    new = index.predict(cache, keys([1, 3]), now=0)

    index.withdraw(cache, new)

    assert depths(index, [1, 3], [cache]) == [1]
    assert depths(index, [1, 2], [cache]) == [2]


def test_predictions_are_bounded_and_forget_the_ends_of_the_oldest_first() -> None:
    index, caches = BlockIndex(SIZE), some_caches(2)
    caches[0].capacity = caches[0].limit = 10
    for number in range(1000):
        index.predict(caches[0], keys([0, number, number, number]), now=number)
        assert len(caches[0].predicted) <= 10

    assert depths(index, [0, 999, 999, 999], caches) == [4, 0]
    assert depths(index, [0, 1, 1, 1], caches) == [1, 0], "what all share stays"
    assert len(index) == len(caches[0].predicted)
    index.clear(caches[0])
    assert len(index) == 0


def test_memory_is_flat_under_prompts_that_share_nothing() -> None:
    index, cache = BlockIndex(SIZE), CachedBlocks(1, CAPACITY)
    sizes = []
    for number in range(3000):
        index.predict(cache, keys([number] * 8), now=0)
        sizes.append(len(index))

    assert max(sizes) <= CAPACITY


def test_an_engine_that_caches_less_is_believed_less() -> None:
    index, cache = BlockIndex(SIZE), CachedBlocks(1, CAPACITY)
    for number in range(500):
        index.predict(cache, keys([number] * 8), now=0)
    asked = keys([499] * 8)
    assert index.expected(cache, asked, now=SETTLED_SECONDS / 2) == 0, "it may not have been read yet"
    expected = index.expected(cache, asked, now=2 * SETTLED_SECONDS)
    assert expected == 8
    before = len(cache.predicted)

    index.correct(cache, expected, cached=0)
    assert len(cache.predicted) == cache.capacity == before // 2

    for _ in range(20):
        index.correct(cache, expected, cached=0)
    assert cache.capacity == LEAST_PREDICTED, "an engine without a cache is soon believed nothing"

    for _ in range(200):
        index.correct(cache, expected, cached=8)
    assert cache.capacity == cache.limit


@pytest.mark.parametrize("count", [3, 300])
def test_holders_are_told_apart_by_what_they_have(count: int) -> None:
    index, caches = BlockIndex(SIZE), some_caches(count)
    for number, cache in enumerate(caches):
        index.predict(cache, keys([1, 2, 3, 4][: number % 4 + 1]), now=0)

    found = [*index.matches(keys([1, 2, 3, 4]), (1 << count) - 1)]

    assert [blocks for blocks, _ in found] == [4, 3, 2, 1][-min(count, 4) :]
    assert sum(bits for _, bits in found) == (1 << count) - 1
    assert [*index.matches(keys([1, 2]), 0)] == []
