"""A proto3 wire codec in pure Python, driven by one table per message class.

proto/generate.py writes the classes and their tables. Unlike google.protobuf, on purpose: unknown fields are dropped,
groups (which proto3 cannot declare) are malformed, and a float too large for its field is an error, not infinity.

Threads: tables are made at import and never change; encode and decode may run on any thread.
"""

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeVar

from engine_adapters.packed import packed, unpacked
from engine_adapters.scalars import (
    DELIMITED,
    FIXED32,
    FIXED64,
    SCALARS,
    VARINT,
    Data,
    DecodeError,
    Read,
    Write,
    encode_varint,
    read_varint,
)

__all__ = ["DecodeError", "Layout", "decode", "encode", "mapping", "one_of", "optional", "repeated", "singular"]

MAX_DEPTH = 100

Merge = Callable[[Any, Data, int, int], int]
"""(message, data, position, depth) -> the position behind the value, which is now part of the message."""


class Layout:
    """How a message class looks on the wire."""

    __slots__ = ("merges", "reads", "writes")

    def __init__(self, *fields: "Field") -> None:
        self.writes = tuple((each.name, each.is_explicit, encode_varint(each.key), each.write) for each in fields)
        self.reads = {key: (each.name, read) for each in fields for key, read in each.reads.items()}
        self.merges = {key: merge for each in fields for key, merge in each.merges.items()}


class Message(Protocol):
    """A dataclass that proto/generate.py wrote: every field has a default."""

    LAYOUT: ClassVar[Layout]


M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """The message as protobuf; raises ValueError, naming the field, when a value does not fit its field."""
    chunks: list[bytes] = []
    _write_fields(chunks, message, message.LAYOUT)
    return b"".join(chunks)


def decode(cls: type[M], data: Data) -> M:
    """The message in `data`, with nothing of it shared; raises DecodeError."""
    message = cls()
    view = data if isinstance(data, bytes) else data.cast("B")
    try:
        _merge_fields(message, cls.LAYOUT, view, 0, len(view), 0)
    except DecodeError as error:
        raise DecodeError(f"{cls.__name__}: {error}") from None
    except UnicodeDecodeError as error:
        raise DecodeError(f"{cls.__name__}: a string is not UTF-8: {error}") from None
    except (IndexError, struct.error):
        raise DecodeError(f"{cls.__name__}: the data ends inside a field") from None
    return message


def _write_fields(chunks: list[bytes], message: object, layout: Layout) -> None:
    for name, is_explicit, tag, write in layout.writes:
        value = getattr(message, name)
        if value or (is_explicit and value is not None):
            try:
                write(chunks, tag, value)
            except (ValueError, TypeError, OverflowError, struct.error) as error:
                raise ValueError(f"{type(message).__name__}.{name}: {error}") from error


