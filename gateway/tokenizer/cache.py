"""Texts whose token ids are known: one byte budget for all tokenizers, S3-FIFO eviction, no work done twice at once.

S3-FIFO (Yang et al., SOSP 2023): new texts enter a small queue, a tenth of the budget; those used again before they
reach its end move on to the main queue, where each use is worth another round; the others leave a hash behind, and a
text that comes back while its hash is known enters the main queue. Prompts seen once, most of what passes here, so
never push out what is shared. A hit writes nothing but one small counter, where LRU would move entries under a lock.

Keys are the texts themselves and not digests of them: no two texts can be taken for each other.

Threads: any thread calls any method. `Shard.lock` guards a shard's queues, sizes and flights; it is held for
arithmetic. `get` takes no lock: dicts are safe to read, entries never change but for `uses`, where a lost increment
does no harm. Ids are computed outside of all locks, by whoever holds the text's flight.
"""

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

SMALL_SHARE = 10
"""The small queue has one part in so many of a shard's budget."""
LEVELS = ("segment", "prompt")
MAX_USES = 3
MAX_SHARDS = 16
SHARD_BYTES = 4 << 20
"""There are no more shards than have room for so much each."""


class Entry:
    """A text and its ids, little-endian u32. `bytes` is what all of it occupies, `level` an index of LEVELS."""

    __slots__ = ("bytes", "ids", "level", "text", "texts", "uses")

    def __init__(self, texts: dict[str, "Entry"], text: str, ids: bytes, level: int = 0) -> None:
        self.texts = texts
        self.level = level
        self.text = text
        self.ids = ids
        self.uses = 0
        self.bytes = sys.getsizeof(text) + sys.getsizeof(ids) + OVERHEAD


OVERHEAD = 208
"""Bytes of an entry beside text and ids: the object, its places in a dict and a queue, the hash it may leave behind. As
tracemalloc counts them: 150 to 245, since dicts grow in steps."""


class Flight:
    """The computation of some texts' ids, going on in one thread; a text without ids when it has landed has failed."""

    __slots__ = ("ids", "landed")

    def __init__(self) -> None:
        self.ids: dict[str, bytes] = {}
        self.landed = threading.Event()


class Shard:
    """One part of the budget, chosen by a text's hash."""

    def __init__(self, budget: int) -> None:
        self.lock = threading.Lock()
        self.budget = budget
        self.bytes = self.small_bytes = 0
        self.bytes_by_level = [0] * len(LEVELS)
        self.evictions_by_level = [0] * len(LEVELS)
        self._small: deque[Entry] = deque()
        self._main: deque[Entry] = deque()
        self._seen: dict[int, None] = {}

    def add(self, entry: Entry) -> None:
        """Take in an entry whose text is not here, and make room. Call with the lock held."""
        if entry.bytes > self.budget // 2:
            return
        entry.texts[entry.text] = entry
        self.bytes += entry.bytes
        self.bytes_by_level[entry.level] += entry.bytes
        if self._seen.pop(hash(entry.text), self) is None:
            self._main.append(entry)
        else:
            self._small.append(entry)
            self.small_bytes += entry.bytes
        while self.bytes > self.budget:
            if self._small and (self.small_bytes * SMALL_SHARE > self.budget or not self._main):
                self._leave_small()
            else:
                self._leave_main()

    def was_seen(self, text: str) -> bool:
        """Whether a text's hash is known; it is from now on. Call with the lock held."""
        if hash(text) in self._seen:
            return True
        self._remember(text)
        return False

    @property
    def entries(self) -> int:
        return len(self._small) + len(self._main)

    def recount(self) -> int:
        """The bytes of all entries that can be found, added up anew."""
        with self.lock:
            return sum(entry.bytes for entry in (*self._small, *self._main) if entry.texts.get(entry.text) is entry)

    def _leave_small(self) -> None:
        entry = self._small.popleft()
        self.small_bytes -= entry.bytes
        if entry.uses:
            entry.uses = 0
            self._main.append(entry)
        else:
            self._remember(entry.text)
            self._evict(entry)

    def _leave_main(self) -> None:
        entry = self._main.popleft()
        if entry.uses:
            entry.uses -= 1
            self._main.append(entry)
        else:
            self._evict(entry)

    def _evict(self, entry: Entry) -> None:
        del entry.texts[entry.text]
        self.bytes -= entry.bytes
        self.bytes_by_level[entry.level] -= entry.bytes
        self.evictions_by_level[entry.level] += 1

    def _remember(self, text: str) -> None:
        self._seen[hash(text)] = None
        if len(self._seen) > max(64, 2 * self.entries):
            del self._seen[next(iter(self._seen))]


