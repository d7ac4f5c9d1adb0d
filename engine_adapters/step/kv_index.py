"""What the engine's prefix cache holds, told by its own events, so that who comes later can be told all of it.

Threads: none of its own; the server's event loop.
"""

from collections.abc import Iterator
from typing import TypeAlias

from engine_adapters.base import KvCleared, KvEvent, KvRemoved, KvStored

CHAIN_BLOCKS = 256
"""A snapshot tells of at most this many blocks in one event."""

Block: TypeAlias = tuple[int, bytes, str, int]
"""(hash of the block before it, its token ids, cache salt, LoRA id)"""


class KvIndex:
    """The blocks of each rank by hash, in the order they were stored."""

    def __init__(self) -> None:
        self._ranks: dict[int, dict[int, Block]] = {}

    def apply(self, event: KvEvent) -> None:
        blocks = self._ranks.setdefault(event.dp_rank, {})
        if isinstance(event, KvStored):
            _store(blocks, event)
        elif isinstance(event, KvRemoved):
            for block_hash in event.block_hashes:
                blocks.pop(block_hash, None)
        elif isinstance(event, KvCleared):
            blocks.clear()

    def snapshot(self) -> Iterator[KvStored]:
        """Events that make an empty cache hold what this one does now, worked out one by one as they are asked for."""
        ranks = [(rank, blocks.copy()) for rank, blocks in self._ranks.items()]
        return (event for rank, blocks in ranks for event in _chains(rank, blocks))


def _store(blocks: dict[int, Block], event: KvStored) -> None:
    size = len(event.token_ids) // len(event.block_hashes)
    parent_hash = event.parent_hash
    for start, block_hash in zip(range(0, len(event.token_ids), size), event.block_hashes, strict=True):
        token_ids = event.token_ids[start : start + size]
        blocks[block_hash] = parent_hash, token_ids, event.cache_salt, event.lora_id
        parent_hash = block_hash


def _chains(rank: int, blocks: dict[int, Block]) -> Iterator[KvStored]:
    """The blocks in order, as many as follow each other in one event."""
    chain: list[int] = []
    for block_hash, (parent_hash, _, *apart) in blocks.items():
        is_next = chain and (parent_hash, apart) == (chain[-1], [*blocks[chain[-1]][2:]])
        if chain and (not is_next or len(chain) == CHAIN_BLOCKS):
            yield _chain_event(rank, blocks, chain)
            chain = []
        chain.append(block_hash)
    if chain:
        yield _chain_event(rank, blocks, chain)


def _chain_event(rank: int, blocks: dict[int, Block], chain: list[int]) -> KvStored:
    parent_hash, _, cache_salt, lora_id = blocks[chain[0]]
    token_ids = b"".join([blocks[block_hash][1] for block_hash in chain])
    return KvStored(parent_hash, tuple(chain), token_ids, cache_salt, rank, lora_id)
