"""/parse/function_call and /parse/reasoning."""

from typing import Any

import pytest

from tests.api.test_chat import refusal
from tests.api.test_tools import CALL, WEATHER
from tests.processes import Gateway

CALLS, REASONING = "/parse/function_call", "/parse/reasoning"


def test_calls_are_read_from_a_text(gateway: Gateway) -> None:
    request: dict[str, Any] = {"text": f"Well. {CALL}", "tool_call_parser": "hermes", "tools": [WEATHER]}

    for body in (request, request | {"tool_call_parser": None, "model": "demo"}):
        answer = gateway.client.post(CALLS, json=body).json()
        (call,) = answer["tool_calls"]
        assert answer["remaining_text"] == "Well. " and answer["success"] is True
        assert call["function"]["name"] == "get_weather" and "Köln" in call["function"]["arguments"]

    answer = gateway.client.post(CALLS, json=request | {"text": CALL.replace("weather", "money") * 300}).json()
    assert answer["tool_calls"] == [] and len(answer["remaining_text"]) > 20_000


def test_reasoning_is_read_from_a_text(gateway: Gateway) -> None:
    for opens, text in ((False, "<think>Why.</think>Because."), (True, "Why.</think>Because.")):
        body = {"text": text, "reasoning_parser": "qwen3", "prompt_opens_reasoning": opens}
        answer = gateway.client.post(REASONING, json=body).json()
        assert answer == {"reasoning_text": "Why.", "normal_text": "Because.", "success": True}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CALLS, {"text": "a", "tool_call_parser": "nope"}, "tool_call_parser"),
        (CALLS, {"text": "a", "tool_call_parser": "os:path"}, "tool_call_parser"),
        (CALLS, {"text": 5, "tool_call_parser": "hermes"}, "text"),
        (CALLS, {"text": "a", "tool_call_parser": "hermes", "tools": [{"type": "custom"}]}, "tools[0].type"),
        (REASONING, {"text": "a", "reasoning_parser": "none"}, "reasoning_parser"),
        (REASONING, {"text": "a"}, "model"),
    ],
)
def test_bad_bodies_are_refused(gateway: Gateway, path: str, body: dict[str, Any], param: str) -> None:
    assert refusal(gateway.client.post(path, json=body))["param"] == param
