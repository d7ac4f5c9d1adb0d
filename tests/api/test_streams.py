"""What a stream has besides its chunks: signs of life while nothing comes, and how long each stage took."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from engine_adapters.base import FinishReason
from tests import chat, completions
from tests.api import answers
from tests.api.answers import answer
from tests.api.test_chat import refusal
from tests.api.test_fields import BODIES, CHAT
from tests.demo_model import ids_of
from tests.executor import FakeExecutor
from tests.processes import Gateway, wait_until_idle

WAITING = ": waiting"


@contextmanager
def blocks(gateway: Gateway, path: str, request: dict[str, Any], **headers: str) -> Iterator[Iterator[str]]:
    """The events and comments of a stream, as they are."""
    with gateway.client.stream("POST", path, json=request, headers=headers) as response:
        assert response.status_code == 200
        yield cut(response)


def cut(response: httpx.Response) -> Iterator[str]:
    rest = b""
    for piece in response.iter_bytes():
        *whole, rest = (rest + piece).split(b"\n\n")
        yield from (block.decode() for block in whole)
    assert rest == b""


# --- signs of life


@pytest.mark.parametrize("path", BODIES)
def test_a_silent_stream_gets_comments_and_then_its_answer(
    patient_executor: FakeExecutor, hasty_gateway: Gateway, path: str
) -> None:
    with blocks(hasty_gateway, path, BODIES[path](stream=True)) as stream:
        assert [next(stream), next(stream)] == [WAITING, WAITING], "before the first token"
        submit = patient_executor.next_submit()
        patient_executor.say(submit, *ids_of("Well"))
        assert any("Well" in block for block in stream)
        assert next(stream) == WAITING, "between tokens"
        patient_executor.finish(submit)
        rest = [block for block in stream if block != WAITING]

    assert all(block.startswith("data: ") for block in rest)
    assert rest[-1] == "data: [DONE]"


def test_a_request_of_several_prompts_gets_comments_too(patient_executor: FakeExecutor, hasty_gateway: Gateway) -> None:
    with blocks(hasty_gateway, completions.PATH, completions.body(["a", "b"], stream=True)) as stream:
        first = patient_executor.next_submit()
        answer(patient_executor, first, "done")
        assert any("done" in block for block in stream)
        assert WAITING in stream, "while the other works"
        answer(patient_executor, patient_executor.next_submit(), "done too")
        assert list(stream)[-1] == "data: [DONE]"


def test_a_busy_stream_gets_no_comments(patient_executor: FakeExecutor, hasty_gateway: Gateway) -> None:
    patient_executor.greeting = "Well"
    with blocks(hasty_gateway, CHAT, chat.body(stream=True)) as stream:
        patient_executor.finish(patient_executor.next_submit())
        assert WAITING not in list(stream)


def test_a_whole_answer_has_no_comments(
    patient_executor: FakeExecutor, hasty_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    with blocks(hasty_gateway, CHAT, chat.body(stream=True)) as stream:
        patient_executor.next_submit()
        whole = background.submit(chat.complete, hasty_gateway)
        submit = patient_executor.next_submit()
        assert [next(stream) for _ in range(4)] == [WAITING] * 4, "so much time has passed"
        answer(patient_executor, submit, "Well")

    assert whole.result()["choices"][0]["message"]["content"] == "Well"
    patient_executor.next_abort()
    wait_until_idle(hasty_gateway)


def test_a_client_that_leaves_a_silent_stream_frees_the_executor(
    patient_executor: FakeExecutor, hasty_gateway: Gateway
) -> None:
    with blocks(hasty_gateway, CHAT, chat.body(stream=True)) as stream:
        assert next(stream) == WAITING

    assert patient_executor.next_abort() == patient_executor.next_submit().stream_id
    wait_until_idle(hasty_gateway)


def test_an_error_after_a_comment_is_an_event(patient_executor: FakeExecutor, hasty_gateway: Gateway) -> None:
    with blocks(hasty_gateway, CHAT, chat.body(stream=True)) as stream:
        assert next(stream) == WAITING
        answers.end(patient_executor, patient_executor.next_submit(), reason=FinishReason.ERROR, error="broken")
        *_, last = stream

    assert last.startswith('data: {"error":{"message":"broken"')


# --- how long each stage took

BEFORE_THE_FIRST_TOKEN = ["queue", "render", "tokenize", "route", "engine"]


def timing_of(text: str) -> dict[str, float]:
    """The milliseconds of each stage."""
    stages = {}
    for part in text.split(", "):
        match = re.fullmatch(r"([a-z]+);dur=(\d+\.\d\d\d)(?:;desc=\"(?:hit|part|miss)\")?", part)
        assert match, text
        stages[match[1]] = float(match[2])
    return stages


@pytest.mark.parametrize("path", BODIES)
def test_a_whole_answer_tells_how_long_each_stage_took(gateway: Gateway, path: str) -> None:
    response = gateway.client.post(path, json=BODIES[path](max_tokens=30))

    stages = timing_of(response.headers["server-timing"])
    assert [*stages] == [*BEFORE_THE_FIRST_TOKEN, "decode"]
    assert sum(stages.values()) <= response.elapsed.total_seconds() * 1000
    assert stages["tokenize"] > 0 and stages["engine"] > 0


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_tells_it_up_to_the_first_token_and_on_request_at_its_end(gateway: Gateway, path: str) -> None:
    request = BODIES[path](max_tokens=30, stream=True, stream_options={"include_usage": True})
    with gateway.client.stream("POST", path, json=request, headers={"x-server-timing": "end"}) as response:
        early = timing_of(response.headers["server-timing"])
        *_, comment, usage, end = cut(response)

    assert [*early] == BEFORE_THE_FIRST_TOKEN
    assert comment.startswith(": server-timing ")
    late = timing_of(comment.removeprefix(": server-timing "))
    assert [*late] == [*BEFORE_THE_FIRST_TOKEN, "decode"]
    assert {name: late[name] for name in early} == early
    assert usage.startswith("data: {") and end == "data: [DONE]"


def test_a_stream_has_no_such_comment_unless_it_is_asked_for(gateway: Gateway) -> None:
    for headers in ({}, {"x-server-timing": "start"}):
        with blocks(gateway, CHAT, chat.body(max_tokens=3, stream=True), **headers) as stream:
            assert not [block for block in stream if block.startswith(":")]


def test_prompts_that_begin_at_different_times_have_no_negative_stages(gateway: Gateway) -> None:
    prompts = ["Hi", "Ein größerer Satz über 世界 und 🦊. " * 20_000]
    before = gateway.metric("gateway_stage_seconds_sum")

    response = gateway.client.post(
        completions.PATH, json=completions.body(prompts, max_tokens=2, truncate_prompt_tokens=20)
    )

    assert response.status_code == 200
    assert timing_of(response.headers["server-timing"])
    assert gateway.metric("gateway_stage_seconds_sum") > before


def test_the_time_to_tokenize_an_echoed_prompt_counts(gateway: Gateway) -> None:
    plain, echoed = (
        timing_of(gateway.client.post(completions.PATH, json=request).headers["server-timing"])
        for request in (
            completions.body(completions.hard_text(number, 60_000), max_tokens=2, truncate_prompt_tokens=20, echo=echo)
            for number, echo in enumerate((False, True))
        )
    )

    assert echoed["tokenize"] > plain["tokenize"] / 10


def test_tokenizing_tells_its_stages_too(gateway: Gateway) -> None:
    response = gateway.client.post("/v1/tokenize", json={"model": "demo", "prompt": "word " * 3000})

    assert [*timing_of(response.headers["server-timing"])] == ["queue", "render", "tokenize"]


def test_an_error_tells_the_stages_it_has_seen(gateway: Gateway) -> None:
    early = gateway.client.post(CHAT, json=chat.body(temperature=9))
    late = gateway.client.post(CHAT, json=chat.body(max_tokens=100_000))

    refusal(early)
    assert "server-timing" not in early.headers
    refusal(late)
    assert [*timing_of(late.headers["server-timing"])] == ["queue", "render", "tokenize"]
