"""Tests of our gRPC client connection against the h2 library's idea of HTTP/2, byte by byte and without sockets."""

import asyncio
import itertools
import struct
from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_adapters.http2 import CallFailed, Connection, connection, frames

PATH = "/package.Service/Method"
OK_HEADERS = [(":status", "200"), ("content-type", "application/grpc")]
Settings = dict[int, int]


class Pipe(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert data or not self.is_closed
        self.written += data

    def abort(self) -> None:
        self.is_closed = True


class Caller:
    """Remembers what its call brought."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.ends: list[CallFailed | None] = []

    def received(self, message: bytes) -> None:
        assert not self.ends
        self.messages.append(message)

    def ended(self, failure: CallFailed | None) -> None:
        self.ends.append(failure)

    @property
    def failure(self) -> tuple[str, str]:
        (failure,) = self.ends
        assert failure is not None
        return failure.code, failure.details


class Talker(Caller):
    """Sends these messages, each when the one before has gone out."""

    def __init__(self, server: "Server", *messages: bytes) -> None:
        super().__init__()
        self.server = server
        self.unsent = [*messages]
        self.is_clear = server.client.begin(PATH, self.unsent.pop(0), self)
        self.talk()

    def talk(self) -> None:
        while self.unsent and self.is_clear:
            self.is_clear = self.server.client.send(self, self.unsent.pop(0))

    def sent(self) -> None:
        assert not self.is_clear and not self.ends
        self.is_clear = True
        self.talk()


class Server:
    """h2's side of a connection to `client`."""

    def __init__(self, **changes: int) -> None:
        self.pipe = Pipe()
        self.client = Connection("host:1")
        self.events: list[h2.events.Event] = []
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={getattr(h2.settings.SettingCodes, name.upper()): value for name, value in changes.items()},
        )
        self.h2.initiate_connection()
        self.client.connection_made(self.pipe)
        self.pump()

    def pump(self) -> None:
        """Both sides read all that the other has written, until neither writes anything."""
        while self.pipe.written or (data := self.h2.data_to_send()):
            written = bytes(self.pipe.written)
            self.pipe.written.clear()
            events = self.h2.receive_data(written) if written else []
            self.events += events
            for event in events:
                if isinstance(event, h2.events.DataReceived):
                    assert event.flow_controlled_length is not None and event.stream_id is not None
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if data := (b"" if written else data) + self.h2.data_to_send():
                self.client.data_received(data)

    def call(self, message: bytes = b"question") -> tuple[Caller, int]:
        """(who made a call, its number here)"""
        caller = Caller()
        self.client.call(PATH, message, caller)
        self.pump()
        numbers = [event.stream_id for event in self.events if isinstance(event, h2.events.RequestReceived)]
        return caller, numbers[-1] or 0

    def got(self, number: int) -> bytes:
        """The body of a request."""
        return b"".join(
            event.data or b""
            for event in self.events
            if isinstance(event, h2.events.DataReceived) and event.stream_id == number
        )

    def has(self, kind: type[h2.events.Event], number: int) -> bool:
        return any(isinstance(event, kind) and getattr(event, "stream_id", 0) == number for event in self.events)

    def say(self, number: int, *frames: bytes, status: str | None = "0", **headers: str) -> None:
        """An answer in these frames, and its end."""
        self.h2.send_headers(number, OK_HEADERS)
        for data in frames:
            self.h2.send_data(number, data)
        if status is not None:
            trailers = [("grpc-status", status), *((key.replace("_", "-"), value) for key, value in headers.items())]
            self.h2.send_headers(number, trailers, end_stream=True)
        self.pump()


def framed(*messages: bytes) -> bytes:
    return b"".join(struct.pack(">BI", 0, len(message)) + message for message in messages)


