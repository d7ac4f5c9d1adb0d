"""Workers that come, go, fall silent or do not fit: what becomes of the requests, and what /ready says."""

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from engine_adapters import codec
from engine_adapters.base import EngineLost, FinishReason
from engine_adapters.step import PROTOCOL_VERSION, messages
from engine_adapters.step.client import StepClient
from tests import chat
from tests.demo_model import ids_of
from tests.executor import LOOP, FakeExecutor, demo_info
from tests.processes import Gateway, Simulator, eventually

PATH = "/v1/chat/completions"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Gateway, list[FakeExecutor]]]:
    with FakeExecutor() as one, FakeExecutor() as two:
        with Gateway("--connect-seconds", "1", workers=[one.url, two.url]) as gateway:
            yield gateway, [one, two]


@pytest.fixture
def two_workers(pair: tuple[Gateway, list[FakeExecutor]]) -> tuple[Gateway, list[FakeExecutor]]:
    """A gateway with two fakes, both ready."""
    gateway, executors = pair
    for executor in executors:
        executor.start_anew()
    eventually(lambda: gateway.worker_states() == ["ready", "ready"])
    return pair


def one_that_got_it(executors: list[FakeExecutor]) -> tuple[FakeExecutor, messages.Submit, FakeExecutor]:
    """The executor that has the next request, the request, and the other executor."""
    chosen = eventually(lambda: next((each for each in executors if not each.submits.empty()), None))
    assert chosen is not None
    (other,) = [each for each in executors if each is not chosen]
    return chosen, chosen.next_submit(), other


def answer(executor: FakeExecutor, submit: messages.Submit, text: str) -> None:
    executor.say(submit, *ids_of(text))
    executor.finish(submit)


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def test_a_gateway_without_its_worker_is_unready_until_it_comes(background: ThreadPoolExecutor) -> None:
    port = free_port()
    with Gateway("--connect-seconds", "20", workers=[f"step://127.0.0.1:{port}"]) as gateway:
        response = gateway.client.get("/ready")
        assert response.status_code == 503
        assert response.json()["reasons"] == ["no worker of model 'demo' is ready"]
        (worker,) = response.json()["workers"]
        assert worker["state"] in ("starting", "unhealthy") and worker["reason"]
        assert gateway.client.get("/health").status_code == gateway.client.get("/live").status_code == 200
        waiting = background.submit(gateway.client.post, PATH, json=chat.body())

        with FakeExecutor(port=port) as executor:
            answer(executor, executor.next_submit(), "Here I am.")

            assert text_of(waiting.result()) == "Here I am."
            gateway.wait_until_ready()
            assert gateway.line("^Ready: ", "stdout")


def test_a_request_that_finds_no_worker_is_refused_after_a_while() -> None:
    with Gateway("--connect-seconds", "0.2", workers=["step://127.0.0.1:1"]) as gateway:
        for stream in (False, True):
            response = gateway.client.post(PATH, json=chat.body(stream=stream))

            assert response.status_code == 503
            assert response.json()["error"]["code"] == "unavailable"
            assert "no worker of model 'demo' is ready" in response.json()["error"]["message"]


def test_a_worker_that_went_away_is_used_again_when_it_is_back() -> None:
    port = free_port()
    with FakeExecutor("one", port=port) as executor:
        with Gateway("--connect-seconds", "20", workers=[executor.url]) as gateway:
            gateway.wait_until_ready()
            executor.__exit__(None, None, None)
            eventually(lambda: gateway.client.get("/ready").status_code == 503)
            assert gateway.line("worker step://.* is unhealthy")

            with FakeExecutor("two", port=port):
                gateway.wait_until_ready()
                with chat.opened(gateway) as events:
                    assert chat.first_text(events) == "two"


