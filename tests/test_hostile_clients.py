"""Clients that mean harm: requests that two servers might read differently, floods, and readers that do not read.

Each test ends with the same question: is everybody else still served, and is nothing left over?
"""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Self

import h2.config
import h2.connection
import h2.settings
import psutil
import pytest

from engine_adapters.base import FinishReason
from tests import chat
from tests.executor import FakeExecutor, flood
from tests.processes import PATIENCE, Gateway, eventually, wait_until_idle

PATH = "/v1/chat/completions"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
MEMORY = 48 << 20
"""What no flood here may add to the process, and each would if it were kept."""


@pytest.fixture(scope="module")
def target(acted_executor: FakeExecutor) -> Iterator[Gateway]:
    """One loop; it takes 300 connections, and is tired of slow readers soon."""
    options = ("--max-connections", "300", "--dead-client-seconds", "1", "--max-body-mb", "2")
    with Gateway(*options, workers=[acted_executor.url]) as gateway:
        yield gateway.wait_until_ready()
        wait_until_idle(gateway)
        assert gateway.metric("gateway_requests_total", status="500") == gateway.metric("gateway_body_bytes") == 0
        assert not [entry for entry in gateway.log() if entry["level"] in ("WARNING", "ERROR")]
        assert not gateway.lines("^[A-Z]"), "something wrote past the log"
        assert gateway.terminate() == 0


@pytest.fixture(autouse=True)
def others_are_served(target: Gateway, acted_executor: FakeExecutor) -> Iterator[None]:
    acted_executor.start_anew()
    yield
    assert target.client.get("/health").status_code == 200
    wait_until_idle(target)


def connected(gateway: Gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE)


def exchanged(gateway: Gateway, data: bytes) -> bytes:
    """All that comes back until the gateway ends the connection."""
    with connected(gateway) as connection, connection.makefile("rb") as answers:
        with suppress(ConnectionError):  # it need not read all
            connection.sendall(data)
        return answers.read()


def memory(gateway: Gateway) -> int:
    size: int = psutil.Process(gateway.child.pid).memory_info().rss
    return size


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join((b"POST %b HTTP/1.1" % PATH.encode(), b"host: x", *lines, b"", body))


def chunked(body: bytes) -> bytes:
    return post(b"transfer-encoding: chunked", body=body)


def get(*lines: bytes, target: bytes = b"/health") -> bytes:
    return b"\r\n".join((b"GET %b HTTP/1.1" % target, *lines, b"", b""))


