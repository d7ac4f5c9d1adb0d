"""Which worker takes a request: the workers' state as immutable snapshots, and the policies that choose among them."""

from gateway.routing.address import MAX_WEIGHT, ROLES, WHOLE_ONLY, AddressError, WorkerAddress, role_problem
from gateway.routing.breaker import BreakerRules
from gateway.routing.fleet import Query
from gateway.routing.lease import Lease
from gateway.routing.policies import POLICIES, Policies, PolicyError
from gateway.routing.router import NameTaken, Router
from gateway.routing.worker import STATES, Worker, WorkerState

__all__ = [
    "MAX_WEIGHT",
    "POLICIES",
    "ROLES",
    "STATES",
    "WHOLE_ONLY",
    "AddressError",
    "BreakerRules",
    "Lease",
    "NameTaken",
    "Policies",
    "PolicyError",
    "Query",
    "Router",
    "Worker",
    "WorkerAddress",
    "WorkerState",
    "role_problem",
]
