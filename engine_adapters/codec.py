"""A proto3 wire codec in pure Python, driven by one table per message class.

proto/generate.py writes the classes and their tables. Unlike google.protobuf, on purpose: unknown fields are dropped,
groups (which proto3 cannot declare) are malformed, and a float too large for its field is an error, not infinity.

Threads: tables are made at import and never change; encode and decode may run on any thread.
"""

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
MAX_DEPTH = 100

Data = bytes | memoryview
Read = Callable[[Data, int], tuple[Any, int]]
"""(data, position) -> (value, the position behind it), which may lie beyond the message: the caller checks."""

Write = Callable[[list[bytes], bytes, Any], None]
"""(chunks, tag, value): appends the tag and the value."""

Merge = Callable[[Any, Data, int, int], int]
"""(message, data, position, depth) -> the position behind the value, which is now part of the message."""


class DecodeError(ValueError):
    """The bytes are no message of this class."""


class Layout:
    """How a message class looks on the wire."""

    __slots__ = ("merges", "writes")

    def __init__(self, *fields: "Field") -> None:
        self.writes = tuple((field.name, field.is_explicit, field.tag, field.write) for field in fields)
        self.merges = {tag: merge for field in fields for tag, merge in field.merges.items()}


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
    merges = layout.merges
    while position < end:
        tag = data[position]
        if tag < 0x80:
            position += 1
        else:
            tag, position = _read_varint(data, position)
        merge = merges.get(tag)
        position = _skip(tag, data, position) if merge is None else merge(message, data, position, depth)
    if position > end:
        raise DecodeError("a field ends behind its message")


def _skip(tag: int, data: Data, position: int) -> int:
    if not 0 < tag >> 3 < 1 << 29:
        raise DecodeError(f"{tag >> 3} is no field number")
    wire_type = tag & 7
    if wire_type == VARINT:
        return _read_varint(data, position)[1]
    if wire_type == DELIMITED:
        size, position = _read_varint(data, position)
        return position + size
    if wire_type == FIXED32:
        return position + 4
    if wire_type == FIXED64:
        return position + 8
    raise DecodeError(f"wire type {wire_type} is not of proto3")


# --- values ---------------------------------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    if value < 0x80:
        return value.to_bytes(1, "little")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: Data, position: int) -> tuple[int, int]:
    byte = data[position]
    if byte < 0x80:
        return byte, position + 1
    value = byte & 0x7F
    for shift in range(7, 70, 7):
        position += 1
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position + 1
    raise DecodeError("a varint is longer than 10 bytes")


def _write_bytes(chunks: list[bytes], tag: bytes, value: bytes) -> None:
    if not isinstance(value, bytes):  # the length of other buffers need not be in bytes
        raise TypeError(f"expected bytes, not {type(value).__name__}")
    chunks.append(tag + _varint(len(value)))
    chunks.append(value)


def _read_bytes(data: Data, position: int) -> tuple[bytes, int]:
    size, position = _read_varint(data, position)
    return bytes(data[position : position + size]), position + size


def _write_string(chunks: list[bytes], tag: bytes, value: str) -> None:
    encoded = value.encode()
    chunks.append(tag + _varint(len(encoded)) + encoded)


def _read_string(data: Data, position: int) -> tuple[str, int]:
    size, position = _read_varint(data, position)
    return str(data[position : position + size], "utf-8"), position + size


@dataclass(frozen=True)
class Scalar:
    """How one kind of value is written and read."""

    wire_type: int
    zero: object
    write: Write
    read: Read


def _varint_scalar(low: int, high: int, to_wire: Callable[[int], int], from_wire: Callable[[int], int]) -> Scalar:
    def write(chunks: list[bytes], tag: bytes, value: int) -> None:
        if not low <= value <= high:
            raise ValueError(f"{value} is not in {low}..{high}")
        chunks.append(tag + _varint(to_wire(value)))

    def read(data: Data, position: int) -> tuple[int, int]:
        value, position = _read_varint(data, position)
        return from_wire(value), position

    return Scalar(VARINT, from_wire(0), write, read)


