"""What every endpoint refuses in the same way: other media types, full queues, requests that take too long, and what
is not here."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from engine_adapters.base import FEATURES, FinishReason
from gateway.api.unavailable import PATHS
from tests import chat, completions
from tests.api.test_chat import refusal
from tests.api.test_fields import BODIES, CHAT
from tests.demo_model import ids_of
from tests.executor import FakeExecutor, demo_info
from tests.hasty_gateway import QUEUE_LIMIT
from tests.processes import Gateway, wait_until_idle

# --- 501


@pytest.mark.parametrize("path", PATHS)
def test_an_endpoint_that_is_not_here_says_so(gateway: Gateway, path: str) -> None:
    for response in (gateway.client.post(path, json={"model": "demo"}), gateway.client.get(path)):
        error = refusal(response, 501)

        assert error["code"] == "not_implemented"
        assert path in error["message"]


# --- 415

TAKEN = ("application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "Application/Json ;charset=UTF-8")
NOT_TAKEN = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json", "a/json")
POSTS: dict[str, dict[str, Any]] = {
    CHAT: chat.body(max_tokens=1),
    completions.PATH: completions.body(max_tokens=1),
    "/v1/tokenize": {"model": "demo", "prompt": "Hi"},
    "/v1/detokenize": {"model": "demo", "tokens": [1]},
}


@pytest.mark.parametrize("content_type", NOT_TAKEN)
@pytest.mark.parametrize("path", POSTS)
def test_another_media_type_is_refused(gateway: Gateway, path: str, content_type: str) -> None:
    headers = {"content-type": content_type}

    assert "application/json" in refusal(gateway.client.post(path, content=b"{}", headers=headers), 415)["message"]


@pytest.mark.parametrize("content_type", TAKEN)
def test_json_is_taken_however_it_is_written(gateway: Gateway, content_type: str) -> None:
    request = gateway.client.build_request("POST", CHAT, json=chat.body(max_tokens=1))
    request.headers["content-type"] = content_type

    assert gateway.client.send(request).status_code == 200


def test_a_body_without_a_media_type_is_taken_for_json(gateway: Gateway) -> None:
    for path, body in POSTS.items():
        request = gateway.client.build_request("POST", path, json=body)
        del request.headers["content-type"]

        assert gateway.client.send(request).status_code == 200


def test_admin_takes_json_only_too(gateway: Gateway) -> None:
    refusal(gateway.client.patch("/admin/pools", content=b"{}", headers={"content-type": "text/plain"}), 415)


# --- 429


def test_a_full_queue_refuses_and_serves_on(hasty_gateway: Gateway, background: ThreadPoolExecutor) -> None:
    bodies = [completions.body(completions.hard_text(number, 200_000)) for number in range(24)]
    responses = [background.submit(hasty_gateway.client.post, completions.PATH, json=body) for body in bodies]

    statuses = Counter(response.result().status_code for response in responses)
    assert statuses.keys() == {400, 429}
    assert statuses[400] > QUEUE_LIMIT, "what was in the queue has been read"
    for response in responses:
        if response.result().status_code == 429:
            error = refusal(response.result(), 429)
            assert (error["type"], error["code"]) == ("overloaded_error", "overloaded")
            assert "queue is full" in error["message"]
    refusal(hasty_gateway.client.post(completions.PATH, json=bodies[0]), 400)


# --- 504


@pytest.fixture(scope="module")
def all_late_executor() -> Iterator[FakeExecutor]:
    with FakeExecutor(info=demo_info(features=sorted(FEATURES))) as executor:
        yield executor


@pytest.fixture(scope="module")
def brief_gateway(all_late_executor: FakeExecutor) -> Iterator[Gateway]:
    """A gateway that gives a request half a second."""
    with Gateway("--request-seconds", "0.5", workers=[all_late_executor.url]) as gateway:
        yield gateway.wait_until_ready()


@pytest.fixture
def late_executor(all_late_executor: FakeExecutor, brief_gateway: Gateway) -> FakeExecutor:
    """`brief_gateway` is its gateway, connected."""
    all_late_executor.start_anew()
    brief_gateway.wait_until_ready()
    return all_late_executor


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("streams", [False, True])
def test_a_request_that_takes_too_long_is_ended(
    late_executor: FakeExecutor, brief_gateway: Gateway, background: ThreadPoolExecutor, path: str, streams: bool
) -> None:
    request = BODIES[path](n=2, stream=streams)
    response = background.submit(brief_gateway.client.post, path, json=request)
    submit = late_executor.next_submit()

    error = refusal(response.result(), 504)
    assert error["code"] == "deadline_exceeded"
    assert "0.5 s" in error["message"]
    assert {late_executor.next_abort() for _ in range(2)} == {submit.stream_id, submit.stream_id + 1}
    wait_until_idle(brief_gateway)


def test_a_whole_answer_that_takes_too_long_is_a_504_however_far_it_was(
    late_executor: FakeExecutor, brief_gateway: Gateway
) -> None:
    late_executor.greeting = "Well, I"

    refusal(brief_gateway.client.post(CHAT, json=chat.body()), 504)

    assert late_executor.next_abort() == late_executor.next_submit().stream_id


@pytest.mark.parametrize("prompts", [["a"], ["a", "b"]])
def test_a_stream_that_takes_too_long_ends_with_one_error(
    late_executor: FakeExecutor, brief_gateway: Gateway, prompts: list[str]
) -> None:
    late_executor.greeting = "Well, I"
    request = completions.body(prompts, stream=True)
    with brief_gateway.client.stream("POST", completions.PATH, json=request) as response:
        assert response.status_code == 200
        *chunks, last = chat.events_of(response)

    assert completions.texts_of(chunks) == ["Well, I"] * len(prompts)
    assert last["error"]["code"] == "deadline_exceeded"
    stream_ids = {late_executor.next_submit().stream_id for _ in prompts}
    assert {late_executor.next_abort() for _ in prompts} == stream_ids
    wait_until_idle(brief_gateway)


def test_a_request_in_time_is_not_disturbed(late_executor: FakeExecutor, brief_gateway: Gateway) -> None:
    late_executor.greeting = "Well, I"
    with chat.opened(brief_gateway) as events:
        submit = late_executor.next_submit()
        late_executor.say(submit, *ids_of(" see"))
        late_executor.finish(submit)
        *chunks, end = events
    late_after = brief_gateway.metric("gateway_requests_total", status="504")

    assert (chat.text_of(chunks), end) == ("Well, I see", chat.DONE)
    for _ in range(3):
        with chat.opened(brief_gateway) as events:
            late_executor.finish(late_executor.next_submit())
            assert list(events)[-1] == chat.DONE
    assert brief_gateway.metric("gateway_requests_total", status="504") == late_after


def test_a_client_may_say_how_long_it_waits_and_the_engine_hears_of_it(
    late_executor: FakeExecutor, brief_gateway: Gateway
) -> None:
    for asked, seconds, option in (("0.2", 0.2, "x-request-timeout"), ("100", 0.5, "--request-seconds")):
        headers = {"x-request-timeout": asked}
        error = refusal(brief_gateway.client.post(CHAT, json=chat.body(), headers=headers), 504)
        assert error["message"] == f"the request took longer than {seconds} s ({option})"
        submit = late_executor.next_submit()
        assert 0 < submit.timeout_ms <= 1000 * seconds
        assert late_executor.next_abort() == submit.stream_id


@pytest.mark.parametrize("asked", ["0", "-1", "nan", "inf", "soon", "1e9", "5s"])
def test_a_time_that_makes_no_sense_is_refused(gateway: Gateway, asked: str) -> None:
    error = refusal(gateway.client.post(CHAT, json=chat.body(), headers={"x-request-timeout": asked}))
    assert error["param"] == "x-request-timeout" and repr(asked) in error["message"]


def test_without_a_time_there_is_no_limit(executor: FakeExecutor, acted_gateway: Gateway) -> None:
    executor.greeting = "Hi"
    with chat.opened(acted_gateway) as events:
        submit = executor.next_submit()
        executor.finish(submit)
        assert [*events][-1] == chat.DONE
    assert submit.timeout_ms == 0


def test_another_try_has_the_time_that_is_left(
    executor: FakeExecutor, acted_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    headers = {"x-request-timeout": "0.5"}
    response = background.submit(acted_gateway.client.post, CHAT, json=chat.body(), headers=headers)
    executor.finish(executor.next_submit(), FinishReason.ERROR, error="no memory", retryable=True)
    again = executor.next_submit()
    assert again.timeout_ms < 500 - 24, "the same time, less a pause"
    assert response.result().status_code == 504
    assert executor.next_abort() == again.stream_id


def test_the_time_to_wait_for_a_worker_counts_too() -> None:
    arguments = ("--request-seconds", "0.3", "--connect-seconds", "60")
    with Gateway(*arguments, workers=["step://127.0.0.1:1"]) as gateway:
        refusal(gateway.client.post(CHAT, json=chat.body()), 504)

        wait_until_idle(gateway)
