"""Executors that die, hang, come back and talk nonsense, as real processes: no request is lost, hangs or is answered
twice, and streams on the others do not notice."""

import json
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import httpx
import psutil
import pytest

from engine_adapters.base import FinishReason
from tests import chat
from tests.executor import FakeExecutor, demo_info
from tests.processes import Gateway, Simulator, eventually, wait_until_idle

PATH = "/v1/chat/completions"
PACE = ("--output", "echo", "--decode-base-ms", "10", "--prefill-tps", "4000", "--prefill-chunk", "256")
LONG = "word " * 5000
"""Takes more than a second to read."""
BREAKER = ("--breaker-requests", "4", "--breaker-open-seconds", "0.3")


class Fleet:
    """Executors that are killed and started again where they were."""

    def __init__(self, count: int) -> None:
        self.simulators = [Simulator(*PACE) for _ in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for simulator in self.simulators:
            simulator.__exit__(kind, error, trace)

    @property
    def urls(self) -> list[str]:
        return [simulator.url for simulator in self.simulators]

    def kill(self, number: int) -> None:
        self.simulators[number].__exit__(None, None, None)

    def restart(self, number: int) -> None:
        self.simulators[number] = Simulator("--port", str(self.simulators[number].port), *PACE)


@pytest.fixture(scope="module")
def all_of_fleet() -> Iterator[Fleet]:
    with Fleet(2) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def all_of_gateway(all_of_fleet: Fleet) -> Iterator[Gateway]:
    with Gateway("--http-threads", "2", "--health-seconds", "0.2", *BREAKER, workers=all_of_fleet.urls) as gateway:
        yield gateway


@pytest.fixture
def fleet(all_of_fleet: Fleet, all_of_gateway: Gateway) -> Iterator[Fleet]:
    """Both executors ready before `gateway`, and nothing left over when the test is done."""
    wait_for(all_of_gateway, *all_of_fleet.urls)
    yield all_of_fleet
    wait_until_idle(all_of_gateway)
    assert not [entry for entry in all_of_gateway.log() if entry["level"] == "ERROR"]
    assert not all_of_gateway.lines("^[A-Z]"), "something wrote past the log"


@pytest.fixture
def gateway(all_of_gateway: Gateway) -> Gateway:
    return all_of_gateway


def listed(gateway: Gateway) -> dict[str, Any]:
    return {worker["name"]: worker for worker in gateway.client.get("/admin/workers").json()["workers"]}


def state_of(gateway: Gateway, name: str) -> str:
    return str(listed(gateway)[name]["state"])


def wait_for(gateway: Gateway, *names: str) -> None:
    """Until these workers take requests."""
    eventually(lambda: all(_takes_requests(listed(gateway)[name]) for name in names), "ready workers")


def _takes_requests(worker: dict[str, Any]) -> bool:
    return worker["state"] == "ready" and worker["breaker"] != "open"


def ask(gateway: Gateway, content: str, max_tokens: int = 20, headers: dict[str, str] | None = None) -> httpx.Response:
    return gateway.client.post(PATH, json=chat.body(content, max_tokens=max_tokens), headers=headers or {})


def is_echo(response: httpx.Response, content: str) -> bool:
    """Whether it is a whole answer, said once."""
    assert response.status_code == 200, response.text
    text = response.json()["choices"][0]["message"]["content"]
    return bool(text) and f"user\n{content}\nassistant\n".startswith(text)


def running(gateway: Gateway, url: str) -> float:
    return gateway.metric("gateway_worker_running", worker=url)


def ask_all(
    gateway: Gateway, fleet: Fleet, background: ThreadPoolExecutor, contents: list[str]
) -> list[Future[httpx.Response]]:
    """Requests that both executors have."""
    responses = [background.submit(ask, gateway, content) for content in contents]
    eventually(lambda: all(running(gateway, url) for url in fleet.urls), "work for both")
    return responses


def test_one_killed_while_it_reads_prompts_or_idles_costs_nothing_but_time(
    fleet: Fleet, gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    before = gateway.metric("gateway_retries_total")
    contents = [f"{number} {LONG}" for number in range(4)]
    responses = ask_all(gateway, fleet, background, contents)

    fleet.kill(0)
    assert all(is_echo(response.result(), content) for response, content in zip(responses, contents, strict=True))
    assert gateway.metric("gateway_retries_total") > before
    assert gateway.metric("gateway_worker_answers_total", worker=fleet.urls[0], end="lost") > 0

    fleet.restart(0)
    wait_for(gateway, *fleet.urls)
    fleet.kill(1)
    responses = [background.submit(ask, gateway, content) for content in "abcdef"]
    assert all(is_echo(response.result(), content) for response, content in zip(responses, "abcdef", strict=True))
    fleet.restart(1)


def test_one_killed_while_it_answers_ends_its_streams_and_no_others(fleet: Fleet, gateway: Gateway) -> None:
    content = "one two three " * 100
    with ThreadPoolExecutor(8) as readers:
        has_begun = [threading.Event() for _ in range(6)]

        def read(number: int) -> list[Any]:
            with chat.opened(gateway, f"{number} {content}", max_tokens=200) as events:
                first = next(event for event in events if chat.piece_of(event))
                has_begun[number].set()
                return [first, *events]

        streams = [readers.submit(read, number) for number in range(6)]
        assert all(event.wait(20) for event in has_begun)
        on_it = gateway.metric("gateway_worker_in_flight", worker=fleet.urls[0])
        fleet.kill(0)

        ends: Counter[str] = Counter()
        for number, stream in enumerate(streams):
            *chunks, last = stream.result()
            said = chat.text_of(chunks)
            assert f"user\n{number} {content}\nassistant\n".startswith(said)
            ends[last if last == chat.DONE else last["error"]["code"]] += 1
        assert 0 < on_it < 6 and ends == {"engine_failed": on_it, chat.DONE: 6 - on_it}
    fleet.restart(0)


def test_one_that_comes_back_with_another_tokenizer_stays_out(fleet: Fleet, gateway: Gateway) -> None:
    url, port = fleet.urls[0], fleet.simulators[0].port
    fleet.kill(0)
    with FakeExecutor(info=demo_info(tokenizer_fingerprint=b"\7" * 32), port=port) as stranger:
        eventually(lambda: "its tokenizer (0707" in listed(gateway)[url]["reason"], "the refusal")
        assert state_of(gateway, url) == "unhealthy"
        assert all(is_echo(ask(gateway, content), content) for content in "abc")
        assert stranger.submits.empty()
    fleet.restart(0)


@pytest.mark.slow
def test_one_that_is_stopped_gets_no_more_and_goes_on_where_it_was(
    fleet: Fleet, gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    stopped = fleet.simulators[0]
    contents = [f"{number} " * 200 for number in range(4)]
    streams = [background.submit(chat.stream, gateway, content, max_tokens=150) for content in contents]
    eventually(lambda: running(gateway, stopped.url) > 0)
    stopped.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        hasty = [background.submit(ask, gateway, "?", 5, {"x-request-timeout": "1.5"}) for _ in range(6)]
        assert {response.result().status_code for response in hasty} <= {200, 504}, "no other end"
        assert time.monotonic() - began < 5.0, "nobody waits longer than the time of his request"
        eventually(lambda: state_of(gateway, stopped.url) == "unhealthy")
        assert listed(gateway)[stopped.url]["reason"] == "silent for 3 s"
        assert gateway.client.get("/ready").status_code == 200
        assert all(is_echo(ask(gateway, content), content) for content in "abcd")
    finally:
        stopped.send_signal(signal.SIGCONT)
    assert {chat.finish_reason_of(stream.result()) for stream in streams} == {"length"}
    wait_for(gateway, stopped.url)


class Proxy:
    """Stands between a gateway and an executor, and spoils their talk.

    Threads: one that accepts, two for each connection.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"step://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self.flows = threading.Event()
        """Cleared, nothing goes through, and nobody is told: as when a cable is pulled."""
        self.flows.set()
        self.garbage = b""
        """Is put among what the executor says next."""
        self._run(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flows.set()
        self._listener.close()
        for each in self._sockets:
            each.close()

    def _run(self, work: Any, *arguments: Any) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                gateway, _ = self._listener.accept()
                executor = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._sockets += [gateway, executor]
            self._run(self._pass_on, gateway, executor, False)
            self._run(self._pass_on, executor, gateway, True)

    def _pass_on(self, source: socket.socket, target: socket.socket, may_spoil: bool) -> None:
        try:
            while data := source.recv(65536):
                self.flows.wait()
                if may_spoil and self.garbage:
                    data, self.garbage = self.garbage + data, b""
                target.sendall(data)
        except OSError:
            pass
        for each in (source, target):
            each.close()


@pytest.mark.slow
def test_a_connection_that_talks_nonsense_or_is_dead_without_a_word(
    fleet: Fleet, gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    with Proxy(fleet.simulators[0].port) as proxy:
        gateway.client.post("/admin/workers", json={"url": proxy.url, "name": "proxied"}).raise_for_status()
        wait_for(gateway, "proxied")
        for url in fleet.urls:
            gateway.client.patch(f"/admin/workers/{url}", json={"draining": True}).raise_for_status()
        for garbage in (b"\x00" * 9, random.Random(1).randbytes(300), b"HTTP/1.1 400 Bad Request\r\n\r\n"):
            content = f"{garbage!r} {LONG}"
            answer = background.submit(ask, gateway, content)
            eventually(lambda: gateway.metric("gateway_worker_in_flight", worker="proxied") == 1)
            proxy.garbage = garbage
            assert is_echo(answer.result(), content), "it was tried again"
        wait_for(gateway, "proxied")

        with chat.opened(gateway, "one two " * 200, max_tokens=300) as events:
            chat.first_text(events)
            waiting = background.submit(ask, gateway, f"Who waits? {2 * LONG}")
            late = background.submit(ask, gateway, f"Who is late? {2 * LONG}", 5, {"x-request-timeout": "4"})
            eventually(lambda: gateway.metric("gateway_worker_in_flight", worker="proxied") == 3)
            proxy.flows.clear()
            for url in fleet.urls:
                gateway.client.patch(f"/admin/workers/{url}", json={"draining": False}).raise_for_status()
            assert late.result().status_code in (200, 504)
            eventually(lambda: state_of(gateway, "proxied") == "unhealthy")
            assert is_echo(ask(gateway, "And now?"), "And now?")
            *_, last = events
        assert last["error"]["code"] == "engine_failed" and "was lost" in last["error"]["message"]
        assert is_echo(waiting.result(), f"Who waits? {2 * LONG}"), "it had no token yet: another one has answered it"
        gateway.client.delete("/admin/workers/proxied?now=true").raise_for_status()
        eventually(lambda: "proxied" not in listed(gateway))


def test_one_that_refuses_and_is_slow_to_start_is_waited_for(fleet: Fleet, gateway: Gateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        added = gateway.client.post("/admin/workers", json={"url": f"step://127.0.0.1:{port}", "name": "slow"})
        assert added.json()["state"] == "starting"
        connection, _ = listener.accept()
        with connection:
            assert is_echo(ask(gateway, "while it says nothing"), "while it says nothing")
    eventually(lambda: state_of(gateway, "slow") == "unhealthy")
    assert is_echo(ask(gateway, "while it refuses"), "while it refuses")
    with FakeExecutor(port=port):
        wait_for(gateway, "slow")
        gateway.client.delete("/admin/workers/slow?now=true").raise_for_status()
        eventually(lambda: "slow" not in listed(gateway))


def test_one_that_fails_again_and_again_is_left_alone_for_a_while(fleet: Fleet, gateway: Gateway) -> None:
    with FakeExecutor() as sick:
        gateway.client.post("/admin/workers", json={"url": sick.url, "name": "sick"}).raise_for_status()
        wait_for(gateway, "sick")
        is_over = threading.Event()

        def fail() -> None:
            while not is_over.is_set():
                if not sick.submits.empty():
                    sick.finish(sick.next_submit(), FinishReason.ERROR, error="ill", retryable=True)

        failing = threading.Thread(target=fail)
        failing.start()
        try:
            for number in range(40):
                assert is_echo(ask(gateway, f"{number}", 4), f"{number}")
                if listed(gateway)["sick"]["breaker"] == "open":
                    break
        finally:
            is_over.set()
            failing.join()
        assert gateway.metric("gateway_worker_breaker_opened_total", worker="sick") >= 1
        assert gateway.metric("gateway_worker_answers_total", worker="sick", end="error") >= 4
        gateway.client.delete("/admin/workers/sick?now=true").raise_for_status()
        eventually(lambda: "sick" not in listed(gateway))


# --- for longer ------------------------------------------------------------------------------------------------------


class Client:
    """Asks with a prefix of its own each time; every request must be answered whole, or end with an error in time."""

    SECONDS = 5.0

    def __init__(self, gateway: Gateway, seed: int, ends_at: float) -> None:
        self._gateway = gateway
        self._seed = seed
        self._ends_at = ends_at
        self.ends: Counter[str] = Counter()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        dice = random.Random(self._seed)
        with httpx.Client(base_url=self._gateway.url, timeout=3 * self.SECONDS) as client:
            while time.monotonic() < self._ends_at:
                content = f"{dice.random()} " + "word " * dice.choice((5, 50, 500))
                began = time.monotonic()
                self.ends[self._stream(client, content) if dice.random() < 0.5 else self._whole(client, content)] += 1
                assert time.monotonic() - began < self.SECONDS + 2.0

    def _whole(self, client: httpx.Client, content: str) -> str:
        response = client.post(PATH, json=chat.body(content, max_tokens=12), headers=self._headers)
        if response.status_code != 200:
            return str(response.json()["error"]["code"])
        return "ok" if is_echo(response, content) else "wrong"

    def _stream(self, client: httpx.Client, content: str) -> str:
        body = chat.body(content, max_tokens=12, stream=True)
        with client.stream("POST", PATH, json=body, headers=self._headers) as response:
            if response.status_code != 200:
                return str(json.loads(response.read())["error"]["code"])
            *chunks, last = chat.events_of(response)
        said = chat.text_of(chunks)
        if last != chat.DONE:
            return str(last["error"]["code"])
        return "ok" if said and f"user\n{content}\nassistant\n".startswith(said) else "wrong"

    @property
    def _headers(self) -> dict[str, str]:
        return {"x-request-timeout": str(self.SECONDS)}


def trouble(fleet: Fleet, gateway: Gateway, dice: random.Random) -> None:
    """One of the fleet has it, and gets over it."""
    number = dice.randrange(len(fleet.simulators))
    simulator = fleet.simulators[number]
    kind = dice.choice(("kill", "stop", "drain"))
    if kind == "kill":
        fleet.kill(number)
        fleet.restart(number)
    elif kind == "stop":
        simulator.send_signal(signal.SIGSTOP)
        time.sleep(dice.uniform(0.1, 1.0))
        simulator.send_signal(signal.SIGCONT)
    else:
        path = f"/admin/workers/{simulator.url}"
        gateway.client.patch(path, json={"draining": True}).raise_for_status()
        gateway.client.patch(path, json={"draining": False}).raise_for_status()
    wait_for(gateway, simulator.url)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_whatever_happens_nothing_is_lost_and_memory_stays_flat(
    fleet: Fleet, gateway: Gateway, duration: float
) -> None:
    dice, process = random.Random(1), psutil.Process(gateway.child.pid)
    for name in ("warm", "up"):
        assert is_echo(ask(gateway, name), name)
    ends_at = time.monotonic() + duration
    clients = [Client(gateway, seed, ends_at) for seed in range(4)]
    half = 0
    while time.monotonic() < ends_at:
        trouble(fleet, gateway, dice)
        if not half and time.monotonic() > ends_at - duration / 2:
            half = process.memory_info().rss
    for client in clients:
        client.thread.join()
    wait_until_idle(gateway)

    ends = sum((client.ends for client in clients), Counter[str]())
    assert ends.keys() <= {"ok", "engine_failed", "unavailable", "deadline_exceeded"}, ends
    assert ends["ok"] > 0.8 * ends.total(), ends
    assert process.memory_info().rss < half + (20 << 20) if half else True
