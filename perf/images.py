"""What preprocessing an image costs: `python3.13t -m perf images`, beside transformers' processors in the same run.

Ours runs without a GIL and, where there is `.venv-gil` (`bash setup/bootstrap.sh --gil`), with one; transformers' fast
(torchvision) and slow (Pillow) processors in the Python of `--transformers`. Each is a process that works only while
the others wait. A round asks all of them, and of each the best round counts: what else the machine does only slows.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from gateway.multimodal import FAMILIES
from perf.machine import ROOT
from perf.report import table

FREE_PYTHON = ROOT / ".venv/bin/python3.13t"
GIL_PYTHON = ROOT / ".venv-gil/bin/python"
LACKING = {("fast", "phi3v"), ("slow", "phi3v"), ("slow", "llama4")}
"""What transformers does not have."""
Key = tuple[int, str]
"""(threads, worker)."""


@dataclass(frozen=True)
class Worker:
    name: str
    popen: subprocess.Popen[str]

    def run(self, order: dict[str, object]) -> tuple[float, float]:
        """Images a second, and images a second of CPU time."""
        assert self.popen.stdin and self.popen.stdout
        self.popen.stdin.write(json.dumps(order) + "\n")
        self.popen.stdin.flush()
        line = self.popen.stdout.readline()
        if not line:
            raise SystemExit(f"the worker {self.name} ended at {order}")
        answer = json.loads(line)
        return answer["images"] / answer["seconds"], answer["images"] / answer["cpu"]


def main(arguments: Sequence[str]) -> None:
    options = parser().parse_args(arguments)
    names = options.processors.split(",")
    sizes = [tuple(map(int, size.split("x"))) for size in options.sizes.split(",")]
    with ExitStack() as stack:
        workers = [stack.enter_context(each) for each in workers_of(options.transformers)]
        for decodes in {"yes": [True], "no": [False], "both": [False, True]}[options.decode]:
            bench = Bench(workers, options.threads, options.rounds, options.seconds, decodes)
            rows = [bench.row(name, width, height) for name in names for width, height in sizes]
            sys.stdout.write(f"\nfrom {'JPEG files' if decodes else 'pixels'}\n\n{table(bench.header, rows)}")
            sys.stdout.flush()


@dataclass(frozen=True)
class Bench:
    workers: Sequence[Worker]
    threads: Sequence[int]
    rounds: int
    seconds: float
    decodes: bool

    @property
    def header(self) -> list[str]:
        costs = [f"{worker.name}, ms" for worker in self.workers]
        gains = [f"{worker.name} x{threads}" for threads in self.threads[1:] for worker in self.workers]
        return ["processor, picture", *costs, "fast / ours", *gains]

    def row(self, name: str, width: int, height: int) -> list[str]:
        """CPU time of an image for each worker on so many threads as come first, how much less of it ours takes than
        transformers' fast processor, and how many times as many images a second more threads make."""
        rates, by_cpu = defaultdict[Key, float](float), defaultdict[Key, float](float)
        order = {"processor": name, "width": width, "height": height, "decode": self.decodes, "seconds": self.seconds}
        for _ in range(self.rounds):
            for threads in self.threads:
                for worker in self.workers:
                    if (worker.name, name) not in LACKING:
                        key = threads, worker.name
                        rate, of_cpu = worker.run(order | {"threads": threads})
                        rates[key] = max(rates[key], rate)
                        by_cpu[key] = max(by_cpu[key], of_cpu)
        first, *others = self.threads
        return [
            f"{name} {width}x{height}",
            *(ratio(1000, by_cpu[first, worker.name], 1) for worker in self.workers),
            ratio(by_cpu[first, "ours"], by_cpu[first, "fast"]),
            *(ratio(rates[each, worker.name], rates[first, worker.name]) for each in others for worker in self.workers),
        ]


def ratio(rate: float, other: float, digits: int = 2) -> str:
    return f"{rate / other:.{digits}f}" if rate and other else ""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python3.13t -m perf images", description=__doc__)
    names = ",".join(family.name for family in FAMILIES)
    result.add_argument("--processors", metavar="NAME,...", default=names, help="default: all")
    result.add_argument("--sizes", metavar="WxH,...", default="640x480,2272x1704", help="default: %(default)s")
    result.add_argument("--threads", metavar="N", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    result.add_argument("--seconds", metavar="S", type=float, default=0.5, help="of a run; default: %(default)s")
    result.add_argument("--rounds", metavar="N", type=int, default=3, help="default: %(default)s")
    result.add_argument("--decode", choices=("yes", "no", "both"), default="both", help="decode a JPEG each time")
    result.add_argument(
        "--transformers",
        metavar="PYTHON",
        default=os.environ.get("GATEWAY_TRANSFORMERS_PYTHON"),
        help="a Python that has transformers, torch and torchvision; default: $GATEWAY_TRANSFORMERS_PYTHON",
    )
    return result


def workers_of(transformers: str | None) -> Iterator[AbstractContextManager[Worker]]:
    yield worker("ours", str(FREE_PYTHON), "ours", PYTHON_GIL="0")
    if GIL_PYTHON.exists():
        yield worker("GIL", str(GIL_PYTHON), "ours", PYTHON_GIL="1")
    if transformers:
        yield worker("fast", transformers, "fast", PYTHON_GIL="1")
        yield worker("slow", transformers, "slow", PYTHON_GIL="1")


@contextmanager
def worker(name: str, python: str, kind: str, **environment: str) -> Iterator[Worker]:
    popen = subprocess.Popen(
        [python, "-m", "perf.images_worker", kind],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert popen.stdout
        popen.stdout.readline()
        yield Worker(name, popen)
    finally:
        popen.kill()
        popen.wait()
