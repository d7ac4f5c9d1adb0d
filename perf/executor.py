"""What a token costs in the executor's process, over the stand-in for TensorRT-LLM that the tests use.

Beside it, in turns, the same stand-in whose results are read with `async for` and thrown away: what that costs is the
LLM API's and the stand-in's; what the executor costs more is ours, gRPC included. A gateway's half of the step stream,
in this process, asks for the streams and counts their tokens.
"""

import argparse
import asyncio
import statistics
import sys
from array import array
from collections.abc import Sequence

from engine_adapters.base import Delivery, Submission
from engine_adapters.step.client import StepClient
from perf import builds, machine, processes
from perf.machine import ROOT
from perf.report import spread, table
from perf.samples import WARM_TOKENS

MODEL = ROOT / "engine_adapters/simulator/model"
STANDIN = ROOT / "tests/trtllm_standin"


class Count:
    """Tokens of each stream, and the two moments between which they are counted."""

    def __init__(self, streams: int) -> None:
        self.tokens = [0] * streams
        self.warm = asyncio.Event()
        self.first_end = asyncio.Event()

    def take(self, deliveries: list[Delivery[int]]) -> None:
        for key, token_ids, finish, _ in deliveries:
            self.tokens[key] += len(token_ids)
            if finish is not None:
                self.first_end.set()
        if not self.warm.is_set() and min(self.tokens) >= WARM_TOKENS:
            self.warm.set()


async def executor_us(port: int, pid: int, streams: int, tokens: int) -> float:
    """Microseconds of the executor's CPU per token."""
    client: StepClient[int] = StepClient(f"127.0.0.1:{port}", lambda kind: None)
    await client.connect()
    count = Count(streams)
    running = asyncio.ensure_future(client.run(count.take))
    for key in range(streams):
        client.submit([key], Submission(f"r{key}", array("I", [5, 6, 7]).tobytes(), tokens, ignore_eos=True))
    await count.warm.wait()
    started, before = machine.cpu_ns(pid), sum(count.tokens)
    await count.first_end.wait()
    used, passed = machine.cpu_ns(pid) - started, sum(count.tokens) - before
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await client.close()
    return used / 1000 / passed


def measure(options: argparse.Namespace) -> str:
    rows = []
    settings = {**builds.without_choice(), "PYTHONPATH": f"{STANDIN}:{ROOT}", "STANDIN_STEP_MS": str(options.step_ms)}
    for streams in options.streams:
        ours, floors = [], []
        for _ in range(options.repeats):
            command = [options.python, "-m", "engine_adapters.trtllm.executor", MODEL, "--max_batch_size", "100000"]
            with processes.started(command, env=settings) as popen:
                ours.append(asyncio.run(executor_us(processes.port_of_json(popen), popen.pid, streams, options.tokens)))
            bare = [options.python, "-m", "perf.bare_llm", str(streams), str(options.tokens)]
            with processes.started(bare, env=settings) as popen:
                floors.append(float(processes.first_line(popen)))
        more = statistics.median(ours) - statistics.median(floors)
        cells = [spread(values, float, 2) for values in (ours, floors)]
        rows.append([str(streams), *cells, f"{more:.2f}"])
    return table(["streams", "executor, µs/token", "bare async for", "ours, of that"], rows)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python3.13t -m perf executor", description=__doc__)
    parser.add_argument(
        "--python",
        default=builds.helper(builds.find()).python,
        help="the executor's interpreter, which needs grpcio; one with a GIL, as engines have, if there is one",
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--step-ms", type=float, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    sys.stdout.write(measure(parser.parse_args(arguments)))
