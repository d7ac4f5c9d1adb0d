"""Formats that write each parameter of a call between tags."""

import html
import json
import re
from dataclasses import dataclass, field
from typing import Any

from gateway.parsers.json_value import escaped, json_value, parsed, quote
from gateway.parsers.markers import Markers
from gateway.parsers.reader import Malformed, Reader, Say, Step
from gateway.parsers.schema_types import STRING, as_json_or_text, has_parameter, parameter_types, typed

NAME = re.compile(r"""\s*(?P<name>[^\s"'<>][^"'<>]*?)\s*""")
QUOTED = re.compile(r"""\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>[^\s"'>]+))(?P<rest>.*)""", re.DOTALL)
IS_STRING = re.compile(r"""\b(?:string|type)\s*=\s*["']?(?P<value>[\w]+)""")
WRAPPERS = ("arguments", "input")
"""Parameters that hold all the others, when the tool has none of that name."""


@dataclass(frozen=True)
class Tagged:
    """Calls as tags. What a call consists of, in the order it comes in:

    `openers` begin a section, `section_ends` end it, and both may be missing around a call whose `call_opens` is among
    the openers. Behind `call_opens` comes the name up to one of `head_ends` (which stays, if it is a tag of `keys` or
    `call_ends`), then for each parameter one of `keys`, its name up to `key_end`, `value_open`, its value, one of
    `value_ends`, and last one of `call_ends`. With `trims_newline` one newline on each side of a value is markup.
    Where a parameter's tag `says_type`, the tool's schema has no say. `object_open` begins, and `object_end` ends, an
    object with all parameters.
    """

    openers: tuple[str, ...]
    call_opens: tuple[str, ...]
    keys: tuple[str, ...]
    value_ends: tuple[str, ...]
    call_ends: tuple[str, ...]
    head_ends: tuple[str, ...] = (">",)
    key_end: str = ">"
    value_open: str = ""
    section_ends: tuple[str, ...] = ()
    trims_newline: bool = False
    says_type: bool = False
    has_attributes: bool = False
    object_open: str = "{"
    object_end: str = ""
    fillers: tuple[str, ...] = ()
    """Markup that may come between calls and means nothing."""
    _heads: Markers = field(init=False)
    _key_ends: Markers = field(init=False)
    _value_markers: Markers = field(init=False)

    def __post_init__(self) -> None:
        value_ends = list(self.value_ends)
        if self.trims_newline:
            # Tags that are missing may be told from text only where a line begins.
            value_ends += ["\n" + end for end in (*self.value_ends, *self.keys, *self.call_ends)]
        object.__setattr__(self, "_heads", Markers(self.head_ends))
        object.__setattr__(self, "_key_ends", Markers([self.key_end]))
        object.__setattr__(self, "_value_markers", Markers(value_ends))

    @property
    def markers(self) -> tuple[str, ...]:
        return self.openers

    @property
    def tags(self) -> tuple[str, ...]:
        singles = filter(None, (self.key_end, self.value_open, self.object_open, self.object_end))
        calls = (*self.call_opens, *self.head_ends, *self.call_ends, *self.section_ends)
        return (*self.openers, *calls, *self.keys, *self.value_ends, *self.fillers, *singles)

    def read(self, reader: Reader, opener: str) -> Step[None]:
        """All calls behind `opener`."""
        before = reader.calls + reader.refused
        while True:
            if opener in self.call_opens and (yield from self._call(reader)):
                break
            yield from reader.blanks()
            opener = yield from reader.take(*self.call_opens, *self.section_ends, *self.fillers)
            if not opener or opener in self.section_ends:
                break
        if reader.calls + reader.refused == before:
            if reader.at == len(reader.text):
                yield from reader.more()
            raise Malformed("no call")

    def _call(self, reader: Reader) -> Step[bool]:
        """Whether the end of the section came with it."""
        head, end = yield from reader.head(self._heads)
        if end in self.keys or end in self.call_ends:
            reader.at -= len(end)
        name = self._name(head)
        reader.begin(name)
        end = yield from Parameters(self, reader, name).read()
        reader.complete()
        return end in self.section_ends and end not in self.call_ends

    def _name(self, head: str) -> str:
        match = (QUOTED if self.has_attributes else NAME).fullmatch(head)
        if match is None:
            raise Malformed(f"{head[:32]!r} where a name should be")
        if not self.has_attributes:
            return match["name"]
        return attribute(match)

    def ends_of_parameters(self) -> tuple[str, ...]:
        """What may come where a parameter may begin."""
        return tuple(dict.fromkeys((*self.keys, *self.call_ends, *self.section_ends, self.object_open)))

    def end_value(self, reader: Reader, marker: str) -> None:
        """Leaves what is not the value's own end unread."""
        tag = marker.removeprefix("\n")
        if tag not in self.value_ends:
            reader.at -= len(tag)


def xml(opener: str, section_end: str, trims_newline: bool = False) -> Tagged:
    """`<function=f><parameter=k>v</parameter></function>`."""
    return Tagged(
        openers=(opener, "<function="),
        call_opens=("<function=",),
        keys=("<parameter=",),
        value_ends=("</parameter>",),
        call_ends=("</function>",),
        section_ends=(section_end,),
        trims_newline=trims_newline,
    )


