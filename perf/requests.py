"""What a one-token request costs: CPU of the gateway process, streamed and not, beside a bare ASGI app in the same run.

The simulator answers at once, the client keeps `--concurrency` connections busy. CPU is user and system time of all
threads of the process, over all but the first tenth of the requests.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from perf import load, processes, samples
from perf.processes import Process
from perf.report import middle, spread, table


@dataclass(frozen=True)
class Run:
    """One series of requests to one server."""

    cpu_us: float
    client_cpu_us: float
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int


def run(
    server: Process,
    path: str,
    stream: bool,
    options: argparse.Namespace,
    profile_switch: str = "",
) -> Run:
    job = load.Job(
        port=server.port,
        pid=server.pid,
        request=samples.http_request(path, stream=stream, max_tokens=1),
        connections=options.concurrency,
        requests=options.requests,
        profile_switch=profile_switch,
    )
    result = load.run(job)
    window, latencies = result.window, sorted(result.latencies)
    return Run(
        cpu_us=window.server_cpu / window.answers * 1e6,
        client_cpu_us=window.own_cpu / window.answers * 1e6,
        requests_per_second=window.answers / window.time,
        p50_ms=latencies[len(latencies) // 2] * 1e3,
        p99_ms=latencies[len(latencies) * 99 // 100] * 1e3,
        errors=result.errors,
    )


HEADER = (
    "one-token request",
    "gateway µs",
    "bare app µs",
    "ratio",
    "requests/s",
    "ms p50",
    "p99",
    "bare requests/s",
    "errors",
    "client µs",
)


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    rows = []
    with (
        processes.word_simulator("--speed", "0") as worker,
        processes.gateway(worker, options) as server,
        processes.bare_app(options, *samples.bare_events(server.port), *samples.bare_reply(server.port)) as bare,
    ):
        for name, stream, path in (("streamed", True, "/events"), ("not streamed", False, "/reply")):
            runs = [
                (run(server, samples.CHAT_PATH, stream, options), run(bare, path, stream, options))
                for _ in range(options.repeat)
            ]
            rows.append(row(name, runs))
            sys.stderr.write(f"{name}: {rows[-1][1]} µs/request\n")
    sys.stdout.write(table(HEADER, rows))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3.13t -m perf requests", description=__doc__)
    parser.add_argument("--requests", type=int, default=4000, metavar="N", help="requests in a run (default: 4000)")
    parser.add_argument("--concurrency", type=int, default=32, metavar="N", help="connections (default: 32)")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs of each, the median counts")
    processes.add_gateway_options(parser)
    return parser.parse_args(arguments)


def row(name: str, runs: Sequence[tuple[Run, Run]]) -> list[str]:
    ours, bare = zip(*runs, strict=True)
    return [
        name,
        spread(ours, lambda run: run.cpu_us, 0),
        spread(bare, lambda run: run.cpu_us, 0),
        spread(runs, lambda pair: pair[0].cpu_us / pair[1].cpu_us, 2),
        middle(ours, lambda run: run.requests_per_second, 0),
        middle(ours, lambda run: run.p50_ms),
        middle(ours, lambda run: run.p99_ms),
        middle(bare, lambda run: run.requests_per_second, 0),
        str(sum(run.errors for run in (*ours, *bare))),
        middle(ours, lambda run: run.client_cpu_us, 0),
    ]
