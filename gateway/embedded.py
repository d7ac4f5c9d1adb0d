"""The embedded executor: a simulator in a process of its own, for when no worker is configured.

Threads: one thread for each executor follows its process; `stop` is called by the main thread once `ending` is set.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from gateway import log
from gateway.threads import Supervisor

RESTARTS = 1


class EmbeddedExecutor:
    """Runs a simulator for a model folder; `on_address(host:port)` is called once, when it first listens.

    It reads our end of a pipe and ends when that closes, so it cannot outlive us however we die. Its own death is met
    with one restart on the same port; the second is the end of the gateway.
    """

    def __init__(self, name: str, folder: Path, supervisor: Supervisor, on_address: Callable[[str], object]) -> None:
        self._name = name
        self._folder = folder
        self._supervisor = supervisor
        self._on_address = on_address
        self._process: subprocess.Popen[str] | None = None
        supervisor.spawn(f"embedded-{name}", self._follow, may_return=True)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def stop(self, timeout: float) -> None:
        """Close the pipe and wait, then kill."""
        process = self._process
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _follow(self) -> None:
        port, address = 0, None
        for life in range(RESTARTS + 1):
            process = self._process = self._start(port)
            assert process.stdout is not None
            line = process.stdout.readline()
            if line:
                if address is None:
                    address = json.loads(line)["address"]
                    self._on_address(address)
                port = int(address.rpartition(":")[2])
            code = process.wait()
            if self._supervisor.ending:
                return
            if life < RESTARTS:
                log.event(logging.WARNING, "the embedded executor died; starting it once more", code=code)
        self._supervisor.fail(f"the embedded executor of model {self._name!r} died again (exit code {code})")

    def _start(self, port: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "engine_adapters.simulator", "--until-stdin-closes"]
        command += ["--port", str(port), "--model-path", str(self._folder)]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
            start_new_session=True,  # Ctrl-C in a terminal is for us, not for it
        )
