"""What TensorRT-LLM tells of itself, as the border's values: its iteration statistics and its KV cache events."""

import logging
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

from engine_adapters.base import KvEvent, KvRemoved, KvStored, Load

log = logging.getLogger(__name__)


def as_load(stats: Mapping[str, Any], answers: int, tokens_per_second: float) -> Load:
    """`stats` is one iteration's, empty when there has been none; `answers` are those that are not over.

    An idle engine reports nothing, so its last word may be old: no more is running than `answers`.
    """
    batch: Mapping[str, Any] = stats.get("inflightBatchingStats") or {}
    cache: Mapping[str, Any] = stats.get("kvCacheStats") or {}
    counted = [batch.get(name, 0) for name in ("numContextRequests", "numGenRequests")]
    scheduled = batch.get("numScheduledRequests") or sum(counted)
    running = min(scheduled if stats else answers, answers)
    tokens_per_block = cache.get("tokensPerBlock", 0)
    return Load(
        running=running,
        waiting=answers - running,
        kv_tokens_used=cache.get("usedNumBlocks", 0) * tokens_per_block,
        kv_tokens_total=cache.get("maxNumBlocks", 0) * tokens_per_block,
        tokens_per_second=tokens_per_second,
    )


class KvTranslator:
    """Turns TensorRT-LLM's KV cache events into the border's.

    Only whole blocks are told of, and of several attention windows only the largest: a prompt is warm where its oldest
    tokens are. Blocks that move to the host and back stay cached.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._window = 0

    def translate(self, events: "Iterable[Mapping[str, Any]]") -> list[KvEvent]:
        """Events that make no sense are logged and left out."""
        result: list[KvEvent] = []
        for event in events:
            try:
                translated = self._translated(event)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                log.warning("a KV event that cannot be read: %r in %r", error, event)
                continue
            if translated is not None:
                result.append(translated)
        return result

    def _translated(self, event: "Mapping[str, Any]") -> "KvEvent | None":
        data, rank = event["data"], event.get("attention_dp_rank") or 0
        window = event.get("window_size") or 0
        self._window = max(self._window, window)
        if window < self._window:
            return None
        if data["type"] == "removed":
            hashes = tuple(_as_u64(block_hash) for block_hash in data["block_hashes"])
            return KvRemoved(hashes, rank) if hashes else None
        return self._stored(data, rank) if data["type"] == "stored" else None

    def _stored(self, data: "Mapping[str, Any]", rank: int) -> "KvStored | None":
        hashes: list[int] = []
        token_ids = array("I")
        for block in data["blocks"]:
            tokens = [token["token_id"] for token in block["tokens"]]
            if len(tokens) != self._block_size:
                break  # the last, partly filled one of a sequence
            hashes.append(_as_u64(block["block_hash"]))
            token_ids.extend(tokens)
        if not hashes:
            return None
        parent_hash, lora_id = _as_u64(data.get("parent_hash") or 0), data["blocks"][0].get("lora_id") or 0
        return KvStored(parent_hash, tuple(hashes), token_ids.tobytes(), dp_rank=rank, lora_id=lora_id)


def _as_u64(block_hash: int) -> int:
    return block_hash & 0xFFFFFFFFFFFFFFFF
