"""/admin/workers: adding, draining, weighing and removing workers while requests run."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest

from tests import chat
from tests.api.test_chat import refusal
from tests.demo_model import ids_of
from tests.executor import FakeExecutor
from tests.processes import Gateway, eventually, wait_until_idle

PATH = "/admin/workers"
CHAT = "/v1/chat/completions"


@pytest.fixture
def pair() -> Iterator[tuple[FakeExecutor, FakeExecutor]]:
    with FakeExecutor() as one, FakeExecutor() as two:
        yield one, two


@pytest.fixture
def gateway(pair: tuple[FakeExecutor, FakeExecutor]) -> Iterator[Gateway]:
    """Before the first of the pair, ready."""
    with Gateway("--connect-seconds", "5", workers=[pair[0].url]) as gateway:
        yield gateway.wait_until_ready()


@pytest.fixture(scope="module")
def gateway_of_nobody() -> Iterator[Gateway]:
    """Its worker is not there."""
    with Gateway(workers=["step://127.0.0.1:1"]) as gateway:
        yield gateway


def listed(gateway: Gateway) -> dict[str, Any]:
    return {worker["name"]: worker for worker in gateway.client.get(PATH).json()["workers"]}


def path_of(executor: FakeExecutor) -> str:
    return f"{PATH}/{quote(executor.url, safe='')}"


def add(gateway: Gateway, executor: FakeExecutor, options: str = "") -> None:
    response = gateway.client.post(PATH, json={"url": executor.url + options})
    assert response.status_code == 201, response.text
    assert response.json()["name"] == executor.url
    eventually(lambda: listed(gateway)[executor.url]["state"] == "ready")


def finish_next(executor: FakeExecutor) -> None:
    submit = executor.next_submit()
    executor.say(submit, *ids_of("Yes."))
    executor.finish(submit)


def test_a_worker_is_added_and_takes_over_from_one_that_drains(
    gateway: Gateway, pair: tuple[FakeExecutor, FakeExecutor], background: ThreadPoolExecutor
) -> None:
    first, second = pair
    first.greeting = "Hello"
    with chat.opened(gateway) as events:
        chat.first_text(events)
        running = first.next_submit()
        add(gateway, second)

        response = gateway.client.patch(path_of(first), json={"draining": True})
        assert response.json()["state"] == "draining"
        answers = [background.submit(gateway.client.post, CHAT, json=chat.body()) for _ in range(3)]
        for _ in answers:
            finish_next(second)
        assert all(answer.result().status_code == 200 for answer in answers)
        assert first.submits.empty()

        first.finish(running)
        assert [*events][-1] == chat.DONE, "what it had is finished"

    gateway.client.patch(path_of(first), json={"draining": False})
    assert listed(gateway)[first.url]["state"] == "ready"
    first.greeting = ""
    answers = [background.submit(gateway.client.post, CHAT, json=chat.body()) for _ in range(2)]
    for executor in pair:
        finish_next(executor)
    assert all(answer.result().status_code == 200 for answer in answers)
    wait_until_idle(gateway)


def test_a_worker_is_removed_when_it_has_finished(gateway: Gateway, pair: tuple[FakeExecutor, FakeExecutor]) -> None:
    first, second = pair
    add(gateway, second)
    gateway.client.patch(path_of(second), json={"draining": True})
    first.greeting = "Hello"
    with chat.opened(gateway) as events:
        chat.first_text(events)
        gateway.client.patch(path_of(second), json={"draining": False})

        assert gateway.client.delete(path_of(first)).json()["state"] == "draining"
        gateway.wait_until_ready()
        assert first.url in listed(gateway)
        first.finish(first.next_submit())
        assert [*events][-1] == chat.DONE

    eventually(lambda: [*listed(gateway)] == [second.url])
    assert gateway.line("was removed")
    add(gateway, first)
    assert len(listed(gateway)) == 2, "it may come back"


def test_a_worker_that_is_removed_at_once_ends_its_streams_and_the_last_one_leaves_503(
    gateway: Gateway, pair: tuple[FakeExecutor, FakeExecutor]
) -> None:
    first, _ = pair
    first.greeting = "Hello"
    with chat.opened(gateway) as events:
        chat.first_text(events)

        assert gateway.client.delete(path_of(first) + "?now=true").status_code == 200
        *_, last = events

    assert "was removed" in last["error"]["message"]
    eventually(lambda: not listed(gateway))
    assert gateway.client.get("/ready").status_code == 503
    assert gateway.metric("gateway_worker_in_flight") == 0


def test_weights_change_while_it_runs(
    gateway: Gateway, pair: tuple[FakeExecutor, FakeExecutor], background: ThreadPoolExecutor
) -> None:
    first, second = pair
    add(gateway, second)
    changed = gateway.client.patch(path_of(first), json={"weight": 3})
    assert changed.json()["weight"] == 3

    answers = [background.submit(gateway.client.post, CHAT, json=chat.body()) for _ in range(8)]
    eventually(lambda: (first.submits.qsize(), second.submits.qsize()) == (6, 2))
    for executor, count in ((first, 6), (second, 2)):
        for _ in range(count):
            finish_next(executor)
    assert all(answer.result().status_code == 200 for answer in answers)


@pytest.mark.parametrize(
    ("body", "complaint", "param"),
    [
        ({"url": "first"}, "there is a worker", "url"),
        ({"url": "http://a:1"}, "the scheme must be one of", "url"),
        ({"url": "step://a:1?model=x"}, "is not served here", "url"),
        ({}, "is required", "url"),
        ({"role": "decode"}, "once the worker has been reached", "role"),
        ({"role": "boss"}, "must be one of", "role"),
        ({"labels": {"rack": 7}}, "must be a text", "labels.rack"),
        ({"url": "step://a:1", "labels": []}, "must be an object", "labels"),
        ({"address": "x"}, "cannot be changed", "address"),
        ({"weight": 0}, "between", "weight"),
        ({"draining": 1}, "true or false", "draining"),
    ],
)
def test_what_makes_no_sense_is_refused(
    gateway_of_nobody: Gateway, body: dict[str, Any], complaint: str, param: str
) -> None:
    (name,) = listed(gateway_of_nobody)
    client = gateway_of_nobody.client
    if body.get("url") == "first":
        body = {"url": name}
    is_change = "url" not in body and body
    response = client.patch(f"{PATH}/{name}", json=body) if is_change else client.post(PATH, json=body)

    error = refusal(response)
    assert complaint in error["message"] and error["param"] == param
    assert [*listed(gateway_of_nobody)] == [name]


def test_an_unknown_worker_is_not_found(gateway_of_nobody: Gateway) -> None:
    for method in ("GET", "PATCH", "DELETE"):
        response = gateway_of_nobody.client.request(method, f"{PATH}/nobody", json={})
        assert "no worker 'nobody'" in refusal(response, 404)["message"]
