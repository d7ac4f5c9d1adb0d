"""Which worker takes a request: the workers' state as immutable snapshots, and the policy that chooses among them."""

from gateway.routing.address import AddressError, WorkerAddress
from gateway.routing.router import STATES, Lease, Router, Worker, WorkerState

__all__ = ["STATES", "AddressError", "Lease", "Router", "Worker", "WorkerAddress", "WorkerState"]
