"""gRPC calls over one HTTP/2 connection, as a client: for wires that send a message for each token.

grpc.aio costs 43-50 µs for a message it receives, this a few: one read of the socket brings what an engine step said to
all requests, and their messages are handed over from there, without a task or a thread between.

It reads all that comes at once, whoever waits for it: what is received is bounded by what is asked for. Plain text
only, no compression. RFC 9113 and gRPC's "PROTOCOL-HTTP2" say how both look on the wire.

Threads: none of its own. A connection belongs to the event loop it was made on.
"""

import asyncio
import itertools
import struct
from collections.abc import Iterator
from typing import Protocol, cast
from urllib.parse import unquote

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, ENABLE_PUSH = 3, 4, 5, 2
CANCEL, REFUSED_STREAM, ENHANCE_YOUR_CALM = 8, 7, 11
DEFAULT_WINDOW = 65_535
LARGEST_WINDOW = (1 << 31) - 1
LARGEST_FRAME = 1 << 20
"""Of those we take."""
RENEWAL = 1 << 29
"""Received bytes after which a window is made whole again."""
FRAME = struct.Struct(">BHBBI")
SETTING = struct.Struct(">HI")
U32 = struct.Struct(">I")
PREFIX = struct.Struct(">BI")
"""Of a gRPC message: whether it is compressed, and its length."""

STATUSES = (
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED "
    "RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS "
    "UNAUTHENTICATED"
).split()
"""gRPC's statuses by their numbers."""
RESETS = {REFUSED_STREAM: "UNAVAILABLE", CANCEL: "CANCELLED", ENHANCE_YOUR_CALM: "RESOURCE_EXHAUSTED"}


