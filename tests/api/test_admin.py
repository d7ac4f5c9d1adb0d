"""/admin/pools: what the pools are, resizing them while they work, and pools that follow their queue."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gateway import pools
from gateway.api.admin import MAX_THREADS
from gateway.pools import Pool
from gateway.threads import Supervisor
from tests import completions
from tests.api.test_chat import refusal
from tests.executor import FakeExecutor
from tests.processes import PATIENCE, Gateway, eventually

PATH = "/admin/pools"
LONG = "Ein größerer Satz über 世界 und 🦊. " * 5000


def state(gateway: Gateway) -> dict[str, Any]:
    """What GET says of the tokenizer's pool."""
    response = gateway.client.get(PATH)
    assert response.status_code == 200
    pool: dict[str, Any] = response.json()["tokenize"]
    return pool


def patch(gateway: Gateway, change: Any) -> dict[str, Any]:
    response = gateway.client.patch(PATH, json=change)
    assert response.status_code == 200, response.text
    pool: dict[str, Any] = response.json()["tokenize"]
    return pool


@pytest.fixture(autouse=True)
def one_thread(hasty_gateway: Gateway) -> Iterator[None]:
    """Each test finds one thread."""
    yield
    patch(hasty_gateway, {"tokenize": {"threads": 1}})


def test_a_pool_tells_its_size_its_bounds_and_its_queue(hasty_gateway: Gateway) -> None:
    pools = hasty_gateway.client.get(PATH).json()
    assert pools.keys() == {"tokenize", "vision"}
    assert pools["tokenize"] == {"threads": 1, "minimum": 1, "maximum": 1, "waiting": 0, "oldest_wait_seconds": 0.0}


def test_a_pool_is_resized_while_it_runs(hasty_gateway: Gateway) -> None:
    for threads in (4, 2, 1):
        changed = patch(hasty_gateway, {"tokenize": {"threads": threads}})

        assert changed == state(hasty_gateway)
        assert (changed["threads"], changed["minimum"], changed["maximum"]) == (threads, threads, threads)
        assert hasty_gateway.metric("gateway_pool_threads", pool="tokenize") == threads
        assert hasty_gateway.client.post("/v1/tokenize", json={"model": "demo", "prompt": LONG}).status_code == 200


def test_bounds_move_a_pool_only_as_far_as_they_must(hasty_gateway: Gateway) -> None:
    assert patch(hasty_gateway, {"tokenize": {"minimum": 1, "maximum": 3}})["threads"] == 1
    assert patch(hasty_gateway, {"tokenize": {"minimum": 2, "maximum": 3}})["threads"] == 2
    assert patch(hasty_gateway, {"tokenize": {"minimum": 1, "maximum": 1}})["threads"] == 1


def test_a_change_of_nothing_changes_nothing(hasty_gateway: Gateway) -> None:
    before = state(hasty_gateway)

    assert patch(hasty_gateway, {}) == before


BAD_CHANGES: list[tuple[str, Any]] = [
    ("render", {"tokenize": {"threads": 5}, "render": {"threads": 5}}),
    ("render", {"render": {"threads": 5}, "tokenize": {"threads": 5}}),
    ("tokenize", {"tokenize": 5}),
    ("tokenize", {"tokenize": [5]}),
    ("tokenize.threads", {"tokenize": {}}),
    ("tokenize.threads", {"tokenize": None}),
    ("tokenize.threads", {"tokenize": {"threads": 0}}),
    ("tokenize.threads", {"tokenize": {"threads": -1}}),
    ("tokenize.threads", {"tokenize": {"threads": MAX_THREADS + 1}}),
    ("tokenize.threads", {"tokenize": {"threads": 1.5}}),
    ("tokenize.threads", {"tokenize": {"threads": "5"}}),
    ("tokenize.threads", {"tokenize": {"threads": True}}),
    ("tokenize.threads", {"tokenize": {"minimum": 1}}),
    ("tokenize.threads", {"tokenize": {"maximum": 5}}),
    ("tokenize.minimum", {"tokenize": {"minimum": 0, "maximum": 5}}),
    ("tokenize.maximum", {"tokenize": {"minimum": 1, "maximum": MAX_THREADS + 1}}),
    ("tokenize.minimum", {"tokenize": {"minimum": 5, "maximum": 4}}),
]