def _unsigned(bits: int) -> Scalar:
    mask = (1 << bits) - 1
    return _varint_scalar(0, mask, int, lambda value: value & mask)


def _signed(bits: int) -> Scalar:
    mask, sign = (1 << bits) - 1, 1 << bits - 1
    # A negative number is written as 64 bits also where it has 32: ten bytes.
    return _varint_scalar(
        -sign, sign - 1, lambda value: value & 0xFFFF_FFFF_FFFF_FFFF, lambda value: ((value & mask) ^ sign) - sign
    )


def _zigzag(bits: int) -> Scalar:
    mask, sign = (1 << bits) - 1, 1 << bits - 1
    return _varint_scalar(
        -sign,
        sign - 1,
        lambda value: value << 1 if value >= 0 else -(value << 1) - 1,
        lambda value: ((value & mask) >> 1) ^ -(value & 1),
    )


def _fixed(wire_type: int, code: str, zero: float) -> Scalar:
    packer = struct.Struct(code)

    def write(chunks: list[bytes], tag: bytes, value: float) -> None:
        chunks.append(tag + packer.pack(value))

    def read(data: Data, position: int) -> tuple[Any, int]:
        return packer.unpack_from(data, position)[0], position + packer.size

    return Scalar(wire_type, zero, write, read)


SCALARS = {
    "int32": _signed(32),
    "int64": _signed(64),
    "uint32": _unsigned(32),
    "uint64": _unsigned(64),
    "sint32": _zigzag(32),
    "sint64": _zigzag(64),
    "bool": _varint_scalar(0, 1, int, bool),
    "enum": _signed(32),  # open: a number without a name is kept
    "fixed32": _fixed(FIXED32, "<I", 0),
    "fixed64": _fixed(FIXED64, "<Q", 0),
    "sfixed32": _fixed(FIXED32, "<i", 0),
    "sfixed64": _fixed(FIXED64, "<q", 0),
    "float": _fixed(FIXED32, "<f", 0.0),
    "double": _fixed(FIXED64, "<d", 0.0),
    "string": Scalar(DELIMITED, "", _write_string, _read_string),
    "bytes": Scalar(DELIMITED, b"", _write_bytes, _read_bytes),
}


# --- fields ---------------------------------------------------------------------------------------------------------

Kind = str | type[Message]
"""A key of SCALARS, or the class of a message."""


@dataclass(frozen=True)
class Field:
    """One field: how to write it, and by tag how to read it. An explicit one is written unless it is None."""

    name: str
    is_explicit: bool
    tag: bytes
    write: Write
    merges: Mapping[int, Merge]


def singular(number: int, name: str, kind: Kind) -> Field:
    """A field without presence: its zero is not written. A message is None when absent."""
    field = optional(number, name, kind)
    if isinstance(kind, str):
        is_float = kind in ("float", "double")
        write = _but_not_zero(field.write) if is_float else field.write
        return Field(name, is_float, field.tag, write, field.merges)
    return field


def optional(number: int, name: str, kind: Kind) -> Field:
    """A field that is None when absent."""
    if not isinstance(kind, str):
        merges = {_key(number, DELIMITED): _submerge(name, kind)}
        return Field(name, True, _tag(number, DELIMITED), _write_message, merges)
    scalar = SCALARS[kind]
    read = scalar.read

    def merge(message: object, data: Data, position: int, depth: int) -> int:
        value, position = read(data, position)
        setattr(message, name, value)
        return position

    return Field(name, True, _tag(number, scalar.wire_type), scalar.write, {_key(number, scalar.wire_type): merge})


def one_of(number: int, name: str, kind: Kind, *others: str) -> Field:
    """A member of a oneof: None unless it is the one; reading it clears the others."""
    field = optional(number, name, kind)
    ((key, member_merge),) = field.merges.items()

    def merge(message: object, data: Data, position: int, depth: int) -> int:
        for other in others:
            setattr(message, other, None)
        return member_merge(message, data, position, depth)

    return Field(name, True, field.tag, field.write, {key: merge})


