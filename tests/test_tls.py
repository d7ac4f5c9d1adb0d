"""TLS on both sides: clients of either server, certificates that change, and workers over each wire."""

import asyncio
import json
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from engine_adapters.base import Engine, EngineLost
from engine_adapters.step.client import StepClient
from engine_adapters.tls import WorkerTls, WorkerTlsError
from engine_adapters.trtllm.native.client import NativeClient
from gateway import command
from gateway.tls import ServerTls, TlsError
from tests import chat
from tests.certificates import Authority, Pair
from tests.executor import LOOP
from tests.processes import GIL_ARGUMENTS, PATIENCE, Gateway, Simulator, eventually, wait_until_idle

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("gateway")


@pytest.fixture(scope="module")
def context(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.ca)


class TlsGateway(Gateway):
    """Its client trusts `context`."""

    context: ssl.SSLContext

    @property
    def client(self) -> httpx.Client:
        if not self._clients:
            self._clients[0] = httpx.Client(base_url=self.url, timeout=PATIENCE, verify=self.context)
        return self._clients[0]


@pytest.fixture(scope="module")
def own(authority: Authority) -> Pair:
    """The gateway's, towards its workers."""
    return authority.issue("own")


@pytest.fixture(scope="module")
def engines(pair: Pair, authority: Authority) -> Iterator[list[Simulator]]:
    """One behind each kind of client for TLS; they take gateways with a certificate only."""
    tls = ("--tls-cert", str(pair.certificate), "--tls-key", str(pair.key), "--tls-client-ca", str(authority.ca))
    with Simulator("--speed", "0", *tls) as step, Simulator("--speed", "0", "--wire", "trtllm", *tls) as native:
        yield [step, native]


@pytest.fixture(scope="module")
def served(folder: Path, pair: Pair) -> Pair:
    """What the gateways show: copies, which may change."""
    served = Pair(folder / "served.pem", folder / "served.key")
    shutil.copy(pair.certificate, served.certificate)
    shutil.copy(pair.key, served.key)
    return served


@pytest.fixture(scope="module")
def gateway(
    server: str,
    simulator: Simulator,
    engines: list[Simulator],
    authority: Authority,
    served: Pair,
    own: Pair,
    context: ssl.SSLContext,
) -> Iterator[Gateway]:
    TlsGateway.context = context
    files = {"--tls-cert": served.certificate, "--tls-key": served.key, "--worker-ca": authority.ca}
    files |= {"--worker-cert": own.certificate, "--worker-key": own.key}
    options = [word for name, path in files.items() for word in (name, str(path))]
    step, native = (engine.address for engine in engines)
    workers = [f"step://{step}", f"trtllm://{native}", f"{simulator.url}?tls=false"]
    with TlsGateway("--server", server, "--http-threads", "2", "--log-prompts", *options, workers=workers) as gateway:
        eventually(lambda: gateway.worker_states() == ["ready"] * 3, "all workers")
        yield gateway
        wait_until_idle(gateway)
        assert gateway.terminate() == 0
        assert not gateway.lines("^[A-Z]"), "something wrote past the log"


def test_answers_come_over_tls_whole_and_streamed(gateway: Gateway) -> None:
    assert gateway.url.startswith("https://")
    for _ in range(6):
        assert chat.complete(gateway, max_tokens=3)["usage"]["completion_tokens"] == 3
    done = [gateway.metric("gateway_worker_in_flight", worker=worker["name"]) for worker in gateway.ready()["workers"]]
    assert done == [0, 0, 0]
    assert chat.stream(gateway, max_tokens=3)
    assert gateway.client.post(PATH, content=b"{").status_code == 400


def test_prompts_are_logged_where_that_is_asked_for(gateway: Gateway) -> None:
    chat.complete(gateway, "between us", max_tokens=1)
    line = json.loads(gateway.line("between us").string)
    assert (line["message"], line["body"]["messages"][0]["content"]) == ("prompt", "between us")


