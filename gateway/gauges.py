"""The metrics that are read at the moment of a scrape, and the collector's.

Threads: what a gauge reads is read from whichever loop serves /metrics, and guards itself.
"""

import gc
import time
from collections.abc import Callable

from engine_adapters.base import Load
from gateway.gateway import Gateway
from gateway.metrics import (
    ACTIVE_REQUESTS,
    ADMITTED,
    BODY_BYTES,
    CACHED_BLOCKS,
    GC_PAUSES,
    GC_SECONDS,
    KEY_ACTIVE,
    POOL_DEPTH,
    POOL_THREADS,
    TOKEN_CACHE_BYTES,
    TOKEN_CACHE_EVICTIONS,
    WAITING,
    WORKER_BREAKER,
    WORKER_BREAKER_OPENED,
    WORKER_IN_FLIGHT,
    WORKER_KV,
    WORKER_RUNNING,
    WORKER_SPEED,
    WORKER_STATE,
    WORKER_WAITING,
    Cells,
    Registry,
)
from gateway.routing import STATES
from gateway.routing.breaker import STATES as BREAKER_STATES
from gateway.tokenizer import TokenCache
from gateway.tokenizer.cache import LEVELS


def add_gauges(gateway: Gateway) -> None:
    """What is read at the moment of a scrape."""
    router, registry = gateway.router, gateway.registry

    def each_worker(read: Callable[..., float]) -> Callable[[], list[tuple[tuple[str, ...], float]]]:
        return lambda: [((worker.name,), read(worker)) for worker in router.snapshot()]

    registry.gauge(
        WORKER_STATE,
        lambda: [
            ((worker.name, state.model, name), float(state.state == name))
            for worker, state in router.snapshot().items()
            for name in STATES
        ],
    )
    registry.gauge(
        WORKER_BREAKER,
        lambda: [
            ((worker.name, name), float(breaker.state == name))
            for worker, breaker in router.breakers().items()
            for name in BREAKER_STATES
        ],
    )
    registry.gauge(
        WORKER_BREAKER_OPENED,
        lambda: [((worker.name,), breaker.opened) for worker, breaker in router.breakers().items()],
    )
    registry.gauge(WORKER_IN_FLIGHT, each_worker(router.in_flight))
    registry.gauge(WORKER_RUNNING, each_worker(lambda worker: worker.session.load.running))
    registry.gauge(WORKER_WAITING, each_worker(lambda worker: worker.session.load.waiting))
    registry.gauge(WORKER_SPEED, each_worker(lambda worker: worker.session.load.tokens_per_second))
    registry.gauge(WORKER_KV, each_worker(lambda worker: kv_use(worker.session.load)))
    registry.gauge(CACHED_BLOCKS, lambda: [((model,), count) for model, count in router.known_blocks().items()])
    registry.gauge(POOL_THREADS, lambda: [((pool.name,), pool.threads) for pool in gateway.pools])
    registry.gauge(POOL_DEPTH, lambda: [((pool.name,), pool.depth) for pool in gateway.pools])
    registry.gauge(ACTIVE_REQUESTS, lambda: [((loop.name,), loop.count_active()) for loop in gateway.loops])


def add_limit_gauges(gateway: Gateway) -> None:
    registry, admission = gateway.registry, gateway.admission
    registry.gauge(ADMITTED, lambda: [((), admission.active)])
    registry.gauge(WAITING, lambda: [((priority,), waiting) for priority, waiting in admission.waiting()])
    registry.gauge(BODY_BYTES, lambda: [((), gateway.body_memory.taken)])
    registry.gauge(KEY_ACTIVE, lambda: [((name,), active) for name, active in gateway.keys.active()])


def add_cache_gauges(registry: Registry, cache: TokenCache) -> None:
    levels = [(level,) for level in LEVELS]
    registry.gauge(TOKEN_CACHE_BYTES, lambda: zip(levels, cache.bytes_by_level(), strict=True))
    registry.gauge(TOKEN_CACHE_EVICTIONS, lambda: zip(levels, cache.evictions_by_level(), strict=True))


def kv_use(load: Load) -> float:
    return load.kv_tokens_used / load.kv_tokens_total if load.kv_tokens_total else 0.0


def count_collections(cells: Cells) -> None:
    """Count garbage collections from now on. They come one at a time, on whichever thread set one off."""
    started = 0.0

    def note(phase: str, _: dict[str, int]) -> None:
        nonlocal started
        if phase == "start":
            started = time.monotonic()
        else:
            cells.add(GC_PAUSES)
            cells.add(GC_SECONDS, (), time.monotonic() - started)

    gc.callbacks.append(note)
