"""HTTP itself, on both servers: what clients may send, how connections are used, bodies that take too long."""

import asyncio
import json
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import BinaryIO

import httpx
import pytest

from engine_adapters.base import FinishReason
from engine_adapters.step import messages
from tests import chat
from tests.executor import FakeExecutor, flood
from tests.processes import PATIENCE, Gateway, Simulator, eventually, wait_until_idle

PATH = "/v1/chat/completions"
BODY = json.dumps(chat.body(max_tokens=3)).encode()
STREAM_BODY = json.dumps(chat.body(max_tokens=3, stream=True)).encode()
type Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def gateway(server: str, simulator: Simulator) -> Iterator[Gateway]:
    with Gateway("--server", server, "--http-threads", "2", workers=[simulator.url]) as gateway:
        yield gateway.wait_until_ready()
        wait_until_idle(gateway)
        assert not [entry for entry in gateway.log() if entry["level"] in ("WARNING", "ERROR")]
        assert gateway.terminate() == 0


@pytest.fixture
def connection(gateway: Gateway) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as connection:
        yield connection


def head_of(body: bytes, *headers: str, method: str = "POST", path: str = PATH) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def request(body: bytes) -> bytes:
    return head_of(body) + body


def read_head(answers: BinaryIO) -> tuple[int, dict[str, str]]:
    """The status and the headers of the next answer."""
    status = int(answers.readline().split()[1])
    lines = iter(answers.readline, b"\r\n")
    return status, {name.lower(): value.strip() for name, _, value in (line.decode().partition(":") for line in lines)}


def read_answer(answers: BinaryIO) -> Answer:
    status, headers = read_head(answers)
    if "content-length" in headers:
        return status, headers, answers.read(int(headers["content-length"]))
    assert headers["transfer-encoding"] == "chunked"
    chunks = []
    while size := int(answers.readline(), 16):
        chunks.append(answers.read(size))
        assert answers.readline() == b"\r\n"
    assert answers.readline() == b"\r\n"
    return status, headers, b"".join(chunks)


def text_of(body: bytes) -> str:
    content: str = json.loads(body)["choices"][0]["message"]["content"]
    return content


def test_a_connection_takes_one_request_after_the_other(connection: socket.socket) -> None:
    with connection.makefile("rb") as answers:
        for number in range(60):
            connection.sendall(request(STREAM_BODY if number % 2 else BODY))
            status, _, body = read_answer(answers)
            assert status == 200
            assert body.endswith(b"data: [DONE]\n\n") if number % 2 else text_of(body)


def test_a_connection_may_be_used_for_very_many_requests(gateway: Gateway) -> None:
    with httpx.Client(base_url=gateway.url) as client:
        ports = {client.get("/health").extensions["network_stream"].get_extra_info("client_addr") for _ in range(1100)}

    assert len(ports) == 1


def test_requests_may_follow_each_other_without_waiting_for_answers(connection: socket.socket) -> None:
    connection.sendall(request(BODY) + request(STREAM_BODY) + head_of(b"", method="GET", path="/nowhere"))

    with connection.makefile("rb") as answers:
        whole, streamed, missing = (read_answer(answers) for _ in range(3))
    assert (whole[0], streamed[0], missing[0]) == (200, 200, 404)
    assert text_of(whole[2])
    assert streamed[2].endswith(b"data: [DONE]\n\n")


def test_head_tells_the_length_and_sends_no_body(connection: socket.socket) -> None:
    connection.sendall(head_of(b"", method="HEAD", path="/health") + request(BODY))

    with connection.makefile("rb") as answers:
        status, headers = read_head(answers)
        assert (status, int(headers["content-length"]) > 0) == (200, True)
        assert read_answer(answers)[0] == 200, "the next answer follows at once"


