"""The cache of preprocessed images: its budget, its order, and many threads that want the same."""

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from gateway.multimodal.cache import MAX_FILES, ImageCache


@dataclass
class Value:
    name: str
    nbytes: int = 10
    keeps_file: bool = False


def names(cache: ImageCache[Value], *keys: str) -> list[bool]:
    """Whether each was known."""
    return [cache.get(key, partial(Value, key))[1] for key in keys]


def test_the_least_recently_used_goes_first() -> None:
    cache: ImageCache[Value] = ImageCache(30)
    assert names(cache, "a", "b", "c", "a") == [False, False, False, True]
    assert names(cache, "d", "a", "b") == [False, True, False]
    assert (cache.bytes, len(cache)) == (30, 3)
    value, _ = cache.get("large", lambda: Value("large", 16))
    assert value.name == "large" and cache.bytes == 30, "it is given, and not kept"


def test_files_are_bounded() -> None:
    cache: ImageCache[Value] = ImageCache(1 << 20)
    for number in range(MAX_FILES + 5):
        cache.get(number, lambda: Value("", keeps_file=True))
    assert len(cache) == MAX_FILES


def test_what_fails_is_not_kept_and_fails_for_all() -> None:
    cache: ImageCache[Value] = ImageCache(100)

    def fail() -> Value:
        raise ValueError("broken")

    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            cache.get("a", fail)
    assert names(cache, "a", "a") == [False, True]


def test_many_threads_compute_each_thing_once() -> None:
    cache: ImageCache[Value] = ImageCache(1 << 20)
    made: Counter[int] = Counter()
    lock = threading.Lock()
    start = threading.Barrier(8)
    wrong: list[object] = []

    def make(key: int) -> Value:
        with lock:
            made[key] += 1
        return Value(str(key))

    def keys(seed: int) -> Iterator[int]:
        return ((seed * 7 + number * number) % 50 for number in range(400))

    def hammer(seed: int) -> None:
        start.wait()
        for key in keys(seed):
            value, _ = cache.get(key, partial(make, key))
            if value.name != str(key):
                wrong.append((key, value))

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert set(made.values()) == {1}
    assert cache.bytes == 10 * len(cache) == 10 * len(made)
