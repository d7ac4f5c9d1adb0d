"""The processes of a measurement: started with a first line that says where they are, ended by their `with`."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf import stamps
from perf.samples import WORD
from perf.stamps import Arrivals

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Process:
    """`port` is what it listens on; `stamps` is the file where it notes when tokens left it, if it does, and `wire` how
    it speaks to gateways, if it is an engine."""

    popen: subprocess.Popen[str]
    port: int
    stamps: Path | None = None
    wire: str = "step"

    @property
    def pid(self) -> int:
        return self.popen.pid

    def sent(self) -> Arrivals:
        """What left it so far."""
        return [] if self.stamps is None else stamps.read(self.stamps)


@contextmanager
def word_simulator(*options: str, wire: str = "step") -> Iterator[Process]:
    """The simulator: every token is samples.WORD, every step is stamped, prompts and large batches cost nothing."""
    with _folder() as folder:
        script, stamp_file = folder / "script.json", folder / "stamps"
        script.write_text(json.dumps([{"steps": [WORD], "finish": "repeat"}]))
        answers = ("--ignore-eos", "--output", f"script:{script}")
        costs = ("--prefill-tps", "1e9", "--decode-per-request-ms", "0", "--max-running", "100000")
        with _started("perf.stamped_simulator", str(stamp_file), "--wire", wire, *answers, *costs, *options) as popen:
            yield Process(popen, port_of_json(popen), stamp_file, wire)


@contextmanager
def gateway(
    worker: Process, options: argparse.Namespace, *launcher: str, settings: Sequence[str] = ()
) -> Iterator[Process]:
    """A gateway before `worker`; `launcher` is another module to start it, and what that wants before our options."""
    chosen = ["--http-threads", str(options.http_threads), "--server", options.server]
    fixed = ["--worker", f"{worker.wire}://127.0.0.1:{worker.port}", "--port", "0", "--log-level", "warning"]
    with _started(*launcher or ("gateway",), *fixed, *chosen, *settings) as popen:
        yield Process(popen, port_of_line(first_line(popen)))


@contextmanager
def bare_app(options: argparse.Namespace, *arguments: str) -> Iterator[Process]:
    with _folder() as folder:
        stamps = folder / "stamps"
        own = ("--stamps", str(stamps), "--server", options.server)
        with _started("perf.bare_app", *own, *arguments) as popen:
            yield Process(popen, port_of_line(first_line(popen)), stamps)


def add_gateway_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--http-threads", type=int, default=1, metavar="N")
    parser.add_argument("--server", default="hypercorn", metavar="NAME", help="the HTTP server of both")


def cpu_ns(pid: int) -> int:
    """CPU time that all threads of a process have used, user and system: /proc/PID/stat's, but in nanoseconds."""
    return time.clock_gettime_ns((~pid << 3) | 2)  # the kernel's number for "CPU clock of that process"


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gateway-perf-") as folder:
        yield Path(folder)


@contextmanager
def _started(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with started([sys.executable, "-m", module, *arguments]) as popen:
        yield popen


@contextmanager
def started(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process with a pipe for its output, killed at the end."""
    popen = subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdin=subprocess.DEVNULL,
        **{"stdout": subprocess.PIPE, **options},
    )
    try:
        yield popen
    finally:
        popen.kill()
        popen.wait()


def port_of_json(popen: subprocess.Popen[str]) -> int:
    """The port that an executor's first line tells."""
    return int(json.loads(first_line(popen))["address"].rpartition(":")[2])


def first_line(popen: subprocess.Popen[str]) -> str:
    assert popen.stdout is not None, "started with a pipe"
    line = popen.stdout.readline()
    if not line:
        raise RuntimeError(f"{popen.args!r} ended before it was ready")
    return line


def port_of_line(line: str) -> int:
    """The port in "Ready: http://127.0.0.1:8000"."""
    found = re.search(r"http://[^ ]*:(\d+)", line)
    if found is None:
        raise RuntimeError(f"expected a ready line, got {line!r}")
    return int(found[1])
