"""How the scalar values of protobuf are written and read."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5

Data = bytes | memoryview
Read = Callable[[Data, int], tuple[Any, int]]
"""(data, position) -> (value, the position behind it). That may lie beyond the data, or beyond the message: the caller
checks. Raises IndexError or struct.error when the data ends first."""

Write = Callable[[list[bytes], bytes, Any], None]
"""(chunks, tag, value): appends tag and value. Raises ValueError, TypeError, OverflowError or struct.error when the
value does not fit."""

_MASK64 = (1 << 64) - 1


class DecodeError(ValueError):
    """The bytes are no message of this class; the message says why."""


_MORE = [bytes((byte | 0x80,)) for byte in range(0x80)]
_LAST = [bytes((byte,)) for byte in range(0x80)]


def encode_varint(value: int) -> bytes:
    if value < 0x80:
        return _LAST[value]
    encoded = b""
    while value > 0x7F:
        encoded += _MORE[value & 0x7F]
        value >>= 7
    return encoded + _LAST[value]


def read_varint(data: Data, position: int) -> tuple[int, int]:
    value = data[position]
    position += 1
    if value < 0x80:
        return value, position
    value &= 0x7F
    shift = 7
    while shift < 63:
        byte = data[position]
        position += 1
        if byte < 0x80:
            return value | byte << shift, position
        value |= (byte & 0x7F) << shift
        shift += 7
    byte = data[position]
    if byte < 0x80:
        return value | (byte & 1) << 63, position + 1
    raise DecodeError("a varint is longer than 10 bytes")


def write_bytes(chunks: list[bytes], tag: bytes, value: bytes) -> None:
    if type(value) is not bytes:  # the length of another buffer need not be in bytes
        raise TypeError(f"expected bytes, not {type(value).__name__}")
    chunks.append(tag + encode_varint(len(value)))
    chunks.append(value)


def _read_bytes(data: Data, position: int) -> tuple[bytes, int]:
    size, position = read_varint(data, position)
    return bytes(data[position : position + size]), position + size


def _write_string(chunks: list[bytes], tag: bytes, value: str) -> None:
    encoded = value.encode()
    chunks.append(tag + encode_varint(len(encoded)) + encoded)


def _read_string(data: Data, position: int) -> tuple[str, int]:
    size, position = read_varint(data, position)
    return str(data[position : position + size], "utf-8"), position + size


@dataclass(frozen=True)
class Scalar:
    """How one kind of value is written and read. `code` is how `array` and `struct` know it, empty if they do not."""

    wire_type: int
    zero: object
    write: Write
    read: Read
    code: str = ""


def _integer(low: int, high: int, code: str = "") -> Scalar:
    mask, sign = high - low, -low

    def write(chunks: list[bytes], tag: bytes, value: int) -> None:
        if 0 <= value < 0x80:
            chunks.append(tag + _LAST[value])
        elif low <= value <= high:
            # A negative number takes ten bytes, also where it has 32 bits.
            chunks.append(tag + encode_varint(value & _MASK64))
        else:
            raise ValueError(f"{value} is not in {low}..{high}")

    def read(data: Data, position: int) -> tuple[int, int]:
        value = data[position]
        if value < 0x80:
            return value, position + 1
        value, position = read_varint(data, position)
        return ((value & mask) ^ sign) - sign, position

    return Scalar(VARINT, 0, write, read, code)


def _zigzag(low: int, high: int) -> Scalar:
    unsigned = _integer(0, high - low)

    def write(chunks: list[bytes], tag: bytes, value: int) -> None:
        if not low <= value <= high:
            raise ValueError(f"{value} is not in {low}..{high}")
        unsigned.write(chunks, tag, value << 1 if value >= 0 else ~(value << 1))

    def read(data: Data, position: int) -> tuple[int, int]:
        value, position = unsigned.read(data, position)
        return (value >> 1) ^ -(value & 1), position

    return Scalar(VARINT, 0, write, read)


def _write_bool(chunks: list[bytes], tag: bytes, value: bool) -> None:
    chunks.append(tag + (b"\1" if value else b"\0"))


def _read_bool(data: Data, position: int) -> tuple[bool, int]:
    value, position = read_varint(data, position)
    return value != 0, position


def _fixed(wire_type: int, code: str, zero: float) -> Scalar:
    packer = struct.Struct("<" + code)

    def write(chunks: list[bytes], tag: bytes, value: float) -> None:
        chunks.append(tag + packer.pack(value))

    def read(data: Data, position: int) -> tuple[Any, int]:
        return packer.unpack_from(data, position)[0], position + packer.size

    return Scalar(wire_type, zero, write, read, code)


SCALARS = {
    "int32": _integer(-(1 << 31), (1 << 31) - 1),
    "int64": _integer(-(1 << 63), (1 << 63) - 1),
    "uint32": _integer(0, (1 << 32) - 1, "I"),
    "uint64": _integer(0, (1 << 64) - 1),
    "sint32": _zigzag(-(1 << 31), (1 << 31) - 1),
    "sint64": _zigzag(-(1 << 63), (1 << 63) - 1),
    "bool": Scalar(VARINT, False, _write_bool, _read_bool),
    "enum": _integer(-(1 << 31), (1 << 31) - 1),  # open: a number without a name is kept
    "fixed32": _fixed(FIXED32, "I", 0),
    "fixed64": _fixed(FIXED64, "Q", 0),
    "sfixed32": _fixed(FIXED32, "i", 0),
    "sfixed64": _fixed(FIXED64, "q", 0),
    "float": _fixed(FIXED32, "f", 0.0),
    "double": _fixed(FIXED64, "d", 0.0),
    "string": Scalar(DELIMITED, "", _write_string, _read_string),
    "bytes": Scalar(DELIMITED, b"", write_bytes, _read_bytes),
}
