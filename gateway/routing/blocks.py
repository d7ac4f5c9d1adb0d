"""Which candidate has which blocks of which prompts in its prefix cache: one index for all candidates of a model.

A block's key stands for its tokens, all before them, and what keeps them apart (`seed`): a hash chained from block to
block, of 60 bits, since an int of more takes 8 bytes more. Keys mean something in this process only: `hash` is salted.

Threads: the engine thread alone writes, HTTP loops read without a lock. Who holds a block is one int, a bit for each
candidate, which is replaced whole.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, islice

from engine_adapters.base import KvCleared, KvEvent, KvRemoved, KvStored

KEY_MASK = (1 << 60) - 1
LEAST_PREDICTED = 16
EVICTED_AT_ONCE = 16
"""A full prediction forgets one part in this many, so that looking for the oldest is paid once for many."""
SETTLED_SECONDS = 5.0
"""A prompt that was sent longer ago than this has been read, unless the engine is in trouble."""
CLASSES = 8
"""A prompt's holders are told apart by so many lengths of what they have of it, the longest first."""


PARTS = 16
LOW = 255
"""Of a key, what tells its part."""
UNKNOWN = -1
"""No key."""


def seed_for(lora_id: int = 0, cache_salt: str = "") -> int:
    """Where the chain of keys begins: prompts share blocks only if both are equal."""
    return hash((lora_id, cache_salt)) & KEY_MASK


def block_keys(token_ids: bytes, block_size: int, parent: int) -> list[int]:
    """The keys of the whole blocks in `token_ids` (little-endian u32), behind the block or seed `parent`."""
    width = 4 * block_size
    ends = range(width, len(token_ids) + 1, width)
    return [parent := hash((parent, token_ids[end - width : end])) & KEY_MASK for end in ends]


def _part_of_each() -> tuple[int, ...]:
    """By a key's low byte, the part it is in: the parts' sizes go from 1 to 2 in equal ratios."""
    bounds = [*accumulate(2 ** (part / PARTS) for part in range(PARTS))]
    return tuple(bisect_right(bounds, low / (LOW + 1) * bounds[-1]) for low in range(LOW + 1))


PART_OF_EACH = _part_of_each()


class Parted[Table: dict[int, int]]:
    """A dict in parts, which are of different sizes: `of[key & LOW]` is the one for a key.

    A dict that is full doubles, and then half of it is empty. Parts that do so at different times are together always
    about three quarters full, and no reader or writer meets more than a part that grows.
    """

    __slots__ = ("of", "parts")

    def __init__(self, new: Callable[[], Table]) -> None:
        self.parts = tuple(new() for _ in range(PARTS))
        self.of = tuple(self.parts[part] for part in PART_OF_EACH)

    def __len__(self) -> int:
        return sum(map(len, self.parts))


class CachedBlocks:
    """What one candidate is known (`stored`: 60 bits of the engine's hash of a block to its key) and what it is only
    believed to have cached (`predicted`: a key to when it was first sent there, least recently used first)."""

    __slots__ = ("bit", "capacity", "limit", "predicted", "stored")

    def __init__(self, bit: int, capacity: int) -> None:
        self.bit = bit
        self.limit = capacity
        self.capacity = capacity
        """How much of what was sent there is believed to be kept; at most `limit`."""
        self.stored: Parted[dict[int, int]] = Parted(dict)
        self.predicted: dict[int, float] = {}

    def bound(self, limit: int) -> None:
        """It has room for no more than that."""
        self.limit = limit
        self.capacity = min(self.capacity, limit)


class Holders(dict[int, int]):
    """The bits of who has a block, by its key; none for other keys.

    Readers say `[key]`, never `get(key)`. On 3.13t, `dict.get` takes the dict's lock, and where it meets an equal key
    that another thread made it takes the lock again, which it gets only after some 40 yields: 20 µs in place of 80 ns.
    """

    def __missing__(self, key: int) -> int:
        return 0


