"""Values in other notations than JSON, passed on as JSON while they are being written: Python's and Gemma's."""

import re
import unicodedata
from collections.abc import Callable

from gateway.parsers.json_value import NUMBER, WORDS, atom, escaped, quote
from gateway.parsers.markers import Markers
from gateway.parsers.reader import Malformed, Reader, Say, Step

MAX_DEPTH = 60
"""Less than JSON's: a level here is a generator in another one."""

type Value = Callable[[Reader, Say, int], Step[None]]
"""Reads one value at a depth."""


def items(reader: Reader, say: Say, end: str, item: Callable[[], Step[None]]) -> Step[None]:
    """What is between the bracket just read and `end`, with commas between and perhaps behind; `say` gets commas."""
    count = 0
    while (yield from reader.peek()) != end:
        if count:
            yield from reader.expect(",")
            if (yield from reader.peek()) == end:
                break
            say(", ")
        yield from item()
        count += 1
    reader.at += 1


# Python.

PYTHON_ATOM = re.compile(r"[-+.\w]*")
PYTHON_NUMBER = re.compile(
    r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?0[xXoObB][0-9a-fA-F_]+"
)
IN_STRING = {'"': re.compile(r'[^"\\]*'), "'": re.compile(r"[^'\\]*")}
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "\n": ""}
ESCAPES |= {character: character for character in "\\'\""}
HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
OCTAL = re.compile(r"\\[0-7]{1,3}")
LONGEST_ESCAPE = 100
"""Of \\N{...}."""


def python_value(reader: Reader, say: Say, depth: int = 0) -> Step[None]:
    """A Python literal: tuples and sets become lists, keys become strings. Raises Malformed."""
    if depth > MAX_DEPTH:
        raise Malformed("nested too deeply")
    character = yield from reader.peek()
    if character in ("'", '"'):
        yield from python_string(reader, say)
    elif character and character in "[(":
        reader.at += 1
        say("[")
        yield from items(reader, say, "]" if character == "[" else ")", lambda: python_value(reader, say, depth + 1))
        say("]")
    elif character == "{":
        reader.at += 1
        say("{")
        yield from items(reader, say, "}", lambda: _python_pair(reader, say, depth + 1))
        say("}")
    else:
        say(python_atom((yield from atom(reader, PYTHON_ATOM))))


def _python_pair(reader: Reader, say: Say, depth: int) -> Step[None]:
    if (yield from reader.peek()) in ("'", '"'):
        yield from python_string(reader, say)
    else:
        key = python_atom((yield from atom(reader, PYTHON_ATOM)))
        say(quote(key))
    yield from reader.expect(":")
    say(": ")
    yield from python_value(reader, say, depth)


def python_atom(text: str) -> str:
    """A word or number as JSON; raises Malformed."""
    if text in WORDS:
        return WORDS[text]
    if NUMBER.fullmatch(text):
        return text
    if not PYTHON_NUMBER.fullmatch(text):
        raise Malformed(f"{text[:16]!r} where a value should be")
    try:
        return str(int(text, 0))
    except ValueError:
        pass  # no integer
    number = float(text)
    if number - number != 0:
        raise Malformed("a number too large")
    return repr(number)


def python_string(reader: Reader, say: Say) -> Step[None]:
    """A string literal, as a JSON string."""
    closing = yield from reader.take('"""', "'''", '"', "'")
    inside = IN_STRING[closing[:1]]
    say('"')
    while True:
        match = inside.match(reader.text, reader.at)
        if match and match[0]:
            say(escaped(match[0]))
            reader.at = match.end()
        character = reader.text[reader.at : reader.at + 1]
        if not character:
            yield from reader.more()
        elif character == "\\":
            yield from _python_escape(reader, say)
        elif (yield from reader.take(closing)):
            break
        else:  # a quote that does not close
            say(escaped(character))
            reader.at += 1
    say('"')


