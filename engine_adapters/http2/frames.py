"""HTTP/2's frames, and the headers of a gRPC request.

Threads: nothing here changes.
"""

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, ENABLE_PUSH = 3, 4, 5, 2
CANCEL, REFUSED_STREAM, ENHANCE_YOUR_CALM = 8, 7, 11
DEFAULT_WINDOW = 65_535
LARGEST_WINDOW = (1 << 31) - 1
LARGEST_FRAME = 1 << 20
"""Of those we take."""
FRAME = struct.Struct(">BHBBI")
SETTING = struct.Struct(">HI")
U32 = struct.Struct(">I")


class ProtocolViolation(Exception):
    """The server does not speak HTTP/2 as it must; the connection is of no more use."""


def frame_head(size: int, kind: int, flags: int, number: int) -> bytes:
    return FRAME.pack(size >> 16, size & 0xFFFF, kind, flags, number)


def frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return frame_head(len(payload), kind, flags, number) + payload


def window_update(number: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, number, U32.pack(size))


def without_padding(flags: int, payload: bytes) -> bytes:
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ProtocolViolation("there is more padding than frame")
    return payload[1 : len(payload) - payload[0]]


def request_head(path: str, authority: str) -> bytes:
    """The headers of a request, by RFC 7541: none of them enters the server's table, so this is the same every time.
    More of them may follow.
    """
    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            b"\x04" + text(path),  # :path
            b"\x01" + text(authority),  # :authority
            b"\x0f\x10" + text("application/grpc"),  # content-type
            b"\x0f\x2b" + text("nogil-gateway"),  # user-agent
            header("te", "trailers"),
        )
    )


def header(name: str, value: str) -> bytes:
    """One that no table has, nor shall have."""
    return b"\x00" + text(name) + text(value)


def text(value: str) -> bytes:
    """A string as HPACK has it, its length in 7 bits and more bytes behind them where that is not enough."""
    data = value.encode("ascii")
    size = len(data)
    if size < 0x7F:
        return bytes((size,)) + data
    rest, head = size - 0x7F, bytearray((0x7F,))
    while rest > 0x7F:
        head.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes((*head, rest)) + data