def invoke(openers: tuple[str, ...], section_ends: tuple[str, ...], prefix: str = "", **more: Any) -> Tagged:
    """`<invoke name="f"><parameter name="k">v</parameter></invoke>`."""
    return Tagged(
        openers=openers,
        call_opens=(f"<{prefix}invoke name=",),
        keys=(f"<{prefix}parameter name=",),
        value_ends=(f"</{prefix}parameter>",),
        call_ends=(f"</{prefix}invoke>",),
        section_ends=section_ends,
        has_attributes=True,
        **more,
    )


class Parameters:
    """The parameters of one call."""

    __slots__ = ("_count", "_format", "_held", "_reader", "_schema")

    def __init__(self, tagged: Tagged, reader: Reader, name: str) -> None:
        self._format = tagged
        self._reader = reader
        self._schema = reader.tools.schema(name)
        self._count = 0
        self._held: tuple[str, str] | None = None
        """A first parameter that may be a wrapper, and its JSON."""

    def read(self) -> Step[str]:
        """Up to the call's end, which is returned."""
        reader, form = self._reader, self._format
        options = form.ends_of_parameters()
        while True:
            yield from reader.blanks()
            tag = yield from reader.take(*options)
            if not tag:
                yield from reader.expect(form.keys[0])
            elif tag in form.keys:
                yield from self._parameter()
            elif tag == form.object_open and not self._count:
                return (yield from self._object())
            else:
                break
        self._end()
        return tag

    def _end(self) -> None:
        if self._held is not None and self._held[1].startswith("{"):
            self._reader.argue(self._held[1])
            return
        self._release()
        self._reader.argue("}" if self._count else "{}")

    def _release(self) -> None:
        """What was held is a parameter like others."""
        if self._held is not None:
            (key, value), self._held = self._held, None
            self._reader.argue("{" + quote(key) + ": " + value)

    def _may_wrap(self, key: str) -> bool:
        return not self._count and key in WRAPPERS and self._schema is not None and not has_parameter(self._schema, key)

    def _object(self) -> Step[str]:
        """All parameters as one JSON object, perhaps within another one of no meaning."""
        reader, form = self._reader, self._format
        if form.object_end:
            yield from reader.head(form._key_ends)
        else:
            reader.at -= len(form.object_open)
        parts: list[str] = []
        yield from json_value(reader, reader.argue if self._schema is None else parts.append)
        reader.argue(self._unwrapped("".join(parts)))
        yield from reader.blanks()
        if form.object_end and not (yield from reader.take(form.object_end)):
            yield from reader.expect(form.object_end)
        yield from reader.blanks()
        end = yield from reader.take(*form.call_ends, *form.section_ends)
        if not end:
            yield from reader.expect(form.call_ends[0])
        return end

    def _unwrapped(self, text: str) -> str:
        value = parsed(text) if text else None
        if isinstance(value, dict) and len(value) == 1:
            ((key, inner),) = value.items()
            if self._may_wrap(key) and isinstance(inner, dict):
                return json.dumps(inner, ensure_ascii=False)
        return text

    def _parameter(self) -> Step[None]:
        reader, form = self._reader, self._format
        head, _ = yield from reader.head(form._key_ends)
        key, types = self._key(head)
        if form.value_open:
            yield from reader.expect(form.value_open)
        if form.trims_newline:
            yield from reader.take("\n")
        self._release()
        if self._may_wrap(key):
            self._held = key, as_json_or_text((yield from self._whole_value()))
            self._count += 1
            return
        reader.argue((", " if self._count else "{") + quote(key) + ": ")
        self._count += 1
        if types == STRING:
            reader.argue('"')
            yield from self._value(lambda text: reader.argue(escaped(text)))
            reader.argue('"')
        else:
            text = yield from self._whole_value()
            reader.argue(typed(text, types) if types else as_json_or_text(text))

    def _whole_value(self) -> Step[str]:
        parts: list[str] = []
        yield from self._value(parts.append)
        return "".join(parts)

    def _key(self, head: str) -> tuple[str, frozenset[str]]:
        """A parameter's name and its types; no types stand for whatever JSON there is."""
        form = self._format
        match = (QUOTED if form.has_attributes else NAME).fullmatch(head)
        if match is None:
            raise Malformed(f"{head[:32]!r} where the name of a parameter should be")
        key = attribute(match) if form.has_attributes else match["name"]
        if not form.says_type:
            return key, parameter_types(self._schema, key)
        said = IS_STRING.search(match["rest"])
        return key, STRING if said and said["value"] in ("true", "string") else frozenset()

    def _value(self, say: Say) -> Step[None]:
        marker = yield from self._reader.until(self._format._value_markers, say)
        if not marker:
            yield from self._reader.more()
        self._format.end_value(self._reader, marker)


def attribute(match: re.Match[str]) -> str:
    """The value of an attribute, in quotes or not."""
    text = match["double"] or match["single"] or match["bare"] or ""
    return html.unescape(text) if "&" in text else text