def test_a_client_that_expects_100_gets_it_before_it_sends_the_body(connection: socket.socket) -> None:
    with connection.makefile("rb") as answers:
        connection.sendall(head_of(BODY, "expect: 100-continue"))
        assert read_head(answers)[0] == 100
        connection.sendall(BODY)
        status, _, body = read_answer(answers)

    assert status == 200
    assert text_of(body)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_body_may_come_in_chunks(connection: socket.socket, size: int) -> None:
    head = head_of(b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    pieces = [BODY[start : start + size] for start in range(0, len(BODY), size)]

    with connection.makefile("rb") as answers:
        for _ in range(2):
            connection.sendall(head)
            for piece in pieces:
                connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            connection.sendall(b"0\r\n\r\n")
            status, _, body = read_answer(answers)
            assert (status, bool(text_of(body))) == (200, True)


def test_a_body_may_come_in_pieces(connection: socket.socket) -> None:
    with connection.makefile("rb") as answers:
        connection.sendall(head_of(BODY))
        for start in range(0, len(BODY), 5):
            connection.sendall(BODY[start : start + 5])

        assert read_answer(answers)[0] == 200


def test_a_large_body_comes_whole(connection: socket.socket) -> None:
    text = "word " * 400_000
    with connection.makefile("rb") as answers:
        connection.sendall(request(json.dumps({"prompt": text, "model": "demo"}).encode().join([b"", b" " * 100_000])))
        status, _, body = read_answer(answers)

    assert (status, json.loads(body)["error"]["param"]) == (400, "messages")


@pytest.mark.parametrize("body", [BODY, STREAM_BODY], ids=["whole", "streamed"])
def test_http_2_without_tls(gateway: Gateway, body: bytes) -> None:
    command = ["curl", "-sS", "--no-buffer", "--http2-prior-knowledge", "--max-time", str(PATIENCE)]
    command += ["-H", "content-type: application/json", "-d", "@-", "-w", "\n%{http_version} %{http_code}"]
    done = subprocess.run([*command, f"{gateway.url}{PATH}"], input=body, capture_output=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b"\n2 200")
    assert (b"data: [DONE]" if body is STREAM_BODY else b'"finish_reason":') in done.stdout


@asynccontextmanager
async def http_2(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """A client with one connection, for many requests at once."""
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(
        http1=False, http2=True, limits=limits, base_url=gateway.url, timeout=PATIENCE
    ) as client:
        yield client


async def post(client: httpx.AsyncClient, body: bytes) -> httpx.Response:
    """httpcore ends a body with a frame of its own, and fails when the answer is over before it has sent that."""
    while True:
        with suppress(httpx.LocalProtocolError):
            return await client.post(PATH, content=body)


def test_an_http_2_connection_carries_many_requests_at_once(gateway: Gateway) -> None:
    async def ask() -> list[httpx.Response]:
        async with http_2(gateway) as client:
            return await asyncio.gather(*(post(client, STREAM_BODY if number % 2 else BODY) for number in range(40)))

    answers = asyncio.run(ask())
    assert [(answer.http_version, answer.status_code) for answer in answers] == [("HTTP/2", 200)] * 40
    assert all(text_of(answer.content) for answer in answers[::2])
    assert all(answer.text.endswith("data: [DONE]\n\n") for answer in answers[1::2])


def test_many_connections_may_be_idle_while_others_are_answered(gateway: Gateway) -> None:
    # More than granian's own limit, at which it stopped answering anybody.
    with ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE))
            for _ in range(300)
        ]
        for connection in connections[:150]:
            connection.sendall(head_of(b"", method="GET", path="/health"))
        for connection in connections[:150]:
            with connection.makefile("rb") as answers:
                assert read_answer(answers)[0] == 200

        assert chat.complete(gateway, max_tokens=1)
        connections[-1].sendall(request(BODY))
        with connections[-1].makefile("rb") as answers:
            assert read_answer(answers)[0] == 200


def test_a_slow_reader_gets_everything_in_the_end(server: str) -> None:
    with (
        FakeExecutor("Hi") as executor,
        Gateway("--server", server, workers=[executor.url]) as gateway,
    ):
        gateway.wait_until_ready()
        with chat.sent(gateway, stream=True) as connection:
            submit = executor.next_submit()
            flood(executor, submit)
            executor.finish(submit)

            with connection.makefile("rb") as answers:
                status, _, body = read_answer(answers)
        assert status == 200
        assert body.count(b" contiguous") == 1_000_000
        assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("option", ["--body-seconds", "--request-seconds"])
def test_a_body_that_does_not_end_is_refused_in_time(server: str, option: str) -> None:
    with (
        Gateway("--server", server, option, "0.3", workers=["step://127.0.0.1:1"]) as gateway,
        socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as connection,
        connection.makefile("rb") as answers,
    ):
        connection.sendall(head_of(BODY) + BODY[:1])
        status, _, body = read_answer(answers)
        error = json.loads(body)["error"]

        assert (status, error["type"], error["code"]) == (408, "invalid_request_error", "body_timeout")
        assert option in error["message"]
        eventually(lambda: gateway.metric("gateway_requests_total", status="408") == 1)
        assert answers.read() == b"", "no other request can follow an unfinished one"


@pytest.mark.parametrize("stream", [True, False])
def test_all_requests_of_an_http_2_connection_end_with_it(server: str, stream: bool) -> None:
    async def leave(executor: FakeExecutor, gateway: Gateway) -> list[messages.Submit]:
        async with http_2(gateway) as client:
            requests = [asyncio.create_task(client.post(PATH, json=chat.body(stream=stream))) for _ in range(4)]
            submits = [await asyncio.to_thread(executor.next_submit) for _ in requests]
        await asyncio.gather(*requests, return_exceptions=True)
        return submits

    with (
        FakeExecutor("Hi") as executor,
        Gateway("--server", server, workers=[executor.url]) as gateway,
    ):
        gateway.wait_until_ready()
        submits = asyncio.run(leave(executor, gateway))

        assert {executor.next_abort() for _ in submits} == {submit.stream_id for submit in submits}
        for submit in submits:
            executor.finish(submit, FinishReason.ABORTED)
        wait_until_idle(gateway)
