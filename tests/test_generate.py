"""The straight line from a request to the events of its answer, through the front door."""

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_adapters.base import FinishReason
from engine_adapters.step import messages
from tests import chat
from tests.demo_model import CONTEXT_LENGTH, END_OF_TURN, VOCAB_SIZE, echo_of, ids_of, prompt_of, text_of
from tests.executor import FakeExecutor, column, end_of, frame_of
from tests.processes import Gateway, eventually, wait_until_idle

PATH = "/v1/chat/completions"
TEXTS = {
    "German": "Fünf größere Übungen, süß und heiß.",
    "Chinese": "网关把文字变成数字，再把数字变回文字。",
    "Japanese": "ゲートウェイは、文字を数に変えます。",
    "Korean": "게이트웨이는 글자를 숫자로 바꿉니다.",
    "Arabic": "البوابة تحول النص إلى أرقام",
    "Hindi": "गेटवे पाठ को संख्याओं में बदलता है",
    "emoji": "🦊🏳️‍🌈👩🏽‍🚀👨‍👩‍👧‍👦 and 🇩🇪",
    "combining": "e\N{COMBINING ACUTE ACCENT} a\N{COMBINING RING ABOVE}\N{COMBINING DIAERESIS}",
    "beyond the first plane": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈𐌰𐌽",
    "white space": "  two\t\ttabs \r\n\r\n and   no-break \u2003 em\n",
    "control characters": "\x00\x01\x1b[31m\x7f\x85\ufeff",
    "JSON's own": 'quotes " and \\ backslashes \\n \\u0041 / </script>',
    "line separators": "one\u2028two\u2029three",
    "replacement characters": "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}",
    "markers": "<|im_start|> <think>a</think> <|im_end|> <|endoftext|>",
}


def echoed(gateway: Gateway, content: str, max_tokens: int) -> str:
    """The streamed answer of an executor in echo mode, whose end and usage are checked."""
    expected = echo_of(content)
    chunks = chat.stream(gateway, content, max_tokens=max_tokens, stream_options={"include_usage": True})
    is_cut = max_tokens <= len(expected)
    assert chat.finish_reason_of(chunks) == ("length" if is_cut else "stop")
    tokens = max_tokens if is_cut else len(expected) + 1
    prompt_tokens = len(prompt_of(content))
    usage = chunks[-1]["usage"]
    assert 0 <= usage.pop("prompt_tokens_details")["cached_tokens"] <= prompt_tokens
    assert usage.pop("completion_tokens_details") == {"reasoning_tokens": 0}
    assert usage == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
    }
    return chat.text_of(chunks)


@pytest.mark.parametrize("content", TEXTS.values(), ids=TEXTS)
def test_the_pieces_join_to_the_tokenizers_full_decode(echo_gateway: Gateway, content: str) -> None:
    assert echoed(echo_gateway, content, 1000) == text_of(echo_of(content))


@settings(max_examples=40)
@given(content=st.text(max_size=40), max_tokens=st.integers(1, 60))
def test_the_pieces_of_any_answer_join_wherever_it_is_cut(echo_gateway: Gateway, content: str, max_tokens: int) -> None:
    assert echoed(echo_gateway, content, max_tokens) == text_of(echo_of(content)[:max_tokens])


def test_a_character_that_is_never_finished_ends_as_a_replacement_character(
    executor: FakeExecutor, acted_gateway: Gateway
) -> None:
    fox = ids_of("🦊")
    assert len(fox) > 1
    executor.greeting = "a"
    for count in range(1, len(fox)):
        with chat.opened(acted_gateway) as events:
            submit = executor.next_submit()
            executor.say(submit, *fox[:count])
            executor.finish(submit, FinishReason.LENGTH)
            *chunks, _ = events

        assert chat.text_of(chunks) == "a\N{REPLACEMENT CHARACTER}" == text_of(ids_of("a") + fox[:count])


