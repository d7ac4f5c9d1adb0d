"""An executor as the router knows it, and what is known of it."""

from dataclasses import dataclass
from typing import Any

from engine_adapters.base import EngineInfo
from gateway.routing.address import WorkerAddress

STATES = ("starting", "ready", "unhealthy", "draining")


@dataclass(frozen=True, slots=True)
class WorkerState:
    """`state` is one of STATES; `reason` says in words why a worker is not ready. Its `role` is one of ROLES.

    An unhealthy worker without `info` is not connected, or must not be used; with it, it is connected and says nothing,
    or that it is not well.
    """

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
