"""The KV blocks of one rank: those that streams use, and those kept because a prompt might begin the same way.

A block is known by its hash, which stands for its tokens and all before them; what it holds is nobody's business here.
Whoever holds a block holds all before it, and gives them back last block first. So a block never leaves the cache
before those that follow it, and what is cached of a sequence is always its beginning.
"""

import hashlib
from collections.abc import Iterator, Sequence

from engine_adapters.base import KvCleared, KvEvent, KvRemoved, KvStored

_MASK64 = (1 << 64) - 1


def block_hashes(token_ids: bytes, block_size: int, previous: int) -> Iterator[int]:
    """The hashes of the whole blocks in `token_ids` (little-endian u32) behind the block or root `previous`."""
    ids = memoryview(token_ids).cast("I").tolist()
    for start in range(0, len(ids) - block_size + 1, block_size):
        # Unlike that of bytes, the hash of integers is the same in every process; and it costs a fifth of blake2b.
        previous = hash((previous, *ids[start : start + block_size])) & _MASK64 or 1
        yield previous


def root_hash(cache_salt: str) -> int:
    """What stands before the first block, so that equal prompts under different salts have no block in common."""
    return int.from_bytes(hashlib.blake2b(cache_salt.encode(), digest_size=8).digest(), "little") if cache_salt else 0


class KvCache:
    """`blocks` blocks, all blank at first. `events` grows with what enters and leaves the prefix cache.

    A stored block that nobody holds stays until a blank one is needed: the one unused for longest goes first.
    """

    def __init__(self, blocks: int, dp_rank: int = 0) -> None:
        self.events: list[KvEvent] = []
        self.blocks = blocks
        self._dp_rank = dp_rank
        self._blank = blocks
        self._holders: dict[int, int] = {}
        self._unused: dict[int, None] = {}

    def __contains__(self, block_hash: int) -> bool:
        return block_hash in self._holders or block_hash in self._unused

    def __len__(self) -> int:
        """How many blocks are stored."""
        return len(self._holders) + len(self._unused)

    @property
    def used(self) -> int:
        """Blocks that streams hold."""
        return self.blocks - self._blank - len(self._unused)

    def match(self, hashes: Sequence[int]) -> int:
        """How many of a sequence's blocks, from its beginning, are stored."""
        for count, block_hash in enumerate(hashes):
            if block_hash not in self._holders and block_hash not in self._unused:
                return count
        return len(hashes)

    def room_beside(self, hashes: Sequence[int]) -> int:
        """How many blank blocks could be had while these stored ones are held."""
        return self._blank + len(self._unused) - sum(block_hash in self._unused for block_hash in hashes)

    def hold(self, hashes: Sequence[int]) -> None:
        """Hold stored blocks once more."""
        for block_hash in hashes:
            self._unused.pop(block_hash, None)
            self._holders[block_hash] = self._holders.get(block_hash, 0) + 1

    def take(self, count: int) -> bool:
        """Hold `count` blank blocks; False, with nothing changed, when there is no room."""
        missing = count - self._blank
        if missing > len(self._unused):
            return False
        if missing > 0:
            self._evict(missing)
        self._blank -= count
        return True

    def store(self, parent_hash: int, hashes: Sequence[int], token_ids: bytes, cache_salt: str) -> None:
        """Turn blank blocks that the caller holds into stored ones, behind `parent_hash` or at the start (0)."""
        known = self.match(hashes)
        self.hold(hashes[:known])
        self._blank += known  # the caller holds those that were there already in place of its own
        if known < len(hashes):
            start = known * len(token_ids) // len(hashes)
            parent_hash = hashes[known - 1] if known else parent_hash
            new = tuple(hashes[known:])
            self._holders.update(dict.fromkeys(new, 1))
            self.events.append(KvStored(parent_hash, new, token_ids[start:], cache_salt, self._dp_rank))

    def release(self, hashes: Sequence[int], blank: int) -> None:
        """Give back stored and blank blocks."""
        self._blank += blank
        for block_hash in reversed(hashes):
            holders = self._holders[block_hash] - 1
            if holders:
                self._holders[block_hash] = holders
            else:
                del self._holders[block_hash]
                self._unused[block_hash] = None

    def clear(self) -> None:
        """Forget every block that nobody holds."""
        if not self._holders:
            self._blank += len(self._unused)
            self._unused.clear()
            self.events.append(KvCleared(self._dp_rank))
        elif self._unused:
            self._evict(len(self._unused))

    def _evict(self, count: int) -> None:
        oldest = tuple(block_hash for block_hash, _ in zip(self._unused, range(count), strict=False))
        for block_hash in oldest:
            del self._unused[block_hash]
        self._blank += count
        self.events.append(KvRemoved(oldest, self._dp_rank))
