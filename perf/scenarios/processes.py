"""Threads or processes: how Python scales today is N processes behind one port (SO_REUSEPORT); what they do not share.

Chats with shared beginnings, on two engines with prefix caches whose prefill takes time. In the middle of the window a
third engine comes (in the --worker-file, which every process follows). Each process has a token cache and a router of
its own, and finds out for itself what engines there are and what they have cached.
"""

import threading
from collections.abc import Sequence
from pathlib import Path

from perf import samples
from perf.arms import Arm, start
from perf.builds import Build
from perf.load import Flow
from perf.measure import Context, drive, percentile
from perf.parameters import Parameters
from perf.processes import Process, folder, word_simulator
from perf.results import Figure, Place, Sample
from perf.scenarios.scenario import Scenario

CHATS, TURNS = 24, 4
"""So many conversations, each of so many requests in order."""
SYSTEM_TOKENS, TURN_TOKENS = 1500, 400
CLIENTS = 6
PREFILL_TPS = "40000"


def arms(builds: Sequence[Build], parameters: Parameters) -> list[Arm]:
    plain = [build for build in builds if " " not in build.name]
    found = [Arm(f"{build.name}, 2 HTTP threads", build, ("--http-threads", "2")) for build in plain]
    return found + [Arm(f"{build.name}, 2 processes", build, ("--http-threads", "1"), processes=2) for build in plain]


def chat_requests() -> list[str]:
    """The turns of all chats, one of each in turn; the system prompts are shared."""
    systems = samples.documents(4, SYSTEM_TOKENS)
    texts = iter(samples.documents(CHATS * TURNS, TURN_TOKENS))
    chats = [[{"role": "system", "content": systems[number % len(systems)]}] for number in range(CHATS)]
    requests = []
    for _ in range(TURNS):
        for chat in chats:
            chat.append({"role": "user", "content": next(texts)})
            body = {**samples.chat_body(True, 4), "messages": chat, "stream_options": {"include_usage": True}}
            requests.append(samples.http_post(samples.CHAT_PATH, body))
            chat.append({"role": "assistant", "content": samples.WORD * 4})
    return requests


def measure(context: Context, arm: Arm, place: Place) -> Sample:
    parameters = context.parameters
    costs = ("--decode-base-ms", "5", "--prefill-tps", PREFILL_TPS, "--kv-tokens", "65536")
    with (
        folder() as files,
        word_simulator(*costs, build=context.helper) as first,
        word_simulator(*costs, build=context.helper) as second,
        word_simulator(*costs, build=context.helper) as third,
    ):
        workers = files / "workers.toml"
        list_workers(workers, [first, second])
        with start(arm.with_settings("--worker-file", str(workers)), [first, second]) as front:
            flow = Flow("chats", chat_requests(), marker=samples.WORD, connections=CLIENTS)
            half = parameters.policy_seconds / 2
            change = threading.Timer(parameters.warm_seconds + half, list_workers, (workers, [first, second, third]))
            change.start()
            run = drive(context, front, [first, second, third], [flow], parameters.warm_seconds, 2 * half)
            change.join()
            hits = front.cache_hits()
    chats = run.flow("chats")
    waits = [(asked, first_token - asked) for asked, first_token, _, _ in chats.answers]
    run.sample.figures |= {
        "requests_per_s": chats.ended / run.result.seconds,
        "ms_per_request": 1e3 * run.result.usage["front"].cpu / max(1, chats.ended),
        "ttft_p50_ms": 1e3 * percentile([wait for asked, wait in waits if asked < half], 0.5),
        "changed_p50_ms": 1e3 * percentile([wait for asked, wait in waits if asked >= half], 0.5),
        "changed_p99_ms": 1e3 * percentile([wait for asked, wait in waits if asked >= half], 0.99),
        "cache_hits": 100 * hits,
    }
    return run.sample


def list_workers(path: Path, engines: Sequence[Process]) -> None:
    part = path.with_suffix(".part")
    part.write_text("".join(f'[[worker]]\nurl = "{engine.url()}"\n' for engine in engines))
    part.rename(path)


SCENARIO = Scenario(
    name="processes",
    title="Threads or processes",
    question="What do two processes behind one port lose against two threads?",
    arms=arms,
    places=lambda parameters: [{"load": "chats that share their beginnings"}],
    measure=measure,
    seconds=lambda parameters: parameters.policy_seconds + parameters.warm_seconds + 3.0,
    figures={
        "requests_per_s": Figure("requests/s", "higher", 1),
        "ms_per_request": Figure("CPU, ms/request", "lower", 2),
        "cache_hits": Figure("token cache, % of prompt tokens", "higher", 0),
        "ttft_p50_ms": Figure("TTFT p50, ms"),
        "changed_p50_ms": Figure("TTFT p50 after a worker came, ms"),
        "changed_p99_ms": Figure("p99, ms"),
    },
    counts_throughput=True,
    notes=("The cache's share is that of the process which answered the scrape.",),
)
