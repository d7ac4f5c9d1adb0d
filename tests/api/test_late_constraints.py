"""Constraints of a model that reasons: they wait for the end of the reasoning."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from engine_adapters.base import FEATURES
from tests import chat
from tests.api.dialogue import Conversation, called
from tests.api.test_chat import refusal
from tests.api.test_tools import ARRAY, WEATHER
from tests.demo_model import TOKENIZER
from tests.executor import FakeExecutor, demo_info
from tests.processes import Gateway

END: int = TOKENIZER.token_to_id("</think>")
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}}
LATE = "constraint.begins_after"


@pytest.fixture(scope="module")
def thinker() -> Iterator[tuple[FakeExecutor, Gateway]]:
    with FakeExecutor(info=demo_info(features=sorted(FEATURES))) as executor:
        with Gateway("--reasoning-parser", "demo=qwen3", workers=[executor.url]) as gateway:
            yield executor, gateway.wait_until_ready()


@pytest.fixture
def thoughts(thinker: tuple[FakeExecutor, Gateway], background: ThreadPoolExecutor) -> Conversation:
    thinker[0].start_anew()
    return Conversation(*thinker, background)


def test_a_forced_call_comes_behind_the_reasoning(thoughts: Conversation) -> None:
    response, submit = thoughts.exchange(f"<think>\nHm.\n</think>\n\n{ARRAY}", tools=[WEATHER], tool_choice="required")

    assert submit.constraint is not None
    assert submit.constraint.begins_after == END.to_bytes(4, "little")
    (choice,) = response.json()["choices"]
    assert choice["message"]["reasoning_content"] == "Hm."
    assert called(choice) == [("get_weather", {"city": "Oslo"})]


def test_a_schema_binds_what_comes_behind_the_reasoning(thoughts: Conversation) -> None:
    response, submit = thoughts.exchange('<think>{"not": this}</think>{"a": 1}', response_format=SCHEMA)

    assert submit.constraint is not None and submit.constraint.begins_after == END.to_bytes(4, "little")
    assert json.loads(response.json()["choices"][0]["message"]["content"]) == {"a": 1}


def test_reasoning_that_the_prompt_has_closed_is_not_waited_for(thoughts: Conversation) -> None:
    closed: dict[str, Any] = {"role": "assistant", "content": "<think>\n\n</think>"}
    messages = [{"role": "user", "content": "Hi"}, closed]

    _, submit = thoughts.exchange('{"a": 1}', messages=messages, continue_final_message=True, response_format=SCHEMA)

    assert submit.constraint is not None and submit.constraint.begins_after == b""


@pytest.mark.slow
def test_an_engine_that_cannot_wait_says_what_to_do() -> None:
    with FakeExecutor(info=demo_info(features=sorted(FEATURES - {LATE}))) as executor:
        with Gateway("--reasoning-parser", "qwen3", workers=[executor.url]) as gateway:
            gateway.wait_until_ready()
            error = refusal(gateway.client.post("/v1/chat/completions", json=chat.body(response_format=SCHEMA)))

    assert error["param"] == "response_format.json_schema.schema"
    assert "enable_thinking" in error["message"]


def test_the_models_tell_how_they_are_read(thinker: tuple[FakeExecutor, Gateway]) -> None:
    (model,) = thinker[1].client.get("/v1/models").json()["data"]

    assert model["reasoning_parser"] == {"name": "qwen3", "why": "--reasoning-parser"}
    assert model["tool_parser"]["name"] == "hermes" and "<tool_call>" in model["tool_parser"]["why"]


@pytest.mark.slow
def test_tools_for_a_model_of_unknown_format_are_warned_of_once(background: ThreadPoolExecutor) -> None:
    with FakeExecutor(info=demo_info(features=sorted(FEATURES))) as executor:
        with Gateway("--tool-parser", "none", workers=[executor.url]) as gateway:
            conversation = Conversation(executor, gateway.wait_until_ready(), background)
            for _ in range(2):
                assert conversation.ask("Hi.", tools=[WEATHER])["message"]["content"] == "Hi."
            (line,) = gateway.lines("no known format", "stderr")

    assert "--tool-parser" in line
