"""Request bodies as bytes: whatever they are, they become fields or a refusal."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.api.body import Fields, parse
from gateway.errors import BadRequest
from gateway.types import ChatInput

ANY_TEXT = st.text(st.characters(codec=None), max_size=6)  # lone surrogates too
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)


def parsed(body: bytes) -> dict[str, Any] | None:
    """The fields, or None for a refusal."""
    try:
        return parse(body).values
    except BadRequest as error:
        assert error.message
        return None


def is_text(value: Any) -> bool:
    """Whether every string in it can be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@given(body=st.binary(max_size=40) | st.text(st.sampled_from('{}[]:,"\\ud8019.e-tfn '), max_size=40).map(str.encode))
@example(body=b"\xff\xfe{\x00}\x00")
@example(body=b'{"a": 1e999}')
@example(body=b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}")
def test_any_bytes_are_fields_or_refused(body: bytes) -> None:
    values = parsed(body)

    if values is not None:
        assert is_text(values)


@given(values=st.dictionaries(ANY_TEXT, VALUES, max_size=5), as_escapes=st.booleans())
def test_any_object_comes_through_unless_its_strings_are_no_text(values: dict[str, Any], as_escapes: bool) -> None:
    try:
        body = json.dumps(values, ensure_ascii=as_escapes, allow_nan=False).encode("utf-8", "surrogatepass")
    except ValueError:
        body = b'{"not": NaN}'

    expected = values if body != b'{"not": NaN}' and is_text(values) else None
    assert parsed(body) == expected


READS: dict[str, tuple[Any, Any]] = {
    "a float is no integer": (1.0, lambda fields: fields.integer("x", 0, 9)),
    "true is no integer": (True, lambda fields: fields.integer("x", 0, 9)),
    "true is no number": (True, lambda fields: fields.number("x", 0, 9)),
    "1 is not true": (1, lambda fields: fields.boolean("x")),
    "too low": (-1, lambda fields: fields.integer("x", 0, 9)),
    "too high": (9.5, lambda fields: fields.number("x", 0, 9)),
    "infinite": (float("inf"), lambda fields: fields.number("x", 0, 9)),
    "a list is no object": ([], lambda fields: fields.object("x")),
    "a number is no text": (5, lambda fields: fields.text("x")),
    "an empty text": ("", lambda fields: fields.text("x")),
}


@pytest.mark.parametrize(("value", "read"), READS.values(), ids=READS)
def test_a_field_of_the_wrong_kind_is_refused_with_its_path(value: Any, read: Any) -> None:
    for path, expected in (("", "x"), ("a.b[2]", "a.b[2].x")):
        with pytest.raises(BadRequest) as caught:
            read(Fields({"x": value}, path))

        assert caught.value.param == expected
        assert caught.value.message.startswith(f"{expected} ")


@given(value=st.integers(0, 9) | st.floats(0, 9))
def test_numbers_within_their_bounds_are_taken_as_they_are(value: float) -> None:
    assert Fields({"x": value}, "").number("x", 0, 9) == value
    assert Fields({"x": None}, "").number("x", 0, 9) is None
    assert Fields({}, "").number("x", 0, 9) is None


class Large(dict[str, Any]):
    """As of a body that a thread of the pool has parsed: what would make its loop yield is forbidden."""

    def get(self, *_: object) -> Any:
        raise AssertionError("dict.get")

    def __iter__(self) -> Any:
        raise AssertionError("iterated with its lock held")


def test_no_field_is_read_in_a_way_that_yields_where_another_thread_made_the_body() -> None:
    part = Large(type="text", text="a")
    fields = Fields(Large(model="m", messages=[Large(role="user", content=[part])], stop=None, stream=True), "")

    assert fields.text("model") == "m"
    assert fields.boolean("stream") and not fields.boolean("logprobs")
    assert fields.integer("seed", 0, 1) is None
    assert fields.has("model") and not fields.has("stop") and not fields.has("seed")
    assert fields.lacks(("seed", "n")) and not fields.lacks(("seed", "model"))
    assert ChatInput(fields.each("messages", lambda message: message.values)).characters == 1
