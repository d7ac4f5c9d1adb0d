"""A connection with its calls: what is sent as the windows allow, and what comes to whoever made the call.

Threads: none of its own. A connection belongs to the event loop it was made on.
"""

import asyncio
import itertools
import ssl
import struct
from collections.abc import Iterator
from typing import TypeAlias, cast

import hpack

from engine_adapters.http2.frames import (
    ACK,
    CANCEL,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FRAME,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    LARGEST_FRAME,
    LARGEST_WINDOW,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTING,
    SETTINGS,
    U32,
    WINDOW_UPDATE,
    ProtocolViolation,
    frame,
    frame_head,
    header,
    request_head,
    window_update,
    without_padding,
)
from engine_adapters.http2.status import CallFailed, failure_of
from engine_adapters.http2.stream import PREFIX, Metadata, Question, Receiver, Sender, Stream, framed

RENEWAL = 1 << 29
"""Received bytes after which a window is made whole again."""
Headers: TypeAlias = "list[tuple[str, str]]"
MOST_KNOWN_BLOCKS, KNOWN_BLOCK_BYTES = 64, 256
"""How many blocks of headers are remembered with what they say, and how large they may be."""
RESETS = {REFUSED_STREAM: "UNAVAILABLE", CANCEL: "CANCELLED", ENHANCE_YOUR_CALM: "RESOURCE_EXHAUSTED"}


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
        self._waiting: dict[Stream, None] = {}
        self._numbers = itertools.count(1, 2)
        self._decoder = hpack.Decoder()
        self._known_blocks: dict[bytes, Headers] = {}
        self._block: tuple[int, int, bytes] | None = None
        self._blocked: dict[Stream, None] = {}
        self._received = 0
        self._send_window = DEFAULT_WINDOW
        self._first_window = DEFAULT_WINDOW
        self._frame_size = 16_384
        self._max_streams = LARGEST_WINDOW
        self._heads: dict[str, bytes] = {}

    def call(self, path: str, message: bytes, receiver: Receiver, metadata: Metadata = ()) -> None:
        """Send a request with one message. When the server takes no more calls at a time, it waits."""
        self._make(Stream(path, metadata, message, receiver))

    def begin(self, path: str, message: bytes, sender: Sender, metadata: Metadata = ()) -> bool:
        """The same, for a call whose further messages `send` sends: it goes on until the server ends it, or `cancel`.
        Whether the message has gone out; if not, the sender is told when it has.
        """
        stream = Stream(path, metadata, message, sender)
        stream.sender = sender
        self._make(stream)
        return not stream.unsent

    def send(self, sender: Sender, message: bytes) -> bool:
        """One more message of a call that was begun, if it has not ended; returns what `begin` does."""
        stream = self._calls.get(sender)
        if stream is None:
            return True
        if stream.unsent:
            stream.unsent = memoryview(b"".join((stream.unsent, framed(message))))
        else:
            stream.unsent = memoryview(framed(message))
            if stream.number:
                self._transport.write(b"".join(self._sendable(stream)))
        return not stream.unsent

    def cancel(self, receiver: Receiver) -> None:
        """End a call; its receiver hears nothing more. Unknown ones are ignored."""
        stream = self._calls.get(receiver)
        if stream is not None:
            if stream.number:
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
        """At once, whatever has not gone out."""
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
        self._transport.abort()  # what is still to be written nobody may ever read
        receivers = [*self._calls]
        self._calls.clear()
        self._streams.clear()
        self._waiting.clear()
        self._blocked.clear()
        for receiver in receivers:
            receiver.ended(CallFailed("UNAVAILABLE", reason))

    # --- what is sent -----------------------------------------------------------------------------------------------

    def _make(self, stream: Stream) -> None:
        if self.loss or self._farewell:
            stream.receiver.ended(CallFailed("UNAVAILABLE", self.loss or self._farewell))
            return
        self._calls[stream.receiver] = stream
        if len(self._streams) >= self._max_streams:
            self._waiting[stream] = None
        else:
            self._start(stream)

    def _start(self, stream: Stream) -> None:
        number = next(self._numbers)
        if number > LARGEST_WINDOW:
            self._farewell = "the connection has used up its numbers"
            del self._calls[stream.receiver]
            stream.receiver.ended(CallFailed("UNAVAILABLE", self._farewell))
            return
        head = self._heads.get(stream.path)
        if head is None:
            head = self._heads[stream.path] = request_head(stream.path, self._authority)
        head += b"".join(itertools.starmap(header, stream.metadata))
        stream.number, stream.send_window = number, self._first_window
        self._streams[number] = stream
        self._transport.write(b"".join((frame(HEADERS, END_HEADERS, number, head), *self._sendable(stream))))

    def _sendable(self, stream: Stream) -> "Iterator[bytes | memoryview]":
        """Frames of the request, as far as the windows are open; the last one ends it, unless more is to come."""
        while stream.unsent:
            size = min(len(stream.unsent), stream.send_window, self._send_window, self._frame_size)
            if size <= 0:
                self._blocked[stream] = None
                return
            payload, stream.unsent = stream.unsent[:size], stream.unsent[size:]
            stream.send_window -= size
            self._send_window -= size
            yield frame_head(size, DATA, 0 if stream.unsent or stream.sender else END_STREAM, stream.number)
            yield payload
        self._blocked.pop(stream, None)

    def _send_on(self) -> None:
        """What has waited longest goes first, until the connection's window is closed again."""
        for stream in [*self._blocked]:
            if self._send_window <= 0:
                return
            if stream.send_window > 0 and stream in self._blocked:
                self._transport.write(b"".join(self._sendable(stream)))
                stream.tell_if_sent()

    def _forget(self, stream: Stream) -> None:
        del self._calls[stream.receiver]
        self._streams.pop(stream.number, None)
        self._waiting.pop(stream, None)
        self._blocked.pop(stream, None)
        while self._waiting and len(self._streams) < self._max_streams:
            following = next(iter(self._waiting))
            del self._waiting[following]
            self._start(following)
            following.tell_if_sent()

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
        headers = self._headers_in(block)  # also of an unknown stream: it changes what the next ones mean
        stream = self._streams.get(number)
        if stream is not None:
            stream.headers.update(headers)
            if flags & END_STREAM:
                self._end(stream, failure_of(stream.headers))

    def _headers_in(self, block: bytes) -> Headers:
        """What a block says. Most answers have the same blocks, which refer to a table of earlier headers: as long as
        no block changes that, each means the same again."""
        if block in self._known_blocks:
            return self._known_blocks[block]
        table = self._decoder.header_table
        entries = table.dynamic_entries
        size, count, newest = table.maxsize, len(entries), entries[0] if entries else None
        headers = cast("Headers", self._decoder.decode(block))
        is_as_before = (table.maxsize, len(entries)) == (size, count) and (not entries or entries[0] is newest)
        if not is_as_before or len(self._known_blocks) >= MOST_KNOWN_BLOCKS:
            self._known_blocks.clear()
        elif len(block) <= KNOWN_BLOCK_BYTES:
            self._known_blocks[block] = headers
        return headers

    def _end(self, stream: Stream, failure: "CallFailed | None") -> None:
        if stream.unsent or stream.sender is not None:  # nobody wants the rest of the request
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
        if self._blocked:
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
        refused += self._waiting
        self._waiting.clear()
        for stream in refused:
            self._forget(stream)
        for stream in refused:
            stream.receiver.ended(CallFailed("UNAVAILABLE", self._farewell))


async def connect(target: str, tls: "ssl.SSLContext | None" = None) -> Connection:
    """A connection to "host:port"; raises OSError."""
    host, _, port = target.rpartition(":")
    loop = asyncio.get_running_loop()
    try:
        _, connection = await loop.create_connection(lambda: Connection(target), host.strip("[]"), int(port), ssl=tls)
    except UnicodeError as error:
        raise OSError(f"{host} is no name of a host: {error}") from error
    return connection