def repeated(number: int, name: str, kind: Kind) -> Field:
    """A list; numbers are written packed, and read either way."""
    if not isinstance(kind, str):
        return _repeated_messages(number, name, kind)
    scalar = SCALARS[kind]
    read = scalar.read

    def merge_one(message: Any, data: Data, position: int, depth: int) -> int:
        value, position = read(data, position)
        getattr(message, name).append(value)
        return position

    def merge_packed(message: Any, data: Data, position: int, depth: int) -> int:
        size, position = _read_varint(data, position)
        end = position + size
        values = getattr(message, name)
        while position < end:
            value, position = read(data, position)
            values.append(value)
        if position > end:
            raise DecodeError("a packed value ends behind its field")
        return position

    if scalar.wire_type == DELIMITED:
        return Field(name, False, _tag(number, DELIMITED), _each(scalar.write), {_key(number, DELIMITED): merge_one})
    merges = {_key(number, DELIMITED): merge_packed, _key(number, scalar.wire_type): merge_one}
    return Field(name, False, _tag(number, DELIMITED), _packed(scalar.write), merges)


def mapping(number: int, name: str, key_kind: str, value_kind: Kind) -> Field:
    """A dict: on the wire, repeated messages with the fields `key` and `value`."""
    layout = Layout(singular(1, "key", key_kind), singular(2, "value", value_kind))
    zero_key = SCALARS[key_kind].zero

    def write(chunks: list[bytes], tag: bytes, values: dict[Any, Any]) -> None:
        for key, value in values.items():
            _write_delimited(chunks, tag, _Entry(key, value), layout)

    def merge(message: object, data: Data, position: int, depth: int) -> int:
        entry = _Entry(zero_key, SCALARS[value_kind].zero if isinstance(value_kind, str) else value_kind())
        end = _merge_delimited(entry, layout, data, position, depth)
        getattr(message, name)[entry.key] = entry.value
        return end

    return Field(name, False, _tag(number, DELIMITED), write, {_key(number, DELIMITED): merge})


@dataclass(slots=True)
class _Entry:
    key: Any
    value: Any


def _repeated_messages(number: int, name: str, cls: type[Message]) -> Field:
    def merge(message: object, data: Data, position: int, depth: int) -> int:
        value = cls()
        getattr(message, name).append(value)
        return _merge_delimited(value, cls.LAYOUT, data, position, depth)

    return Field(name, False, _tag(number, DELIMITED), _each(_write_message), {_key(number, DELIMITED): merge})


def _submerge(name: str, cls: type[Message]) -> Merge:
    def merge(message: object, data: Data, position: int, depth: int) -> int:
        value = getattr(message, name)
        if value is None:
            value = cls()
            setattr(message, name, value)
        return _merge_delimited(value, cls.LAYOUT, data, position, depth)

    return merge


def _merge_delimited(message: object, layout: Layout, data: Data, position: int, depth: int) -> int:
    size, position = _read_varint(data, position)
    _merge_fields(message, layout, data, position, position + size, depth + 1)
    return position + size


def _write_message(chunks: list[bytes], tag: bytes, message: Message) -> None:
    _write_delimited(chunks, tag, message, message.LAYOUT)


def _write_delimited(chunks: list[bytes], tag: bytes, message: object, layout: Layout) -> None:
    inner: list[bytes] = []
    _write_fields(inner, message, layout)
    chunks.append(tag + _varint(sum(map(len, inner))))
    chunks += inner


def _each(write: Write) -> Write:
    def write_each(chunks: list[bytes], tag: bytes, values: list[Any]) -> None:
        for value in values:
            write(chunks, tag, value)

    return write_each


def _packed(write: Write) -> Write:
    def write_packed(chunks: list[bytes], tag: bytes, values: list[Any]) -> None:
        inner: list[bytes] = []
        for value in values:
            write(inner, b"", value)
        _write_bytes(chunks, tag, b"".join(inner))

    return write_packed


def _but_not_zero(write: Write) -> Write:
    def write_but_zero(chunks: list[bytes], tag: bytes, value: float) -> None:
        if value or math.copysign(1.0, value) < 0:  # -0.0 is not the zero that an absent field means
            write(chunks, tag, value)

    return write_but_zero


def _key(number: int, wire_type: int) -> int:
    return number << 3 | wire_type


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(_key(number, wire_type))
