"""The token cache: its budget, what it keeps when there is too much, and that nothing is computed twice at once."""

import random
import sys
import threading
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tokenizer.cache import OVERHEAD, Space, TokenCache
from tests.processes import PATIENCE


def ids_of(text: str) -> bytes:
    return text.encode("utf-32-le")


def encode(texts: Sequence[str]) -> list[bytes]:
    return list(map(ids_of, texts))


def cost(text: str) -> int:
    return sys.getsizeof(text) + sys.getsizeof(ids_of(text)) + OVERHEAD


def add(space: Space, *texts: str) -> None:
    space.compute(texts, encode, may_wait=True)


@given(texts=st.lists(st.text("abcä", max_size=12), max_size=200), budget=st.integers(500, 20_000))
def test_it_never_exceeds_its_budget_and_counts_exactly(texts: list[str], budget: int) -> None:
    cache = TokenCache(budget)
    spaces = [Space(cache), Space(cache)]
    for number, text in enumerate(texts):
        space = spaces[number % 2]
        add(space, text)
        space.put_prompt(text + "x", ids_of(text + "x"))
        assert cache.bytes <= budget
        assert cache.bytes == sum(shard.recount() for shard in cache.shards) == sum(cache.bytes_by_level())
        assert space.get(text) in (None, ids_of(text))


def test_it_takes_as_much_memory_as_it_says() -> None:
    cache = TokenCache(1 << 30)
    space = Space(cache)
    texts = [f"{number} " * 5 for number in range(5_000)]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for text in texts:
        add(space, str(text[:-1]))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert cache.bytes == pytest.approx(after - before, rel=0.25)


def test_what_is_used_again_outlives_any_number_of_texts_seen_once() -> None:
    cache = TokenCache(100 * cost("text 00000"))
    space = Space(cache)
    add(space, "shared")
    for number in range(5000):
        add(space, f"text {number:05}")
        if number % 20 == 0:
            assert space.get("shared") is not None, number
    assert cache.evictions_by_level()[0] > 4000


def test_a_text_that_comes_back_soon_after_it_was_evicted_stays() -> None:
    cache = TokenCache(100 * cost("text 00000"))
    space = Space(cache)
    add(space, "shared", *(f"text {number:05}" for number in range(120)))
    assert space.get("shared") is None
    add(space, "shared")

    add(space, *(f"once {number:05}" for number in range(80)))

    assert space.get("shared") is not None


def test_texts_beyond_all_measure_are_not_kept() -> None:
    cache = TokenCache(1000)
    add(Space(cache), "x" * 1000)
    assert cache.bytes == cache.entries == 0


def test_tokenizers_do_not_see_each_others_ids() -> None:
    cache = TokenCache(1 << 20)
    one, other = Space(cache), Space(cache)
    add(one, "a")
    assert one.get("a") == ids_of("a")
    assert other.get("a") is None


def test_concurrent_misses_of_one_text_are_computed_once() -> None:
    space = Space(TokenCache(1 << 20))
    began, may_end = threading.Event(), threading.Event()
    computed: list[str] = []
    found: list[dict[str, bytes]] = []

    def slowly(texts: Sequence[str]) -> list[bytes]:
        computed.extend(texts)
        began.set()
        assert may_end.wait(PATIENCE)
        return encode(texts)

    def ask(*texts: str) -> None:
        found.append(space.compute(texts, slowly, may_wait=True))

    first = threading.Thread(target=ask, args=("a", "b"))
    first.start()
    assert began.wait(PATIENCE)
    others = [threading.Thread(target=ask, args=("b", "a")) for _ in range(3)]
    for thread in others:
        thread.start()
    inline = space.compute(["a"], encode, may_wait=False)
    may_end.set()
    for thread in (first, *others):
        thread.join(PATIENCE)

    assert inline == {"a": ids_of("a")}
    assert found == [{"a": ids_of("a"), "b": ids_of("b")}] * 4
    assert computed == ["a", "b"]


def test_those_who_wait_for_a_computation_that_fails_do_it_themselves() -> None:
    space = Space(TokenCache(1 << 20))
    began, may_end = threading.Event(), threading.Event()

    def fail(texts: Sequence[str]) -> list[bytes]:
        began.set()
        assert may_end.wait(PATIENCE)
        raise ValueError(texts)

    def ask() -> None:
        with pytest.raises(ValueError):
            space.compute(["a"], fail, may_wait=True)

    first = threading.Thread(target=ask)
    first.start()
    assert began.wait(PATIENCE)
    threading.Timer(0.05, may_end.set).start()
    assert space.compute(["a"], encode, may_wait=True) == {"a": ids_of("a")}
    first.join(PATIENCE)
    assert space.compute(["a"], encode, may_wait=True) == {"a": ids_of("a")}


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_many_threads_leave_it_in_order(duration: float) -> None:
    cache = TokenCache(50_000)
    spaces = [Space(cache), Space(cache)]
    is_over = threading.Event()
    wrong: list[str] = []

    def hammer(seed: int) -> None:
        generator = random.Random(seed)
        while not is_over.is_set():
            texts = [f"text {int(generator.paretovariate(0.5)) % 3000}" for _ in range(5)]
            space = spaces[seed % 2]
            found = space.compute(texts, encode, may_wait=generator.random() < 0.5)
            space.put_prompt("".join(texts), ids_of("".join(texts)))
            wrong.extend(text for text in texts if found[text] != ids_of(text))

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    is_over.wait(duration)
    is_over.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.bytes <= cache.budget
    assert sum(shard.recount() for shard in cache.shards) == cache.bytes
    assert all(not flights for space in spaces for flights in space._flights)
