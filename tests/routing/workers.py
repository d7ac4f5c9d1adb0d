"""Workers for a router under test, without a session behind them."""

from array import array
from typing import Any

from engine_adapters.base import EngineInfo
from gateway.routing import Lease, Query, Router, Worker, WorkerAddress, WorkerState
from gateway.routing.fleet import Fleet

BLOCK_SIZE = 4


def info(**changes: Any) -> EngineInfo:
    values: dict[str, Any] = {
        "engine": "test",
        "engine_version": "1",
        "model": "demo",
        "vocab_size": 1000,
        "context_length": 100_000,
        "max_running": 16,
        "tokenizer_fingerprint": b"",
        "eos_token_ids": (),
        "kv_block_size": BLOCK_SIZE,
        "features": frozenset({"kv_events"}),
    }
    return EngineInfo(**values | changes)


def add(router: Router, name: str, weight: float = 1.0, role: str = "any", **changes: Any) -> Worker:
    """A ready worker of the model "demo"."""
    worker = Worker(name, WorkerAddress("step", name, 1, weight=weight), None)
    router.add(worker)
    router.publish(worker, WorkerState("ready", model="demo", info=info(**changes), role=role))
    return worker


def fleet_of(router: Router, role: str = "any") -> Fleet:
    """What a policy would see now."""
    fleet, _ = router._fleets.get(("demo", role)) or router._new_fleet("demo", role)
    return fleet


def prompt(*token_ids: int) -> bytes:
    return array("I", token_ids).tobytes()


def lease(router: Router, token_ids: bytes = prompt(*range(20)), key: str = "", **options: Any) -> Lease:
    tried, role = options.pop("tried", set()), options.pop("role", "any")
    return router.lease("demo", set(tried), Query(token_ids, routing_key=key, **options), role)
