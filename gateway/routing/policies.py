"""The policies: who of a fleet gets a request. Each is a function over an immutable snapshot; POLICIES lists them."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gateway.routing.address import ROLES
from gateway.routing.candidate import Candidate
from gateway.routing.fleet import SAMPLE, Fleet, Query

PREFIX_TOKENS = 256
BOUND = 1.25
"""Consistent hashing passes over who has this many times its share of the requests in flight."""


def round_robin(fleet: Fleet, query: Query) -> Candidate:
    return fleet.candidates[fleet.memory.turns.next() % len(fleet.candidates)]


def at_random(fleet: Fleet, query: Query) -> Candidate:
    return fleet.candidates[int(random.random() * len(fleet.candidates))]


def power_of_two(fleet: Fleet, query: Query) -> Candidate:
    count = len(fleet.candidates)
    one = int(random.random() * count)
    other = (one + 1 + int(random.random() * (count - 1))) % count
    return min(fleet.candidates[one], fleet.candidates[other], key=load_of)


def least_load(fleet: Fleet, query: Query) -> Candidate:
    return fleet.least()


def cache_aware(fleet: Fleet, query: Query) -> Candidate:
    """Who will have read the prompt first: the work ahead of it, and what of the prompt is not cached.

    A cached token is worth a waiting one, so affinity yields to load by degrees. Only the least loaded of all and some
    of those who have more of the prompt cached need to be compared.
    """
    best = least = fleet.least()
    tokens = query.tokens
    best_cost = best.load + tokens / best.weight
    query.cached_tokens = 0
    for index in fleet.indexes:
        for blocks, bits in index.matches(query.reusable_keys(index.block_size), fleet.available):
            cached = blocks * index.block_size
            missing = tokens - cached
            if missing / fleet.heaviest >= best_cost:
                break
            for candidate in (least, *fleet.some(bits)) if least.bit & bits else fleet.some(bits):
                cost = candidate.load + missing / candidate.weight
                if cost < best_cost or (cost == best_cost and candidate.turn < best.turn):
                    best, best_cost, query.cached_tokens = candidate, cost, cached
    return best


def prefix_hash(fleet: Fleet, query: Query) -> Candidate:
    return bounded(fleet, query.token_ids[: 4 * PREFIX_TOKENS])


def consistent_hashing(fleet: Fleet, query: Query) -> Candidate:
    return bounded(fleet, query.routing_key.encode()) if query.routing_key else fleet.least()


def bounded(fleet: Fleet, key: bytes) -> Candidate:
    """The first on the ring from `key` on that has not much more than its share of the requests in flight."""
    share = BOUND * (fleet.memory.tally.in_flight + 1) / fleet.weight
    for candidate in fleet.ring.walk(key):
        if candidate.bit & fleet.available and candidate.in_flight < max(1.0, share * candidate.weight):
            return candidate
    return fleet.least()


def bucket(fleet: Fleet, query: Query) -> Candidate:
    """Prompts of like length together, so that short ones do not wait behind long ones: the candidates are divided in
    order, so that each gets as many tokens of the prompts that came lately."""
    lengths, count = fleet.memory.lengths, len(fleet.candidates)
    lengths.note(query.tokens)
    low, high = lengths.share(query.tokens)
    first = min(count - 1, int(low * count))
    last = min(count, max(first + 1, -int(-high * count // 1)))
    if last - first > SAMPLE:
        first = random.randrange(first, last - SAMPLE + 1)
        last = first + SAMPLE
    return min(fleet.candidates[first:last], key=load_of)


def sticky(fleet: Fleet, query: Query) -> Candidate:
    if not query.routing_key:
        return fleet.least()
    return fleet.memory.stickies.home(query.routing_key, fleet.least(), fleet.by_slot)


def passthrough(fleet: Fleet, query: Query) -> Candidate:
    return fleet.candidates[0]


def load_of(candidate: Candidate) -> tuple[float, float]:
    return candidate.load, candidate.turn


type Choose = Callable[[Fleet, Query], Candidate]


@dataclass(frozen=True, slots=True)
class Policy:
    """`uses_blocks`: it must be told what is in the prefix caches."""

    choose: Choose
    summary: str
    uses_blocks: bool = False


POLICIES: dict[str, Policy] = {
    "cache_aware": Policy(cache_aware, "where most of the prompt is cached, unless waiting there takes longer", True),
    "least_load": Policy(least_load, "who has the least work ahead"),
    "power_of_two": Policy(power_of_two, "the less loaded of two at random"),
    "round_robin": Policy(round_robin, "one after the other"),
    "random": Policy(at_random, "anyone"),
    "prefix_hash": Policy(prefix_hash, f"by a hash of the first {PREFIX_TOKENS} tokens, within bounds of load"),
    "consistent_hashing": Policy(consistent_hashing, "by a hash of the routing key, within bounds of load"),
    "sticky": Policy(sticky, "who got the routing key before, at first the least loaded"),
    "bucket": Policy(bucket, "prompts of like length together"),
    "passthrough": Policy(passthrough, "the first that is ready"),
}

DEFAULT = "cache_aware"


class PolicyError(ValueError):
    """A choice of policies that makes no sense; the message says what is expected."""


class Policies:
    """Which policy is for which model and role, by options like "least_load", "MODEL=sticky", "MODEL/prefill=bucket"
    and "/decode=least_load" (the decode workers of all models); what is said of less wins."""

    def __init__(self, options: Iterable[str] = (), models: Iterable[str] | None = None) -> None:
        self._names = {("", ""): DEFAULT}
        given = set()
        for option in options:
            scope, _, name = option.rpartition("=")
            if name not in POLICIES:
                raise PolicyError(f"policy {option!r}: there is no {name!r}; there is {', '.join(POLICIES)}")
            model, role = _model_and_role(scope)
            if model and models is not None and model not in models:
                raise PolicyError(f"policy {option!r}: no model {model!r} is served; there is {', '.join(models)}")
            if (model, role) in given:
                raise PolicyError(f"policy {option!r}: there is one for {scope or 'all models'!r} already")
            given.add((model, role))
            self._names[model, role] = name

    def name_for(self, model: str, role: str = "any") -> str:
        scopes = ((model, role), (model, ""), ("", role), ("", ""))
        return next(self._names[scope] for scope in scopes if scope in self._names)

    def policy_for(self, model: str, role: str = "any") -> Policy:
        return POLICIES[self.name_for(model, role)]

    def uses_blocks(self, model: str) -> bool:
        """Whether any of a model's policies must be told what is cached."""
        return any(self.policy_for(model, role).uses_blocks for role in ROLES)


def _model_and_role(scope: str) -> tuple[str, str]:
    """A model's name may have slashes of its own."""
    model, separator, role = scope.rpartition("/")
    return (model, role) if separator and role in ROLES and role != "any" else (scope, "")