def _merge_fields(message: object, layout: Layout, data: Data, position: int, end: int, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise DecodeError(f"messages nest deeper than {MAX_DEPTH}")
    reads, merges = layout.reads, layout.merges
    while position < end:
        tag = data[position]
        if tag < 0x80:
            position += 1
        else:
            tag, position = read_varint(data, position)
        if tag in reads:
            name, read = reads[tag]
            value, position = read(data, position)
            setattr(message, name, value)
        elif tag in merges:
            position = merges[tag](message, data, position, depth)
        else:
            position = _skip(tag, data, position)
    if position > end:
        raise DecodeError("a field ends behind its message")


def _skip(tag: int, data: Data, position: int) -> int:
    if not 0 < tag >> 3 < 1 << 29:
        raise DecodeError(f"{tag >> 3} is no field number")
    wire_type = tag & 7
    if wire_type == VARINT:
        return read_varint(data, position)[1]
    if wire_type == DELIMITED:
        size, position = read_varint(data, position)
        return position + size
    if wire_type == FIXED32:
        return position + 4
    if wire_type == FIXED64:
        return position + 8
    raise DecodeError(f"wire type {wire_type} is not of proto3")


# --- fields ---------------------------------------------------------------------------------------------------------

Kind = str | type[Message]
"""A key of SCALARS, or the class of a message."""


@dataclass(frozen=True)
class Field:
    """One field of a Layout: how to write it, and how to read or merge what comes under which key.

    `key` is the field number and the wire type it is written with. An explicit field is written unless it is None, any
    other unless it is zero or empty.
    """

    name: str
    is_explicit: bool
    key: int
    write: Write
    reads: Mapping[int, Read] = field(default_factory=dict)
    merges: Mapping[int, Merge] = field(default_factory=dict)


def singular(number: int, name: str, kind: Kind) -> Field:
    """A field without presence: its zero is not written. A message is None when absent."""
    explicit = optional(number, name, kind)
    if not isinstance(kind, str):
        return explicit
    if kind in ("float", "double"):
        return replace(explicit, write=_unless_zero(explicit.write))
    return replace(explicit, is_explicit=False)


def optional(number: int, name: str, kind: Kind) -> Field:
    """A field that is None when absent."""
    if isinstance(kind, str):
        scalar = SCALARS[kind]
        key = number << 3 | scalar.wire_type
        return Field(name, True, key, scalar.write, reads={key: scalar.read})

    def merge(message: object, data: Data, position: int, depth: int) -> int:
        value = getattr(message, name)
        if value is None:
            value = kind()
            setattr(message, name, value)
        return _merge_delimited(value, kind.LAYOUT, data, position, depth)

    key = number << 3 | DELIMITED
    return Field(name, True, key, _write_message, merges={key: merge})


def one_of(number: int, name: str, kind: Kind, *others: str) -> Field:
    """A member of a oneof: None unless it is the one. Reading it clears the others; at most one may be set."""
    member = optional(number, name, kind)

    def merge(message: object, data: Data, position: int, depth: int) -> int:
        for other in others:
            setattr(message, other, None)
        if member.merges:
            return member.merges[member.key](message, data, position, depth)
        value, position = member.reads[member.key](data, position)
        setattr(message, name, value)
        return position

    return replace(member, reads={}, merges={member.key: merge})


def repeated(number: int, name: str, kind: Kind) -> Field:
    """A list; numbers are written packed, and read either way. What is written may also be a memoryview of numbers."""
    if not isinstance(kind, str):
        return _repeated_message(number, name, kind)
    scalar = SCALARS[kind]
    read = scalar.read
    single, delimited = number << 3 | scalar.wire_type, number << 3 | DELIMITED

    def merge_one(message: object, data: Data, position: int, depth: int) -> int:
        value, position = read(data, position)
        getattr(message, name).append(value)
        return position

    read_packed = unpacked(scalar)

    def merge_packed(message: object, data: Data, position: int, depth: int) -> int:
        values, position = read_packed(data, position)
        getattr(message, name).extend(values)
        return position

    if single == delimited:
        return Field(name, False, delimited, _each(scalar.write), merges={single: merge_one})
    return Field(name, False, delimited, packed(scalar), merges={delimited: merge_packed, single: merge_one})


def mapping(number: int, name: str, key_kind: str, value_kind: Kind) -> Field:
    """A dict: on the wire, repeated messages with the fields `key` and `value`."""
    layout = Layout(optional(1, "key", key_kind), optional(2, "value", value_kind))  # both are always written

    def write(chunks: list[bytes], tag: bytes, values: dict[Any, Any]) -> None:
        for key, value in values.items():
            _write_delimited(chunks, tag, _Entry(key, value), layout)

    def merge(message: object, data: Data, position: int, depth: int) -> int:
        zero = SCALARS[value_kind].zero if isinstance(value_kind, str) else value_kind()
        entry = _Entry(SCALARS[key_kind].zero, zero)
        position = _merge_delimited(entry, layout, data, position, depth)
        getattr(message, name)[entry.key] = entry.value
        return position

    key = number << 3 | DELIMITED
    return Field(name, False, key, write, merges={key: merge})


@dataclass(slots=True)
class _Entry:
    key: Any
    value: Any


def _repeated_message(number: int, name: str, cls: type[Message]) -> Field:
    def merge(message: object, data: Data, position: int, depth: int) -> int:
        value = cls()
        getattr(message, name).append(value)
        return _merge_delimited(value, cls.LAYOUT, data, position, depth)

    key = number << 3 | DELIMITED
    return Field(name, False, key, _each(_write_message), merges={key: merge})


def _merge_delimited(message: object, layout: Layout, data: Data, position: int, depth: int) -> int:
    size, position = read_varint(data, position)
    _merge_fields(message, layout, data, position, position + size, depth + 1)
    return position + size


def _write_message(chunks: list[bytes], tag: bytes, message: Message) -> None:
    _write_delimited(chunks, tag, message, message.LAYOUT)


def _write_delimited(chunks: list[bytes], tag: bytes, message: object, layout: Layout) -> None:
    inner: list[bytes] = []
    _write_fields(inner, message, layout)
    chunks.append(tag + encode_varint(sum(map(len, inner))))
    chunks += inner


def _each(write: Write) -> Write:
    def write_each(chunks: list[bytes], tag: bytes, values: list[Any]) -> None:
        for value in values:
            write(chunks, tag, value)

    return write_each


def _unless_zero(write: Write) -> Write:
    def write_unless_zero(chunks: list[bytes], tag: bytes, value: float) -> None:
        if value or math.copysign(1.0, value) < 0:  # -0.0 is not the zero that an absent field means
            write(chunks, tag, value)

    return write_unless_zero