AMBIGUOUS: dict[str, bytes] = {
    "a length and chunks": post(b"content-length: 4", b"transfer-encoding: chunked", body=b"0\r\n\r\n"),
    "chunks and a length": post(b"transfer-encoding: chunked", b"content-length: 4", body=b"0\r\n\r\n"),
    "the same length twice": post(b"content-length: 2", b"content-length: 2", body=b"{}"),
    "two lengths": post(b"content-length: 2", b"content-length: 36", body=b"{}"),
    "a list of lengths": post(b"content-length: 2, 2", body=b"{}"),
    "a length with a sign": post(b"content-length: +2", body=b"{}"),
    "a length in hexadecimal": post(b"content-length: 0x2", body=b"{}"),
    "a length with a blank": post(b"content-length: 2 0", body=b"{}"),
    "an endless length": post(b"content-length: " + b"9" * 40, body=b"{}"),
    "an unknown coding": post(b"transfer-encoding: xchunked", body=b"0\r\n\r\n"),
    "a list of codings": post(b"transfer-encoding: chunked, identity", body=b"0\r\n\r\n"),
    "two codings": post(b"transfer-encoding: chunked", b"transfer-encoding: identity", body=b"0\r\n\r\n"),
    "a coding with a tab of another kind": post(b"transfer-encoding: \x0bchunked", body=b"0\r\n\r\n"),
    "chunks before 1.1": b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded line": get(b"host: x", b"content-length: 0", b" , 36"),
    "a bare line feed in the head": b"GET /health HTTP/1.1\nhost: x\r\ncontent-length: 36\r\n\r\n",
    "a bare line feed between headers": get(b"host: x\ncontent-length: 36"),
    "a bare carriage return": get(b"host: x\rcontent-length: 36"),
    "a blank before the colon": get(b"host: x", b"content-length : 36"),
    "a blank before the name": get(b"host: x", b" content-length: 36"),
    "a header without a colon": get(b"host: x", b"content-length"),
    "a header without a name": get(b"host: x", b": 36"),
    "a zero byte": get(b"host: x", b"x: a\x00b"),
    "no host": get(),
    "two hosts": get(b"host: x", b"host: y"),
    "a target with a blank": get(b"host: x", target=b"/health /x"),
    "no version": b"GET /health\r\nhost: x\r\n\r\n",
    "another version": b"GET /health HTTP/3.0\r\nhost: x\r\n\r\n",
    "no method": b" /health HTTP/1.1\r\nhost: x\r\n\r\n",
    "a tunnel": b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n",
    "a chunk's size in hexadecimal": chunked(b"0x2\r\n{}\r\n0\r\n\r\n"),
    "a chunk's size with a sign": chunked(b"+2\r\n{}\r\n0\r\n\r\n"),
    "a chunk's size below zero": chunked(b"-2\r\n{}\r\n0\r\n\r\n"),
    "a chunk's size without an end": chunked(b"f" * 40 + b"\r\n"),
    "a chunk's size with underscores": chunked(b"0_2\r\n{}\r\n0\r\n\r\n"),
    "a chunk without a size": chunked(b"\r\n{}\r\n0\r\n\r\n"),
    "a chunk that is longer than it says": chunked(b"1\r\n{}\r\n0\r\n\r\n"),
    "a chunk with bare line feeds": chunked(b"2\n{}\n0\n\n\r\n"),
    "a chunk's extension with a line feed": chunked(b"2;a=\nb\r\n{}\r\n0\r\n\r\n"),
    "a chunk's extension without an end": chunked(b"2;" + b"a" * 10_000),
    "a trailer without an end": chunked(b"0\r\n" + b"x: y\r\n" * 10_000),
    "a head without an end": b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 10_000,
    "too many headers": get(b"host: x", *(b"x: %d" % number for number in range(200))),
    "a header too long": get(b"host: x", b"x: " + b"y" * 100_000),
    "a target too long": get(b"host: x", target=b"/" + b"y" * 100_000),
}


