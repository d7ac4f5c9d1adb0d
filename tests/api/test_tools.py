"""Tools over HTTP: what the model is asked for, and what its answer becomes, streamed or whole."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from engine_adapters.base import FinishReason
from tests import chat
from tests.api.answers import end, prompt_of, say_scored
from tests.api.dialogue import PATH, Conversation, called, events_of, folded
from tests.api.test_chat import refusal
from tests.demo_model import TOKENIZER
from tests.executor import FakeExecutor
from tests.processes import Gateway

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}
STRICT = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA, "strict": True}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln \\"am\\" Rhein 🌊"}}\n</tool_call>'
ARGUMENTS = {"city": 'Köln "am" Rhein 🌊'}
ARRAY = '[{"name": "get_weather", "parameters": {"city": "Oslo"}}]'


# --- what comes back


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_told_apart_from_text(conversation: Conversation, stream: bool, size: int) -> None:
    said = f"Let me look.\n{CALL}\n{CALL}"

    choice = conversation.ask(said, size=size, tools=[WEATHER, TIME], stream=stream)

    assert called(choice) == [("get_weather", ARGUMENTS)] * 2
    assert choice["message"]["content"] == "Let me look.\n"
    assert choice["finish_reason"] == "tool_calls"
    first, second = choice["message"]["tool_calls"]
    assert first["id"].startswith("call_") and first["id"] != second["id"]


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_told_apart_and_counted(conversation: Conversation, stream: bool) -> None:
    said = f"<think>\nSunny?\n</think>\n\n{CALL}"
    options = {"stream_options": {"include_usage": True}} if stream else {}

    choice = conversation.ask(said, tools=[WEATHER], stream=stream, **options)

    assert choice["message"]["reasoning_content"] == "Sunny?"
    assert choice["message"]["content"] is None
    assert called(choice) == [("get_weather", ARGUMENTS)]
    tokens = len(TOKENIZER.encode("<think>\nSunny?\n</think>", add_special_tokens=False).ids)
    assert choice["usage"]["completion_tokens_details"] == {"reasoning_tokens": tokens}


def test_reasoning_stays_where_it_was_when_it_is_not_to_be_separated(conversation: Conversation) -> None:
    choice = conversation.ask("<think>Hm.</think>So.", separate_reasoning=False)

    assert choice["message"]["content"] in ("<think>Hm.</think>So.", "Hm.So.")
    assert "reasoning_content" not in choice["message"]


def test_reasoning_may_come_in_one_piece(conversation: Conversation) -> None:
    response, _ = conversation.exchange("<think>One. Two. Three.</think>So.", stream=True, stream_reasoning=False)

    deltas = [choice["delta"] for event in events_of(response) for choice in event["choices"]]
    assert [delta["reasoning_content"] for delta in deltas if "reasoning_content" in delta] == ["One. Two. Three."]


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_no_call_is_text(conversation: Conversation, stream: bool) -> None:
    for said in (CALL.replace("get_weather", "get_money"), "<tool_call>\n{oops}\n</tool_call>", "a < b and <tool_c"):
        choice = conversation.ask(said, tools=[WEATHER], stream=stream)
        assert choice["message"]["content"] == said
        assert called(choice) == [] and choice["finish_reason"] == "stop"


def test_a_call_that_is_cut_off_is_text_in_a_whole_answer(conversation: Conversation) -> None:
    choice = conversation.ask(CALL[:60], FinishReason.LENGTH, tools=[WEATHER])

    assert choice["message"]["content"] == CALL[:60]
    assert choice["finish_reason"] == "length"


def test_without_tools_nothing_is_a_call(conversation: Conversation) -> None:
    assert conversation.ask(CALL)["message"]["content"] == CALL
    assert conversation.ask(CALL, tools=[WEATHER], tool_choice="none")["message"]["content"] == CALL


def test_a_stop_string_ends_the_answer_before_the_call(conversation: Conversation) -> None:
    choice = conversation.ask(f"Now. STOP {CALL}", tools=[WEATHER], stop="STOP")

    assert choice["message"]["content"] == "Now. " and choice["finish_reason"] == "stop"


def test_every_token_keeps_its_logprob(
    able_executor: FakeExecutor, able_gateway: Gateway, conversation: Conversation, background: ThreadPoolExecutor
) -> None:
    request = chat.body(tools=[WEATHER], logprobs=True)
    future = background.submit(able_gateway.client.post, PATH, json=request)
    submit = able_executor.next_submit()
    token_ids = TOKENIZER.encode(f"<think>Hm.</think>Well. {CALL}", add_special_tokens=False).ids
    for token_id in token_ids:
        say_scored(able_executor, submit, 0, [token_id], [(-0.5, [])])
    end(able_executor, submit)

    (choice,) = future.result().json()["choices"]
    assert len(choice["logprobs"]["content"]) == len(token_ids)
    assert called(choice) == [("get_weather", ARGUMENTS)]


def test_one_call_only_when_they_are_not_to_be_parallel(conversation: Conversation) -> None:
    choice = conversation.ask(f"{CALL}\n{CALL}", tools=[WEATHER], parallel_tool_calls=False)

    assert called(choice) == [("get_weather", ARGUMENTS)]
    assert choice["message"]["content"].strip() == CALL, "what was one too many is not lost"


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_know_functions_get_a_function_call(conversation: Conversation, stream: bool) -> None:
    functions = [{"name": "get_weather", "parameters": SCHEMA}]
    response, submit = conversation.exchange(CALL, functions=functions, function_call="auto", stream=stream)

    assert "get_weather" in prompt_of(submit)
    if stream:
        deltas = [choice["delta"] for event in events_of(response) for choice in event["choices"]]
        parts = [delta["function_call"] for delta in deltas if "function_call" in delta]
        assert parts[0]["name"] == "get_weather"
        assert json.loads("".join(part["arguments"] for part in parts)) == ARGUMENTS
        return
    (choice,) = response.json()["choices"]
    assert choice["message"]["function_call"]["name"] == "get_weather"
    assert choice["finish_reason"] == "function_call"


# --- what is asked for


def test_the_model_sees_the_tools_it_may_call(conversation: Conversation) -> None:
    _, submit = conversation.exchange("Hi.", tools=[WEATHER])
    assert '"get_weather"' in prompt_of(submit) and submit.constraint is None

    _, submit = conversation.exchange("Hi.", tools=[WEATHER], tool_choice="none")
    assert "get_weather" not in prompt_of(submit)


NAMED = {"type": "function", "function": {"name": "get_weather"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}


@pytest.mark.parametrize("choice", ["required", NAMED, ALLOWED], ids=["required", "named", "allowed"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_must_be_is_enforced_and_read(conversation: Conversation, choice: Any, stream: bool) -> None:
    response, submit = conversation.exchange(ARRAY, tools=[WEATHER, TIME], tool_choice=choice, stream=stream)

    assert submit.constraint is not None and submit.constraint.kind == "json_schema"
    schema = json.loads(submit.constraint.guide)
    items = schema["items"]["anyOf"]
    assert items[0]["properties"]["parameters"] == SCHEMA
    assert [item["properties"]["name"]["enum"] for item in items] == (
        [["get_weather"], ["get_time"]] if choice == "required" else [["get_weather"]]
    )
    result = folded(events_of(response)) if stream else response.json()["choices"][0]
    assert called(result) == [("get_weather", {"city": "Oslo"})]
    assert result["finish_reason"] == "tool_calls"
    assert result["message"]["content"] in (None, "")


def test_definitions_of_schemas_keep_their_place(conversation: Conversation) -> None:
    def tool(name: str, kind: str) -> dict[str, Any]:
        parameters = {"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": kind}}}
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    tools = [tool("f", "string"), tool("g", "integer")]
    _, submit = conversation.exchange('[{"name": "f", "parameters": {}}]', tools=tools, tool_choice="required")

    assert submit.constraint is not None
    schema = json.loads(submit.constraint.guide)
    assert schema["$defs"] == {"f.A": {"type": "string"}, "g.A": {"type": "integer"}}
    first, second = (item["properties"]["parameters"]["properties"]["a"] for item in schema["items"]["anyOf"])
    assert (first["$ref"], second["$ref"]) == ("#/$defs/f.A", "#/$defs/g.A")


def test_strict_tools_bring_their_schemas_to_the_engine(conversation: Conversation) -> None:
    _, submit = conversation.exchange("Hi.", tools=[STRICT])

    assert submit.constraint is not None and submit.constraint.kind == "structural_tag"
    form = json.loads(submit.constraint.guide)["format"]
    assert form["triggers"] == ["<tool_call>"] and form["at_least_one"] is False
    assert form["tags"][0]["content"]["json_schema"] == SCHEMA


@pytest.mark.parametrize("stream", [False, True])
def test_arguments_that_break_a_strict_schema_are_an_error_with_the_text(
    conversation: Conversation, stream: bool
) -> None:
    said = '<tool_call>{"name": "get_weather", "arguments": {"town": "Oslo"}}</tool_call>'

    response, _ = conversation.exchange(said, tools=[STRICT], stream=stream)

    if stream:
        *events, last = events_of(response)
        assert last["error"]["code"] == "invalid_model_output" and "[DONE]" not in response.text
        assert called(folded(events)) == [("get_weather", {"town": "Oslo"})]
    else:
        assert response.status_code == 502
        error = response.json()["error"]
        assert error["code"] == "invalid_model_output" and error["output"] == '{"town": "Oslo"}'


BAD: list[tuple[str, dict[str, Any]]] = [
    ("tools[0].function.name", {"tools": [{"type": "function", "function": {"name": "no name"}}]}),
    ("tools[1].function.name", {"tools": [WEATHER, WEATHER]}),
    ("tools[0].type", {"tools": [{"type": "web_search"}]}),
    ("tools[0].function.parameters", {"tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]}),
    ("tool_choice", {"tool_choice": "required"}),
    ("tool_choice", {"tools": [WEATHER], "tool_choice": "sometimes"}),
    ("tool_choice", {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "g"}}}),
    ("tool_choice.type", {"tools": [WEATHER], "tool_choice": {"type": "tool"}}),
    ("functions", {"tools": [WEATHER], "functions": [{"name": "f"}]}),
    ("parallel_tool_calls", {"tools": [WEATHER], "parallel_tool_calls": "no"}),
    ("tools", {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": 3}}}]}),
]


@pytest.mark.parametrize(("param", "fields"), BAD)
def test_bad_tools_are_refused_with_their_path(gateway: Gateway, param: str, fields: dict[str, Any]) -> None:
    assert refusal(gateway.client.post(PATH, json=chat.body(**fields)))["param"] == param


def test_an_engine_that_cannot_constrain_says_so(acted_gateway: Gateway, executor: FakeExecutor) -> None:
    request = chat.body(tools=[WEATHER], tool_choice="required")

    error = refusal(acted_gateway.client.post(PATH, json=request))

    assert error["param"] == "tool_choice" and "engine" in error["message"]


def test_calls_and_what_only_looked_like_one_are_counted(conversation: Conversation, able_gateway: Gateway) -> None:
    before = able_gateway.metric("gateway_tool_calls_total"), able_gateway.metric("gateway_malformed_tool_calls_total")

    conversation.ask(f"{CALL} <tool_call>{{no", tools=[WEATHER])

    after = able_gateway.metric("gateway_tool_calls_total"), able_gateway.metric("gateway_malformed_tool_calls_total")
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)
