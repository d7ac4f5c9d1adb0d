"""Structured output: the constraint the engine is given, and the answer held against its schema."""

import json
from typing import Any

import pytest

from engine_adapters.base import FinishReason
from tests import chat
from tests.api.dialogue import PATH, Conversation, events_of, folded
from tests.api.test_chat import refusal
from tests.api.test_tools import WEATHER
from tests.executor import FakeExecutor
from tests.processes import Gateway

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
GOOD, BAD = '{"age": 7}', '{"age": "seven"}'


def format_of(schema: Any, strict: bool | None = None) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": strict}}


TAG = {"type": "structural_tag", "structures": [], "triggers": []}
FORMS: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "json_object"}}, "json", ""),
    ({"response_format": format_of(SCHEMA)}, "json_schema", json.dumps(SCHEMA)),
    ({"response_format": {"type": "regex", "regex": "a+"}}, "regex", "a+"),
    ({"response_format": {"type": "ebnf", "grammar": 'root ::= "a"'}}, "ebnf", 'root ::= "a"'),
    ({"response_format": TAG}, "structural_tag", json.dumps(TAG)),
    ({"guided_json": SCHEMA}, "json_schema", json.dumps(SCHEMA)),
    ({"guided_json": json.dumps(SCHEMA)}, "json_schema", json.dumps(SCHEMA)),
    ({"guided_regex": "[ab]"}, "regex", "[ab]"),
    ({"guided_grammar": 'root ::= "a"'}, "ebnf", 'root ::= "a"'),
    ({"guided_choice": ["yes", 'no "never" 🌊']}, "ebnf", 'root ::= "yes" | "no \\"never\\" 🌊"'),
    ({"structured_outputs": {"choice": ["a", "b"]}}, "ebnf", 'root ::= "a" | "b"'),
    ({"structured_outputs": {"json": SCHEMA}}, "json_schema", json.dumps(SCHEMA)),
    ({"structured_outputs": {"json_object": True}}, "json", ""),
    ({"structured_outputs": {"structural_tag": TAG}}, "structural_tag", json.dumps(TAG)),
    ({"regex": "a+"}, "regex", "a+"),
    ({"ebnf": 'root ::= "a"'}, "ebnf", 'root ::= "a"'),
]


@pytest.mark.parametrize(("fields", "kind", "guide"), FORMS, ids=lambda value: json.dumps(value)[:60])
def test_a_form_becomes_the_engines_constraint(
    conversation: Conversation,
    fields: dict[str, Any],
    kind: str,
    guide: str,
) -> None:
    response, submit = conversation.exchange(GOOD, **fields)

    assert response.status_code == 200
    assert submit.constraint is not None
    assert (submit.constraint.kind, submit.constraint.guide) == (kind, guide)
    assert submit.constraint.begins_after == b"", "this model does not reason of its own accord"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_breaks_a_strict_schema_is_an_error_with_its_text(
    conversation: Conversation,
    stream: bool,
) -> None:
    response, _ = conversation.exchange(BAD, response_format=format_of(SCHEMA, True), stream=stream)

    if stream:
        *events, last = events_of(response)
        assert folded(events)["message"]["content"] == BAD, "what was written comes first"
        assert last["error"]["code"] == "invalid_model_output" and "[DONE]" not in response.text
    else:
        assert response.status_code == 502
        error = response.json()["error"]
        assert (error["code"], error["output"]) == ("invalid_model_output", BAD)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_cut_off_is_not_judged(conversation: Conversation, stream: bool) -> None:
    choice = conversation.ask(BAD[:9], FinishReason.LENGTH, response_format=format_of(SCHEMA, True), stream=stream)

    assert choice["message"]["content"] == BAD[:9] and choice["finish_reason"] == "length"


def test_outcomes_are_counted_and_only_strict_ones_are_errors(
    conversation: Conversation,
    able_gateway: Gateway,
) -> None:
    def counts() -> list[float]:
        name = "gateway_structured_outputs_total"
        return [able_gateway.metric(name, outcome=outcome) for outcome in ("valid", "invalid", "cut")]

    before = counts()
    assert conversation.ask(GOOD, response_format=format_of(SCHEMA))["message"]["content"] == GOOD
    assert conversation.ask(BAD, response_format=format_of(SCHEMA))["message"]["content"] == BAD
    assert conversation.ask("{", FinishReason.LENGTH, guided_json=SCHEMA)["message"]["content"] == "{"
    assert [after - one for after, one in zip(counts(), before, strict=True)] == [1, 1, 1]


def test_a_schema_beside_tools_leaves_the_choice_to_the_model(conversation: Conversation) -> None:
    fields: dict[str, Any] = {"tools": [WEATHER], "response_format": format_of(SCHEMA, True)}

    response, submit = conversation.exchange(GOOD, **fields)

    assert submit.constraint is None and response.status_code == 200
    assert conversation.exchange(BAD, **fields)[0].status_code == 502


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("response_format.type", {"response_format": {"type": "yaml"}}),
    ("response_format.json_schema.schema", {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
    ("response_format.json_schema.schema", {"response_format": format_of({"type": "thing"})}),
    ("response_format.json_schema.schema", {"response_format": format_of({"$ref": "http://elsewhere.invalid/a"})}),
    ("response_format.json_schema.schema", {"response_format": format_of({"enum": ["x" * 300_000]})}),
    ("guided_json", {"guided_json": "{"}),
    ("guided_choice", {"guided_choice": []}),
    ("guided_regex", {"guided_regex": 5}),
    ("guided_regex", {"guided_regex": "a", "response_format": {"type": "json_object"}}),
    ("guided_regex", {"guided_regex": "a", "tools": [WEATHER]}),
]


@pytest.mark.parametrize(("param", "fields"), REFUSED, ids=lambda value: json.dumps(value)[:60])
def test_a_form_that_cannot_be_is_refused(gateway: Gateway, param: str, fields: dict[str, Any]) -> None:
    assert refusal(gateway.client.post(PATH, json=chat.body(**fields)))["param"] == param


def test_an_engine_without_the_kind_is_named(executor: FakeExecutor, acted_gateway: Gateway) -> None:
    error = refusal(acted_gateway.client.post(PATH, json=chat.body(response_format={"type": "json_object"})))

    assert error["param"] == "response_format"
    assert executor.info.engine in error["message"]