def test_a_request_arrives_as_grpc_has_it() -> None:
    server = Server()
    _, number = server.call(b"question")
    (request,) = [event for event in server.events if isinstance(event, h2.events.RequestReceived)]
    assert dict(request.headers or ()) == {
        ":method": "POST",
        ":scheme": "http",
        ":path": PATH,
        ":authority": "host:1",
        "content-type": "application/grpc",
        "user-agent": "nogil-gateway",
        "te": "trailers",
    }
    assert server.got(number) == framed(b"question")
    assert server.has(h2.events.StreamEnded, number)


def test_an_authority_of_any_length_is_written() -> None:
    for length in (126, 127, 128, 255, 300, 20_000):
        head = frames.request_head("/a", "a" * length)
        assert ("a" * length) in [value for _, value in hpack.Decoder().decode(head)]


def test_messages_come_and_then_the_end() -> None:
    server = Server()
    caller, number = server.call()
    server.say(number, framed(b"one", b""), framed(b"three"))
    assert caller.messages == [b"one", b"", b"three"]
    assert caller.ends == [None]


@settings(max_examples=50)
@given(
    messages=st.lists(st.binary(max_size=50), max_size=5),
    frame_size=st.integers(1, 40),
    read_size=st.integers(1, 60),
    padding=st.none() | st.integers(0, 20),
)
def test_messages_may_be_cut_anywhere(
    messages: list[bytes], frame_size: int, read_size: int, padding: int | None
) -> None:
    server = Server()
    caller, number = server.call()
    server.h2.send_headers(number, OK_HEADERS)
    body = framed(*messages)
    for start in range(0, len(body), frame_size):
        server.h2.send_data(number, body[start : start + frame_size], pad_length=padding)
    server.h2.send_headers(number, [("grpc-status", "0")], end_stream=True)
    data = server.h2.data_to_send()
    for start in range(0, len(data), read_size):
        server.client.data_received(data[start : start + read_size])
    assert caller.messages == messages and caller.ends == [None]


def test_a_large_request_goes_through_small_windows_and_frames() -> None:
    server = Server(initial_window_size=10, max_frame_size=16_384)
    message = bytes(range(256)) * 1000
    _, first = server.call(message)
    _, second = server.call(b"small")
    assert server.got(first) == framed(message) and server.got(second) == framed(b"small")
    assert server.has(h2.events.StreamEnded, first) and server.has(h2.events.StreamEnded, second)


def test_a_request_waits_for_a_window_and_goes_on_when_it_opens() -> None:
    server = Server()
    server.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    server.pump()
    _, number = server.call(b"question")
    assert server.got(number) == b""
    server.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 3})
    server.pump()
    assert server.got(number) == framed(b"question")


@settings(max_examples=50)
@given(messages=st.lists(st.binary(max_size=70), min_size=1, max_size=6), window=st.integers(0, 100))
def test_a_call_that_goes_on_sends_one_message_after_the_other(messages: list[bytes], window: int) -> None:
    server = Server(initial_window_size=window)
    server.pump()
    talker = Talker(server, *messages)
    server.pump()
    assert talker.is_clear is not (window == 0)
    server.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window + 1})
    server.pump()
    assert talker.is_clear and not talker.unsent
    assert server.got(1) == framed(*messages)
    assert not server.has(h2.events.StreamEnded, 1)
    server.client.cancel(talker)
    server.pump()
    assert server.has(h2.events.StreamReset, 1)
    assert server.client.send(talker, b"late"), "nobody is kept waiting for it"
    server.pump()
    assert not talker.ends


def test_what_is_sent_before_there_is_a_place_waits_in_order() -> None:
    server = Server(max_concurrent_streams=1)
    _, number = server.call()
    talker = Talker(server, b"one", b"two")
    assert not talker.is_clear and talker.unsent == [b"two"]
    assert not server.client.send(talker, b"in between"), "whoever does not wait loses nothing"
    server.say(number)
    assert talker.is_clear and server.got(number + 2) == framed(b"one", b"in between", b"two")


