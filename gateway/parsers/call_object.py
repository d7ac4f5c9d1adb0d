"""Calls that are JSON objects: `{"name": "f", "arguments": {...}}`, in whatever order and with whatever else."""

from gateway.parsers.json_value import json_value, parsed
from gateway.parsers.reader import Malformed, Reader, Step

NAMES = ("name", "tool_name")
ARGUMENTS = ("arguments", "parameters")
IDS = ("id", "tool_call_id")
WRAPPER = "function"
"""OpenAI's own form has name and arguments inside of it, or is the name."""
KNOWN = {*NAMES, *ARGUMENTS, *IDS, WRAPPER, "type"}


class CallObject:
    """Reads one call. Without a marker around it (`is_bare`) only the keys of a call are taken for one, and only with
    arguments."""

    __slots__ = ("_arguments", "_is_bare", "_is_complete", "_is_wrapped", "_name", "_reader")

    def __init__(self, reader: Reader, is_bare: bool) -> None:
        self._reader = reader
        self._is_bare = is_bare
        self._name = ""
        self._arguments: list[str] | None = None
        """Those that came before the name."""
        self._is_complete = False
        self._is_wrapped = False

    def read(self) -> Step[None]:
        """Raises Malformed, unless the call is complete before what is wrong."""
        try:
            yield from self._object()
            if not self._is_complete:
                self._begin_with_what_there_is()
        except Malformed:
            if not self._is_complete:
                raise

    def _object(self) -> Step[None]:
        reader = self._reader
        yield from reader.expect("{")
        separator = yield from reader.peek()
        while separator != "}":
            key = yield from self._text()
            yield from reader.expect(":")
            yield from self._value(key)
            separator = yield from reader.peek()
            if separator != "}":
                yield from reader.expect(",")
        reader.at += 1

    def _value(self, key: str) -> Step[None]:
        next_character = yield from self._reader.peek()
        if self._is_bare and key not in KNOWN:
            raise Malformed(f"no call has a {key[:32]!r}")
        if self._is_complete:
            yield from json_value(self._reader, _drop)
        elif key in NAMES or (key == WRAPPER and next_character == '"'):
            self._name = yield from self._text()
            if self._arguments is not None:
                self._complete("".join(self._arguments))
        elif key in ARGUMENTS:
            yield from self._read_arguments(next_character)
        elif key == WRAPPER and next_character == "{" and not self._is_wrapped:
            self._is_wrapped = True
            yield from self._object()
        else:
            yield from json_value(self._reader, _drop)

    def _read_arguments(self, first_character: str) -> Step[None]:
        if first_character == "{" and self._name:
            self._reader.begin(self._name)
            yield from json_value(self._reader, self._reader.argue)
            self._end()
            return
        parts: list[str] = []
        yield from json_value(self._reader, parts.append)
        self._arguments = [as_object("".join(parts))]
        if self._name:
            self._complete(self._arguments[0])

    def _begin_with_what_there_is(self) -> None:
        if not self._name or self._is_bare:
            raise Malformed("a call without a name" if not self._name else "no arguments")
        self._complete("{}")

    def _complete(self, arguments: str) -> None:
        self._reader.begin(self._name)
        self._reader.argue(arguments)
        self._end()

    def _end(self) -> None:
        self._reader.complete()
        self._is_complete = True

    def _text(self) -> Step[str]:
        yield from self._reader.blanks()
        if self._reader.at < len(self._reader.text) and self._reader.text[self._reader.at] != '"':
            raise Malformed("no string where a name should be")
        parts: list[str] = []
        yield from json_value(self._reader, parts.append)
        text: str = parsed("".join(parts))
        return text


def as_object(text: str) -> str:
    """Arguments as the JSON of an object: they may be null, or a string that holds them."""
    value = parsed(text)
    if isinstance(value, str):
        try:
            text, value = value, parsed(value or "{}")
        except ValueError:
            raise Malformed("arguments that are a text") from None
    if value is None or value == {}:
        return "{}"
    if not isinstance(value, dict):
        raise Malformed("arguments that are no object")
    return text


def _drop(_: str) -> None:
    pass
