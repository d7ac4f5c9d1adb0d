"""Figure 4 of the text path: a whole gateway under clients whose prompts share their first 48k tokens."""

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.model import DEMO_FOLDER
from perf import processes
from perf.processes import Process
from perf.samples import CHAT_PATH

if TYPE_CHECKING:
    from perf.text import Bench

SHARED_TOKENS = 48_000
NEW_TOKENS = 12_000
CONTEXT_LENGTH = 131_072


def shared_and_new(bench: "Bench") -> Iterator[list[str]]:
    options = bench.options
    with tempfile.TemporaryDirectory(prefix="gateway-perf-") as folder:
        model = wide_model(Path(folder, "demo"))
        bodies = make_bodies(bench, options.requests + options.clients)
        rates, costs = dict[str, float](), dict[str, float]()
        for name, megabytes in (("on", 256), ("off", 0)):
            settings = ("--cache-mb", str(megabytes), "--model-path", f"demo={model}")
            engine = ("--speed", "0", "--model-path", str(model), "--kv-tokens", "100000000", "--block-size", "8192")
            engine += ("--prefill-chunk", "1000000")
            with (
                processes.word_simulator(*engine) as worker,
                processes.gateway(worker, options, settings=settings) as server,
            ):
                drive(server, bodies[: options.clients], options.clients)
                cpu, engine_cpu = processes.cpu_ns(server.pid), processes.cpu_ns(worker.pid)
                seconds = drive(server, bodies[options.clients :], options.clients)
                cpu = processes.cpu_ns(server.pid) - cpu
                engine_cpu = processes.cpu_ns(worker.pid) - engine_cpu
            rates[name], costs[name] = options.requests / seconds, cpu / options.requests / 1e6
            yield [
                f"4 48k shared + 12k new, cache {name}",
                f"{rates[name]:.1f} requests/s",
                f"{costs[name]:.1f} ms CPU a request, the simulator's {engine_cpu / options.requests / 1e6:.1f}",
            ]
        yield [
            "4 cache on / off",
            f"{rates['on'] / rates['off']:.2f}x",
            f">= 3x; CPU {costs['off'] / costs['on']:.2f}x",
        ]


def wide_model(folder: Path) -> Path:
    """The demo model, with a context that holds such prompts."""
    shutil.copytree(DEMO_FOLDER, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": CONTEXT_LENGTH}))
    return folder


def make_bodies(bench: "Bench", count: int) -> list[bytes]:
    shared = bench.text(SHARED_TOKENS)
    new = bench.text(NEW_TOKENS, 1_000_000)
    step = len(new) // 3
    bodies = []
    for number in range(count):
        start = 1_000_000 + number * step % (len(bench.corpus) - 1_000_000 - len(new))
        content = f"{shared}\n\n{number} {bench.corpus[start : start + len(new)]}"
        messages = [{"role": "user", "content": content}]
        bodies.append(json.dumps({"model": "demo", "messages": messages, "max_tokens": 1}).encode())
    return bodies


def drive(server: Process, bodies: list[bytes], clients: int) -> float:
    """Seconds until all are answered, by so many clients at once; raises RuntimeError when one is refused."""
    waiting, refused = list(bodies), list[bytes]()

    def run() -> None:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=120)
        while waiting:
            try:
                body = waiting.pop()
            except IndexError:
                break
            connection.request("POST", CHAT_PATH, body, {"content-type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
            if response.status != 200:
                refused.append(answer)
        connection.close()

    threads = [threading.Thread(target=run) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if refused:
        raise RuntimeError(f"the gateway refused: {refused[0].decode()}")
    return time.perf_counter() - started
