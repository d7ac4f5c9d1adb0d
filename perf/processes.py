"""The processes of a measurement: started with a first line that says where they are, ended by their `with`."""

import json
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf import stamps
from perf.builds import Build
from perf.machine import ROOT
from perf.samples import WORD
from perf.stamps import Arrivals

START_SECONDS = 60.0


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

    def url(self, model: str = "") -> str:
        """As gateways name it."""
        return f"{self.wire}://127.0.0.1:{self.port}" + (f"?model={model}" if model else "")


@contextmanager
def word_simulator(*options: str, build: Build, wire: str = "step") -> Iterator[Process]:
    """The simulator: every token is samples.WORD, every step is stamped, prompts and large batches cost nothing."""
    with folder() as place:
        script, stamp_file = place / "script.json", place / "stamps"
        script.write_text(json.dumps([{"steps": [WORD], "finish": "repeat"}]))
        answers = ("--ignore-eos", "--output", f"script:{script}")
        costs = ("--prefill-tps", "1e9", "--decode-per-request-ms", "0", "--max-running", "100000")
        module = ("perf.stamped_simulator", str(stamp_file), "--wire", wire)
        command = [build.python, "-m", *module, *answers, *costs, *options]
        with started(command, env=build.environment) as popen:
            yield Process(popen, port_of_json(popen), stamp_file, wire)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gateway-perf-") as place:
        yield Path(place)


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
        popen.send_signal(signal.SIGKILL)
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


def port_of(line: str) -> int:
    """The port in "Ready: http://127.0.0.1:8000"."""
    found = re.search(r"http://[^ ]*:(\d+)", line)
    if found is None:
        raise RuntimeError(f"expected a ready line, got {line!r}")
    return int(found[1])


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until_ready(url: str, popen: subprocess.Popen[str]) -> None:
    """Until it answers 200; raises RuntimeError when the process ends or that takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and popen.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                if response.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{popen.args!r} is not ready; exit code {popen.poll()}")
