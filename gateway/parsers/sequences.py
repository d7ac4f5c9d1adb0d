"""Formats whose calls stand in a row between markers, one by one or in a list: as JSON objects, in Python's syntax, in
Gemma's, or as a name with an object behind it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.parsers.call_object import CallObject
from gateway.parsers.json_value import json_value, quote
from gateway.parsers.literals import python_value
from gateway.parsers.markers import Markers
from gateway.parsers.reader import Malformed, Reader, Say, Step
from gateway.parsers.tagged import Tagged

IDENTIFIER = re.compile(r"[^\W\d][\w.\-]*").match
MAX_IDENTIFIER = 128
JSON, PYTHON = "json", "python"


@dataclass(frozen=True)
class Sequence:
    """Calls as JSON objects or in Python's syntax.

    `openers` begin them and `closers` end them; `bare` openers are the first character of the calls themselves, and
    count at the start of the answer, and wherever they follow one of `bare_behind`.
    """

    openers: tuple[str, ...] = ()
    closers: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    bare_behind: tuple[str, ...] = ("\n",)
    items: tuple[str, ...] = (JSON,)

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.openers, *(before + opener for before in self.bare_behind for opener in self.bare))

    @property
    def tags(self) -> tuple[str, ...]:
        return (*self.openers, *self.closers)

    def read(self, reader: Reader, opener: str) -> Step[None]:
        """All calls behind `opener`."""
        is_bare = opener not in self.openers
        if is_bare:
            reader.at -= 1
        before, depth = reader.calls + reader.refused, 0
        while True:
            character = yield from reader.peek()
            if character == "[" and depth < 2:
                depth += 1
                reader.at += 1
            elif character == "]" and depth:
                depth -= 1
                reader.at += 1
            elif character == "{" and JSON in self.items:
                yield from CallObject(reader, is_bare).read()
            elif PYTHON in self.items and character and IDENTIFIER(character):
                yield from python_call(reader)
            elif character in (",", ";") and reader.calls + reader.refused > before:
                reader.at += 1
            elif (yield from reader.take(*self.closers)):
                break
            else:
                break
            if is_bare and not depth and (yield from reader.peek()) not in (";", *self.bare):
                break
        if reader.calls + reader.refused == before:
            if reader.at == len(reader.text):
                yield from reader.more()
            raise Malformed("no call")


def python_call(reader: Reader) -> Step[None]:
    """`f(a=1)`; only one with keywords, or without anything, is a call. Raises Malformed."""
    name = yield from _identifier(reader)
    yield from reader.expect("(")
    has_begun = False
    while (yield from reader.peek()) != ")":
        key = yield from _identifier(reader)
        yield from reader.expect("=")
        if not has_begun:
            reader.begin(name)
        reader.argue((", " if has_begun else "{") + quote(key) + ": ")
        has_begun = True
        yield from python_value(reader, reader.argue)
        if (yield from reader.peek()) != ")":
            yield from reader.expect(",")
    reader.at += 1
    if not has_begun:
        reader.begin(name)
    reader.argue("}" if has_begun else "{}")
    reader.complete()


def _identifier(reader: Reader) -> Step[str]:
    yield from reader.blanks()
    while True:
        match = IDENTIFIER(reader.text, reader.at)
        end = match.end() if match else reader.at
        if end - reader.at > MAX_IDENTIFIER:
            raise Malformed("a name too long")
        if end < len(reader.text):
            break
        yield from reader.more()
    if match is None:
        raise Malformed("no name")
    reader.at = end
    return match[0]


type Value = Callable[[Reader, Say], Step[None]]


@dataclass(frozen=True)
class Named:
    """Calls that are a name with an object behind it.

    `head` finds the name, and perhaps the id, in what stands between `call_open` and the first of `head_ends`. The
    openers that are not `call_open` begin a section of calls, which `section_ends` may end. `value` reads the object.
    """

    openers: tuple[str, ...]
    call_open: str
    head_ends: tuple[str, ...]
    head: re.Pattern[str]
    call_ends: tuple[str, ...] = ()
    section_ends: tuple[str, ...] = ()
    inner_tags: tuple[str, ...] = ()
    """What else may stand in a head or an object."""
    value: Value = json_value
    counts_calls: bool = False
    """The model numbers the calls of a conversation itself: `functions.NAME:NUMBER` is their id."""
    _head_markers: Markers = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_head_markers", Markers((*self.head_ends, *self.openers)))

    @property
    def markers(self) -> tuple[str, ...]:
        return self.openers

    @property
    def tags(self) -> tuple[str, ...]:
        return (*self.openers, *self.head_ends, *self.inner_tags, *self.call_ends, *self.section_ends)

    def read(self, reader: Reader, opener: str) -> Step[None]:
        """All calls behind `opener`."""
        before = reader.calls + reader.refused
        while opener in self.openers:
            if opener == self.call_open:
                yield from self._call(reader)
            yield from reader.blanks()
            opener = yield from reader.take(*self.openers, *self.section_ends)
        if reader.calls + reader.refused == before:
            raise Malformed("no call")

    def _call(self, reader: Reader) -> Step[None]:
        head, end = yield from reader.head(self._head_markers)
        if end in self.openers or end == "{":
            reader.at -= len(end)
        match = self.head.fullmatch(head)
        if match is None or end in self.openers:
            raise Malformed(f"{head[:32]!r} where a name should be")
        reader.begin(match["name"], self._id(reader, match))
        yield from self._arguments(reader)
        reader.complete()
        for option in (FENCE, *self.call_ends):
            yield from reader.blanks()
            yield from reader.take(option)

    def _arguments(self, reader: Reader) -> Step[None]:
        yield from reader.take("json")
        if (yield from reader.peek()) == "{":
            yield from self.value(reader, reader.argue)
        elif (yield from reader.take(*self.call_ends)):
            reader.argue("{}")
        else:
            yield from reader.expect("{")

    def _id(self, reader: Reader, head: re.Match[str]) -> str:
        if not self.counts_calls:
            return ""
        number = head["number"] or str(reader.tools.first_call + reader.calls)
        return f"functions.{head['name']}:{number}"


FENCE = "```"


@dataclass(frozen=True)
class Either:
    """One opener for two formats: `rows`, if a bracket follows, else `other`."""

    rows: Sequence
    other: Named | Tagged

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.rows.markers, *self.other.markers)))

    @property
    def tags(self) -> tuple[str, ...]:
        return (*self.rows.tags, *self.other.tags)

    def read(self, reader: Reader, opener: str) -> Step[None]:
        """All calls behind `opener`."""
        is_row = opener in self.rows.markers and (yield from reader.peek()) in ("[", "{")
        yield from (self.rows if is_row else self.other).read(reader, opener)