class TokenCache:
    """`budget` bytes for all texts of all tokenizers; every tokenizer gets a `Space` of its own."""

    def __init__(self, budget: int) -> None:
        count = 1
        while count < MAX_SHARDS and budget // (2 * count) >= SHARD_BYTES:
            count *= 2
        self.budget = budget
        self.shards = [Shard(budget // count) for _ in range(count)]

    def __repr__(self) -> str:
        return f"<TokenCache: {self.entries} texts, {self.bytes} of {self.budget} bytes>"

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def entries(self) -> int:
        return sum(shard.entries for shard in self.shards)

    def bytes_by_level(self) -> list[int]:
        return [sum(shard.bytes_by_level[level] for shard in self.shards) for level in range(len(LEVELS))]

    def evictions_by_level(self) -> list[int]:
        return [sum(shard.evictions_by_level[level] for shard in self.shards) for level in range(len(LEVELS))]


class Space:
    """One tokenizer's part of a cache."""

    def __init__(self, cache: TokenCache) -> None:
        self._shards = cache.shards
        self._mask = len(cache.shards) - 1
        self._texts: list[dict[str, Entry]] = [{} for _ in cache.shards]
        self._flights: list[dict[str, Flight]] = [{} for _ in cache.shards]

    def get(self, text: str) -> bytes | None:
        """The ids of a text, if they are known."""
        try:
            # Not dict.get: on 3.13t it takes 20 µs where another thread has made the key that is found.
            entry = self._texts[hash(text) & self._mask][text]
        except KeyError:
            return None
        if entry.uses < MAX_USES:
            entry.uses += 1
        return entry.ids

    def __contains__(self, text: str) -> bool:
        return text in self._texts[hash(text) & self._mask]

    def put_prompt(self, text: str, ids: bytes) -> None:
        """Keep a whole prompt, if it comes again; the first time, only note that there is such a text."""
        number = hash(text) & self._mask
        shard, texts = self._shards[number], self._texts[number]
        with shard.lock:
            if shard.was_seen(text) and text not in texts:
                shard.add(Entry(texts, text, ids, LEVELS.index("prompt")))

    def compute(
        self, texts: Iterable[str], encode: Callable[[Sequence[str]], list[bytes]], may_wait: bool
    ) -> dict[str, bytes]:
        """The ids of texts that are not known, of each one exactly once.

        Whoever asks first has `encode` called and the result kept; those who ask meanwhile wait for it, or, if they may
        not wait, do the work themselves. Nobody waits before having finished what others may be waiting for, so that
        no two threads wait for each other. Raises what `encode` raises.
        """
        flight, found = Flight(), dict[str, bytes]()
        mine, theirs = self._take_off(texts, flight, found, may_wait)
        try:
            if mine:
                flight.ids = dict(zip(mine, encode(mine), strict=True))
        finally:
            self._land(mine, flight)
        found |= flight.ids
        for text, other in theirs.items():
            other.landed.wait()
            if (ids := other.ids.get(text)) is not None:
                found[text] = ids
        if failed := [text for text in theirs if text not in found]:
            found |= zip(failed, encode(failed), strict=True)
        return found

    def _take_off(
        self, texts: Iterable[str], flight: Flight, found: dict[str, bytes], may_wait: bool
    ) -> tuple[list[str], dict[str, Flight]]:
        """(the texts that `flight` has to compute, those on others' flights); fills in what has arrived meanwhile."""
        mine: list[str] = []
        theirs: dict[str, Flight] = {}
        for text in dict.fromkeys(texts):
            number = hash(text) & self._mask
            with self._shards[number].lock:
                if text in self._texts[number]:
                    found[text] = self._texts[number][text].ids
                elif (other := self._flights[number].setdefault(text, flight)) is flight or not may_wait:
                    mine.append(text)
                else:
                    theirs[text] = other
        return mine, theirs

    def _land(self, mine: Iterable[str], flight: Flight) -> None:
        for text in mine:
            number = hash(text) & self._mask
            ids, texts, flights = flight.ids.get(text), self._texts[number], self._flights[number]
            with self._shards[number].lock:
                if ids is not None and text not in texts:
                    self._shards[number].add(Entry(texts, text, ids))
                if flights.get(text) is flight:
                    del flights[text]
        flight.landed.set()
