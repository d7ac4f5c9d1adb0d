"""granian in hypercorn's place: the same answers, aborts and end."""

import signal
from collections.abc import Iterator

import pytest

from engine_adapters.base import FinishReason
from tests import chat
from tests.demo_model import ids_of
from tests.executor import FakeExecutor
from tests.processes import Gateway, eventually, wait_until_idle

pytest.importorskip("granian", reason="granian is optional")


@pytest.fixture
def executor() -> Iterator[FakeExecutor]:
    with FakeExecutor("Hi") as executor:
        yield executor


@pytest.fixture
def gateway(executor: FakeExecutor) -> Iterator[Gateway]:
    with Gateway("--server", "granian", "--http-threads", "2", workers=[executor.url]) as gateway:
        yield gateway.wait_until_ready()


def test_it_answers_aborts_and_ends_as_hypercorn_does(executor: FakeExecutor, gateway: Gateway) -> None:
    for _ in range(4):
        with chat.opened(gateway) as events:
            submit = executor.next_submit()
            assert chat.first_text(events) == "Hi"
            executor.say(submit, *ids_of(" you"))
            assert chat.first_text(events) == " you"
            executor.finish(submit)
            assert list(events)[-1] == chat.DONE
    assert gateway.client.post("/v1/chat/completions", json=chat.body(top_p=9)).status_code == 400
    assert gateway.client.get("/nowhere").status_code == 404

    with chat.sent(gateway, stream=True) as connection:
        submit = executor.next_submit()
        assert connection.recv(10)
    assert executor.next_abort() == submit.stream_id
    executor.finish(submit, FinishReason.ABORTED)
    wait_until_idle(gateway)

    assert gateway.terminate() == 0


def test_a_running_stream_is_finished_before_the_end(executor: FakeExecutor, gateway: Gateway) -> None:
    with chat.opened(gateway) as events:
        submit = executor.next_submit()
        assert chat.first_text(events) == "Hi"
        gateway.send_signal(signal.SIGTERM)
        eventually(lambda: gateway.refuses_connections(), "refusal of new connections")
        executor.say(submit, *ids_of(" again"))
        executor.finish(submit)
        *chunks, end = events

    assert (chat.text_of(chunks), end) == (" again", chat.DONE)
    assert gateway.exit_code() == 0


def test_at_the_end_of_the_grace_period_a_stream_gets_an_error(executor: FakeExecutor) -> None:
    with Gateway("--server", "granian", "--grace-seconds", "0", workers=[executor.url]) as gateway:
        gateway.wait_until_ready()
        with chat.opened(gateway) as events:
            submit = executor.next_submit()
            chat.first_text(events)
            gateway.send_signal(signal.SIGTERM)
            assert executor.next_abort() == submit.stream_id
            executor.finish(submit, FinishReason.ABORTED)
            *_, last = events

        assert last["error"]["code"] == "unavailable"
        assert gateway.exit_code() == 0