STOPS: dict[str, tuple[list[str], list[str], str]] = {
    "in one piece": (["The end of it"], ["end"], "The "),
    "across a border": (["The en", "d of it"], ["end"], "The "),
    "across every border": ([*"The end of it"], ["end of"], "The "),
    "at the very start": (["en", "d of it"], ["end"], ""),
    "all there is": (["end"], ["end"], ""),
    "one character": (["abc", "def"], ["e"], "abcd"),
    "only begun": (["en", "ough"], ["end"], "enough"),
    "only begun at the end": (["the en"], ["end"], "the en"),
    "begun twice": (["aa", "aab", "c"], ["aab"], "aa"),
    "the first of two that overlap": (["xab", "cd"], ["bcd", "abc"], "x"),
    "the one that is complete first": (["x123", "456"], ["123456", "34"], "x12"),
    "one within another": (["the e", "nd"], ["the end", "e e"], "th"),
    "other letters": (["数字变", "回文字"], ["变回"], "数字"),
    "a line end": (["one\n", "\ntwo"], ["\n\n"], "one"),
    "twice in the text": (["a, b, c"], [", "], "a"),
}


@pytest.mark.parametrize(("pieces", "stop", "expected"), STOPS.values(), ids=STOPS)
@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_string_is_found_wherever_the_pieces_are_cut(
    executor: FakeExecutor,
    acted_gateway: Gateway,
    background: ThreadPoolExecutor,
    pieces: list[str],
    stop: list[str],
    expected: str,
    stream: bool,
) -> None:
    response = background.submit(acted_gateway.client.post, PATH, json=chat.body(stop=stop, stream=stream))
    submit = executor.next_submit()
    for piece in pieces:
        executor.say(submit, *ids_of(piece))
    executor.finish(submit)

    if stream:
        *chunks, end = chat.events_of(response.result())
        assert end == chat.DONE
        assert chat.text_of(chunks) == expected
        assert chat.finish_reason_of(chunks) == "stop"
    else:
        (choice,) = response.result().json()["choices"]
        assert choice["message"]["content"] == expected
        assert choice["finish_reason"] == "stop"


def test_a_stop_string_ends_the_stream_in_the_executor(executor: FakeExecutor, acted_gateway: Gateway) -> None:
    executor.greeting = "one"
    options = {"include_usage": True}
    with chat.opened(acted_gateway, stop="three", stream_options=options) as events:
        submit = executor.next_submit()
        executor.say(submit, *ids_of(" two three four"))

        assert executor.next_abort() == submit.stream_id
        executor.finish(submit, FinishReason.ABORTED)
        *chunks, usage, _ = events

    assert chat.text_of(chunks) == "one two "
    assert usage["usage"]["completion_tokens"] == len(ids_of("one") + ids_of(" two three"))
    wait_until_idle(acted_gateway)


def test_text_that_may_begin_a_stop_string_waits_and_other_text_does_not(
    executor: FakeExecutor, acted_gateway: Gateway
) -> None:
    executor.greeting = "a"
    with chat.opened(acted_gateway, stop="END") as events:
        submit = executor.next_submit()
        assert chat.first_text(events) == "a"
        executor.say(submit, *ids_of("bE"))
        assert chat.first_text(events) == "b"
        executor.say(submit, *ids_of("Nough"))
        assert chat.first_text(events) == "ENough"
        executor.finish(submit)


def test_the_request_reaches_the_executor_as_it_was_asked(
    executor: FakeExecutor, acted_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    body = chat.body("Hi", temperature=0.5, top_p=0.25, seed=-7, max_tokens=9)
    background.submit(acted_gateway.client.post, PATH, json=body, headers={"x-request-id": "asked"})

    submit = executor.next_submit()
    executor.finish(submit)

    assert submit.request_id == "asked"
    assert submit.token_ids == column(prompt_of("Hi"))
    assert submit.max_tokens == 9
    assert END_OF_TURN in memoryview(submit.stop_token_ids).cast("I")
    assert not submit.ignore_eos
    sampling = submit.sampling
    assert sampling is not None
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.25, -7)


