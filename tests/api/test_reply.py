"""How text becomes JSON in an event: whatever a client takes for the end of a line, the event stays one line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.reply import event_of, json_text, quoted

TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('\u2028\u2029\x85\n\r\\"\x00\x0b\x0c\x1c🦊'))


@given(text=TEXTS)
def test_any_text_comes_back(text: str) -> None:
    assert json.loads(quoted(text)) == text


@given(text=TEXTS)
def test_any_text_is_one_line_whoever_cuts(text: str) -> None:
    assert quoted(text).splitlines() == [quoted(text)]


@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters='"\\')))
def test_text_without_anything_special_stays_as_it_is(text: str) -> None:
    assert quoted(text) == f'"{text}"'


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a\u2028b", r'"a\u2028b"'),
        ("a\u2029b", r'"a\u2029b"'),
        ("a\x85b", r'"a\u0085b"'),
        ("a\nb", r'"a\nb"'),
        ("a\r\nb", r'"a\r\nb"'),
        ("a\x0bb", r'"a\u000bb"'),
        ('"\\/', r'"\"\\/"'),
        (r"\u2028", r'"\\u2028"'),
    ],
)
def test_what_ends_a_line_somewhere_is_escaped(text: str, escaped: str) -> None:
    assert quoted(text) == escaped


@settings(max_examples=30)
@given(value=st.dictionaries(TEXTS, st.lists(st.none() | st.integers() | TEXTS, max_size=3), max_size=3))
def test_any_value_comes_back_without_white_space_of_our_own(value: object) -> None:
    assert json.loads(json_text(value)) == value
    assert event_of(value) == f"data: {json_text(value)}\n\n".encode()


def test_a_lone_surrogate_in_an_error_does_not_break_the_reply() -> None:
    assert event_of({"error": "\ud800"}) == b'data: {"error":"\\ud800"}\n\n'
