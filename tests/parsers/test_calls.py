"""Every family's calls, written from what they mean, are read back, however the text is cut."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.parsers.call_families import CALL_FAMILIES
from gateway.parsers.reader import Tools
from gateway.tokenizer import Tokenizer
from tests.demo_model import TOKENIZER, ids_of
from tests.parsers.answers import Answer, cut, format_of, read
from tests.parsers.wire_forms import FORMS, Call, Form

TABLE = Tokenizer(TOKENIZER).table
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
@settings(max_examples=12)
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
@settings(max_examples=12)
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


INVOKE = '<｜DSML｜tool_calls><｜DSML｜invoke name="f">%s</｜DSML｜invoke></｜DSML｜tool_calls>'
PARAMETER = '<｜DSML｜parameter name="%s" string="%s">%s</｜DSML｜parameter>'
WRAPPED = [
    ('{"k": "v"}', {"k": "v"}),
    ('\n{"arguments": {"k": "v"}}\n', {"k": "v"}),
    ('{"input": {"k": "v"}}', {"k": "v"}),
    ('{"input": 5}', {"input": 5}),
    (PARAMETER % ("arguments", "false", '{"k": "v"}'), {"k": "v"}),
    (PARAMETER % ("input", "true", "text"), {"input": "text"}),
    (PARAMETER % ("input", "false", "{}") + PARAMETER % ("k", "true", "v"), {"input": {}, "k": "v"}),
]


@pytest.mark.parametrize(("body", "meaning"), WRAPPED)
def test_arguments_in_a_wrapper_of_no_meaning_are_taken_out(body: str, meaning: dict[str, Any]) -> None:
    tools = Tools({"f": {"properties": {"k": {"type": "string"}}}})

    for pieces in ([INVOKE % body], INVOKE % body):
        assert read(format_of("deepseek_v32"), pieces, tools) == Answer(calls=[("f", meaning)])


def test_a_wrapper_that_the_tool_declares_stays() -> None:
    tools = Tools({"f": {"properties": {"input": {"type": "object"}}}})

    for body in ('{"input": {"k": "v"}}', PARAMETER % ("input", "false", '{"k": "v"}')):
        assert read(format_of("deepseek_v32"), INVOKE % body, tools) == Answer(calls=[("f", {"input": {"k": "v"}})])


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=k>\nv\n<parameter=l>\nw\n</function>\n</tool_call>"),
        ("qwen3_coder", "<tool_call><function=f><parameter=k>v</parameter><parameter=l>w</parameter></tool_call>"),
        ("qwen3_coder", '<function=f>{"k": "v", "l": "w"}</function>'),
        (
            "minimax_m2",
            "<minimax:tool_call><invoke name='f'><parameter name=k>v</parameter>"
            "<parameter name = 'l'>w</parameter></invoke></minimax:tool_call>".replace("name = ", "name="),
        ),
        (
            "kimi_k3",
            '<|open|>tools<|sep|><|open|>call tool="f" index="1"<|sep|><|open|>json type="object"<|sep|>'
            '{"k": "v", "l": "w"}<|close|>json<|sep|><|close|>call<|sep|><|close|>tools<|sep|>',
        ),
        ("deepseek_v31", '<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"k": "v", "l": "w"}'),
        ("kimi_k2", '<|tool_call_begin|>f<|tool_call_argument_begin|>{"k": "v", "l": "w"}'),
        ("llama3", '{"type": "function", "function": {"name": "f", "parameters": {"k": "v", "l": "w"}}}'),
        ("hermes", '<tool_call>{"arguments": {"k": "v", "l": "w"}, "name": "f"'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"k": "v", "l": "w"}</tool_call>'),
        ("mistral", '[TOOL_CALLS]f{"k": "v", "l": "w"}'),
        ("pythonic", "[f(k='''v''', l=\"\\x77\",)]"),
        ("gemma4", '<|tool_call>call:f{<|"|>k<|"|>:"v", l: w}<tool_call|>'),
    ],
)
def test_what_models_also_write_is_read(family: str, text: str) -> None:
    for pieces in ([text], text):
        assert read(format_of(family), pieces) == Answer(calls=[("f", {"k": "v", "l": "w"})])


def test_ids_are_what_the_families_clients_expect() -> None:
    def ids(family: str, text: str, first_call: int = 0) -> list[str]:
        return read(format_of(family), [text], Tools(None, first_call)).ids

    kimi = "<|tool_call_begin|>%s<|tool_call_argument_begin|>{}<|tool_call_end|>"
    assert ids("kimi_k2", kimi % "functions.f:7") == ["functions.f:7"]
    assert ids("kimi_k2", kimi % "f" + kimi % "f", 3) == ["functions.f:3", "functions.f:4"]
    (mistral,) = ids("mistral", "[TOOL_CALLS]f[ARGS]{}")
    assert len(mistral) == 9 and mistral.isalnum()
    (other,) = ids("hermes", '<tool_call>{"name": "f"}</tool_call>')
    assert other.startswith("call_") and len(other) == len("call_") + 24


@pytest.mark.parametrize(("family", "form"), CASES)
def test_calls_are_read_from_one_to_four_tokens_at_a_time(family: str, form: Form) -> None:
    calls: list[Call] = [
        ("get_weather", {"city": "Köln 한국어 🦊", "k": 'a "b" <c>\n\td'}),
        ("f", {"x1": "y"}),
        ("g", {}),
    ]
    text = form.write(calls)
    token_ids = ids_of(text)

    for size in (1, 2, 3, 4):
        detokenizer = TABLE.new(skip_special_tokens=False)
        pieces = [detokenizer.feed(part) for part in itertools.batched(token_ids, size, strict=False)]
        assert read(format_of(family), [*pieces, detokenizer.flush()]) == Answer(calls=calls)