class CallFailed(Exception):
    """A call that ended with another status than OK: `code` is its name, `details` what the server says."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details


class Receiver(Protocol):
    """Whoever made a call."""

    def received(self, message: bytes) -> None:
        """A message has come."""

    def ended(self, failure: "CallFailed | None") -> None:
        """The call is over. It is the last thing to be said of it, and not said when we cancel it ourselves."""


class ProtocolViolation(Exception):
    """The server does not speak HTTP/2 as it must; the connection is of no more use."""


class Stream:
    """One call."""

    __slots__ = ("headers", "number", "received", "receiver", "rest", "send_window", "unsent")

    def __init__(self, number: int, receiver: Receiver, send_window: int, unsent: bytes) -> None:
        self.number = number
        self.receiver = receiver
        self.send_window = send_window
        self.unsent = memoryview(unsent)
        self.rest = b""
        self.received = 0
        self.headers: dict[str, str] = {}


class Connection(asyncio.Protocol):
    """A connection to a gRPC server; `connect` makes one. After `loss` is set every call fails at once."""

    def __init__(self, authority: str) -> None:
        self.loss = ""
        self._farewell = ""
        self._authority = authority
        self._transport: asyncio.Transport
        self._rest = b""
        self._streams: dict[int, Stream] = {}
        self._calls: dict[Receiver, Stream] = {}
        self._waiting: dict[Receiver, tuple[str, bytes]] = {}
        self._numbers = itertools.count(1, 2)
        self._decoder = hpack.Decoder()
        self._block: tuple[int, int, bytes] | None = None
        self._blocked: dict[Stream, None] = {}
        self._received = 0
        self._send_window = DEFAULT_WINDOW
        self._first_window = DEFAULT_WINDOW
        self._frame_size = 16_384
        self._max_streams = LARGEST_WINDOW
        self._heads: dict[str, bytes] = {}

    def call(self, path: str, message: bytes, receiver: Receiver) -> None:
        """Send a request with one message. When the server takes no more calls at a time, it waits."""
        if self.loss or self._farewell:
            receiver.ended(CallFailed("UNAVAILABLE", self.loss or self._farewell))
        elif len(self._streams) >= self._max_streams:
            self._waiting[receiver] = path, message
        else:
            self._start(path, message, receiver)

    def cancel(self, receiver: Receiver) -> None:
        """End a call; its receiver hears nothing more. Unknown ones are ignored."""
        self._waiting.pop(receiver, None)
        stream = self._calls.get(receiver)
        if stream is not None:
            self._reset(stream)
            self._forget(stream)

    async def ask(self, path: str, message: bytes, seconds: float) -> bytes:
        """The one message that answers; raises CallFailed, DEADLINE_EXCEEDED after so many seconds."""
        question = Question(asyncio.get_running_loop().create_future())
        self.call(path, message, question)
        try:
            return await asyncio.wait_for(question.answer, seconds)
        except asyncio.TimeoutError:
            raise CallFailed("DEADLINE_EXCEEDED", f"no answer in {seconds:g} s") from None
        finally:
            self.cancel(question)

    def close(self) -> None:
        self._lose("the connection was closed")

    # --- asyncio's side ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        settings = ((ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, LARGEST_WINDOW), (MAX_FRAME_SIZE, LARGEST_FRAME))
        payload = b"".join(itertools.starmap(SETTING.pack, settings))
        grow = window_update(0, LARGEST_WINDOW - DEFAULT_WINDOW)
        transport.write(PREFACE + frame(SETTINGS, 0, 0, payload) + grow)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        position, end = 0, len(data)
        try:
            while end - position >= FRAME.size:
                high, low, kind, flags, number = FRAME.unpack_from(data, position)
                size = high << 16 | low
                if size > LARGEST_FRAME:
                    raise ProtocolViolation("a frame is larger than we take")
                start = position + FRAME.size
                if start + size > end:
                    break
                position = start + size
                self._take(kind, flags, number & LARGEST_WINDOW, data[start:position])
        except (ProtocolViolation, hpack.HPACKError, struct.error) as error:
            self._lose(f"the server does not speak HTTP/2 as it must: {error}")
        self._rest = data[position:]

    def connection_lost(self, error: "Exception | None") -> None:
        self._lose(f"the connection broke: {error}" if error else "the server closed the connection")

    def _lose(self, reason: str) -> None:
        if self.loss:
            return
        self.loss = reason
        self._transport.close()
        receivers = [*self._calls, *self._waiting]
        self._calls.clear()
        self._streams.clear()
        self._waiting.clear()
        self._blocked.clear()
        for receiver in receivers:
            receiver.ended(CallFailed("UNAVAILABLE", reason))

    # --- what is sent -----------------------------------------------------------------------------------------------

    def _start(self, path: str, message: bytes, receiver: Receiver) -> None:
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = request_head(path, self._authority)
        stream = Stream(next(self._numbers), receiver, self._first_window, PREFIX.pack(0, len(message)) + message)
        self._streams[stream.number] = self._calls[receiver] = stream
        self._transport.write(frame(HEADERS, END_HEADERS, stream.number, head) + b"".join(self._sendable(stream)))

    def _sendable(self, stream: Stream) -> Iterator[bytes]:
        """Frames of the request, as far as the windows are open; the last one ends it."""
        while stream.unsent:
            size = min(len(stream.unsent), stream.send_window, self._send_window, self._frame_size)
            if size <= 0:
                self._blocked[stream] = None
                return
            payload, stream.unsent = stream.unsent[:size], stream.unsent[size:]
            stream.send_window -= size
            self._send_window -= size
            yield frame(DATA, 0 if stream.unsent else END_STREAM, stream.number, payload.tobytes())
        self._blocked.pop(stream, None)

    def _send_on(self) -> None:
        for stream in [*self._blocked]:
            self._transport.write(b"".join(self._sendable(stream)))

    def _forget(self, stream: Stream) -> None:
        del self._streams[stream.number], self._calls[stream.receiver]
        self._blocked.pop(stream, None)
        while self._waiting and len(self._streams) < self._max_streams:
            receiver = next(iter(self._waiting))
            self._start(*self._waiting.pop(receiver), receiver)

    # --- what comes -------------------------------------------------------------------------------------------------

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None and (kind != CONTINUATION or number != self._block[0]):
            raise ProtocolViolation("headers must go on where they stopped")
        if kind == DATA:
            self._take_data(flags, number, payload)
        elif kind == HEADERS:
            payload = without_padding(flags, payload)
            self._take_headers(number, flags, payload[5:] if flags & PRIORITY else payload)
        elif kind == CONTINUATION:
            if self._block is None:
                raise ProtocolViolation("headers go on that have not begun")
            number, first_flags, block = self._block
            self._take_headers(number, first_flags | flags & END_HEADERS, block + payload)
        elif kind == WINDOW_UPDATE:
            self._take_window(number, U32.unpack(payload)[0] & LARGEST_WINDOW)
        elif kind == PING and not flags & ACK:
            self._transport.write(frame(PING, ACK, 0, payload))
        elif kind == SETTINGS and not flags & ACK:
            self._take_settings(payload)
        elif kind == RST_STREAM:
            stream = self._streams.get(number)
            if stream is not None:
                error = U32.unpack(payload)[0]
                self._end(stream, CallFailed(RESETS.get(error, "INTERNAL"), f"the server reset the call ({error})"))
        elif kind == GOAWAY:
            self._take_goaway(payload)
        elif kind == PUSH_PROMISE:
            raise ProtocolViolation("it pushes, though we forbade it")

    def _take_data(self, flags: int, number: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received >= RENEWAL:
            self._transport.write(window_update(0, self._received))
            self._received = 0
        stream = self._streams.get(number)
        if stream is None:
            return  # cancelled just now
        stream.received += len(payload)
        if stream.received >= RENEWAL:
            self._transport.write(window_update(number, stream.received))
            stream.received = 0
        data = without_padding(flags, payload)
        self._take_messages(stream, stream.rest + data if stream.rest else data)
        if flags & END_STREAM and number in self._streams:
            self._end(stream, CallFailed("INTERNAL", "the server ended the call without a status"))

    def _take_messages(self, stream: Stream, data: bytes) -> None:
        position, end = 0, len(data)
        while end - position >= PREFIX.size:
            is_compressed, size = PREFIX.unpack_from(data, position)
            if position + PREFIX.size + size > end:
                break
            if is_compressed:
                raise ProtocolViolation("a message is compressed, though we take none")
            position += PREFIX.size + size
            stream.receiver.received(data[position - size : position])
        stream.rest = data[position:]

    def _take_headers(self, number: int, flags: int, block: bytes) -> None:
        if not flags & END_HEADERS:
            if len(block) > LARGEST_FRAME:
                raise ProtocolViolation("headers have no end")
            self._block = number, flags, block
            return
        self._block = None
        # Also of an unknown stream: it changes what the next ones mean.
        headers = cast("list[tuple[str, str]]", self._decoder.decode(block))
        stream = self._streams.get(number)
        if stream is not None:
            stream.headers.update(headers)
            if flags & END_STREAM:
                self._end(stream, failure_of(stream.headers))

    def _end(self, stream: Stream, failure: "CallFailed | None") -> None:
        if stream.unsent:  # nobody wants the rest of the request
            self._reset(stream)
        self._forget(stream)
        stream.receiver.ended(failure)

    def _reset(self, stream: Stream) -> None:
        self._transport.write(frame(RST_STREAM, 0, stream.number, U32.pack(CANCEL)))

    def _take_window(self, number: int, size: int) -> None:
        if number == 0:
            self._send_window += size
        elif number in self._streams:
            self._streams[number].send_window += size
        self._send_on()

    def _take_settings(self, payload: bytes) -> None:
        for setting, value in SETTING.iter_unpack(payload):
            if setting == INITIAL_WINDOW_SIZE:
                for stream in self._streams.values():
                    stream.send_window += value - self._first_window
                self._first_window = value
            elif setting == MAX_FRAME_SIZE:
                self._frame_size = value
            elif setting == MAX_CONCURRENT_STREAMS:
                self._max_streams = value
        self._transport.write(frame(SETTINGS, ACK, 0, b""))
        self._send_on()

    def _take_goaway(self, payload: bytes) -> None:
        """What the server has taken runs on; everything else is refused, and the connection takes nothing new."""
        last, error = U32.unpack_from(payload)[0] & LARGEST_WINDOW, U32.unpack_from(payload, 4)[0]
        self._farewell = f"the server is going away: {payload[8:].decode(errors='replace') or f'error {error}'}"
        refused = [stream for stream in self._streams.values() if stream.number > last]
        for stream in refused:
            self._forget(stream)
        waiting, self._waiting = [*self._waiting], {}
        for receiver in (*(stream.receiver for stream in refused), *waiting):
            receiver.ended(CallFailed("UNAVAILABLE", self._farewell))


class Question:
    """A call with one message for an answer."""

    def __init__(self, answer: "asyncio.Future[bytes]") -> None:
        self.answer = answer

    def received(self, message: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result(message)

    def ended(self, failure: "CallFailed | None") -> None:
        if not self.answer.done():
            self.answer.set_exception(failure or CallFailed("INTERNAL", "the server ended the call without an answer"))


async def connect(target: str) -> Connection:
    """A connection to "host:port"; raises OSError."""
    host, _, port = target.rpartition(":")
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(target), host.strip("[]"), int(port))
    return connection


def frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return FRAME.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, number) + payload


def window_update(number: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, number, U32.pack(size))


def without_padding(flags: int, payload: bytes) -> bytes:
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ProtocolViolation("there is more padding than frame")
    return payload[1 : len(payload) - payload[0]]


def request_head(path: str, authority: str) -> bytes:
    """The headers of a request, by RFC 7541: none of them enters the server's table, so this is the same every time."""
    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            b"\x04" + text(path),  # :path
            b"\x01" + text(authority),  # :authority
            b"\x0f\x10" + text("application/grpc"),  # content-type
            b"\x0f\x2b" + text("nogil-gateway"),  # user-agent
            b"\x00" + text("te") + text("trailers"),
        )
    )


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


OF_HTTP = {"401": "UNAUTHENTICATED", "403": "PERMISSION_DENIED", "404": "UNIMPLEMENTED", "400": "INTERNAL"}
OF_HTTP |= dict.fromkeys(("429", "502", "503", "504"), "UNAVAILABLE")
"""What stands for a status of gRPC when something on the way answers that does not know it."""


def failure_of(headers: dict[str, str]) -> "CallFailed | None":
    """What the headers at the end of a call say; None when it went well."""
    number = headers.get("grpc-status")
    if number == "0":
        return None
    if number is None:
        status = headers.get(":status", "")
        return CallFailed(OF_HTTP.get(status, "UNKNOWN"), f"answered by HTTP {status} and no gRPC status")
    is_known = number.isascii() and number.isdecimal() and int(number) < len(STATUSES)
    return CallFailed(STATUSES[int(number)] if is_known else "UNKNOWN", unquote(headers.get("grpc-message", "")))
