"""`perf routing` once more, small and with everything real: simulators, a gateway for each policy, clients over HTTP.

Multi-turn chats that share system prompts arrive at random; each client reads its answer's stream and goes on after a
pause. It confirms what the simulated fleet says; for figures that repeat, use that.
"""

import argparse
import http.client
import json
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from perf import processes
from perf.report import table
from perf.samples import CHAT_PATH

WORDS = (
    "sea wind stone light river cloud field night road fire snow leaf bird star sand rain hill tree lake moon".split()
)
HEADER = ("policy", "TTFT ms mean", "p50", "p99", "hit rate %", "requests", "errors")


@dataclass
class Log:
    """What the clients saw; appended to by all of their threads."""

    waits: list[float] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    cached_tokens: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    rows = []
    for policy in options.policies.split(","):
        log = Log()
        with executors(options) as urls, a_gateway(urls, policy) as port:
            run_chats(port, options, log)
        rows.append(row(policy, log))
        sys.stderr.write(f"{policy}: {rows[-1][1]} ms\n")
    sys.stdout.write(table(HEADER, rows))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3.13t -m perf chats", description=__doc__)
    parser.add_argument("--policies", default="round_robin,least_load,cache_aware", metavar="NAME,NAME")
    parser.add_argument("--executors", type=int, default=3, metavar="N", help="(default: 3)")
    parser.add_argument("--rate", type=float, default=1.5, metavar="N", help="chats a second (default: 1.5)")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="N", help="of arrivals (default: 20)")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="of a chat (default: 5)")
    parser.add_argument("--prefill-tps", type=float, default=4000.0, metavar="N", help="of an executor (default: 4000)")
    return parser.parse_args(arguments)


@contextmanager
def executors(options: argparse.Namespace) -> Iterator[list[str]]:
    """The workers' URLs."""
    costs = ("--prefill-tps", str(options.prefill_tps), "--kv-tokens", "32768", "--ignore-eos", "--output", "random")
    with ExitStack() as stack:
        urls = []
        for _ in range(options.executors):
            popen = stack.enter_context(processes.started(python("engine_adapters.simulator", *costs)))
            urls.append(f"step://127.0.0.1:{processes.port_of_json(popen)}")
        yield urls


@contextmanager
def a_gateway(urls: list[str], policy: str) -> Iterator[int]:
    workers = [word for url in urls for word in ("--worker", url)]
    options = ("--port", "0", "--log-level", "error", "--policy", policy)
    with processes.started(python("gateway", *options, *workers)) as popen:
        port = int(processes.first_line(popen).strip().rpartition(":")[2])
        while len(ready(port)) < len(urls):
            time.sleep(0.05)
        yield port


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def ready(port: int) -> list[Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/ready")
    workers = json.loads(connection.getresponse().read())["workers"]
    connection.close()
    return [worker for worker in workers if worker["state"] == "ready"]


def run_chats(port: int, options: argparse.Namespace, log: Log) -> None:
    dice = random.Random(1)
    systems = [words(dice, 500) for _ in range(6)]
    running: list[threading.Thread] = []
    end = time.monotonic() + options.seconds
    while (pause := dice.expovariate(options.rate)) + time.monotonic() < end:
        time.sleep(pause)
        seed = len(running)
        thread = threading.Thread(target=chat, args=(port, seed, dice.choice(systems), options.turns, log))
        thread.start()
        running.append(thread)
    for thread in running:
        thread.join()


def chat(port: int, seed: int, system: str, turns: int, log: Log) -> None:
    dice = random.Random(seed)
    messages = [{"role": "system", "content": system}]
    for _ in range(turns):
        messages.append({"role": "user", "content": words(dice, 100)})
        try:
            messages.append({"role": "assistant", "content": ask(port, str(seed), messages, log)})
        except (OSError, ValueError) as error:
            log.errors.append(repr(error))
            return
        time.sleep(dice.expovariate(1.0))


def ask(port: int, key: str, messages: list[dict[str, str]], log: Log) -> str:
    """The answer's text; notes when it began. Raises ValueError when it is an error."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    options = {"stream": True, "max_tokens": 40, "stream_options": {"include_usage": True}}
    body = json.dumps({"model": "demo", "messages": messages, **options})
    began = time.monotonic()
    connection.request("POST", CHAT_PATH, body, {"content-type": "application/json", "x-routing-key": key})
    response = connection.getresponse()
    text = ""
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise ValueError(chunk["error"]["message"])
        piece = chunk["choices"][0]["delta"].get("content") if chunk["choices"] else None
        if piece and not text:
            log.waits.append(time.monotonic() - began)
        text += piece or ""
        if usage := chunk.get("usage"):
            log.prompt_tokens.append(usage["prompt_tokens"])
            log.cached_tokens.append(usage["prompt_tokens_details"]["cached_tokens"])
    connection.close()
    return text


def words(dice: random.Random, count: int) -> str:
    return " ".join(dice.choices(WORDS, k=count))


def row(policy: str, log: Log) -> list[str]:
    waits = sorted(log.waits)
    figures = (mean(waits), waits[len(waits) // 2], waits[len(waits) * 99 // 100])
    return [
        policy,
        *(f"{1000 * seconds:.0f}" for seconds in figures),
        f"{100 * sum(log.cached_tokens) / sum(log.prompt_tokens):.1f}",
        str(len(waits)),
        str(len(log.errors)),
    ]