def _python_escape(reader: Reader, say: Say) -> Step[None]:
    while len(reader.text) < reader.at + 4 and not reader.ended:
        if reader.text[reader.at + 1 : reader.at + 2] in ESCAPES and reader.at + 1 < len(reader.text):
            break
        yield
    kind = reader.text[reader.at + 1 : reader.at + 2]
    if not kind:
        yield from reader.more()
    if kind in ESCAPES:
        say(escaped(ESCAPES[kind]))
        reader.at += 2
    elif kind in HEX_DIGITS:
        yield from _code_point(reader, say, HEX_DIGITS[kind])
    elif kind == "N":
        yield from _named(reader, say)
    elif octal := OCTAL.match(reader.text, reader.at):
        say(escaped(chr(int(octal[0][1:], 8))))
        reader.at = octal.end()
    else:
        say("\\\\")
        reader.at += 1


def _code_point(reader: Reader, say: Say, digits: int) -> Step[None]:
    while len(reader.text) < reader.at + 2 + digits:
        yield from reader.more()
    text = reader.text[reader.at + 2 : reader.at + 2 + digits]
    try:
        code = int(text, 16)
    except ValueError:
        code = -1
    if not 0 <= code <= 0x10FFFF:
        raise Malformed(f"{text!r} is no code point")
    # Halves of a pair meet again as JSON's escapes.
    say(f"\\u{code:04x}" if code <= 0xFFFF else escaped(chr(code)))
    reader.at += 2 + digits


def _named(reader: Reader, say: Say) -> Step[None]:
    while "}" not in reader.text[reader.at : reader.at + LONGEST_ESCAPE]:
        if len(reader.text) >= reader.at + LONGEST_ESCAPE:
            raise Malformed("no name of a character")
        yield from reader.more()
    end = reader.text.index("}", reader.at)
    try:
        say(escaped(unicodedata.lookup(reader.text[reader.at + 3 : end])))
    except KeyError:
        raise Malformed("no name of a character") from None
    reader.at = end + 1


# Gemma.

GEMMA_QUOTES = ('<|"|>', "<escape>", '"')
GEMMA_STRING_END = {quote_mark: Markers([quote_mark]) for quote_mark in GEMMA_QUOTES}
GEMMA_KEY_END = Markers([":"])
GEMMA_BARE = re.compile(r"[^,\]}]*")


def gemma_value(reader: Reader, say: Say, depth: int = 0) -> Step[None]:
    """A value of Gemma's: keys have no quotes, and strings, without escapes, are between special tokens."""
    if depth > MAX_DEPTH:
        raise Malformed("nested too deeply")
    character = yield from reader.peek()
    if mark := (yield from reader.take(*GEMMA_QUOTES)):
        say('"')
        yield from _gemma_text(reader, lambda text: say(escaped(text)), mark)
        say('"')
    elif character == "[":
        reader.at += 1
        say("[")
        yield from items(reader, say, "]", lambda: gemma_value(reader, say, depth + 1))
        say("]")
    elif character == "{":
        yield from gemma_object(reader, say, depth + 1)
    else:
        text = (yield from atom(reader, GEMMA_BARE)).strip()
        if not text:
            yield from reader.more()
            raise Malformed("no value")
        say(WORDS[text] if text in WORDS else text if NUMBER.fullmatch(text) else quote(text))


def gemma_object(reader: Reader, say: Say, depth: int = 0) -> Step[None]:
    """`{k:v,...}`."""
    yield from reader.expect("{")
    say("{")
    yield from items(reader, say, "}", lambda: _gemma_pair(reader, say, depth))
    say("}")


def _gemma_pair(reader: Reader, say: Say, depth: int) -> Step[None]:
    yield from reader.blanks()
    if mark := (yield from reader.take(*GEMMA_QUOTES)):
        parts: list[str] = []
        yield from _gemma_text(reader, parts.append, mark)
        key = "".join(parts)
        yield from reader.expect(":")
    else:
        key, _ = yield from reader.head(GEMMA_KEY_END)
    say(quote(key.strip()) + ": ")
    yield from gemma_value(reader, say, depth)


def _gemma_text(reader: Reader, say: Say, mark: str) -> Step[None]:
    end = yield from reader.until(GEMMA_STRING_END[mark], say)
    if not end:
        yield from reader.more()