def test_a_call_that_goes_on_is_left_when_the_server_ends_it() -> None:
    server = Server()
    talker = Talker(server, b"hello")
    server.pump()
    server.say(1, framed(b"good", b"bye"))
    assert (talker.messages, talker.ends) == ([b"good", b"bye"], [None])
    assert server.client.send(talker, b"more")
    assert server.got(1) == framed(b"hello")


def test_windows_are_made_whole_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RENEWAL", 1000)
    server = Server()
    caller, number = server.call()
    server.say(number, *[framed(bytes(600))] * 4, status=None)
    assert len(caller.messages) == 4
    updates = [event for event in server.events if isinstance(event, h2.events.WindowUpdated)]
    assert {event.stream_id for event in updates} == {0, number}


def test_headers_may_come_in_pieces() -> None:
    server = Server()
    caller, number = server.call()
    block = hpack.Encoder().encode([*OK_HEADERS, ("grpc-status", "13"), ("grpc-message", "x" * 1000)])
    pieces = [block[start : start + 100] for start in range(0, len(block), 100)]
    server.client.data_received(frames.frame(frames.HEADERS, frames.END_STREAM, number, pieces[0]))
    for piece in pieces[1:]:
        flags = frames.END_HEADERS if piece is pieces[-1] else 0
        server.client.data_received(frames.frame(frames.CONTINUATION, flags, number, piece))
    assert caller.failure == ("INTERNAL", "x" * 1000)


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "x", "y" * 300])), max_size=3),
            st.booleans(),  # whether these headers enter the table
            st.sampled_from([None, None, None, 0, 64, 4096]),  # the table's new size
        ),
        max_size=20,
    )
)
@settings(max_examples=100)
def test_a_block_of_headers_means_what_the_table_makes_of_it(
    answers: list[tuple[list[tuple[str, str]], bool, int | None]],
) -> None:
    server, encoder, meant = Server(), hpack.Encoder(), hpack.Decoder()
    for headers, are_kept, size in answers:
        if size is not None:
            encoder.header_table_size = size
        block = encoder.encode([hpack.HeaderTuple(*each) for each in headers] if are_kept else headers_unkept(headers))
        assert server.client._headers_in(block) == meant.decode(block)


def headers_unkept(headers: list[tuple[str, str]]) -> list[hpack.NeverIndexedHeaderTuple]:
    return [hpack.NeverIndexedHeaderTuple(*each) for each in headers]


def test_blocks_of_headers_that_come_again_are_decoded_once() -> None:
    server = Server()
    server.say(server.call()[1])
    server.say(server.call()[1])
    decoder, server.client._decoder = server.client._decoder, None  # type: ignore[assignment]
    caller, number = server.call()
    server.say(number, framed(b"a"))
    assert (caller.messages, caller.ends) == ([b"a"], [None])
    server.client._decoder = decoder
    caller, number = server.call()
    server.say(number, status="5")
    assert caller.failure == ("NOT_FOUND", "")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([*OK_HEADERS, ("grpc-status", "3"), ("grpc-message", "na%C3%AFve %22x")], ("INVALID_ARGUMENT", 'naïve "x')),
        ([*OK_HEADERS, ("grpc-status", "12")], ("UNIMPLEMENTED", "")),
        ([*OK_HEADERS, ("grpc-status", "99"), ("grpc-message", "?")], ("UNKNOWN", "?")),
        ([*OK_HEADERS, ("grpc-status", "x")], ("UNKNOWN", "")),
        ([(":status", "503")], ("UNAVAILABLE", "answered by HTTP 503 and no gRPC status")),
        ([(":status", "404")], ("UNIMPLEMENTED", "answered by HTTP 404 and no gRPC status")),
        ([(":status", "200")], ("UNKNOWN", "answered by HTTP 200 and no gRPC status")),
    ],
)  # fmt: skip
def test_an_answer_of_headers_alone_is_a_failure(headers: list[tuple[str, str]], expected: tuple[str, str]) -> None:
    server = Server()
    caller, number = server.call()
    server.h2.send_headers(number, headers, end_stream=True)
    server.pump()
    assert caller.failure == expected


