"""Clients that leave: wherever their request is, it ends in the executor too, and nobody else notices."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from engine_adapters.base import FinishReason
from tests import chat
from tests.demo_model import ids_of
from tests.executor import FakeExecutor, flood
from tests.processes import Gateway, Simulator, eventually, wait_until_idle

LONG_PROMPT = "word " * 2500


ANSWER_MB = 100
"""More than the text of a flood takes on its way."""


@pytest.fixture(scope="module")
def narrow_gateway(server: str) -> Iterator[Gateway]:
    """A gateway whose executor runs one request at a time, with a slow prefill and no end."""
    arguments = ("--output", "random", "--max-running", "1", "--prefill-tps", "500", "--decode-base-ms", "10")
    with Simulator(*arguments) as simulator, Gateway(*served_by(server), workers=[simulator.url]) as gateway:
        yield gateway.wait_until_ready()


@pytest.fixture(scope="module")
def acted_executor(server: str) -> Iterator[FakeExecutor]:
    with FakeExecutor() as executor:
        yield executor


@pytest.fixture(scope="module")
def acted_gateway(server: str, acted_executor: FakeExecutor) -> Iterator[Gateway]:
    with Gateway(*served_by(server), workers=[acted_executor.url]) as gateway:
        yield gateway.wait_until_ready()


def served_by(server: str) -> tuple[str, ...]:
    return "--server", server, "--http-threads", "2"


def running(gateway: Gateway, running: int, waiting: int = 0) -> None:
    """Wait until the executor says so."""
    metrics = ("gateway_worker_running", "gateway_worker_waiting")
    eventually(lambda: [gateway.metric(name) for name in metrics] == [running, waiting], f"{running} and {waiting}")


def count_left(gateway: Gateway) -> float:
    return gateway.metric("gateway_requests_total", status="499")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_in_prefill_frees_the_executor(narrow_gateway: Gateway, stream: bool) -> None:
    before = count_left(narrow_gateway)
    with chat.sent(narrow_gateway, LONG_PROMPT, stream=stream):
        running(narrow_gateway, 1)

    wait_until_idle(narrow_gateway)
    eventually(lambda: count_left(narrow_gateway) == before + 1)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_in_decode_frees_the_executor(
    executor: FakeExecutor, acted_gateway: Gateway, stream: bool
) -> None:
    executor.greeting = "Hi"
    before = count_left(acted_gateway)
    with chat.sent(acted_gateway, stream=stream) as connection:
        submit = executor.next_submit()
        if stream:
            assert connection.recv(10)

    assert executor.next_abort() == submit.stream_id
    executor.finish(submit, FinishReason.ABORTED)
    eventually(lambda: count_left(acted_gateway) == before + 1)
    wait_until_idle(acted_gateway)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_while_queued_leaves_the_queue(narrow_gateway: Gateway, stream: bool) -> None:
    with chat.opened(narrow_gateway) as events:
        chat.first_text(events)
        with chat.sent(narrow_gateway, stream=stream):
            running(narrow_gateway, 1, 1)

        running(narrow_gateway, 1, 0)
        assert chat.first_text(events), "the one that runs goes on"
    wait_until_idle(narrow_gateway)


def test_a_client_that_leaves_makes_room_for_who_waits(narrow_gateway: Gateway, background: ThreadPoolExecutor) -> None:
    with chat.sent(narrow_gateway, stream=True):
        running(narrow_gateway, 1)
        waiting = background.submit(chat.complete, narrow_gateway, max_tokens=3)
        running(narrow_gateway, 1, 1)

    assert waiting.result()["usage"]["completion_tokens"] == 3


def test_a_reset_connection_counts_as_left(narrow_gateway: Gateway) -> None:
    connection = chat.sent(narrow_gateway, stream=True)
    running(narrow_gateway, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()

    wait_until_idle(narrow_gateway)


def test_a_client_that_leaves_while_no_worker_is_ready_is_forgotten(server: str) -> None:
    with Gateway(*served_by(server), "--connect-seconds", "300", workers=["step://127.0.0.1:1"]) as gateway:
        with chat.sent(gateway):
            eventually(lambda: gateway.metric("gateway_active_requests") == 1)

        eventually(lambda: gateway.metric("gateway_active_requests") == 0)


def test_a_client_that_leaves_before_its_body_is_complete_is_no_request(
    executor: FakeExecutor, acted_gateway: Gateway
) -> None:
    gateway, before = acted_gateway, count_left(acted_gateway)
    errors = gateway.lines('"level": "ERROR"')
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert gateway.client.get("/ready").status_code == 200

    eventually(lambda: count_left(gateway) == before + 1)
    assert gateway.lines('"level": "ERROR"') == errors
    assert executor.submits.empty()


def test_other_streams_do_not_notice_that_one_client_leaves(
    executor: FakeExecutor, acted_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    executor.greeting = "Hi"
    stayed = [background.submit(chat.stream, acted_gateway) for _ in range(6)]
    submits = [executor.next_submit() for _ in stayed]
    for _ in range(6):
        with chat.opened(acted_gateway) as events:
            submit = executor.next_submit()
            chat.first_text(events)
        assert executor.next_abort() == submit.stream_id
        executor.finish(submit, FinishReason.ABORTED)
    for submit in submits:
        executor.say(submit, *ids_of(" there"))
        executor.finish(submit)

    assert [chat.text_of(answer.result()) for answer in stayed] == ["Hi there"] * 6
    wait_until_idle(acted_gateway)


def test_a_client_that_does_not_read_holds_nobody_up(executor: FakeExecutor, acted_gateway: Gateway) -> None:
    executor.greeting = "Hi"
    process = psutil.Process(acted_gateway.child.pid)
    before = process.memory_info().rss
    with chat.sent(acted_gateway, stream=True):
        silent = executor.next_submit()
        flood(executor, silent)
        assert process.memory_info().rss - before < ANSWER_MB << 20

        with chat.opened(acted_gateway) as events:
            submit = executor.next_submit()
            assert chat.first_text(events) == "Hi"
            executor.say(submit, *ids_of(" there"))
            assert chat.first_text(events) == " there"
            executor.finish(submit)
            assert [*events][-1] == chat.DONE

    assert executor.next_abort() == silent.stream_id
    executor.finish(silent, FinishReason.ABORTED)
    wait_until_idle(acted_gateway)


def test_tokens_that_were_under_way_when_the_client_left_are_no_fault(
    executor: FakeExecutor, acted_gateway: Gateway
) -> None:
    executor.greeting = "Hi"
    faults = acted_gateway.metric("gateway_wire_faults_total")
    with chat.sent(acted_gateway, stream=True) as connection:
        submit = executor.next_submit()
        assert connection.recv(10)
    executor.next_abort()

    executor.say(submit, 1, 2, 3)
    executor.finish(submit, FinishReason.ABORTED)

    eventually(lambda: acted_gateway.client.get("/ready").status_code == 200)
    assert acted_gateway.metric("gateway_wire_faults_total") == faults


def test_an_abort_does_not_wait_behind_long_prompts(
    executor: FakeExecutor, acted_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    executor.greeting = "Hi"
    with chat.sent(acted_gateway, stream=True):
        first = executor.next_submit()
        executor.greeting = ""
        others = [background.submit(chat.complete, acted_gateway, "long " * 20_000) for _ in range(20)]

    assert executor.next_abort() == first.stream_id
    executor.finish(first, FinishReason.ABORTED)
    for _ in others:
        executor.finish(executor.next_submit())
    assert [answer.result()["choices"][0]["finish_reason"] for answer in others] == ["stop"] * 20
