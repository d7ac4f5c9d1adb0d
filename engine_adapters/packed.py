"""Many numbers in one packed field, without Python touching each: prompts of 100,000 ids are written this way.

Threads: tables are made at import and never change.
"""

from array import array
from collections.abc import Sequence

from engine_adapters.scalars import VARINT, Data, DecodeError, Read, Scalar, Write, read_varint, write_bytes

MANY = 32
"""From so many numbers on, all at once is faster than one by one."""

Planes = list[bytes]
"""Of a column of u32: the lowest bytes of all, the second bytes of all, and so on."""


def packed(scalar: Scalar) -> Write:
    """Writes a list, or a memoryview whose items are of the scalar's own kind."""
    write = scalar.write

    def write_packed(chunks: list[bytes], tag: bytes, values: "Sequence[float]") -> None:
        column = _column(scalar, values)
        if column is None:
            inner: list[bytes] = []
            for value in values:
                write(inner, b"", value)
            write_bytes(chunks, tag, b"".join(inner))
        else:
            write_bytes(chunks, tag, varints(column) if scalar.wire_type == VARINT else column)

    return write_packed


def unpacked(scalar: Scalar) -> Read:
    """Reads a packed field as a list."""
    read = scalar.read

    def read_packed(data: Data, position: int) -> tuple[list[float], int]:
        size, position = read_varint(data, position)
        end = position + size
        if scalar.code == "I" and scalar.wire_type == VARINT:
            return _read_u32s(data[position:end]), end
        values: list[float] = []
        while position < end:
            value, position = read(data, position)
            values.append(value)
        if position > end:
            raise DecodeError("a packed value ends behind its field")
        return values, end

    return read_packed


def _read_u32s(data: Data) -> list[float]:
    values: list[float] = []
    value = shift = 0
    for byte in data:
        if byte < 0x80:
            values.append((value | byte << shift) & 0xFFFFFFFF)
            value = shift = 0
        else:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise DecodeError("a varint is longer than 10 bytes")
    if shift:
        raise DecodeError("a packed value ends behind its field")
    return values


def _column(scalar: Scalar, values: "Sequence[float]") -> "bytes | None":
    """The values as they lie in memory, when they do or when it is worth while."""
    if isinstance(values, memoryview):
        return values.tobytes() if values.format == scalar.code else None
    return array("I", values).tobytes() if scalar.code == "I" and len(values) >= MANY else None


# --- varints --------------------------------------------------------------------------------------------------------
# Byte k of a varint holds the bits 7k to 7k + 6. For all numbers at once: they lie in one or two planes, where a
# translation puts them in place. All varints get the width of the longest; a shorter one is filled up with empty bytes,
# which every reader of protobuf takes.

_LOW = [
    [bytes((byte >> shift) & 0x7F | more for byte in range(256)) for shift in range(8)]  # the plane where bit 7k lies
    for more in (0, 0x80)
]
_BELOW = [bytes(range(1 << shift)) for shift in range(8)]
_HIGH = [bytes((byte << (8 - shift)) & 0x7F for byte in range(256)) for shift in range(8)]  # the plane above


def varints(column: bytes) -> bytes:
    """The numbers of a column of little-endian u32 as varints, all of the same width."""
    count = len(column) // 4
    planes = [column[place::4] for place in range(4)]
    width = _width(planes)
    result = bytearray(count * width)
    for place in range(width):
        result[place::width] = _varint_bytes(planes, place, is_last=place == width - 1)
    return bytes(result)


def _width(planes: Planes) -> int:
    """How many bytes the largest number's varint takes."""
    zeros = bytes(len(planes[0]))
    for width in (5, 4, 3, 2):
        plane, shift = divmod(7 * (width - 1), 8)
        if any(each != zeros for each in planes[plane + 1 :]):
            return width
        # Deleting the bytes that are too small is many times as fast as looking for the largest.
        if planes[plane] != zeros and planes[plane].translate(None, _BELOW[shift]):
            return width
    return 1


def _varint_bytes(planes: Planes, place: int, is_last: bool) -> bytes:
    """Byte `place` of every varint."""
    plane, shift = divmod(7 * place, 8)
    low = planes[plane].translate(_LOW[not is_last][shift])
    if shift < 2 or plane == 3:
        return low
    high = planes[plane + 1].translate(_HIGH[shift])
    return (int.from_bytes(low, "little") | int.from_bytes(high, "little")).to_bytes(len(low), "little")
