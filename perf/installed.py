"""Peers from the package index, each in a virtual environment of its own in the set-up's cache folder, and started.

SMG, the gateway we measure against: its own caches of rendered prompts and prefixes are on, and its one worker is
chosen without a look at prompts, which is what costs it least. A plain front: what engines' own servers are made of.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.model import DEMO_FOLDER
from perf.builds import Build, without_choice
from perf.machine import ROOT
from perf.processes import Process, free_ports, started, wait_until_ready

SMG_VERSION = "1.13.0"
SMG_MODEL = "gateway-demo"
"""As the simulator names itself."""
FRONT = ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0", "tokenizers==0.22.2", "jinja2")
SIMULATOR = ("grpcio", "hpack")
"""What its modules import."""


def environment(name: str, python: str | Path, packages: tuple[str, ...]) -> Path:
    """Its bin folder; makes it when there is none yet. Raises RuntimeError when that fails."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = Path(os.environ.get("GATEWAY_CACHE", home / "nogil-gateway")) / name
    complete = folder / ".complete"
    if not complete.exists() or complete.read_text() != " ".join(packages):
        sys.stderr.write(f"installing {', '.join(packages)} into {folder}\n")
        try:
            subprocess.run([python, "-m", "venv", "--clear", folder], check=True, env=without_choice())
            install: list[str | Path] = [
                folder / "bin/python",
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ]
            subprocess.run([*install, *packages], check=True, env=without_choice())
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"{name} cannot be installed ({error}); is the package index reachable?") from error
        complete.write_text(" ".join(packages))
    return folder / "bin"


def front_python(build: Build) -> Path:
    """The interpreter of a plain front, made from a GIL build's."""
    version = build.facts["version"]
    return environment(f"front-{version}", build.python, (*FRONT, *SIMULATOR)) / "python"


def smg_command() -> Path:
    return environment(f"smg-{SMG_VERSION}", ROOT / ".venv-tools/bin/python", (f"smg=={SMG_VERSION}",)) / "smg"


@contextmanager
def smg(worker: Process) -> Iterator[Process]:
    """SMG before `worker`, which speaks the native wire."""
    port, metrics_port = free_ports(2)
    command: list[str | Path] = [
        *(smg_command(), "launch", "--host", "127.0.0.1", "--port", str(port)),
        *("--worker-urls", f"grpc://127.0.0.1:{worker.port}", "--model-path", str(DEMO_FOLDER)),
        *("--policy", "round_robin", "--tokenizer-cache-enable-l0", "--tokenizer-cache-enable-l1"),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port), "--log-level", "error"),
    ]
    with started(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as popen:
        wait_until_ready(f"http://127.0.0.1:{port}/readiness", popen)
        yield Process(popen, port)