def test_a_worker_killed_in_the_middle_of_a_stream_ends_it_with_an_error() -> None:
    with Simulator("--output", "random") as simulator, Gateway(workers=[simulator.url]) as gateway:
        gateway.wait_until_ready()
        with chat.opened(gateway) as events:
            chat.first_text(events)

            simulator.send_signal(signal.SIGKILL)
            *_, last = events

        assert last["error"]["code"] == "engine_failed"
        assert "was lost" in last["error"]["message"]
        assert last["error"]["type"] == "server_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_worker_goes_before_the_first_token_is_answered_by_another(
    two_workers: tuple[Gateway, list[FakeExecutor]], background: ThreadPoolExecutor, stream: bool
) -> None:
    gateway, executors = two_workers
    retries = gateway.metric("gateway_retries_total")
    response = background.submit(gateway.client.post, PATH, json=chat.body(stream=stream))
    first, _, second = one_that_got_it(executors)

    first.drop()
    answer(second, second.next_submit(), "All is well.")

    if stream:
        events = list(chat.events_of(response.result()))
        assert events.pop() == chat.DONE
        assert chat.text_of(events) == "All is well."
    else:
        assert text_of(response.result()) == "All is well."
    assert gateway.metric("gateway_retries_total") == retries + 1


def test_an_engine_that_fails_early_and_may_be_replaced_is_replaced(
    two_workers: tuple[Gateway, list[FakeExecutor]], background: ThreadPoolExecutor
) -> None:
    gateway, executors = two_workers
    response = background.submit(gateway.client.post, PATH, json=chat.body())
    first, submit, second = one_that_got_it(executors)

    first.finish(submit, FinishReason.ERROR, error="no memory", retryable=True)
    answer(second, second.next_submit(), "I have some.")

    assert text_of(response.result()) == "I have some."


def test_a_request_is_tried_three_times_at_most(
    executor: FakeExecutor, acted_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    response = background.submit(acted_gateway.client.post, PATH, json=chat.body())

    for number in range(3):
        executor.finish(executor.next_submit(), FinishReason.ERROR, error=f"failure {number}", retryable=True)

    assert response.result().status_code == 502
    assert response.result().json()["error"]["message"] == "failure 2"
    assert executor.submits.empty()


def test_a_request_that_failed_after_its_first_token_is_not_tried_again(
    two_workers: tuple[Gateway, list[FakeExecutor]],
) -> None:
    gateway, executors = two_workers
    for executor in executors:
        executor.greeting = "Hi"
    with chat.opened(gateway) as events:
        first, submit, second = one_that_got_it(executors)
        first.finish(submit, FinishReason.ERROR, error="no memory", retryable=True)
        *_, last = events

    assert last["error"]["message"] == "no memory"
    assert first.submits.empty() and second.submits.empty()


def test_two_workers_share_the_requests(
    two_workers: tuple[Gateway, list[FakeExecutor]], background: ThreadPoolExecutor
) -> None:
    gateway, executors = two_workers
    responses = [background.submit(gateway.client.post, PATH, json=chat.body()) for _ in range(8)]

    eventually(lambda: [executor.submits.qsize() for executor in executors] == [4, 4])
    for executor in executors:
        for _ in range(4):
            executor.finish(executor.next_submit())
    assert all(response.result().status_code == 200 for response in responses)


def test_a_worker_gets_requests_by_its_weight(background: ThreadPoolExecutor) -> None:
    with FakeExecutor() as heavy, FakeExecutor() as light:
        with Gateway(workers=[f"{heavy.url}?weight=3", light.url]) as gateway:
            eventually(lambda: gateway.worker_states() == ["ready", "ready"])
            responses = [background.submit(gateway.client.post, PATH, json=chat.body()) for _ in range(8)]

            eventually(lambda: (heavy.submits.qsize(), light.submits.qsize()) == (6, 2))
            for executor, share in ((heavy, 6), (light, 2)):
                for _ in range(share):
                    executor.finish(executor.next_submit())
            assert all(response.result().status_code == 200 for response in responses)


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "another tokenizer": ({"tokenizer_fingerprint": b"\7" * 32}, "its tokenizer (0707070707070707…) is not"),
    "another protocol": ({"protocol_version": PROTOCOL_VERSION + 1}, f"speaks version {PROTOCOL_VERSION + 1}"),
}


