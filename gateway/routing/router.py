"""The router: hands out leases on ready workers, fewest requests in flight for its weight first.

Threads: every HTTP loop leases and releases, the engine thread publishes states, the watch reads. `_lock` guards
`_states` (replaced whole), `_in_flight` and `_turn`, for arithmetic only; `_changed` wakes who waits for a worker.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine_adapters.base import EngineInfo
from gateway.errors import Unavailable
from gateway.routing.address import WorkerAddress

STATES = ("starting", "ready", "suspect", "unfit", "lost")


@dataclass(frozen=True, slots=True)
class WorkerState:
    """`state` is one of STATES; `reason` says in words why a worker is not ready. Its `role` is one of ROLES."""

    state: str
    reason: str = ""
    model: str = ""
    info: EngineInfo | None = None
    role: str = "any"


@dataclass(frozen=True, slots=True, eq=False)
class Worker:
    """One executor as the router knows it. `session` is the engine thread's, and opaque here."""

    name: str
    address: WorkerAddress
    session: Any


class Lease:
    """One request's place on a worker, in the role it has; `release` gives it back, once."""

    __slots__ = ("_router", "role", "worker")

    def __init__(self, router: "Router", worker: Worker, role: str) -> None:
        self._router = router
        self.worker = worker
        self.role = role

    def release(self) -> None:
        self._router.release(self.worker)


class Router:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[Worker, WorkerState] = {}
        self._in_flight: dict[Worker, int] = {}
        self._turn = 0
        self._listeners: set[Callable[[], None]] = set()

    def __repr__(self) -> str:
        parts = (f"{w.name} {state.state} {self._in_flight[w]} in flight" for w, state in self.snapshot().items())
        return f"<Router: {', '.join(parts)}>"

    def add(self, worker: Worker) -> None:
        with self._lock:
            self._states = {**self._states, worker: WorkerState("starting", "not reached yet")}
            self._in_flight[worker] = 0

    def publish(self, worker: Worker, state: WorkerState) -> None:
        """Replace what is known of a worker."""
        with self._lock:
            self._states = {**self._states, worker: state}
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def snapshot(self) -> dict[Worker, WorkerState]:
        """All workers; the dict is never changed."""
        return self._states

    def in_flight(self, worker: Worker) -> int:
        return self._in_flight[worker]

    def ready_roles(self, model: str) -> set[str]:
        """Those that ready workers of `model` have."""
        return {state.role for state in self._states.values() if state.state == "ready" and state.model == model}

    def splits(self, model: str) -> bool:
        """Whether a prefill and a decode worker are there to share requests."""
        return {"prefill", "decode"} <= self.ready_roles(model)

    def unready(self, model: str) -> str:
        """Why a request for `model` would have to wait; empty when it need not."""
        if "any" in self.ready_roles(model) or self.splits(model):
            return ""
        return _missing(model, self.ready_roles(model))

    def lease(self, model: str, tried: set[Worker], role: str = "any") -> Lease:
        """A place on the least loaded ready worker of `model` with this role, on one of `tried` only if there is no
        other. Raises Unavailable.
        """
        with self._lock:
            ready = [worker for worker, state in self._states.items() if _serves(state, model, role)]
            candidates = [worker for worker in ready if worker not in tried] or ready
            if not candidates:
                raise Unavailable(_missing(model, self.ready_roles(model)))
            self._turn += 1
            # Ties go to whoever comes first, and that rotates, so that idle workers share alike.
            first = self._turn % len(candidates)
            rotated = candidates[first:] + candidates[:first]
            worker = min(rotated, key=lambda worker: self._in_flight[worker] / worker.address.weight)
            self._in_flight[worker] += 1
        return Lease(self, worker, role)

    def release(self, worker: Worker) -> None:
        with self._lock:
            self._in_flight[worker] -= 1

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have `listener` called, on any thread, after each change of a worker's state; returns the unsubscription."""
        with self._lock:
            self._listeners.add(listener)

        def unsubscribe() -> None:
            with self._lock:
                self._listeners.discard(listener)

        return unsubscribe


def _serves(state: WorkerState, model: str, role: str) -> bool:
    return state.state == "ready" and state.model == model and state.role == role


def _missing(model: str, roles: set[str]) -> str:
    """What to say when a model's ready workers, which have these roles, cannot serve a request."""
    lonely = next((role for role in ("prefill", "decode") if role in roles), None)
    if lonely is None:
        return f"no worker of model {model!r} is ready"
    other = "decode" if lonely == "prefill" else "prefill"
    return f"no {other} worker of model {model!r} is ready, and its {lonely} workers need one"
