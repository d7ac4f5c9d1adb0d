"""Circuit breakers: when they open, what they let through, and that no probe is ever lost, whatever the threads do."""

import threading
from collections.abc import Callable

import pytest

from gateway.errors import Unavailable
from gateway.routing import BreakerRules, Lease, Router, WorkerState
from gateway.routing.breaker import PROBES, SUCCESSES, Breaker, Trial
from tests.routing.workers import add, info, lease

RULES = BreakerRules(error_rate=0.5, requests=10, window_seconds=30.0, open_seconds=5.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(RULES, clock)


def trial(breaker: Breaker, note: Callable[[Breaker, Trial], bool] | None = None) -> Trial:
    """A request that is let through, and what becomes of it."""
    result = Trial()
    assert breaker.admit(result)
    if note is not None:
        note(breaker, result)
    return result


def opened(breaker: Breaker) -> Breaker:
    for _ in range(RULES.requests):
        trial(breaker, Breaker.failed)
    assert breaker.state == "open"
    return breaker


def test_it_opens_when_enough_requests_failed_and_they_are_a_large_enough_share(breaker: Breaker) -> None:
    for _ in range(RULES.requests - 1):
        trial(breaker, Breaker.failed)
    assert breaker.state == "closed", "too few to judge by"
    for _ in range(RULES.requests):
        trial(breaker, Breaker.succeeded)
    assert breaker.state == "closed"
    trial(breaker, Breaker.failed)
    assert breaker.state == "open", "10 of 20"
    assert not breaker.admits and not breaker.admit(Trial())


def test_failures_are_forgotten_when_the_window_has_moved_on(breaker: Breaker, clock: Clock) -> None:
    for _ in range(RULES.requests - 1):
        trial(breaker, Breaker.failed)
        clock.now += 1.0
    clock.now += RULES.window_seconds
    for _ in range(RULES.requests - 1):
        trial(breaker, Breaker.failed)
    assert breaker.state == "closed"


def test_requests_without_a_verdict_do_not_count(breaker: Breaker) -> None:
    for _ in range(10 * RULES.requests):
        trial(breaker, Breaker.left)
    assert breaker.state == "closed"


def test_a_failure_behind_the_first_token_counts_and_only_once(breaker: Breaker) -> None:
    for _ in range(RULES.requests):
        request = trial(breaker, Breaker.succeeded)
        breaker.failed(request)
        breaker.failed(request)
        breaker.succeeded(request)
    assert breaker.state == "open" and breaker.opened == 1


def test_after_a_pause_a_few_requests_try_it_and_close_it(breaker: Breaker, clock: Clock) -> None:
    opened(breaker)
    clock.now += RULES.open_seconds - 0.1
    assert not breaker.tick() and breaker.state == "open"
    clock.now += 0.2
    assert breaker.tick() and breaker.state == "half_open"

    probes = [trial(breaker) for _ in range(PROBES)]
    assert not breaker.admit(Trial()), "not all at once"
    assert breaker.left(probes[0]) and breaker.admits, "who leaves makes room"
    for _ in range(SUCCESSES):
        assert breaker.state == "half_open"
        trial(breaker, Breaker.succeeded)
    assert breaker.state == "closed"
    assert [breaker.admit(Trial()) for _ in range(20)] == [True] * 20


def test_a_probe_that_fails_opens_it_for_twice_as_long(breaker: Breaker, clock: Clock) -> None:
    opened(breaker)
    clock.now += RULES.open_seconds
    breaker.tick()
    trial(breaker, Breaker.failed)
    clock.now += RULES.open_seconds
    assert not breaker.tick()
    clock.now += RULES.open_seconds
    assert breaker.tick()
    assert breaker.opened == 2


def test_what_was_admitted_before_says_nothing_of_a_worker_that_is_tried(breaker: Breaker, clock: Clock) -> None:
    old = [trial(breaker) for _ in range(5)]
    opened(breaker)
    clock.now += RULES.open_seconds
    breaker.tick()
    for request in old:
        breaker.failed(request)
    assert breaker.state == "half_open" and breaker.admits


def test_threads_that_hammer_it_lose_no_probe() -> None:
    breaker = opened(Breaker(RULES, Clock()))
    breaker.try_now()
    start = threading.Barrier(4)
    worst: list[int] = []

    def hammer() -> None:
        start.wait()
        for _ in range(3000):
            probe = Trial()
            if breaker.admit(probe):
                worst.append(breaker._probes)
                breaker.left(probe)
                breaker.left(probe)

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert breaker._probes == 0 and 0 < max(worst) <= PROBES


# --- behind a router -------------------------------------------------------------------------------------------------


def fail(held: Lease) -> None:
    held.failed()
    held.release()


def test_a_worker_whose_requests_fail_gets_none_until_it_was_tried(clock: Clock) -> None:
    router = Router(now=clock, rules=RULES)
    bad, good = add(router, "bad"), add(router, "good")
    for _ in range(RULES.requests):
        fail(lease(router, tried={good}))
    assert {lease(router).worker for _ in range(10)} == {good}
    assert {lease(router, tried={good}).worker for _ in range(3)} == {good}, "rather than the one that is open"

    clock.now += RULES.open_seconds
    router.tick()
    probes = [lease(router, tried={good}) for _ in range(PROBES)]
    assert {probe.worker for probe in probes} == {bad}
    assert lease(router, tried={good}).worker is good
    for probe in probes:
        probe.begin()
        probe.release()
    assert lease(router, tried={good}).worker is bad
    assert router.in_flight(bad) == 1


def test_a_model_of_which_all_are_open_is_unready_and_waits_for_a_probe_to_end(clock: Clock) -> None:
    router = Router(now=clock, rules=RULES)
    add(router, "only")
    heard: list[str] = []
    router.subscribe(lambda: heard.append(router.unready("demo")))
    for _ in range(RULES.requests):
        fail(lease(router))
    assert "no worker of model 'demo'" in router.unready("demo") == heard[-1]
    with pytest.raises(Unavailable):
        lease(router)

    clock.now += RULES.open_seconds
    router.tick()
    assert router.unready("demo") == heard[-1] == ""
    probes = [lease(router) for _ in range(PROBES)]
    with pytest.raises(Unavailable):
        lease(router)
    before = len(heard)
    probes[0].release()
    assert len(heard) == before + 1, "who waits for a place hears of it"
    lease(router)


def test_a_worker_that_comes_back_is_tried_at_once(clock: Clock) -> None:
    router = Router(now=clock, rules=RULES)
    worker = add(router, "only")
    for _ in range(RULES.requests):
        fail(lease(router))
    router.publish(worker, WorkerState("unhealthy", "gone"))
    router.publish(worker, WorkerState("ready", model="demo", info=info()))
    lease(router)


def test_the_clients_faults_never_open_it(clock: Clock) -> None:
    router = Router(now=clock, rules=RULES)
    add(router, "only")
    for _ in range(10 * RULES.requests):
        held = lease(router)
        held.withdraw()  # refused, aborted or out of time
        held.release()
    lease(router)
