"""An executor that sends nonsense: counted, contained, and never the end of the gateway."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine_adapters import codec
from engine_adapters.base import FinishReason
from engine_adapters.step import messages
from tests import chat
from tests.demo_model import VOCAB_SIZE, ids_of, text_of
from tests.executor import FakeExecutor, column, end_of, frame_of
from tests.processes import Gateway, eventually, wait_until_idle

PATH = "/v1/chat/completions"


def faults(gateway: Gateway, kind: str) -> float:
    return gateway.metric("gateway_wire_faults_total", kind=kind)


@pytest.fixture(autouse=True)
def still_alive(executor: FakeExecutor, acted_gateway: Gateway) -> Iterator[None]:
    """After each test the gateway must serve as if nothing had been."""
    errors = acted_gateway.lines('"level": "ERROR"')
    yield
    executor.start_anew()
    executor.greeting = "Fine."
    with chat.opened(acted_gateway) as events:
        executor.finish(executor.next_submit())
        assert chat.text_of(list(events)[:-1]) == "Fine."
    wait_until_idle(acted_gateway)
    assert acted_gateway.lines('"level": "ERROR"') == errors


def test_token_ids_beyond_the_vocabulary_have_no_text(executor: FakeExecutor, acted_gateway: Gateway) -> None:
    before = faults(acted_gateway, "unknown_token")
    executor.greeting = "Hello"
    with chat.opened(acted_gateway, stream_options={"include_usage": True}) as events:
        submit = executor.next_submit()
        executor.say(submit, VOCAB_SIZE, *ids_of(" there"), (1 << 32) - 1)
        executor.finish(submit)
        *chunks, usage, end = events

    assert chat.text_of(chunks) == "Hello there"
    assert end == chat.DONE
    assert usage["usage"]["completion_tokens"] == 4
    assert faults(acted_gateway, "unknown_token") == before + 2


def test_tokens_and_ends_of_unknown_streams_are_ignored(executor: FakeExecutor, acted_gateway: Gateway) -> None:
    before = faults(acted_gateway, "unknown_stream")
    executor.greeting = "Hello"
    with chat.opened(acted_gateway) as events:
        submit = executor.next_submit()
        stranger = messages.Submit(stream_id=submit.stream_id + 1000)
        executor.send(frame_of({stranger.stream_id: ids_of("mine"), submit.stream_id: ids_of(" you")}))
        executor.finish(stranger)
        executor.finish(submit)
        *chunks, end = events

    assert (chat.text_of(chunks), end) == ("Hello you", chat.DONE)
    assert faults(acted_gateway, "unknown_stream") == before + 2


def test_what_comes_after_an_end_is_ignored(executor: FakeExecutor, acted_gateway: Gateway) -> None:
    before = faults(acted_gateway, "unknown_stream")
    executor.greeting = "Hello"
    with chat.opened(acted_gateway) as events:
        submit = executor.next_submit()
        executor.finish(submit)
        executor.say(submit, *ids_of(" again"))
        executor.finish(submit, FinishReason.ERROR, error="late")
        *chunks, end = events

    assert (chat.text_of(chunks), end) == ("Hello", chat.DONE)
    eventually(lambda: faults(acted_gateway, "unknown_stream") == before + 2)


MALFORMED = {
    "no message": b"\xff\xff\xff\xff",
    "cut off": codec.encode(messages.StepFrame(token_ids=b"\0" * 40))[:-3],
    "a column of 5 bytes": codec.encode(messages.StepFrame(stream_ids=b"\0" * 5)),
    "more tokens than streams": codec.encode(messages.StepFrame(stream_ids=column([1]), token_ids=column([1, 2]))),
    "counts that do not add up": codec.encode(
        messages.StepFrame(stream_ids=column([1]), counts=column([3]), token_ids=column([1, 2]))
    ),
    "counts for fewer streams": codec.encode(
        messages.StepFrame(stream_ids=column([1, 2]), counts=column([2]), token_ids=column([1, 2]))
    ),
    "text that is not UTF-8": codec.encode(messages.StepFrame(finished=[messages.Finished(error="\xe9")])).replace(
        "\xe9".encode(), b"\xe9\xe9"
    ),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_frame_breaks_the_connection_and_its_streams(
    executor: FakeExecutor, acted_gateway: Gateway, data: bytes
) -> None:
    before = faults(acted_gateway, "malformed_frame")
    executor.greeting = "Hello"
    with chat.opened(acted_gateway) as events:
        chat.first_text(events)

        executor.send(data)
        *_, last = events

    assert last["error"]["code"] == "engine_failed"
    assert faults(acted_gateway, "malformed_frame") == before + 1
    acted_gateway.wait_until_ready()


def test_a_request_without_a_token_survives_a_malformed_frame(
    executor: FakeExecutor, acted_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    response = background.submit(acted_gateway.client.post, PATH, json=chat.body())
    executor.next_submit()

    executor.send(b"\xff\xff\xff\xff")
    again = executor.next_submit()
    executor.say(again, *ids_of("Second time lucky."))
    executor.finish(again)

    assert response.result().json()["choices"][0]["message"]["content"] == "Second time lucky."


def test_a_column_that_starts_anywhere_in_the_frame_is_read_alike(
    executor: FakeExecutor, acted_gateway: Gateway
) -> None:
    executor.greeting = "1"
    for odd_bytes in range(1, 5):
        with chat.opened(acted_gateway) as events:
            submit = executor.next_submit()
            frame = frame_of({submit.stream_id: ids_of(" and 2")}, finished=[end_of(submit)])
            frame.step = 1 << 7 * odd_bytes  # a longer number moves what follows it
            executor.send(frame)
            *chunks, end = events

        assert (chat.text_of(chunks), end) == ("1 and 2", chat.DONE)


def test_fields_of_a_later_version_are_skipped(executor: FakeExecutor, acted_gateway: Gateway) -> None:
    executor.greeting = "1"
    with chat.opened(acted_gateway) as events:
        submit = executor.next_submit()
        frame = frame_of({submit.stream_id: ids_of(" and 2")}, finished=[end_of(submit)])
        executor.send(codec.encode(frame) + b"\x9a\x06\x03new" + b"\xa0\x06\x01")
        *chunks, _ = events

    assert chat.text_of(chunks) == "1 and 2"


def test_a_finish_reason_nobody_knows_is_an_error(executor: FakeExecutor, acted_gateway: Gateway) -> None:
    executor.greeting = "Hello"
    with chat.opened(acted_gateway) as events:
        submit = executor.next_submit()
        executor.send(messages.StepFrame(finished=[messages.Finished(stream_id=submit.stream_id, reason=99)]))
        *_, last = events

    assert last["error"]["message"] == "unknown finish reason 99"


def test_an_abort_nobody_asked_for_is_an_error(executor: FakeExecutor, acted_gateway: Gateway) -> None:
    executor.greeting = "Hello"
    with chat.opened(acted_gateway) as events:
        executor.finish(executor.next_submit(), FinishReason.ABORTED)
        *_, last = events

    assert last["error"]["code"] == "engine_failed"


def test_many_tokens_in_one_frame_are_one_event(executor: FakeExecutor, acted_gateway: Gateway) -> None:
    text = "A long answer in a single frame. " * 2000
    executor.greeting = "!"
    with chat.opened(acted_gateway) as events:
        submit = executor.next_submit()
        executor.say(submit, *ids_of(text))
        executor.finish(submit)
        *chunks, _ = events

    assert chat.text_of(chunks) == "!" + text == text_of(ids_of("!" + text))
    assert max(len(chat.piece_of(chunk)) for chunk in chunks) == len(text)