@pytest.mark.parametrize(("param", "change"), BAD_CHANGES, ids=lambda value: json.dumps(value)[:60])
def test_a_bad_change_is_refused_and_nothing_is_changed(hasty_gateway: Gateway, param: str, change: Any) -> None:
    before = state(hasty_gateway)

    assert refusal(hasty_gateway.client.patch(PATH, json=change))["param"] == param

    assert state(hasty_gateway) == before


def test_what_is_no_json_object_is_refused(hasty_gateway: Gateway) -> None:
    for content in (b"", b"[]", b"threads=5"):
        refusal(hasty_gateway.client.patch(PATH, content=content))


def test_other_methods_are_refused(hasty_gateway: Gateway) -> None:
    for method in ("PUT", "POST", "DELETE"):
        refusal(hasty_gateway.client.request(method, PATH, json={"tokenize": {"threads": 5}}), 405)


def test_a_pool_grows_while_jobs_wait_and_shrinks_when_they_are_done(
    patient_executor: FakeExecutor, hasty_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    patch(hasty_gateway, {"tokenize": {"minimum": 1, "maximum": 3}})
    bodies = [
        completions.body(completions.hard_text(number, 300_000), truncate_prompt_tokens=10) for number in range(8)
    ]
    responses = [background.submit(hasty_gateway.client.post, completions.PATH, json=body) for body in bodies]

    eventually(lambda: state(hasty_gateway)["threads"] > 1, "growth")
    for _ in responses:
        patient_executor.finish(patient_executor.next_submit())
    assert [response.result().status_code for response in responses] == [200] * 8
    eventually(lambda: state(hasty_gateway)["threads"] == 1, "the smallest size")


class Clogged:
    """A pool of one thread with a job that does not end before `open`, and others behind it."""

    def __init__(self, waiting: int) -> None:
        self.pool = Pool("clogged", 1, Supervisor(), threading.Semaphore(64))
        self._has_begun = threading.Event()
        self._gate = threading.Event()
        self._waiting = waiting

    def _wait(self) -> bool:
        self._has_begun.set()
        return self._gate.wait(PATIENCE)

    def during(self, story: Callable[[], None]) -> None:
        """The story, told while the jobs wait; all are done afterwards."""

        async def run() -> None:
            jobs = [asyncio.create_task(self.pool.run(self._wait)) for _ in range(self._waiting + 1)]
            try:
                await asyncio.to_thread(self._has_begun.wait, PATIENCE)
                await asyncio.to_thread(eventually, lambda: self.pool.depth == self._waiting)
                await asyncio.to_thread(story)
            finally:
                self._gate.set()
            assert all(await asyncio.gather(*jobs))

        try:
            asyncio.run(run())
        finally:
            self.pool.resize(0)


def test_a_pool_with_fixed_bounds_stays_as_it_is() -> None:
    clogged = Clogged(waiting=3)

    def story() -> None:
        eventually(lambda: clogged.pool.oldest_wait() > pools.GROW_SECONDS)
        clogged.pool.adapt()
        assert clogged.pool.threads == 1

    clogged.during(story)


def test_a_pool_grows_by_one_at_a_time_up_to_its_maximum() -> None:
    clogged = Clogged(waiting=5)
    clogged.pool.set_bounds(1, 3)

    def story() -> None:
        eventually(lambda: clogged.pool.oldest_wait() > pools.GROW_SECONDS)
        sizes = []
        for _ in range(4):
            clogged.pool.adapt()
            sizes.append(clogged.pool.threads)
        assert sizes == [2, 3, 3, 3]
        eventually(lambda: clogged.pool.depth == 3, "three jobs on three threads")

    clogged.during(story)


def test_a_pool_does_not_shrink_before_it_has_been_quiet_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clogged = Clogged(waiting=2)
    clogged.pool.set_bounds(3, 4)
    clogged.pool.set_bounds(1, 4)

    clogged.pool.adapt()
    assert clogged.pool.threads == 3

    monkeypatch.setattr(pools, "SHRINK_SECONDS", 0.0)
    sizes = []
    for _ in range(4):
        clogged.pool.adapt()
        sizes.append(clogged.pool.threads)
    assert sizes == [2, 1, 1, 1]
    clogged.pool.resize(0)


def test_a_queue_that_moves_does_not_make_a_pool_grow() -> None:
    clogged = Clogged(waiting=0)
    clogged.pool.set_bounds(1, 3)

    def story() -> None:
        clogged.pool.adapt()
        assert clogged.pool.threads == 1
        assert clogged.pool.oldest_wait() == 0.0

    clogged.during(story)
