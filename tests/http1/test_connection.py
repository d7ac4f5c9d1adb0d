"""Connections over real sockets, with applications of a few lines behind them."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from gateway.http1 import Connection, Serving, connection
from gateway.http1.exchange import App, Message
from gateway.http_loop import READ_NOW, WHEN_LEFT, WRITE_NOW

Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

GET = b"GET /%b HTTP/1.1\r\nHost: here\r\n\r\n"
START = {"type": "http.response.start", "status": 200, "headers": []}


def post(body: bytes, *lines: bytes) -> bytes:
    head = b"\r\n".join((b"POST / HTTP/1.1", b"Host: here", *lines, b"Content-Length: %d" % len(body)))
    return head + b"\r\n\r\n" + body


async def reply(send: Send, body: bytes, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def read(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        body, more = body + message["body"], message["more_body"]
    return body


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    """The path and the body come back."""
    await reply(send, scope["path"].encode() + await read(receive))


class Client:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> tuple[int, dict[str, str]]:
        line, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        return int(line.split(" ")[1]), dict(each.split(": ", 1) for each in lines)

    async def answer(self) -> tuple[int, bytes]:
        status, headers = await self.head()
        return status, await self.reader.readexactly(int(headers["content-length"]))

    async def rest(self) -> bytes:
        """Until the server ends the connection."""
        return await self.reader.read()


class Http2(list[bytes]):
    """What was handed on as HTTP/2."""

    def take_over(self, transport: asyncio.Transport, data: bytes) -> None:
        self.append(data)
        transport.close()


NO_HTTP2 = Http2()
type Connect = Callable[[], Awaitable[Client]]


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110  # there is no event for what we look at
        await asyncio.sleep(0)


@asynccontextmanager
async def serving(app: App, http2: Http2 = NO_HTTP2) -> AsyncIterator[tuple[Serving, Connect]]:
    shared = Serving(app, {}, http2.take_over)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(shared), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clients: list[Client] = []

    async def connect() -> Client:
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", port)))
        return clients[-1]

    try:
        async with asyncio.timeout(20):
            yield shared, connect
    finally:
        server.close()
        for client in clients:
            client.writer.transport.abort()
            with suppress(ConnectionError):
                await client.writer.wait_closed()
        await until(lambda: not shared.connections)


def run(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(story())  # type: ignore[arg-type]


def test_requests_follow_each_other_on_a_connection() -> None:
    async def story() -> None:
        async with serving(echo) as (_, connect):
            client = await connect()
            for name in (b"a", b"b"):
                client.send(GET % name)
                assert await client.answer() == (200, b"/" + name)
            client.send(post(b"body"))
            assert await client.answer() == (200, b"/body")

    run(story)


def test_a_pipeline_is_answered_in_its_order_however_long() -> None:
    async def story() -> None:
        async with serving(echo) as (_, connect):
            client = await connect()
            client.send(b"".join(GET % b"%d" % number for number in range(3000)))
            for number in range(3000):
                assert await client.answer() == (200, b"/%d" % number)

    run(story)


@pytest.mark.parametrize("size", [1, 3, 17])
def test_the_cuts_of_the_network_do_not_matter(size: int) -> None:
    chunked = b"POST /c HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    data = b"\r\n" + GET % b"a" + post(b"body") + chunked + GET % b"z"

    async def story() -> None:
        async with serving(echo) as (_, connect):
            client = await connect()
            client.writer.transport.set_write_buffer_limits(0)
            for start in range(0, len(data), size):
                client.send(data[start : start + size])
                await asyncio.sleep(0)
            bodies = [(await client.answer())[1] for _ in range(4)]
            assert bodies == [b"/a", b"/body", b"/cabcde", b"/z"]

    run(story)


def test_a_head_request_gets_a_head() -> None:
    async def story() -> None:
        async with serving(echo) as (_, connect):
            client = await connect()
            client.send(b"HEAD /abc HTTP/1.1\r\nHost: here\r\n\r\n" + GET % b"d")
            status, headers = await client.head()
            assert (status, headers["content-length"]) == (200, "4")
            assert await client.answer() == (200, b"/d")

    run(story)


def test_a_body_that_is_here_can_be_read_without_waiting_and_once() -> None:
    found: list[bytes | None] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        read_now = scope["extensions"][READ_NOW]
        found.append(read_now())
        body = await read(receive) if found[-1] is None else found[-1]
        assert read_now() is None
        await reply(send, body)

    async def story() -> None:
        async with serving(app) as (_, connect):
            client = await connect()
            client.send(post(b"whole") + post(b"next"))
            assert await client.answer() == (200, b"whole")
            assert await client.answer() == (200, b"next")
            head, _, body = post(b"in parts").partition(b"\r\n\r\n")
            client.send(head + b"\r\n\r\n" + body[:3])
            await until(lambda: len(found) == 3)
            client.send(body[3:])
            assert await client.answer() == (200, b"in parts")

    run(story)
    assert found == [b"whole", b"next", None]


def test_an_answer_without_a_length_is_chunked_or_ends_with_the_connection() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        assert not scope["extensions"][WRITE_NOW](b"too early")
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        if not scope["extensions"][WRITE_NOW](b"two"):
            await send({"type": "http.response.body", "body": b"two", "more_body": True})
        await send({"type": "http.response.body", "body": b"!"})

    async def story() -> None:
        async with serving(app) as (_, connect):
            client = await connect()
            client.send(GET % b"")
            status, headers = await client.head()
            assert (status, headers["transfer-encoding"]) == (200, "chunked")
            body = await client.reader.readuntil(b"0\r\n\r\n")
            assert body == b"3\r\none\r\n3\r\ntwo\r\n1\r\n!\r\n0\r\n\r\n"

            client.send(b"GET / HTTP/1.0\r\n\r\n")
            status, headers = await client.head()
            assert headers["connection"] == "close"
            assert await client.rest() == b"onetwo!"

    run(story)


def test_a_client_that_waits_is_told_to_go_on_when_its_body_is_wanted() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] == "/no":
            await reply(send, b"no", 401)
        else:
            await echo(scope, receive, send)

    async def story() -> None:
        async with serving(app) as (_, connect):
            client = await connect()
            head, body = post(b"body", b"Expect: 100-continue").split(b"\r\n\r\n")
            client.send(head + b"\r\n\r\n")
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(body)
            assert await client.answer() == (200, b"/body")

            client.send(head.replace(b" / ", b" /no ") + b"\r\n\r\n")
            status, headers = await client.head()
            assert (status, headers["connection"]) == (401, "close")

    run(story)


def test_an_answer_before_the_end_of_a_body_reaches_a_client_that_goes_on_sending() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await reply(send, b"too large", 413)

    async def story() -> None:
        async with serving(app) as (_, connect):
            client = await connect()
            head = post(b"x" * 4_000_000)
            client.send(head)
            assert await client.answer() == (413, b"too large")
            assert await client.rest() == b""

    run(story)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/3.0\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * connection.HEAD_BYTES, 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n", 400),
    ],
)
def test_what_is_no_request_gets_openai_s_error_and_the_end(data: bytes, status: int) -> None:
    async def story() -> None:
        async with serving(echo) as (_, connect):
            client = await connect()
            client.send(GET % b"a" + data)
            assert await client.answer() == (200, b"/a")
            told, body = await client.answer()
            assert told == status
            assert json.loads(body)["error"]["type"] == "invalid_request_error"
            assert await client.rest() == b""

    run(story)


def test_a_body_that_breaks_during_its_answer_cuts_that_off() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    async def story() -> None:
        async with serving(app) as (_, connect):
            client = await connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            await client.head()
            client.send(b"x\r\n")
            assert await client.rest() == b"5\r\nbegun\r\n"

    run(story)


def test_an_application_that_fails_is_no_whole_answer() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] == "/late":
            await send(START)
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        elif scope["path"] == "/half":
            await send(START)
        raise ValueError("on purpose")

    async def story() -> None:
        async with serving(app) as (_, connect):
            client = await connect()
            client.send(GET % b"" + GET % b"half")
            assert await client.answer() == (500, b"")
            assert await client.answer() == (500, b"")
            client.send(GET % b"late")
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await client.reader.readuntil(b"0\r\n\r\n")

    run(story)


def test_a_slow_reader_stops_its_sender_and_nobody_else() -> None:
    sent = 0

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        nonlocal sent
        if scope["path"] == "/other":
            await reply(send, b"")
            return
        await send(START)
        while sent < 1000:
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
            sent += 1
        await send({"type": "http.response.body", "body": b""})

    async def story() -> None:
        async with serving(app) as (shared, connect):
            slow, other = await connect(), await connect()
            slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
            slow.send(GET % b"")
            before = -1
            while before != sent or sent == 0:
                before = sent
                for _ in range(20):
                    other.send(GET % b"other")
                    assert await other.answer() == (200, b"")
            assert sent < 1000
            (busy,) = [each for each in shared.connections if not each.can_write]
            assert busy.transport.get_write_buffer_size() < 300_000
            slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
            while not slow.reader.at_eof() and sent < 1000:
                await slow.reader.read(1 << 20)
            assert sent == 1000

    run(story)


def test_who_reads_nothing_is_cut_and_who_reads_on_is_not() -> None:
    left, ended = asyncio.Event(), []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        scope["extensions"][WHEN_LEFT](left.set)
        await send(START)
        while not left.is_set() and len(ended) < 200:
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
            ended.append(1)
        await send({"type": "http.response.body", "body": b""})

    async def story() -> None:
        async with serving(app) as (shared, connect):
            shared.slow_reader_seconds = 0.05
            slow, steady = await connect(), await connect()
            slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
            slow.send(GET % b"")
            await left.wait()
            await until(lambda: len(shared.connections) == 1)
            left.clear()
            ended.clear()
            steady.send(GET % b"")
            while not steady.reader.at_eof() and len(ended) < 200:
                await steady.reader.read(1 << 16)
            assert len(ended) == 200

    run(story)


def test_connections_above_the_limit_are_closed() -> None:
    async def story() -> None:
        async with serving(echo) as (shared, connect):
            shared.max_connections = 2
            first, second, third = [await connect() for _ in range(3)]
            with suppress(ConnectionError):
                assert await third.rest() == b""
            for client in (first, second):
                client.send(GET % b"a")
                assert await client.answer() == (200, b"/a")
            first.writer.close()
            await until(lambda: len(shared.connections) == 1)
            client = await connect()
            client.send(GET % b"b")
            assert await client.answer() == (200, b"/b")

    run(story)


def test_a_large_body_waits_for_its_reader() -> None:
    body = bytes(range(256)) * 40_000
    may_read = asyncio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await may_read.wait()
        await reply(send, b"same" if await read(receive) == body else b"other")

    async def story() -> None:
        async with serving(app) as (shared, connect):
            client = await connect()
            client.send(post(body))
            await until(lambda: bool(shared.connections))
            (busy,) = shared.connections
            await until(lambda: not busy.transport.is_reading())
            may_read.set()
            assert await client.answer() == (200, b"same")

    run(story)


@pytest.mark.parametrize("how", ["call", "message"])
def test_a_client_that_leaves_is_noticed_once(how: str) -> None:
    left, begun = asyncio.Event(), asyncio.Event()
    calls = 0

    def note() -> None:
        nonlocal calls
        calls += 1
        left.set()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        begun.set()
        if how == "call":
            scope["extensions"][WHEN_LEFT](note)
            await left.wait()
        else:
            assert (await receive())["type"] == "http.disconnect"
            note()
        await send(START)  # to nobody

    async def story() -> None:
        async with serving(app) as (shared, connect):
            client = await connect()
            client.send(post(b"body"))
            await begun.wait()
            client.writer.close()
            await left.wait()
            await until(lambda: not shared.connections)
            assert calls == 1

    run(story)


def test_who_asks_late_hears_at_once_and_who_is_done_hears_nothing() -> None:
    heard: list[str] = []
    done = asyncio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        when_left = scope["extensions"][WHEN_LEFT]
        if scope["path"] == "/late":
            while (await receive())["type"] != "http.disconnect":
                pass
            when_left(lambda: heard.append("late"))
            done.set()
        else:
            when_left(lambda: heard.append("answered"))
            await reply(send, b"")

    async def story() -> None:
        async with serving(app) as (_, connect):
            client = await connect()
            client.send(GET % b"")
            await client.answer()
            client.send(GET % b"late")
            client.writer.close()
            await done.wait()
            assert heard == ["late"]

    run(story)


def test_idle_connections_end_and_so_do_heads_that_never_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "KEEP_ALIVE_SECONDS", 0.05)

    async def story() -> None:
        async with serving(echo) as (shared, connect):
            idle, used, half = await connect(), await connect(), await connect()
            used.send(GET % b"a")
            assert await used.answer() == (200, b"/a")
            half.send(b"GET / HTTP/1.1\r\n")
            assert [await each.rest() for each in (idle, used, half)] == [b""] * 3
            await until(lambda: not shared.connections)

    run(story)


def test_a_busy_connection_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "KEEP_ALIVE_SECONDS", 0.01)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        until = loop.create_future()
        loop.call_later(0.05, until.set_result, None)
        await until
        await reply(send, b"at last")

    async def story() -> None:
        async with serving(app) as (_, connect):
            client = await connect()
            client.send(GET % b"")
            assert await client.answer() == (200, b"at last")

    run(story)


def test_stopping_ends_idle_connections_now_and_busy_ones_with_their_answer() -> None:
    begun, may_answer = asyncio.Event(), asyncio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        begun.set()
        await may_answer.wait()
        await reply(send, b"done")

    async def story() -> None:
        async with serving(app) as (shared, connect):
            idle, busy = await connect(), await connect()
            busy.send(GET % b"")
            await begun.wait()
            await until(lambda: len(shared.connections) == 2)
            shared.stop()
            assert await idle.rest() == b""
            may_answer.set()
            status, headers = await busy.head()
            assert (status, headers["connection"]) == (200, "close")
            assert await busy.rest() == b"done"

    run(story)


def test_http_2_is_handed_on_with_what_was_read() -> None:
    http2 = Http2()

    async def story() -> None:
        async with serving(echo, http2) as (shared, connect):
            client = await connect()
            client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nframes")
            assert await client.rest() == b""
            assert http2 == [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nframes"]
            assert not shared.connections

    run(story)


def test_the_scope_says_what_was_asked() -> None:
    seen: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await reply(send, b"")

    async def story() -> None:
        async with serving(app) as (_, connect):
            client = await connect()
            client.send(b"GET http://here/a%20b%c3%a9?q=%20 HTTP/1.1\r\nHost: here\r\nX-A: B\r\n\r\n")
            await client.answer()

    run(story)
    (scope,) = seen
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a b\xe9", b"/a%20b%c3%a9", b"q=%20")
    assert (scope["method"], scope["http_version"], scope["headers"][1]) == ("GET", "1.1", (b"x-a", b"B"))
    assert scope["client"][0] == scope["server"][0] == "127.0.0.1"


def test_a_response_without_a_start_is_a_bug_that_is_told() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.body", "body": b"x"})

    async def story() -> None:
        async with serving(app) as (_, connect):
            client = await connect()
            client.send(GET % b"")
            assert await client.answer() == (500, b"")

    run(story)
