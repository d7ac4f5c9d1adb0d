"""`perf routing` once more, small and with everything real: simulators, a gateway for each policy, clients over HTTP.

Multi-turn chats that share system prompts arrive at random; each client reads its answer's stream and goes on after a
pause. With `--gateways 2` each turn goes to either. `busiest / mean` is of the answers that each executor has given.
It confirms what the simulated fleet says; for figures that repeat, use that.
"""

import argparse
import http.client
import json
import random
import re
import sys
import threading
import time
from collections import Counter
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
HEADER = ("policy", "TTFT ms mean", "p50", "p99", "hit rate %", "busiest / mean", "requests", "errors")
ANSWERS = re.compile(r'^gateway_worker_answers_total{worker="([^"]*)".*} (\d+)$', re.MULTILINE)


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
        with executors(options) as urls, gateways(urls, policy, options.gateways) as ports:
            run_chats(ports, options, log)
            rows.append(row(policy, log, spread(ports, len(urls))))
        sys.stderr.write(f"{policy}: {rows[-1][1]} ms\n")
    sys.stdout.write(table(HEADER, rows))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3.13t -m perf chats", description=__doc__)
    parser.add_argument("--policies", default="round_robin,least_load,cache_aware", metavar="NAME,NAME")
    parser.add_argument("--executors", type=int, default=3, metavar="N", help="(default: 3)")
    parser.add_argument("--gateways", type=int, default=1, metavar="N", help="(default: 1)")
    parser.add_argument("--system-prompts", type=int, default=6, metavar="N", help="0: nothing shared (default: 6)")
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
def gateways(urls: list[str], policy: str, count: int) -> Iterator[list[int]]:
    """The ports of gateways that all have all workers."""
    with ExitStack() as stack:
        yield [stack.enter_context(a_gateway(urls, policy)) for _ in range(count)]


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
    return [worker for worker in json.loads(get(port, "/ready"))["workers"] if worker["state"] == "ready"]


def spread(ports: list[int], workers: int) -> float:
    """How many answers the busiest executor has given, in means."""
    counts: Counter[str] = Counter()
    for port in ports:
        for worker, count in ANSWERS.findall(get(port, "/metrics")):
            counts[worker] += int(count)
    return max(counts.values()) * workers / counts.total()


def get(port: int, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def run_chats(ports: list[int], options: argparse.Namespace, log: Log) -> None:
    dice = random.Random(1)
    systems = [words(dice, 500) for _ in range(options.system_prompts)]
    running: list[threading.Thread] = []
    end = time.monotonic() + options.seconds
    while (pause := dice.expovariate(options.rate)) + time.monotonic() < end:
        time.sleep(pause)
        seed = len(running)
        system = dice.choice(systems) if systems else words(random.Random(-1 - seed), 500)
        thread = threading.Thread(target=chat, args=(ports, seed, system, options.turns, log))
        thread.start()
        running.append(thread)
    for thread in running:
        thread.join()


def chat(ports: list[int], seed: int, system: str, turns: int, log: Log) -> None:
    dice = random.Random(seed)
    messages = [{"role": "system", "content": system}]
    for _ in range(turns):
        messages.append({"role": "user", "content": words(dice, 100)})
        try:
            messages.append({"role": "assistant", "content": ask(dice.choice(ports), str(seed), messages, log)})
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


def row(policy: str, log: Log, busiest: float) -> list[str]:
    waits = sorted(log.waits)
    figures = (mean(waits), waits[len(waits) // 2], waits[len(waits) * 99 // 100])
    return [
        policy,
        *(f"{1000 * seconds:.0f}" for seconds in figures),
        f"{100 * sum(log.cached_tokens) / sum(log.prompt_tokens):.1f}",
        f"{busiest:.2f}",
        str(len(waits)),
        str(len(log.errors)),
    ]
