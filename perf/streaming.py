"""What a streamed token costs: CPU of the gateway process and added latency, beside a bare ASGI app in the same run.

CPU is user and system time of all threads of the process, read by the load client when every stream has some tokens
and again when the first one has them all. Added latency is the time from the engine step that made a token (stamped in
the simulator before it writes its frame) to the moment when the load client's poll finds it; for the bare app, from
the moment when it begins its step.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from perf import load, processes, samples, stamps
from perf.processes import Process
from perf.report import middle, spread, table

WARM_STREAMS = 16


@dataclass(frozen=True)
class Run:
    """One wave of streams through one server."""

    cpu_us: float
    client_cpu_us: float
    events: float
    tokens_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int
    resident_mb: float


@dataclass(frozen=True)
class Bench:
    """Where a wave's requests go and where its tokens come from; `path` is the bare app's or the gateway's."""

    server: Process
    source: Process
    path: str
    tokens: int
    model: str = "demo"

    def run(self, streams: int, profile_switch: str = "") -> Run:
        sent_before = len(self.source.sent())
        job = load.Job(
            port=self.server.port,
            pid=self.server.pid,
            request=samples.http_request(self.path, stream=True, max_tokens=self.tokens, model=self.model),
            connections=streams,
            marker=samples.WORD,
            tokens=self.tokens,
            profile_switch=profile_switch,
        )
        result = load.run(job)
        window = result.window
        sent = self.source.sent()[sent_before:]
        latencies = stamps.added_latencies(sent, result.arrivals, result.before, window.tokens)
        return Run(
            cpu_us=window.server_cpu / window.tokens * 1e6,
            client_cpu_us=window.own_cpu / window.tokens * 1e6,
            events=window.events / window.tokens,
            tokens_per_second=window.tokens / window.time,
            p50_ms=stamps.percentile(latencies, 0.5) * 1e3,
            p99_ms=stamps.percentile(latencies, 0.99) * 1e3,
            errors=result.errors,
            resident_mb=result.resident_mb,
        )


HEADER = (
    "streams",
    "gateway µs/token",
    "bare app µs/token",
    "ratio",
    "tokens/s",
    "events/token",
    "added ms p50",
    "p99",
    "bare p50",
    "p99",
    "errors",
    "RSS MB",
    "client µs/token",
)


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    rows = []
    pace = ("--tokens", str(options.tokens), "--step-ms", str(options.step_ms))
    with (
        processes.word_simulator("--decode-base-ms", str(options.step_ms)) as worker,
        processes.gateway(worker, options) as server,
        processes.bare_app(options, *pace, *samples.bare_events(server.port)) as bare_server,
    ):
        ours = Bench(server, worker, samples.CHAT_PATH, options.tokens)
        bare = Bench(bare_server, bare_server, "/events", options.tokens)
        sys.stdout.write(f"idle gateway: {processes.resident_mb(server.pid):.0f} MB\n\n")
        for bench in (ours, bare):
            bench.run(WARM_STREAMS)  # not counted: caches fill and the interpreter specialises
        for streams in options.streams:
            runs = [(ours.run(streams), bare.run(streams)) for _ in range(options.repeat)]
            rows.append(row(streams, runs))
            sys.stderr.write(f"{streams} streams: {rows[-1][1]} µs/token\n")
    sys.stdout.write(table(HEADER, rows))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3.13t -m perf streaming", description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256], metavar="N")
    parser.add_argument("--tokens", type=int, default=100, metavar="N", help="tokens a stream (default: 100)")
    parser.add_argument("--step-ms", type=float, default=20.0, metavar="MS", help="an engine step (default: 20)")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs of each, the median counts")
    processes.add_gateway_options(parser)
    return parser.parse_args(arguments)


def row(streams: int, runs: Sequence[tuple[Run, Run]]) -> list[str]:
    ours, bare = zip(*runs, strict=True)
    return [
        str(streams),
        spread(ours, lambda run: run.cpu_us),
        spread(bare, lambda run: run.cpu_us),
        spread(runs, lambda pair: pair[0].cpu_us / pair[1].cpu_us, 2),
        middle(ours, lambda run: run.tokens_per_second, 0),
        middle(ours, lambda run: run.events, 2),
        middle(ours, lambda run: run.p50_ms),
        middle(ours, lambda run: run.p99_ms),
        middle(bare, lambda run: run.p50_ms),
        middle(bare, lambda run: run.p99_ms),
        str(sum(run.errors for run in (*ours, *bare))),
        middle(ours, lambda run: run.resident_mb, 0),
        middle(ours, lambda run: run.client_cpu_us),
    ]