def test_an_end_without_a_status_is_a_failure() -> None:
    server = Server()
    caller, number = server.call()
    server.h2.send_headers(number, OK_HEADERS)
    server.h2.send_data(number, framed(b"a"), end_stream=True)
    server.pump()
    assert caller.messages == [b"a"]
    assert caller.failure == ("INTERNAL", "the server ended the call without a status")


@pytest.mark.parametrize(
    ("code", "status"), [(7, "UNAVAILABLE"), (8, "CANCELLED"), (11, "RESOURCE_EXHAUSTED"), (2, "INTERNAL")]
)
def test_a_reset_is_a_failure(code: int, status: str) -> None:
    server = Server()
    caller, number = server.call()
    server.h2.reset_stream(number, code)
    server.pump()
    assert caller.failure == (status, f"the server reset the call ({code})")


def test_a_server_that_needs_no_more_of_a_request_is_spared_the_rest() -> None:
    server = Server()
    server.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    server.pump()
    caller, number = server.call(bytes(100))
    server.h2.send_headers(number, [*OK_HEADERS, ("grpc-status", "8")], end_stream=True)
    server.pump()
    assert caller.failure[0] == "RESOURCE_EXHAUSTED"
    assert server.has(h2.events.StreamReset, number)


def test_a_cancelled_call_hears_nothing_more() -> None:
    server = Server()
    caller, number = server.call()
    other, other_number = server.call()
    server.h2.send_headers(number, OK_HEADERS)
    server.h2.send_data(number, framed(b"late"))
    late = server.h2.data_to_send()
    server.client.cancel(caller)
    server.client.cancel(caller)
    server.client.data_received(late)
    server.pump()
    assert server.has(h2.events.StreamReset, number)
    server.say(other_number, framed(b"a"))
    assert not caller.messages and not caller.ends
    assert other.messages == [b"a"], "the headers of the one that was cancelled were read all the same"


def test_a_ping_is_answered() -> None:
    server = Server()
    server.h2.ping(b"12345678")
    server.pump()
    assert any(isinstance(event, h2.events.PingAckReceived) for event in server.events)


def test_calls_wait_while_the_server_takes_no_more() -> None:
    server = Server(max_concurrent_streams=2)
    (first, one), (second, two) = server.call(b"1"), server.call(b"2")
    third, fourth = Caller(), Caller()
    server.client.call(PATH, b"3", third)
    server.client.call(PATH, b"4", fourth)
    server.client.cancel(third)
    server.pump()
    assert server.h2.open_inbound_streams == 2
    server.say(one)
    server.say(two)
    server.say(5, framed(b"to 4"))
    assert server.got(5) == framed(b"4")
    assert fourth.messages == [b"to 4"] and not third.ends
    assert first.ends == second.ends == [None]


def test_a_server_that_goes_away_finishes_what_it_has_taken() -> None:
    server = Server()
    taken, number = server.call()
    refused, _ = server.call()
    server.h2.close_connection(last_stream_id=number, additional_data=b"maintenance")
    server.client.data_received(server.h2.data_to_send())
    assert refused.failure == ("UNAVAILABLE", "the server is going away: maintenance")
    late = Caller()
    server.client.call(PATH, b"", late)
    assert late.failure == refused.failure
    assert not taken.ends
    answer = frames.frame(frames.DATA, 0, number, framed(b"still")) + frames.frame(
        frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, number, b"\x00\x0bgrpc-status\x010"
    )
    server.client.data_received(answer)
    assert taken.messages == [b"still"] and taken.ends == [None]


def test_a_connection_that_has_used_up_its_numbers_takes_nothing_new() -> None:
    server = Server()
    server.client._numbers = itertools.count(frames.LARGEST_WINDOW, 2)
    caller, number = server.call()
    late = Caller()
    server.client.call(PATH, b"", late)
    assert late.failure == ("UNAVAILABLE", "the connection has used up its numbers")
    server.say(number, framed(b"last"))
    assert caller.messages == [b"last"] and caller.ends == [None]


