"""The gateway beside SMG, in one run: CPU of each gateway process, against the same simulator over the native wire.

Our own gateway is measured on the native wire and on the step stream. Streams as in `perf streaming`; one-token
requests have prompts of 8000 words, the same one each time or one of its own.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from perf import load, processes, samples
from perf.processes import Process, resident_mb
from perf.report import middle, spread, table
from perf.smg import MODEL, smg
from perf.streaming import WARM_STREAMS, Bench, Run

WARM_REQUESTS = 32


@dataclass(frozen=True)
class Peer:
    """A gateway and where its tokens come from."""

    name: str
    server: Process
    source: Process
    model: str = "demo"

    def stream(self, streams: int, options: argparse.Namespace) -> Run:
        return Bench(self.server, self.source, samples.CHAT_PATH, options.tokens, self.model).run(streams)

    def ask(self, options: argparse.Namespace, numbered: str, requests: int) -> load.Result:
        request = samples.http_request(
            samples.CHAT_PATH, stream=False, max_tokens=1, model=self.model, prompt=samples.long_prompt()
        )
        return load.run(
            load.Job(
                port=self.server.port,
                pid=self.server.pid,
                request=request,
                connections=options.concurrency,
                requests=requests,
                numbered=numbered,
            )
        )


@contextmanager
def peers(options: argparse.Namespace, *pace: str) -> Iterator[list[Peer]]:
    """SMG first, since all others are held against it."""
    with (
        processes.word_simulator(*pace, wire="trtllm") as native,
        processes.word_simulator(*pace, wire="step") as step,
        smg(native) as smg_server,
        processes.gateway(native, options) as on_native,
        processes.gateway(step, options) as on_step,
    ):
        yield [
            Peer("SMG, native wire", smg_server, native, MODEL),
            Peer("ours, native wire", on_native, native),
            Peer("ours, step stream", on_step, step),
        ]


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    if "streams" in options.parts:
        with peers(options, "--decode-base-ms", str(options.step_ms)) as found:
            sys.stdout.write(
                "idle: " + ", ".join(f"{p.name} {resident_mb(p.server.pid):.0f} MB" for p in found) + "\n\n"
            )
            measure_streams(found, options)
    if "requests" in options.parts:
        with peers(options, "--speed", "0") as found:
            measure_requests(found, options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3.13t -m perf peers", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=["streams", "requests"], default=["streams", "requests"])
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256], metavar="N")
    parser.add_argument("--tokens", type=int, default=100, metavar="N", help="tokens a stream (default: 100)")
    parser.add_argument("--step-ms", type=float, default=20.0, metavar="MS", help="an engine step (default: 20)")
    parser.add_argument("--requests", type=int, default=400, metavar="N", help="requests in a run (default: 400)")
    parser.add_argument("--concurrency", type=int, default=16, metavar="N", help="connections (default: 16)")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs of each, the median counts")
    processes.add_gateway_options(parser)
    return parser.parse_args(arguments)


STREAM_HEADER = (
    "streams",
    "µs/token",
    "ratio to SMG",
    "tokens/s",
    "events/token",
    "added ms p50",
    "p99",
    "errors",
    "MB",
)


def measure_streams(found: Sequence[Peer], options: argparse.Namespace) -> None:
    for peer in found:
        peer.stream(WARM_STREAMS, options)  # not counted: caches fill and the interpreter specialises
    rows = []
    for streams in options.streams:
        runs = [[peer.stream(streams, options) for peer in found] for _ in range(options.repeat)]
        for place, peer in enumerate(found):
            rows.append(stream_row(f"{streams}: {peer.name}", [run[place] for run in runs], [run[0] for run in runs]))
            sys.stderr.write(f"{rows[-1]}\n")
    sys.stdout.write(table(STREAM_HEADER, rows) + "\n")


def stream_row(name: str, runs: Sequence[Run], smg_runs: Sequence[Run]) -> list[str]:
    return [
        name,
        spread(runs, lambda run: run.cpu_us),
        ratio(runs, smg_runs, lambda run: run.cpu_us),
        middle(runs, lambda run: run.tokens_per_second, 0),
        middle(runs, lambda run: run.events, 2),
        middle(runs, lambda run: run.p50_ms),
        middle(runs, lambda run: run.p99_ms),
        str(sum(run.errors for run in runs)),
        middle(runs, lambda run: run.resident_mb, 0),
    ]


REQUEST_HEADER = ("one-token requests, 8000 words", "µs/request", "to SMG's", "requests/s", "errors", "MB")


def measure_requests(found: Sequence[Peer], options: argparse.Namespace) -> None:
    rows = []
    for name, numbered in (("repeated", ""), ("unique", samples.NUMBER)):
        for peer in found:
            peer.ask(options, numbered, WARM_REQUESTS)
        runs = [[peer.ask(options, numbered, options.requests) for peer in found] for _ in range(options.repeat)]
        for place, peer in enumerate(found):
            rows.append(request_row(f"{name}: {peer.name}", [run[place] for run in runs], [run[0] for run in runs]))
            sys.stderr.write(f"{rows[-1]}\n")
    sys.stdout.write(table(REQUEST_HEADER, rows))


def request_row(name: str, runs: Sequence[load.Result], smg_runs: Sequence[load.Result]) -> list[str]:
    return [
        name,
        spread(runs, cpu_us, 0),
        ratio(runs, smg_runs, cpu_us),
        middle(runs, lambda run: run.window.answers / run.window.time, 0),
        str(sum(run.errors for run in runs)),
        middle(runs, lambda run: run.resident_mb, 0),
    ]


def cpu_us(run: load.Result) -> float:
    return run.window.server_cpu / run.window.answers * 1e6


def ratio[R](runs: Sequence[R], smg_runs: Sequence[R], read: Callable[[R], float]) -> str:
    return spread([*zip(runs, smg_runs, strict=True)], lambda pair: read(pair[0]) / read(pair[1]), 2)
