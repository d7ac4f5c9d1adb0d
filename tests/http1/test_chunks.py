"""Chunked bodies: the same bytes however the network cuts them, and an end to everything that could go on for ever."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http1.chunks import LINE_BYTES, TRAILER_BYTES, Chunks
from gateway.http1.head import Malformed

NEXT = b"GET / HTTP/1.1\r\n"


def decode(*pieces: bytes) -> tuple[bytes, bool, bytes]:
    """(the body, whether it is complete, what is left) of what came in `pieces`."""
    chunks, buffer, body = Chunks(), bytearray(), b""
    for piece in pieces:
        buffer += piece
        body += chunks.take(buffer)
    return body, chunks.is_complete, bytes(buffer)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in zip(edges, edges[1:], strict=False)]


EXTENSIONS = st.sampled_from([b"", b";a=b", b" ; a", b';a="b c"'])
TRAILERS = st.lists(st.sampled_from([b"A: b\r\n", b"Digest: x\r\n"]), max_size=3).map(b"".join)


@settings(max_examples=200)
@given(
    parts=st.lists(st.tuples(st.binary(min_size=1, max_size=40), EXTENSIONS), max_size=6),
    trailers=TRAILERS,
    places=st.lists(st.integers(0, 400), max_size=30),
)
def test_the_cuts_of_the_network_do_not_matter(
    parts: list[tuple[bytes, bytes]], trailers: bytes, places: list[int]
) -> None:
    data = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part, extension in parts)
    data += b"0\r\n" + trailers + b"\r\n" + NEXT
    body = b"".join(part for part, _ in parts)

    assert decode(*cut(data, places)) == (body, True, NEXT)
    assert decode(*(data[index : index + 1] for index in range(len(data)))) == (body, True, NEXT)


def test_what_has_not_come_is_waited_for() -> None:
    assert decode(b"5\r\nhel") == (b"hel", False, b"")
    assert decode(b"5\r\nhello") == (b"hello", False, b"")
    assert decode(b"5\r\nhello\r\n0\r\n") == (b"hello", False, b"")


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"x\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\n",
        b"1_0\r\n",
        b" 5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b"5\nhello\r\n",
        b"5\r\nhelloX\r\n",
        b"5\r\nhello\n\r",
        b"5;a\x00\r\nhello\r\n",
        b"f" * 16 + b"\r\n",
        b"5" + b";" * (LINE_BYTES + 1),
        b"5" + b";" * (LINE_BYTES + 1) + b"\r\n",
        b"0\r\n" + b"A: b\r\n" * (TRAILER_BYTES // 3),
    ],
)
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data)
