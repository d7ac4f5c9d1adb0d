"""JSON values, passed on while they are being written."""

import json
import re
from json.encoder import encode_basestring
from typing import Any

from gateway.parsers.reader import Malformed, Reader, Say, Step

MAX_DEPTH = 200
MAX_ATOM = 4000
"""Characters of a number; Python reads no integer with more than 4300 digits."""
PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
ESCAPE_BEGUN = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
BLANKS = re.compile(r"[ \t\r\n]*")
ATOM = re.compile(r"[-+.0-9A-Za-z_]*")
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
"""Python's words are what a model writes that takes the one for the other."""

VALUE, ITEM_OR_END, KEY_OR_END, KEY, COLON, NEXT = range(6)
MAY_END = {ITEM_OR_END: "]", KEY_OR_END: "}"}


def json_value(reader: Reader, say: Say) -> Step[None]:
    """Passes one JSON value to `say` as it is, save for control characters in strings, which become escapes.

    Raises Malformed at the first character that no JSON has there.
    """
    open_ends: list[str] = []
    expected = VALUE
    while True:
        yield from _blanks(reader, say)
        character = reader.text[reader.at]
        if character in "]}" and open_ends and character == open_ends[-1] and expected in (NEXT, *MAY_END):
            if expected != NEXT and MAY_END[expected] != character:
                raise Malformed(f"{character!r} inside JSON")
            open_ends.pop()
            expected = NEXT
            _pass(reader, say)
        elif expected == NEXT:
            expected = _separator(character, open_ends)
            _pass(reader, say)
        elif expected == COLON:
            if character != ":":
                raise Malformed(f"{character!r} where ':' should be")
            expected = VALUE
            _pass(reader, say)
        elif expected in (KEY, KEY_OR_END):
            if character != '"':
                raise Malformed(f"{character!r} where a key should be")
            yield from _string(reader, say)
            expected = COLON
            continue
        elif character in "{[":
            if len(open_ends) == MAX_DEPTH:
                raise Malformed("JSON nested too deeply")
            open_ends.append("}" if character == "{" else "]")
            expected = KEY_OR_END if character == "{" else ITEM_OR_END
            _pass(reader, say)
        else:
            yield from (_string if character == '"' else _atom)(reader, say)
            expected = NEXT
        if not open_ends and expected == NEXT:
            return


def _separator(character: str, open_ends: list[str]) -> int:
    if character != ",":
        raise Malformed(f"{character!r} where ',' should be")
    return KEY if open_ends[-1] == "}" else VALUE


def _pass(reader: Reader, say: Say) -> None:
    say(reader.text[reader.at])
    reader.at += 1


def _blanks(reader: Reader, say: Say) -> Step[None]:
    """Passes white space; there is a character behind it then."""
    while True:
        match = BLANKS.match(reader.text, reader.at)
        if match and match[0]:
            say(match[0])
            reader.at = match.end()
        if reader.at < len(reader.text):
            return
        yield from reader.more()


def _string(reader: Reader, say: Say) -> Step[None]:
    _pass(reader, say)
    while True:
        match = PLAIN.match(reader.text, reader.at)
        if match and match[0]:
            say(match[0])
            reader.at = match.end()
        character = reader.text[reader.at : reader.at + 1]
        if not character:
            yield from reader.more()
        elif character == '"':
            _pass(reader, say)
            return
        elif character == "\\":
            yield from _escape(reader, say)
        else:
            say(encode_basestring(character)[1:-1])
            reader.at += 1


def _escape(reader: Reader, say: Say) -> Step[None]:
    while True:
        match = ESCAPE.match(reader.text, reader.at)
        if match:
            say(match[0])
            reader.at = match.end()
            return
        if not ESCAPE_BEGUN.match(reader.text, reader.at):
            raise Malformed(f"{reader.text[reader.at : reader.at + 2]!r} in a string")
        yield from reader.more()


def _atom(reader: Reader, say: Say) -> Step[None]:
    text = yield from atom(reader, ATOM)
    if text not in WORDS and not NUMBER.fullmatch(text):
        raise Malformed(f"{(text or reader.text[reader.at : reader.at + 1])[:16]!r} where a value should be")
    say(WORDS.get(text, text))


def atom(reader: Reader, pattern: re.Pattern[str]) -> Step[str]:
    """A word or number, which the character behind it ends, or the end of the answer."""
    while True:
        match = pattern.match(reader.text, reader.at)
        text = match[0] if match else ""
        if len(text) > MAX_ATOM:
            raise Malformed("a number too long")
        if reader.at + len(text) < len(reader.text) or reader.ended:
            reader.at += len(text)
            return text
        yield


def parsed(text: str) -> Any:
    """What `text` is as JSON; raises ValueError when it is none, or has a NaN or an infinity in it."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def quote(text: str) -> str:
    """`text` as a JSON string."""
    result: str = encode_basestring(text)
    return result


def escaped(text: str) -> str:
    """The same without the quotes."""
    return quote(text)[1:-1]