def test_what_was_not_asked_is_left_to_the_engine(
    executor: FakeExecutor, acted_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    background.submit(acted_gateway.client.post, PATH, json=chat.body("Hi"))

    submit = executor.next_submit()
    executor.finish(submit)

    assert submit.max_tokens == CONTEXT_LENGTH - len(prompt_of("Hi"))
    sampling = submit.sampling or messages.Sampling()
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (None, None, None)


def test_what_the_engine_says_of_its_cache_and_its_tokens_is_the_usage(
    executor: FakeExecutor, acted_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    response = background.submit(acted_gateway.client.post, PATH, json=chat.body())
    submit = executor.next_submit()
    executor.say(submit, *ids_of("Yes"))
    executor.finish(submit, matched_stop=END_OF_TURN, cached_tokens=5, completion_tokens=len(ids_of("Yes")) + 1)

    usage = response.result().json()["usage"]
    assert usage["completion_tokens"] == len(ids_of("Yes")) + 1
    assert usage["prompt_tokens_details"] == {"cached_tokens": 5}


def test_an_answer_without_a_token_is_empty(
    executor: FakeExecutor, acted_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    for stream in (False, True):
        response = background.submit(acted_gateway.client.post, PATH, json=chat.body(stream=stream))
        executor.finish(executor.next_submit())

        if stream:
            *chunks, end = chat.events_of(response.result())
            assert (chat.text_of(chunks), chat.finish_reason_of(chunks), end) == ("", "stop", chat.DONE)
            assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        else:
            assert response.result().json()["choices"][0]["message"]["content"] == ""


EARLY_ENDS: dict[str, tuple[FinishReason, dict[str, Any], int]] = {
    "rejected": (FinishReason.REJECTED, {"error": "no such adapter"}, 400),
    "failed": (FinishReason.ERROR, {"error": "out of memory"}, 502),
    "aborted": (FinishReason.ABORTED, {}, 502),
    "out of time": (FinishReason.DEADLINE, {"error": "the engine has no more time for it"}, 504),
}


@pytest.mark.parametrize(("reason", "fields", "status"), EARLY_ENDS.values(), ids=EARLY_ENDS)
@pytest.mark.parametrize("stream", [True, False])
def test_an_error_before_the_first_token_has_its_status(
    executor: FakeExecutor,
    acted_gateway: Gateway,
    background: ThreadPoolExecutor,
    reason: FinishReason,
    fields: dict[str, Any],
    status: int,
    stream: bool,
) -> None:
    response = background.submit(acted_gateway.client.post, PATH, json=chat.body(stream=stream))
    executor.finish(executor.next_submit(), reason, **fields)

    assert response.result().status_code == status
    assert response.result().headers["content-type"] == "application/json"
    message = response.result().json()["error"]["message"]
    assert message == fields.get("error", "the engine aborted the request")


def test_an_error_after_the_first_token_is_one_event_and_the_end(
    executor: FakeExecutor, acted_gateway: Gateway
) -> None:
    executor.greeting = "Hi"
    with chat.opened(acted_gateway) as events:
        submit = executor.next_submit()
        executor.send(frame_of({submit.stream_id: ids_of(" you")}))
        executor.finish(submit, FinishReason.ERROR, error="out of memory")
        *chunks, last = events

    assert chat.text_of(chunks) == "Hi you"
    assert all("error" not in chunk for chunk in chunks)
    assert last == {
        "error": {"message": "out of memory", "type": "server_error", "param": None, "code": "engine_failed"}
    }
    assert acted_gateway.line('"error": "out of memory"')


def test_an_error_after_tokens_of_a_whole_answer_has_its_status(
    executor: FakeExecutor, acted_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    response = background.submit(acted_gateway.client.post, PATH, json=chat.body())
    submit = executor.next_submit()
    executor.say(submit, *ids_of("half an ans"))
    executor.finish(submit, FinishReason.ERROR, error="out of memory")

    assert response.result().status_code == 502


def test_each_frame_goes_out_at_once_as_one_event_in_one_chunk(executor: FakeExecutor, acted_gateway: Gateway) -> None:
    executor.greeting = "zero"
    with chat.sent(acted_gateway, stream=True) as connection:
        submit = executor.next_submit()
        head = read_until(connection, b'"zero"', b"\n\n\r\n")
        assert b"content-type: text/event-stream" in head.lower()
        for text in ("one", "two", "three"):
            executor.say(submit, *ids_of(text))
            data = read_until(connection, b"\n\n\r\n")
            size, _, rest = data.partition(b"\r\n")
            assert rest.startswith(b"data: {") and rest.count(b"data: ") == 1 and f'"{text}"'.encode() in rest
            assert int(size, 16) == len(rest) - 2

        executor.finish(submit)
        assert read_until(connection, b"0\r\n\r\n").count(b"[DONE]") == 1


def test_what_arrives_together_goes_out_together(executor: FakeExecutor, acted_gateway: Gateway) -> None:
    executor.greeting = "zero"
    with chat.opened(acted_gateway) as events:
        submit = executor.next_submit()
        assert chat.first_text(events) == "zero"
        executor.send(frame_of({submit.stream_id: ids_of(" one two three")}, finished=[end_of(submit)]))
        *chunks, _ = events

    assert [piece for chunk in chunks if (piece := chat.piece_of(chunk))] == [" one two three"]


def read_until(connection: socket.socket, *marks: bytes) -> bytes:
    """What the connection brings up to and with the last of `marks`, which follow one another."""
    data = b""
    while True:
        place = 0
        for mark in marks:
            found = data.find(mark, place)
            if found < 0:
                break
            place = found + len(mark)
        else:
            assert len(data) == place, data[place:]
            return data
        received = connection.recv(65536)
        assert received, data
        data += received


def test_answers_to_requests_at_the_same_time_do_not_mix(echo_gateway: Gateway, background: ThreadPoolExecutor) -> None:
    contents = [f"{number} " * (number + 1) + "🦊" * number for number in range(40)]
    answers = [background.submit(chat.stream, echo_gateway, content) for content in contents]

    for content, answer in zip(contents, answers, strict=True):
        assert chat.text_of(answer.result()) == f"user\n{content}\nassistant\n"


def test_metrics_count_requests_and_tokens(gateway: Gateway) -> None:
    def counts() -> list[float]:
        names = ("gateway_requests_total", "gateway_prompt_tokens_total", "gateway_completion_tokens_total")
        seconds = ("gateway_request_seconds_count", "gateway_time_to_first_token_seconds_count")
        return [gateway.metric(name, model="demo") for name in (*names, *seconds)]

    before = counts()
    for _ in range(3):
        chat.complete(gateway, max_tokens=5)

    expected = [3.0, 3.0 * len(prompt_of("Hello!")), 15.0, 3.0, 3.0]
    eventually(lambda: [after - old for after, old in zip(counts(), before, strict=True)] == expected)


def test_the_log_has_one_line_for_each_request(gateway: Gateway) -> None:
    headers = {"x-request-id": "logged-once"}
    gateway.client.post(PATH, json=chat.body(max_tokens=5), headers=headers)
    gateway.line("logged-once")
    gateway.client.get("/metrics", headers=headers)
    gateway.client.get("/health")

    (entry,) = [entry for entry in gateway.log() if entry.get("id") == "logged-once"]
    assert entry["message"] == "POST /v1/chat/completions 200"
    assert entry["level"] == "INFO"
    assert entry["model"] == "demo"
    assert entry["completion_tokens"] == 5
    assert entry["prompt_tokens"] == len(prompt_of("Hello!"))
    assert 0 < entry["first_token_ms"] <= entry["ms"]


def test_every_id_of_the_vocabulary_can_be_said(executor: FakeExecutor, acted_gateway: Gateway) -> None:
    executor.greeting = "."
    token_ids = list(range(VOCAB_SIZE))
    with chat.opened(acted_gateway) as events:
        submit = executor.next_submit()
        for start in range(0, VOCAB_SIZE, 1000):
            executor.say(submit, *token_ids[start : start + 1000])
        executor.finish(submit)
        *chunks, _ = events

    assert chat.text_of(chunks) == text_of(ids_of(".") + token_ids)


def test_http_1_0_gets_its_stream_too(gateway: Gateway) -> None:
    with chat.sent(gateway, version="1.0", stream=True, max_tokens=3) as connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))

    assert b" 200 " in answer.partition(b"\r\n")[0]
    assert answer.rstrip().endswith(b"data: [DONE]")
