"""What only looks like calls: it is text, all of it, and nothing raises or hangs."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import log
from gateway.parsers.detect import named_calls
from gateway.parsers.reader import Tools
from tests.parsers.answers import Answer, cut, format_of, read
from tests.parsers.wire_forms import FORMS, Form

CASES = [pytest.param(family, form, id=f"{family} {variant}".strip()) for (family, variant), form in FORMS.items()]
EXAMPLE = [("f", {"k": "some text", "x1": 'it\'s {a} "b"\n<c>'}), ("g", {}), ("f", {"k": "\\ é 🦊"})]
NOISE = ["{", "}", "[", "]", '"', ":", ",", "f", "(", ")", "=", "\n", " ", "\\", "'", "<", "null", "1", "|", ">", "</"]
PLACES = st.lists(st.integers(0, 3000), max_size=6)


@pytest.mark.parametrize(("family", "form"), CASES)
def test_an_answer_that_is_cut_off_keeps_the_calls_before_and_loses_nothing(family: str, form: Form) -> None:
    text = form.write(EXAMPLE)
    plan = format_of(family)

    for end in range(0, len(text), 3):
        answer = read(plan, [text[:end]])
        assert answer.calls == EXAMPLE[: len(answer.calls)]
        assert answer == read(plan, text[:end])
        if not answer.calls:
            assert answer.content == without_drops(family, text[:end])


@pytest.mark.parametrize(("family", "form"), CASES)
@settings(max_examples=8)
@given(data=st.data(), places=PLACES)
def test_what_is_made_of_the_parts_of_calls_is_text(
    family: str, form: Form, data: st.DataObject, places: list[int]
) -> None:
    parts = [*NOISE, *cut(form.write(EXAMPLE), list(range(0, 400, 7))), *named_grammar_tags(family)]
    text = "".join(data.draw(st.lists(st.sampled_from(parts), max_size=30)))
    plan = format_of(family)

    nothing_declared = read(plan, [text], Tools({}))
    anything_goes = read(plan, [text])

    if family != "harmony":  # there the heads of all messages are markup
        assert nothing_declared == Answer(without_drops(family, text))
    assert read(plan, text, Tools({})) == nothing_declared
    assert read(plan, cut(text, places)) == anything_goes == read(plan, text)


def named_grammar_tags(family: str) -> tuple[str, ...]:
    found = named_calls(family)
    assert found is not None
    return found.grammar.tags


def without_drops(family: str, text: str) -> str:
    """The text without what is markup on its own."""
    found = named_calls(family)
    for drop in found.drops if found else ():
        text = text.replace(drop, "")
    return text


@pytest.mark.parametrize(("family", "form"), CASES)
def test_a_tool_that_was_not_declared_is_text_and_the_others_are_calls(family: str, form: Form) -> None:
    if family in ("harmony",):
        return
    answer = read(format_of(family), [form.write([("h", {"k": "x"}), ("f", {"k": "y"})])], Tools({"f": None}))

    assert answer.calls == [("f", {"k": "y"})]
    assert "h" in answer.content and "x" in answer.content


def test_the_log_names_the_parser_and_the_place(caplog: pytest.LogCaptureFixture) -> None:
    parser = format_of("hermes").parser()
    with debug_log(caplog):
        pieces = parser.feed("Hello <tool_call>{broken}") + parser.flush()

    assert [piece for piece in pieces] and parser.faults == 1
    (record,) = [record for record in caplog.records if record.getMessage() == "no tool call"]
    fields = record.__dict__["fields"]
    assert (fields["parser"], fields["position"]) == ("hermes", len("Hello "))
    assert "string" in fields["why"] or "name" in fields["why"]


@contextmanager
def debug_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG, logger=log.logger.name):
        yield


def test_brackets_that_begin_no_call_are_no_fault() -> None:
    for family in ("pythonic", "llama3"):
        parser = format_of(family).parser()
        parser.feed("[1], [text](url) and [Note]\n{1: 2}\n[")
        parser.flush()
        assert parser.faults == 0


@pytest.mark.parametrize(
    "arguments",
    ['{"a": 1,}', "{'a': 1}", "{a: 1}", '{"a" 1}', '{"a": 01}', '{"a": NaN}', '{"a": "\\x"}', "[1]", '"text"', "3"],
)
def test_arguments_that_are_no_json_object_are_no_call(arguments: str) -> None:
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call> Next.'

    assert read(format_of("hermes"), [text]) == Answer(text)
    assert read(format_of("hermes"), text) == Answer(text)


@pytest.mark.parametrize(
    ("arguments", "meaning"),
    [
        ('{"a": "line\nbreak\tand\x01"}', {"a": "line\nbreak\tand\x01"}),
        (json.dumps('{"a": "b"}'), {"a": "b"}),
        ("null", {}),
        ('""', {}),
        ('{"a": "\\ud83e\\udd8a \\ud800"}', {"a": "🦊 \ud800"}),
        ('{"a": -2.50E-2, "b": 1e400, "a": 5}', {"a": 5, "b": float("inf")}),
        ('{"a": True, "b": None}', {"a": True, "b": None}),
    ],
)
def test_odd_arguments_are_read(arguments: str, meaning: object) -> None:
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'

    assert read(format_of("hermes"), text) == read(format_of("hermes"), [text]) == Answer(calls=[("f", meaning)])


def test_deep_nesting_is_no_call() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": ' + "[" * 5000

    assert read(format_of("hermes"), [text]) == Answer(text)
    assert read(format_of("pythonic"), ["[f(a=" + "[" * 5000]) == Answer("[f(a=" + "[" * 5000)
