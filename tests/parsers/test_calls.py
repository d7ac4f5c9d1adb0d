"""Every family's calls, written from what they mean, are read back, however the text is cut."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.parsers.call_families import CALL_FAMILIES
from gateway.parsers.reader import Tools
from tests.parsers.answers import Answer, cut, format_of, read
from tests.parsers.wire_forms import FORMS, Call, Form

ODD = [
    "{",
    "}",
    "]",
    '"',
    "\\",
    "'",
    "\n",
    "\n\n",
    "</tool_call>",
    "<tool_call>",
    "```",
    "[TOOL_CALLS]",
    "<",
    "｜",
    "é",
    "🦊",
]
ODD += ["\u2028", "</think>", "<|call|>", "functools[", "; ", ", ", "\\u00e9", "\x07", "&quot;", "&", "<function=f>"]
PLAIN = ["a", "word ", " ", "0", "42", "true", "null", "\t", "/", "=", ">", "(", ")", "[", "：", "한국어", "\U0010ffff"]
TEXT = st.lists(st.sampled_from([*ODD, *PLAIN]), max_size=6).map("".join)
NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT
KEYS = st.sampled_from(["k", "city", "long_key", "x1"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=5
)
ARGUMENTS = st.dictionaries(KEYS, VALUES, max_size=3)
CALLS = st.lists(st.tuples(st.sampled_from(["f", "get_weather", "a-b"]), ARGUMENTS), min_size=1, max_size=3)
CUTS = st.lists(st.integers(0, 2000), max_size=8)
CASES = [pytest.param(family, form, id=f"{family} {variant}".strip()) for (family, variant), form in FORMS.items()]


def readable(calls: list[Call], form: Form) -> list[Call]:
    """What of `calls` the form can say: without the words that end a value there, all as texts if it knows no other."""
    return [(name, {key: said(value, form) for key, value in values.items()}) for name, values in calls]


def said(value: Any, form: Form) -> Any:
    if form.is_text_only and not isinstance(value, str):
        value = repr(value)
    if isinstance(value, str):
        for word in form.words:
            # A text that ends in the beginning of such a word could make one with what follows.
            value = value.replace(word, "").rstrip("<\n") if word in value else value
        return value
    if isinstance(value, dict):
        return {key: said(each, form) for key, each in value.items()}
    return [said(each, form) for each in value] if isinstance(value, list) else value


def test_every_family_is_tested() -> None:
    assert {family for family, _ in FORMS} == {family.name for family in CALL_FAMILIES}


@pytest.mark.parametrize(("family", "form"), CASES)
@settings(max_examples=25)
@given(calls=CALLS, places=CUTS)
def test_calls_are_read_as_they_were_meant(family: str, form: Form, calls: list[Call], places: list[int]) -> None:
    calls = readable(calls, form)
    text = form.write(calls)
    plan = format_of(family)

    whole = read(plan, [text])

    assert whole == Answer(calls=calls)
    assert read(plan, text) == whole, "character by character"
    assert read(plan, cut(text, places)) == whole
    assert len(set(whole.ids)) == len(calls)


MARKED = [case for case in CASES if "alone" not in (case.id or "") and case.id not in ("pythonic", "array")]


@pytest.mark.parametrize(("family", "form"), MARKED)
def test_text_around_calls_is_content(family: str, form: Form) -> None:
    text = f"Let me look.{form.write([('f', {'k': 'v'}), ('g', {})])} Done, a < b."
    answer = Answer("Let me look. Done, a < b.", calls=[("f", {"k": "v"}), ("g", {})])

    for pieces in ([text], text, cut(text, [len("Let me look.") + 2])):
        found = read(format_of(family), pieces)
        assert found.calls == answer.calls
        assert found.content.replace("\n", "") == answer.content, "but for the newlines around calls"


SCHEMA = {
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "share": {"type": ["number", "null"]},
        "flag": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        "list": {"$ref": "#/$defs/List"},
        "object": {"properties": {"a": {}}},
    },
    "$defs": {"List": {"type": "array", "items": {}}},
}
TYPED = st.fixed_dictionaries(
    {},
    optional={
        "text": TEXT | st.sampled_from(["42", "true", "null", '{"a": 1}', "1.5", ""]),
        "count": st.integers(-(10**30), 10**30),
        "share": st.floats(allow_nan=False, allow_infinity=False) | st.none(),
        "flag": st.booleans() | st.none(),
        "list": st.lists(SCALARS, max_size=3),
        "object": st.dictionaries(KEYS, SCALARS, max_size=3),
    },
)
TEXT_ONLY = [case for case in CASES if isinstance(form := case.values[1], Form) and form.is_text_only]


@pytest.mark.parametrize(("family", "form"), TEXT_ONLY)
@settings(max_examples=25)
@given(arguments=TYPED, places=CUTS)
def test_values_between_tags_have_the_types_of_the_schema(
    family: str, form: Form, arguments: dict[str, Any], places: list[int]
) -> None:
    escape = Form(form.write, form.words)
    arguments = {key: said(value, escape) for key, value in arguments.items()}
    text = form.write([("f", arguments)])
    tools = Tools({"f": SCHEMA})

    whole = read(format_of(family), [text], tools)

    assert whole == Answer(calls=[("f", arguments)])
    assert read(format_of(family), text, tools) == whole
    assert read(format_of(family), cut(text, places), tools) == whole
