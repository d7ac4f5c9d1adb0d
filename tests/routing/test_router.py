"""The router: who gets a request, and that no lease is ever lost, whatever the threads do."""

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest

from gateway.errors import Unavailable
from gateway.routing import Lease, Query, Router, Worker, WorkerAddress, WorkerState

READY = WorkerState("ready", model="demo")


def add(router: Router, name: str, weight: float = 1.0, state: WorkerState = READY) -> Worker:
    worker = Worker(name, WorkerAddress("step", name, 1, weight=weight), None)
    router.add(worker)
    router.publish(worker, state)
    return worker


def lease(router: Router, model: str = "demo", tried: Iterable[Worker] = ()) -> Lease:
    return router.lease(model, set(tried), Query(bytes(4 * 20)))


def chosen(router: Router, count: int) -> Counter[str]:
    """Who gets `count` requests that all go on."""
    return Counter(lease(router).worker.name for _ in range(count))


def test_the_worker_with_the_fewest_requests_gets_the_next() -> None:
    router = Router()
    for name in "abc":
        add(router, name)

    assert chosen(router, 9) == {"a": 3, "b": 3, "c": 3}


def test_weights_divide_the_requests() -> None:
    router = Router()
    add(router, "strong", weight=3)
    add(router, "weak")

    assert chosen(router, 40) == {"strong": 30, "weak": 10}


def test_idle_workers_take_turns() -> None:
    router = Router()
    for name in "abc":
        add(router, name)

    names = []
    for _ in range(9):
        held = lease(router)
        names.append(held.worker.name)
        held.release()

    assert Counter(names) == {"a": 3, "b": 3, "c": 3}
    assert names[:3] == names[3:6] == names[6:]


@pytest.mark.parametrize("state", ["starting", "unhealthy", "draining"])
def test_only_ready_workers_get_requests(state: str) -> None:
    router = Router()
    worker = add(router, "a", state=replace(READY, state=state))
    with pytest.raises(Unavailable, match="no worker of model 'demo' is ready"):
        lease(router)

    add(router, "b")
    assert chosen(router, 5) == {"b": 5}

    router.publish(worker, READY)
    assert chosen(router, 5) == {"a": 5}


def test_a_worker_gets_requests_of_its_own_model_only() -> None:
    router = Router()
    add(router, "a", state=replace(READY, model="other"))
    add(router, "b")

    assert chosen(router, 4) == {"b": 4}
    with pytest.raises(Unavailable):
        lease(router, "unknown")


def test_a_worker_that_was_tried_comes_last() -> None:
    router = Router()
    one, two = add(router, "one"), add(router, "two")

    assert {lease(router, tried={one}).worker for _ in range(5)} == {two}
    assert lease(router, tried={one, two}).worker is one


def test_a_lease_counts_until_it_is_given_back() -> None:
    router = Router()
    worker = add(router, "a")

    held = lease(router)
    assert router.in_flight(worker) == 1
    assert "a ready 1 in flight" in repr(router)
    held.release()

    assert router.in_flight(worker) == 0


def test_snapshots_never_change() -> None:
    router = Router()
    worker = add(router, "a")
    before = router.snapshot()

    router.publish(worker, WorkerState("unhealthy", "gone"))
    add(router, "b")

    assert before == {worker: READY}
    assert [state.state for state in router.snapshot().values()] == ["unhealthy", "ready"]


def test_listeners_hear_of_every_change_until_they_leave() -> None:
    router = Router()
    worker = add(router, "a")
    heard: list[str] = []
    leave = router.subscribe(lambda: heard.append(router.snapshot()[worker].state))

    router.publish(worker, WorkerState("unhealthy"))
    router.publish(worker, READY)
    leave()
    router.publish(worker, WorkerState("unhealthy"))

    assert heard == ["unhealthy", "ready"]


def test_threads_that_hammer_it_lose_no_lease() -> None:
    router = Router()
    workers = [add(router, name, weight) for name, weight in (("a", 1.0), ("b", 2.0), ("c", 5.0))]
    rounds, threads = 3000, 4
    start = threading.Barrier(threads + 1)
    worst: list[int] = []

    def hammer() -> None:
        start.wait()
        for _ in range(rounds):
            leases = [lease(router) for _ in range(2)]
            worst.append(router.in_flight(leases[1].worker))
            for held in leases:
                held.release()

    def change() -> None:
        start.wait()
        for number in range(rounds):
            router.publish(workers[0], READY if number % 2 else WorkerState("unhealthy"))

    everybody = [threading.Thread(target=hammer) for _ in range(threads)] + [threading.Thread(target=change)]
    for thread in everybody:
        thread.start()
    for thread in everybody:
        thread.join()

    assert [router.in_flight(worker) for worker in workers] == [0, 0, 0]
    assert max(worst) <= 2 * threads
    assert min(worst) >= 1
