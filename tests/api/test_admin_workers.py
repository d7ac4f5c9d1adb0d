"""/admin/workers: adding, draining, weighing and removing workers while requests run."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from engine_adapters.base import FEATURES, FinishReason
from engine_adapters.step import messages
from tests import chat
from tests.api.test_chat import refusal
from tests.demo_model import ids_of
from tests.executor import FakeExecutor, demo_info, end_of, frame_of
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
    with Gateway("--connect-seconds", "5", "--alias", "gpt=demo", workers=[pair[0].url]) as gateway:
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


def test_workers_have_labels_a_role_and_a_model_by_any_of_its_names(
    gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    info = demo_info(features=sorted(FEATURES))
    with FakeExecutor(info=info) as one, FakeExecutor(info=info) as two:
        body = {"url": f"{one.url}?model=gpt", "name": "one", "labels": {"rack": "7"}}
        gateway.client.post(PATH, json=body).raise_for_status()
        gateway.client.post(PATH, json={"url": two.url, "name": "two"}).raise_for_status()
        eventually(lambda: [listed(gateway)[name]["state"] for name in ("one", "two")] == ["ready", "ready"])
        assert listed(gateway)["one"]["model"] == "demo" and listed(gateway)["one"]["labels"] == {"rack": "7"}
        assert [model["id"] for model in gateway.client.get("/v1/models").json()["data"]] == ["demo", "gpt"]

        (first,) = (name for name in listed(gateway) if name.startswith("step:"))
        gateway.client.delete(f"{PATH}/{first}?now=true")
        one.greeting = "From one"
        gateway.client.patch(f"{PATH}/two", json={"draining": True})
        with chat.opened(gateway, model="gpt") as events:
            chat.first_text(events)
            for name, role in (("one", "prefill"), ("two", "decode")):
                changed = gateway.client.patch(f"{PATH}/{name}", json={"role": role, "labels": {"role": role}})
                assert (changed.json()["role"], changed.json()["labels"]) == (role, {"role": role})
            assert listed(gateway)["one"]["in_flight"] == 1, "what it has goes on"
            one.finish(one.next_submit())
            assert [*events][-1] == chat.DONE
        assert gateway.client.get("/ready").status_code == 503, "the decode worker drains"
        gateway.client.patch(f"{PATH}/two", json={"draining": False})
        response = background.submit(gateway.client.post, CHAT, json=chat.body(model="gpt"))
        prefill = one.next_submit()
        end = end_of(prefill, FinishReason.LENGTH, handoff=b"handoff", completion_tokens=1)
        one.send(frame_of({}, [end]))
        decode = two.next_submit()
        assert (prefill.phase, decode.phase) == (messages.PHASE_PREFILL, messages.PHASE_DECODE)
        two.finish(decode)
        assert response.result().status_code == 200 and response.result().json()["model"] == "demo"
        wait_until_idle(gateway)


def test_a_name_is_given_once_however_many_ask(gateway_of_nobody: Gateway, background: ThreadPoolExecutor) -> None:
    client, body = gateway_of_nobody.client, {"url": "step://127.0.0.1:2", "name": "wanted"}
    answers = [background.submit(httpx.post, f"{gateway_of_nobody.url}{PATH}", json=body) for _ in range(16)]

    assert sorted(answer.result().status_code for answer in answers) == [201] + [400] * 15
    client.delete(f"{PATH}/wanted?now=true")
    eventually(lambda: "wanted" not in listed(gateway_of_nobody))


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
