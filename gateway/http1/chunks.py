"""A chunked body, decoded as it comes."""

import re

from gateway.http1.head import Malformed

LINE_BYTES = 4096
TRAILER_BYTES = 32 * 1024
SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?")


class Chunks:
    """Extensions and trailers are read and dropped."""

    def __init__(self) -> None:
        self._rest = 0
        """Of the chunk at hand, with the line break behind it."""
        self._trailer_bytes: int | None = None
        """None before the trailer."""
        self.is_complete = False

    def take(self, buffer: bytearray) -> bytes:
        """What of the body is in `buffer`, from which all that was understood is removed; raises Malformed."""
        parts: list[bytes] = []
        while not self.is_complete and (self._take_data(buffer, parts) if self._rest else self._take_line(buffer)):
            pass
        return b"".join(parts)

    def _take_data(self, buffer: bytearray, parts: list[bytes]) -> bool:
        """False when the chunk's end has not come."""
        size = min(len(buffer), self._rest - 2)
        if size > 0:
            parts.append(bytes(buffer[:size]))
            del buffer[:size]
            self._rest -= size
        if self._rest == 2 and len(buffer) >= 2:
            if not buffer.startswith(b"\r\n"):
                raise Malformed(400, "a chunk of the body does not end where it said")
            del buffer[:2]
            self._rest = 0
        return self._rest == 0

    def _take_line(self, buffer: bytearray) -> bool:
        """False when the line's end has not come."""
        end = buffer.find(b"\r\n")
        if end > LINE_BYTES or (end < 0 and len(buffer) > LINE_BYTES):
            raise Malformed(400, "a line between the chunks of the body is too long")
        if end < 0:
            return False
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        if self._trailer_bytes is None:
            self._begin_chunk(line)
        else:
            self._take_trailer(line)
        return True

    def _begin_chunk(self, line: bytes) -> None:
        size = SIZE.fullmatch(line)
        if size is None:
            raise Malformed(400, "a chunk of the body has no size")
        length = int(size[1], 16)
        if length:
            self._rest = length + 2
        else:
            self._trailer_bytes = 0

    def _take_trailer(self, line: bytes) -> None:
        self._trailer_bytes = (self._trailer_bytes or 0) + len(line)
        if self._trailer_bytes > TRAILER_BYTES:
            raise Malformed(431, "the body's trailer is too large")
        self.is_complete = not line