class BlockIndex:
    """Blocks of `block_size` tokens by key, and who has them."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._stored = Parted(Holders)
        self._predicted = Parted(Holders)
        self._bits: dict[int, int] = {}

    def __len__(self) -> int:
        """How many different blocks there are."""
        return len(self._stored) + len(self._predicted)

    def holders(self, key: int) -> int:
        """The bits of who has a block."""
        low = key & LOW
        return self._stored.of[low][key] | self._predicted.of[low][key]

    def matches(self, keys: Sequence[int], among: int) -> Iterator[tuple[int, int]]:
        """(blocks, the bits of those `among` who have so many of the prompt, and no more), most blocks first.

        Whoever has a block has all before it, as engines evict the last first. So each answer takes a binary search.
        """
        high = len(keys)
        for _ in range(CLASSES):
            low = 0
            while low < high:
                middle = (low + high + 1) >> 1
                if self.holders(keys[middle - 1]) & among:
                    low = middle
                else:
                    high = middle - 1
            if not low:
                return
            found = self.holders(keys[low - 1]) & among
            yield low, found
            among &= ~found
            high = low

    def apply(self, blocks: CachedBlocks, event: KvEvent, seed: int = 0) -> bool:
        """Note what a candidate tells of its cache; False when it cannot be understood. `seed` is KvStored's."""
        if isinstance(event, KvStored):
            return self._store(blocks, event, seed)
        if isinstance(event, KvRemoved):
            for block_hash in event.block_hashes:
                key = blocks.stored.of[block_hash & LOW].pop(block_hash & KEY_MASK, None)
                if key is not None:
                    self._drop(self._stored, key, blocks.bit)
                    self._withdraw(blocks, key)
        elif isinstance(event, KvCleared):
            self.clear(blocks)
        return True

    def predict(self, blocks: CachedBlocks, keys: Sequence[int], now: float) -> list[int]:
        """A prompt was sent there, so its blocks will be cached, the first for longest; returns what is new of them."""
        predicted, stored, bit = blocks.predicted, self._stored.of, blocks.bit
        new = []
        for key in reversed(keys):
            low = key & LOW
            # `in` first: a key that is not there would cost a call of `__missing__`.
            if key in stored[low] and stored[low][key] & bit:
                continue
            if key in predicted:
                predicted[key] = predicted.pop(key)
                continue
            predicted[key] = now
            self._add(self._predicted, key, bit)
            new.append(key)
        self._evict(blocks)
        return new

    def expected(self, blocks: CachedBlocks, keys: Iterable[int], now: float) -> int:
        """How many of a prompt's blocks must be cached there if predictions are right: those read long enough ago."""
        settled, predicted = now - SETTLED_SECONDS, blocks.predicted
        count = 0
        for key in keys:
            if key not in predicted or predicted[key] > settled:  # not `get`: HTTP loops made the keys
                break
            count += 1
        return count

    def correct(self, blocks: CachedBlocks, expected: int, cached: int) -> None:
        """A prompt of which `expected` blocks should have been cached had `cached`: believe less, or a little more."""
        if cached < expected:
            kept = (expected + cached) / (2 * expected)
            blocks.capacity = max(LEAST_PREDICTED, int(min(blocks.capacity, len(blocks.predicted)) * kept))
            self._evict(blocks)
        elif blocks.capacity < blocks.limit:
            blocks.capacity = min(blocks.limit, blocks.capacity + blocks.capacity // 16 + 1)

    def withdraw(self, blocks: CachedBlocks, keys: Iterable[int]) -> None:
        """Of a prompt that was sent and not read."""
        for key in keys:
            self._withdraw(blocks, key)

    def clear(self, blocks: CachedBlocks) -> None:
        """Its cache is empty."""
        for part in blocks.stored.parts:
            for key in part.values():
                self._drop(self._stored, key, blocks.bit)
        for key in blocks.predicted:
            self._drop(self._predicted, key, blocks.bit)
        blocks.stored, blocks.predicted = Parted(dict), {}

    def _store(self, blocks: CachedBlocks, event: KvStored, seed: int) -> bool:
        known, parent = blocks.stored.of, seed
        if event.parent_hash:
            parent = known[event.parent_hash & LOW].get(event.parent_hash & KEY_MASK, UNKNOWN)
        if parent == UNKNOWN or len(event.token_ids) != 4 * self.block_size * len(event.block_hashes):
            return False
        keys = block_keys(event.token_ids, self.block_size, parent)
        for block_hash, key in zip(event.block_hashes, keys, strict=True):
            name, stored = block_hash & KEY_MASK, known[block_hash & LOW]
            if name in stored:
                self._drop(self._stored, stored[name], blocks.bit)
            stored[name] = key
            self._add(self._stored, key, blocks.bit)
            self._withdraw(blocks, key)
        return True

    def _evict(self, blocks: CachedBlocks) -> None:
        excess = len(blocks.predicted) - blocks.capacity
        if excess > 0:
            count = max(excess, blocks.capacity // EVICTED_AT_ONCE)
            self.withdraw(blocks, [*islice(blocks.predicted, count)])

    def _withdraw(self, blocks: CachedBlocks, key: int) -> None:
        if key in blocks.predicted:
            del blocks.predicted[key]
            self._drop(self._predicted, key, blocks.bit)

    def _add(self, parted: Parted[Holders], key: int, bit: int) -> None:
        holders = parted.of[key & LOW]
        holders[key] = holders[key] | bit if key in holders else bit

    def _drop(self, parted: Parted[Holders], key: int, bit: int) -> None:
        holders = parted.of[key & LOW]
        left = holders[key] & ~bit
        if left:
            # Most blocks have one holder: let them share its int.
            holders[key] = self._bits.setdefault(left, left) if not left & (left - 1) else left
        else:
            holders.pop(key, None)
