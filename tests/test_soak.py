"""Many short streams, clients that leave, and prompts that nobody has sent before, for --duration seconds: nothing may
be left over at the end."""

import random
import threading
import time
from collections import Counter

import httpx
import psutil
import pytest

from tests import chat
from tests.processes import Gateway, Simulator, eventually, wait_until_idle

CLIENTS = 12
PATH = "/v1/chat/completions"
COUNTING = ("-m", "tests.counting_gateway")


class Client:
    """One client's life: requests of every kind, one after the other, until time is up."""

    def __init__(self, gateway: Gateway, seed: int, ends_at: float) -> None:
        self._url = gateway.url
        self._random = random.Random(seed)
        self._ends_at = ends_at
        self.counts: Counter[str] = Counter()
        self.thread = threading.Thread(target=self._run, name=f"client {seed}")
        self.thread.start()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while time.monotonic() < self._ends_at:
                kind = self._random.choice((self._read_all, self._leave, self._whole, self._leave_whole, self._bad))
                self.counts[kind.__name__] += 1
                kind(client)

    def _body(self, **fields: object) -> dict[str, object]:
        content = "word " * self._random.choice((1, 10, 100, 1000))
        return chat.body(content, max_tokens=self._random.randint(1, 60), **fields)

    def _read_all(self, client: httpx.Client) -> None:
        with client.stream("POST", PATH, json=self._body(stream=True)) as response:
            assert response.status_code == 200, response.read()
            *_, end = chat.events_of(response)
        assert end == chat.DONE

    def _leave(self, client: httpx.Client) -> None:
        with client.stream("POST", PATH, json=self._body(stream=True)) as response:
            pieces = response.iter_raw()
            for _ in range(self._random.randint(0, 5)):
                next(pieces, b"")

    def _whole(self, client: httpx.Client) -> None:
        assert client.post(PATH, json=self._body()).status_code == 200

    def _leave_whole(self, client: httpx.Client) -> None:
        try:
            client.post(PATH, json=self._body(), timeout=self._random.uniform(0.001, 0.05))
        except httpx.TimeoutException:
            self.counts["left early"] += 1

    def _bad(self, client: httpx.Client) -> None:
        assert client.post(PATH, json=self._body(temperature=-1)).status_code == 400


def count_tasks(gateway: Gateway) -> int:
    """Of all the gateway's loops, unfinished."""
    before = len(gateway.lines("^tasks: ", "stdout"))
    gateway.write("")
    counts = eventually(lambda: gateway.lines("^tasks: ", "stdout")[before:])
    return int(counts[0].removeprefix("tasks: "))


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_nothing_is_left_over(server: str, duration: float) -> None:
    simulators = [Simulator("--max-running", "4", "--speed", "4") for _ in range(2)]
    workers = [simulator.url for simulator in simulators]
    arguments = ("--server", server, "--http-threads", "2")
    with simulators[0], simulators[1], Gateway(*arguments, workers=workers, program=COUNTING) as gateway:
        gateway.line("^Ready: ", "stdout")  # with both of its loops
        eventually(lambda: gateway.worker_states() == ["ready", "ready"])
        process = psutil.Process(gateway.child.pid)
        chat.complete(gateway, max_tokens=1)
        threads, tasks = process.num_threads(), count_tasks(gateway)
        ends_at = time.monotonic() + duration

        clients = [Client(gateway, seed, ends_at) for seed in range(CLIENTS)]
        for client in clients:
            client.thread.join()

        wait_until_idle(gateway)
        counts = sum((client.counts for client in clients), Counter[str]())
        assert all(counts[kind] for kind in ("_read_all", "_leave", "_whole", "_leave_whole", "_bad"))
        assert not [entry for entry in gateway.log() if entry["level"] in ("WARNING", "ERROR")]
        assert not gateway.lines("^[A-Z]"), "something wrote past the log, such as asyncio of a callback that failed"
        assert gateway.metric("gateway_wire_faults_total") == gateway.metric("gateway_retries_total") == 0
        assert gateway.metric("gateway_requests_total", status="500") == 0
        certain = counts["_read_all"] + counts["_leave"] + counts["_whole"]
        assert gateway.metric("gateway_requests_total", model="demo") >= certain
        assert process.num_threads() <= threads
        eventually(lambda: count_tasks(gateway) <= tasks, "the end of all tasks of requests")
        connections = eventually(lambda: [each for each in process.net_connections() if each.status == "ESTABLISHED"])
        assert len(connections) <= len(workers) + 1, "only the workers and this test are connected"
        assert gateway.terminate() == 0


KV_TOKENS = 131_072
FLAT_SECONDS = 20.0
"""Less says nothing about memory."""
FLAT_BYTES = 24 << 20


def resident(process: psutil.Process) -> int:
    size: int = process.memory_info().rss
    return size


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_prompts_that_are_all_new_leave_memory_flat(duration: float) -> None:
    """Thousands a minute, on an executor that tells what it caches and on one that does not."""
    if duration < FLAT_SECONDS:
        pytest.skip(f"takes a --duration of {FLAT_SECONDS:g} s or more")
    pace = ("--speed", "0", "--kv-tokens", str(KV_TOKENS), "--output", "random")
    with Simulator(*pace) as told, Simulator(*pace, "--wire", "trtllm") as guessed:
        workers = [told.url, f"trtllm://{guessed.address}"]
        with Gateway("--cache-mb", "16", workers=workers) as gateway:
            eventually(lambda: gateway.worker_states() == ["ready", "ready"])
            process, began = psutil.Process(gateway.child.pid), time.monotonic()
            sent: Counter[int] = Counter()

            def ask(seed: int) -> None:
                dice = random.Random(seed)
                with httpx.Client(base_url=gateway.url, timeout=30) as client:
                    while time.monotonic() < began + duration:
                        content = " ".join(str(dice.random()) for _ in range(60))
                        assert client.post(PATH, json=chat.body(content, max_tokens=1)).status_code == 200
                        sent[seed] += 1

            clients = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
            for client in clients:
                client.start()
            time.sleep(duration / 2)
            half, half_sent = resident(process), sent.total()
            for client in clients:
                client.join()
            wait_until_idle(gateway)
            rate = 60 * sent.total() / duration
            assert half_sent > 500 and rate > 1000, f"{rate:.0f} a minute is too little to say anything"
            assert resident(process) < half + FLAT_BYTES, f"{half >> 20} MiB grew to {resident(process) >> 20}"
            blocks = gateway.metric("gateway_cached_blocks")
            assert 0 < blocks < 2 * (KV_TOKENS // 16) + 8192 + 2048
