"""Text becomes the type that a schema says, or stays text."""

from typing import Any

import pytest

from gateway.parsers.schema_types import parameter_types, typed

# (schema of the parameter, what the model wrote, its JSON)
CASES: list[tuple[Any, str, str]] = [
    ({"type": "string"}, "42", '"42"'),
    ({"type": "string"}, "null", '"null"'),
    ({}, "42", '"42"'),
    ({"type": "integer"}, " 42\n", "42"),
    ({"type": "integer"}, "+7", "7"),
    ({"type": "integer"}, "007", "7"),
    ({"type": "integer"}, "4.0", "4.0"),
    ({"type": "integer"}, "4.5", '"4.5"'),
    ({"type": "integer"}, "many", '"many"'),
    ({"type": "integer"}, "None", "null"),
    ({"type": "number"}, "-2.50E-2", "-2.50E-2"),
    ({"type": "number"}, ".5", "0.5"),
    ({"type": "number"}, "5.", "5"),
    ({"type": "number"}, "inf", '"inf"'),
    ({"type": "number"}, "NaN", '"NaN"'),
    ({"type": "boolean"}, "True", "true"),
    ({"type": "boolean"}, "0", "false"),
    ({"type": "boolean"}, "maybe", '"maybe"'),
    ({"type": "array"}, "[1, 2]", "[1, 2]"),
    ({"type": "array"}, "[1, 'a', None]", '[1, "a", null]'),
    ({"type": "array"}, "[1, NaN]", '"[1, NaN]"'),
    ({"type": "object"}, "{'a': (1, 2)}", '{"a": [1, 2]}'),
    ({"type": "object"}, "{broken", '"{broken"'),
    ({"type": ["string", "null"]}, "null", "null"),
    ({"type": ["integer", "string"]}, "42", "42"),
    ({"type": ["integer", "string"]}, "4 2", '"4 2"'),
    ({"enum": [1, 2]}, "2", "2"),
    ({"enum": ["1", "2"]}, "2", '"2"'),
    ({"const": True}, "true", "true"),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "null", "null"),
    ({"allOf": [{"oneOf": [{"type": "boolean"}]}]}, "true", "true"),
    ({"properties": {}}, "{}", "{}"),
    ({"items": {}}, "[]", "[]"),
    ({"$ref": "#/$defs/Number"}, "1", "1"),
    ({"$ref": "#/$defs/Loop"}, "1", '"1"'),
    ({"$ref": "#/nowhere"}, "1", '"1"'),
    (True, "1", '"1"'),
    ({"type": 5}, "1", '"1"'),
]


@pytest.mark.parametrize(("schema", "text", "expected"), CASES)
def test_text_is_typed(schema: Any, text: str, expected: str) -> None:
    definitions = {"Number": {"type": "number"}, "Loop": {"$ref": "#/$defs/Loop"}}
    tool = {"properties": {"p": schema}, "$defs": definitions}

    assert typed(text, parameter_types(tool, "p")) == expected


@pytest.mark.parametrize(
    "tool", [None, {}, [], "schema", {"properties": []}, {"properties": {"q": {"type": "integer"}}}]
)
def test_what_no_schema_tells_of_is_text(tool: Any) -> None:
    assert typed("1", parameter_types(tool, "p")) == '"1"'