def test_a_host_that_is_no_name_is_a_place_that_cannot_be_reached() -> None:
    with pytest.raises(OSError, match=r"\.b is no name of a host"):
        asyncio.run(connection.connect(".b:1"))


def test_a_broken_connection_ends_every_call() -> None:
    for end, reason in ((None, "the server closed the connection"), (OSError("reset"), "the connection broke: reset")):
        server = Server(max_concurrent_streams=1)
        caller, _ = server.call()
        waiting = Caller()
        server.client.call(PATH, b"", waiting)
        server.client.connection_lost(end)
        late = Caller()
        server.client.call(PATH, b"", late)
        assert caller.failure == waiting.failure == late.failure == ("UNAVAILABLE", reason)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (lambda number: b"HTTP/1.1 400 Bad Request\r\n\r\n", "a frame is larger than we take"),
        (lambda number: frames.frame(frames.PUSH_PROMISE, 4, number, bytes(8)), "it pushes"),
        (lambda number: frames.frame(frames.CONTINUATION, 4, number, b""), "that have not begun"),
        (lambda number: frames.frame(1, 0, number, b"") + frames.frame(frames.PING, 0, 0, bytes(8)), "must go on"),
        (lambda number: frames.frame(frames.HEADERS, 4, number, b"\xff\xff\xff"), ""),
        (lambda number: frames.frame(frames.DATA, frames.PADDED, number, b"\x05abc"), "more padding than frame"),
        (lambda number: frames.frame(frames.DATA, frames.PADDED, number, b""), "more padding than frame"),
        (lambda number: frames.frame(frames.DATA, 0, number, b"\x01\0\0\0\0"), "compressed"),
        (lambda number: frames.frame(frames.WINDOW_UPDATE, 0, 0, b"\0"), ""),
        (lambda number: frames.frame(frames.SETTINGS, 0, 0, bytes(5)), ""),
        (lambda number: frames.frame(frames.GOAWAY, 0, 0, b""), ""),
    ],
)  # fmt: skip
def test_a_server_that_breaks_the_rules_is_left(frames: Callable[[int], bytes], reason: str) -> None:
    server = Server()
    caller, number = server.call()
    server.client.data_received(frames(number))
    code, details = caller.failure
    assert code == "UNAVAILABLE" and "does not speak HTTP/2" in details and reason in details
    assert server.pipe.is_closed


def test_frames_that_mean_nothing_are_skipped() -> None:
    server = Server()
    caller, number = server.call()
    for kind, payload in ((2, bytes(5)), (frames.RST_STREAM, bytes(4)), (frames.WINDOW_UPDATE, bytes(4)), (200, b"?")):
        server.client.data_received(frames.frame(kind, 0, 99, payload))
    server.client.data_received(frames.frame(frames.DATA, 0, 99, framed(b"?")))
    server.say(number, framed(b"a"))
    assert caller.messages == [b"a"]


def test_a_question_has_one_answer_or_fails_in_time() -> None:
    async def story() -> None:
        server = Server()
        asking = [asyncio.create_task(server.client.ask(PATH, b"?", seconds)) for seconds in (5, 5, 5, 0.01)]
        await asyncio.sleep(0)
        server.pump()
        server.say(1, framed(b"!"))
        server.say(3)
        server.say(5, status="5", grpc_message="none")
        assert await asking[0] == b"!"
        for task, code in zip(asking[1:], ("INTERNAL", "NOT_FOUND", "DEADLINE_EXCEEDED"), strict=True):
            with pytest.raises(CallFailed) as caught:
                await task
            assert caught.value.code == code
        server.pump()
        assert server.has(h2.events.StreamReset, 7), "what nobody waits for any more is cancelled"

    asyncio.run(story())
