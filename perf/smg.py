"""SMG, the gateway we measure against: from the package index into a virtual environment of its own, and started.

It is kept in the set-up's cache folder. SMG's own caches of rendered prompts and prefixes are switched on, and the one
worker is chosen without looking at prompts, which is what costs it least.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.model import DEMO_FOLDER
from perf.processes import ROOT, Process, started

VERSION = "1.13.0"
MODEL = "gateway-demo"
"""As the simulator names itself."""
START_SECONDS = 60.0


def executable() -> Path:
    """SMG's command; makes its environment when there is none yet. Raises RuntimeError when that fails."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    cache = Path(os.environ.get("GATEWAY_CACHE", home / "nogil-gateway"))
    folder = cache / f"smg-{VERSION}"
    command = folder / "bin" / "smg"
    if not command.exists():
        sys.stderr.write(f"installing SMG {VERSION} into {folder}\n")
        python = ROOT / ".venv-tools/bin/python"
        try:
            subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
            install = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*install, f"smg=={VERSION}"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"SMG cannot be installed ({error}); is the package index reachable?") from error
    return command


@contextmanager
def smg(worker: Process) -> Iterator[Process]:
    """SMG before `worker`, which speaks the native wire."""
    port, metrics_port = free_ports(2)
    command = [
        *(executable(), "launch", "--host", "127.0.0.1", "--port", str(port)),
        *("--worker-urls", f"grpc://127.0.0.1:{worker.port}", "--model-path", str(DEMO_FOLDER)),
        *("--policy", "round_robin", "--tokenizer-cache-enable-l0", "--tokenizer-cache-enable-l1"),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port), "--log-level", "error"),
    ]
    with started(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as popen:
        wait_until_ready(f"http://127.0.0.1:{port}/readiness", popen)
        yield Process(popen, port)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until_ready(url: str, popen: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and popen.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                if response.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"SMG is not ready; exit code {popen.poll()}")