def test_alpn_chooses_http_2(gateway: Gateway, context: ssl.SSLContext) -> None:
    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(http2=True, base_url=gateway.url, verify=context, timeout=PATIENCE) as client:
            body = chat.body(max_tokens=2)
            return [await client.post(PATH, json={**body, "stream": stream}) for stream in (False, True)]

    for answer in asyncio.run(ask()):
        assert (answer.http_version, answer.status_code) == ("HTTP/2", 200)


def test_plain_text_is_no_tls_and_harms_nobody(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        with connection.makefile("rb") as answer:
            assert b"200" not in answer.read()
    assert gateway.client.get("/health").status_code == 200


def test_what_is_no_request_gets_its_answer_over_tls_too(gateway: Gateway, context: ssl.SSLContext) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nhost : x\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 400")


def serial(gateway: Gateway) -> int:
    """Of the certificate that a new connection gets."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as plain:
        with context.wrap_socket(plain) as connection:
            return hash(connection.getpeercert(binary_form=True))


def test_a_new_certificate_counts_from_the_next_connection_on(
    server: str, gateway: Gateway, served: Pair, authority: Authority
) -> None:
    if server == "granian":
        assert gateway.line("granian reads its certificate once")
        return
    second, before = authority.issue("second"), serial(gateway)
    shutil.copy(second.certificate, served.certificate)
    assert gateway.line("the TLS certificate stays as it is: .*are no certificate and its key")
    assert serial(gateway) == before
    shutil.copy(second.key, served.key)
    gateway.line("read .*served.pem again")
    eventually(lambda: all(serial(gateway) != before for _ in range(8)), "the new certificate on each loop")
    assert chat.complete(gateway, max_tokens=1), "connections that were open go on"


def test_files_that_are_no_certificate_end_the_start(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TlsError, match="No such file"):
        ServerTls("/nowhere.pem", str(pair.key))
    with pytest.raises(TlsError, match="are no certificate and its key"):
        ServerTls(str(pair.certificate), str(pair.certificate))
    for arguments in (["--tls-cert", str(pair.certificate)], ["--worker-cert", str(pair.certificate)]):
        assert command.main([*GIL_ARGUMENTS, "--port", "0", *arguments]) == 2
        assert "belong together" in capsys.readouterr().err


def test_what_workers_are_trusted_by_must_be_there(pair: Pair, authority: Authority) -> None:
    assert WorkerTls.of("", "", "") is None
    with pytest.raises(WorkerTlsError, match="--worker-ca /nowhere.pem cannot be used"):
        WorkerTls.of("/nowhere.pem", "", "")
    with pytest.raises(WorkerTlsError, match="needs a --worker-ca"):
        WorkerTls.of("", str(pair.certificate), str(pair.key))
    with pytest.raises(WorkerTlsError, match="--worker-cert and --worker-key cannot be used"):
        WorkerTls.of(str(authority.ca), str(pair.certificate), str(authority.ca))


CLIENTS: dict[str, Callable[[str, WorkerTls | None], Engine[object]]] = {
    "step": lambda address, tls: StepClient(address, print, None, tls),
    "trtllm": lambda address, tls: NativeClient(address, print, None, tls),
}


@pytest.mark.parametrize("wire", CLIENTS)
def test_a_worker_and_its_gateway_must_vouch_for_each_other(
    wire: str, engines: list[Simulator], folder: Path, authority: Authority, own: Pair
) -> None:
    address = engines[[*CLIENTS].index(wire)].address

    async def connect(tls: WorkerTls | None) -> str:
        client = CLIENTS[wire](address, tls)
        try:
            return (await client.connect()).engine
        finally:
            await client.close()

    ca, certificate, key = str(authority.ca), str(own.certificate), str(own.key)
    assert LOOP.run(connect(WorkerTls(ca, certificate, key)))
    with pytest.raises(EngineLost, match="CERTIFICATE_VERIFY_FAILED"):
        LOOP.run(connect(WorkerTls(str(Authority(folder, "other").ca), certificate, key)))
    with pytest.raises(EngineLost):
        LOOP.run(connect(WorkerTls(ca)))