@pytest.mark.parametrize(("changes", "reason"), UNFIT.values(), ids=UNFIT)
def test_a_worker_that_does_not_fit_gets_no_requests_and_says_why(changes: dict[str, Any], reason: str) -> None:
    with FakeExecutor(info=demo_info(**changes)) as executor:
        with Gateway("--connect-seconds", "0", workers=[executor.url]) as gateway:
            eventually(lambda: gateway.worker_states() == ["unhealthy"])
            assert gateway.client.get("/ready").status_code == 503
            assert reason in gateway.ready()["workers"][0]["reason"]
            assert gateway.client.post(PATH, json=chat.body()).status_code == 503
            assert len(gateway.lines("is unhealthy")) == 1, "a state is logged when it begins, not at every attempt"

            executor.info = demo_info()
            gateway.wait_until_ready()


@pytest.mark.parametrize("info", [b"\xff\xff\xff\xff", codec.encode(demo_info(eos_token_ids=b"\0" * 3))])
def test_an_executor_that_says_nonsense_of_itself_is_no_trouble_to_the_others(
    two_workers: tuple[Gateway, list[FakeExecutor]], info: bytes, background: ThreadPoolExecutor
) -> None:
    gateway, executors = two_workers
    with FakeExecutor(info=info) as odd:
        gateway.client.post("/admin/workers", json={"url": odd.url, "name": "odd"}).raise_for_status()
        eventually(lambda: gateway.worker_states() == ["ready", "ready", "unhealthy"])
        response = background.submit(gateway.client.post, PATH, json=chat.body())
        chosen, submit, _ = one_that_got_it(executors)
        answer(chosen, submit, "Nothing happened.")
        assert text_of(response.result()) == "Nothing happened."
        gateway.client.delete("/admin/workers/odd?now=true").raise_for_status()
        eventually(lambda: len(gateway.worker_states()) == 2)


def test_a_worker_that_does_not_know_its_tokenizer_is_taken() -> None:
    with FakeExecutor(info=demo_info(tokenizer_fingerprint=b"")) as executor:
        with Gateway(workers=[executor.url]) as gateway:
            gateway.wait_until_ready()


def test_a_worker_of_a_model_nobody_serves_is_unfit(simulator: Simulator) -> None:
    with FakeExecutor(info=demo_info(model="other")) as executor:
        with Gateway(workers=[f"{simulator.url}?model=demo", f"{executor.url}?model=other"]) as gateway:
            eventually(lambda: gateway.worker_states() == ["ready", "unhealthy"])
            assert "?model=NAME" in gateway.ready()["workers"][1]["reason"]
            assert gateway.client.get("/ready").status_code == 200


def test_a_worker_silent_for_long_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_adapters.step.client.SILENCE_SECONDS", 0.3)

    async def follow(address: str) -> None:
        client: StepClient[object] = StepClient(address, lambda kind: None)
        try:
            await client.connect()
            await client.run(lambda deliveries: None)
        finally:
            await client.close()

    with FakeExecutor() as executor, pytest.raises(EngineLost, match=r"silent for 0\.3 s"):
        executor.is_silent = True
        LOOP.run(follow(executor.address))


def test_a_stream_without_progress_is_named(background: ThreadPoolExecutor) -> None:
    with FakeExecutor() as executor, Gateway("--stall-seconds", "1", workers=[executor.url]) as gateway:
        gateway.wait_until_ready()
        headers = {"x-request-id": "slow-one"}
        response = background.submit(gateway.client.post, PATH, json=chat.body(), headers=headers)
        submit = executor.next_submit()

        assert "slow-one" in gateway.line("a stream makes no progress").string
        assert gateway.metric("gateway_stalled_streams") == 1

        executor.say(submit, *ids_of("at last"))
        executor.finish(submit)
        assert text_of(response.result()) == "at last"
        eventually(lambda: gateway.metric("gateway_stalled_streams") == 0)