@pytest.mark.parametrize("data", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_two_servers_might_read_differently_gets_one_refusal_and_the_end(target: Gateway, data: bytes) -> None:
    answers = exchanged(target, data + SMUGGLED)

    assert answers.count(b"HTTP/1.1 ") == 1, "what stands behind it is no request"
    head, _, body = answers.partition(b"\r\n\r\n")
    assert head.split()[1] in (b"400", b"431", b"501", b"505", b"413")
    assert b"connection: close" in head
    assert json.loads(body)["error"]["message"]


BODIES: dict[str, tuple[bytes, int]] = {
    "more than is taken": (b'{"x":"' + b"y" * (3 << 20), 413),
    "deeply nested lists": (b'{"messages":' + b"[" * 100_000, 400),
    "deeply nested objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 400),
    "nested a little too deep": (b'{"a":' * 101 + b"1" + b"}" * 101, 400),
    "a number without an end": (b'{"max_tokens":' + b"9" * 100_000 + b"}", 400),
    "an exponent beyond all": (b'{"model":"demo","messages":[{"role":"user","content":"x"}],"temperature":1e999}', 400),
    "many keys": (b"{" + b",".join(b'"%d":1' % number for number in range(100_000)) + b"}", 400),
    "a zero byte": (b'{"model":"demo\x00"}', 400),
    "half a character": (b'{"model":"\xc3', 400),
    "UTF-16": ('{"model":"demo"}'.encode("utf-16"), 400),
    "lone surrogates": (b'{"model":"\\ud800"}', 400),
    "not a number": (b'{"temperature":NaN}', 400),
    "nothing": (b"", 400),
}


@pytest.mark.parametrize(("body", "status"), BODIES.values(), ids=BODIES)
def test_a_body_that_means_harm_is_refused(target: Gateway, body: bytes, status: int) -> None:
    before = memory(target)

    answer = target.client.post(PATH, content=body)

    assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")
    assert memory(target) - before < MEMORY


def test_connections_beyond_the_limit_are_closed_and_the_others_served(target: Gateway) -> None:
    with ExitStack() as stack:
        crowd = [stack.enter_context(connected(target)) for _ in range(400)]
        crowd[0].sendall(get(b"host: x"))
        assert crowd[0].recv(100).startswith(b"HTTP/1.1 200")
        with suppress(ConnectionError):
            assert crowd[-1].recv(100) == b"", "it came when there were 300"
    eventually(lambda: open_connections(target) < 10, "an end to idle connections with their clients")


def open_connections(gateway: Gateway) -> int:
    return len([each for each in psutil.Process(gateway.child.pid).net_connections() if each.status == "ESTABLISHED"])


def test_heads_that_never_end_cost_little_and_hold_nobody_up(target: Gateway) -> None:
    before = memory(target)
    with ExitStack() as stack:
        for _ in range(200):
            connection = stack.enter_context(connected(target))
            connection.sendall(b"POST / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 20_000)
        assert target.client.get("/health").status_code == 200
        assert memory(target) - before < MEMORY


def test_a_pipeline_whose_answers_nobody_reads_stops(target: Gateway) -> None:
    before = memory(target)
    with connected(target) as connection:
        connection.settimeout(0.5)
        with suppress(TimeoutError, ConnectionError):
            for _ in range(400):
                connection.sendall(get(b"host: x", target=b"/metrics") * 100)
        assert memory(target) - before < MEMORY
        assert target.client.get("/health").status_code == 200


def test_a_reader_that_does_not_read_is_cut_and_its_engine_freed(target: Gateway, acted_executor: FakeExecutor) -> None:
    with chat.sent(target, stream=True):
        submit = acted_executor.next_submit()
        flood(acted_executor, submit)
        assert acted_executor.next_abort() == submit.stream_id
        acted_executor.finish(submit, FinishReason.ABORTED)


class Http2Client:
    """HTTP/2 with prior knowledge, over which a client can do what libraries would not."""

    def __init__(self, gateway: Gateway, window: int = 65_535) -> None:
        self._socket = connected(gateway)
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.http.local_settings = h2.settings.Settings(
            initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.http.initiate_connection()
        self.send()

    def send(self) -> None:
        self._socket.sendall(self.http.data_to_send())

    def ask(self, path: str, body: bytes = b"") -> int:
        stream = self.http.get_next_available_stream_id()
        headers = [(":method", "POST" if body else "GET"), (":path", path), (":scheme", "http"), (":authority", "x")]
        self.http.send_headers(stream, headers, end_stream=not body)
        if body:
            self.http.send_data(stream, body, end_stream=True)
        self.send()
        return stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def test_an_http_2_client_that_leaves_its_window_closed_is_cut(target: Gateway, acted_executor: FakeExecutor) -> None:
    before = memory(target)
    with Http2Client(target, window=0) as client:
        client.ask(PATH, json.dumps(chat.body(stream=True)).encode())
        submit = acted_executor.next_submit()
        flood(acted_executor, submit)
        assert acted_executor.next_abort() == submit.stream_id
        acted_executor.finish(submit, FinishReason.ABORTED)
    assert memory(target) - before < 2 * MEMORY, "a million ids, and no text"


def test_rapid_resets_over_http_2_cost_no_more_than_they_are(target: Gateway) -> None:
    before = memory(target)
    with Http2Client(target) as client, suppress(ConnectionError):
        for _ in range(300):
            client.http.reset_stream(client.ask("/v1/models"))
            client.send()
    assert target.client.get("/health").status_code == 200
    assert memory(target) - before < MEMORY
