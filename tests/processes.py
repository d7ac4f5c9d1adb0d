"""The processes that tests talk to: real gateways and simulators, their output gathered, always reaped."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
IS_FREE_THREADED_BUILD = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
GIL_ARGUMENTS = () if IS_FREE_THREADED_BUILD else ("--allow-gil",)
PATIENCE = 20.0
"""Seconds after which a condition that has not come true is a failure; long, since other jobs may have the cores."""
START_SECONDS = 60.0
"""The same for a process that starts: importing is much CPU."""
POLL_SECONDS = 0.01


def eventually[Result](check: Callable[[], Result], what: str = "", patience: float = PATIENCE) -> Result:
    """The first true result of `check`; an AssertionError that says `what` did not happen when patience runs out."""
    deadline = time.monotonic() + patience
    while not (result := check()):
        assert time.monotonic() < deadline, f"{what or check} has not happened in {patience:g} s; last: {result!r}"
        time.sleep(POLL_SECONDS)
    return result


def environment(**changes: str | None) -> dict[str, str]:
    """Ours without settings of the gateway, and with `changes`; None removes a variable."""
    result = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    for name, value in changes.items():
        result.pop(name, None)
        if value is not None:
            result[name] = value
    return result


class Process:
    """A child process; `with` ends it, whatever happens. Its output is read as it comes, so it never blocks."""

    def __init__(self, command: Sequence[str | Path], env: dict[str, str] | None = None) -> None:
        self._words = [str(word) for word in command]
        self._changed = threading.Condition()
        self._lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self.child = subprocess.Popen(
            self._words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**(environment() if env is None else env), "PYTHONFAULTHANDLER": "1"},
            text=True,
            encoding="utf-8",
        )
        assert self.child.stdout is not None and self.child.stderr is not None
        self._readers = [self._follow("stdout", self.child.stdout), self._follow("stderr", self.child.stderr)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.child.kill()
        self.child.wait()
        assert self.child.stdin is not None
        self.child.stdin.close()
        for reader in self._readers:
            reader.join(PATIENCE)
        if error is not None:
            # pytest shows what a failing test wrote.
            sys.stderr.write(f"--- {' '.join(self._words)}\n{self.output}\n")

    @property
    def stdout(self) -> str:
        return "\n".join(self._lines["stdout"])

    @property
    def stderr(self) -> str:
        return "\n".join(self._lines["stderr"])

    @property
    def output(self) -> str:
        return f"{self.stdout}\n{self.stderr}"

    @property
    def is_running(self) -> bool:
        return self.child.poll() is None

    def line(self, pattern: str, source: str = "stderr", patience: float = PATIENCE) -> re.Match[str]:
        """The first line of output that fits, waited for."""
        deadline = time.monotonic() + patience
        with self._changed:
            while True:
                for line in self._lines[source]:
                    if match := re.search(pattern, line):
                        return match
                waiting = deadline - time.monotonic()
                assert waiting > 0 and self.is_running, f"no line like {pattern!r} on {source}:\n{self.output}"
                self._changed.wait(min(waiting, 0.1))

    def lines(self, pattern: str, source: str = "stderr") -> list[str]:
        """The lines of output so far that fit."""
        return [line for line in self._lines[source] if re.search(pattern, line)]

    def send_signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    def write(self, line: str) -> None:
        """A line for its standard input."""
        assert self.child.stdin is not None
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()

    def exit_code(self, patience: float = PATIENCE) -> int:
        """Its exit code, waited for, and then all of its output is there."""
        try:
            code = self.child.wait(patience)
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGABRT)  # Python's fault handler then writes what every thread does
            raise
        finally:
            for reader in self._readers:
                reader.join(patience)
        return code

    def terminate(self) -> int:
        """SIGTERM and the exit code."""
        self.send_signal(signal.SIGTERM)
        return self.exit_code()

    def _follow(self, source: str, pipe: IO[str]) -> threading.Thread:
        def read() -> None:
            with pipe:
                for line in pipe:
                    with self._changed:
                        self._lines[source].append(line.rstrip("\n"))
                        self._changed.notify_all()

        reader = threading.Thread(target=read, name=f"{source} of {self.child.pid}", daemon=True)
        reader.start()
        return reader


class Simulator(Process):
    """`python -m engine_adapters.simulator`, listening."""

    def __init__(self, *arguments: str) -> None:
        super().__init__([sys.executable, "-m", "engine_adapters.simulator", *arguments])
        try:
            self.address: str = json.loads(self.line(r"^\{.*\}$", "stdout", START_SECONDS)[0])["address"]
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    @property
    def url(self) -> str:
        return f"step://{self.address}"

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


class Gateway(Process):
    """`python -m gateway` on a free port, listening; `wait_until_ready` waits for its workers too.

    `program` runs something else in its place, with the same arguments.
    """

    def __init__(
        self,
        *arguments: str,
        workers: Sequence[str] = (),
        env: dict[str, str] | None = None,
        program: Sequence[str | Path] = ("-m", "gateway"),
    ) -> None:
        words = [*GIL_ARGUMENTS, "--port", "0", "--log-format", "json", *arguments]
        for url in workers:
            words += ["--worker", url]
        self._clients: dict[int, httpx.Client] = {}
        super().__init__([sys.executable, *program, *words], env)
        try:
            self.url = self.line(r"listening on (https?://[^\s\"]+)", patience=START_SECONDS)[1]
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients.values():
            client.close()
        super().__exit__(kind, error, trace)

    @property
    def client(self) -> httpx.Client:
        """The calling thread's own: without a GIL, threads that share httpx's pool close each other's connections."""
        client = self._clients.get(threading.get_ident())
        if client is None:
            client = self._clients[threading.get_ident()] = httpx.Client(base_url=self.url, timeout=PATIENCE)
        return client

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait_until_ready(self) -> Self:
        eventually(lambda: self.client.get("/ready").status_code == 200, "the gateway's readiness")
        return self

    def refuses_connections(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE).close()
        except (ConnectionRefusedError, ConnectionResetError):  # reset: it stops listening at this very moment
            return True
        return False

    def ready(self) -> dict[str, Any]:
        """What /ready says."""
        body: dict[str, Any] = self.client.get("/ready").json()
        return body

    def worker_states(self) -> list[str]:
        return [worker["state"] for worker in self.ready()["workers"]]

    def metric(self, *names: str, **labels: str) -> float:
        """The sum of the samples of these metrics that have these labels; 0 when there are none."""
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] in names and all(f'{key}="{text}"' in series for key, text in labels.items()):
                total += float(value)
        return total

    def log(self) -> list[dict[str, Any]]:
        """The log's entries so far."""
        return [json.loads(line) for line in self._lines["stderr"] if line.startswith('{"time"')]


def has_ended(process: psutil.Process) -> bool:
    """Also when nobody has asked for its exit code yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


BUSY = ("gateway_active_requests", "gateway_worker_in_flight", "gateway_worker_running", "gateway_worker_waiting")


def wait_until_idle(gateway: Gateway) -> None:
    """Until nothing is being answered, and the executors have nothing running or waiting."""
    eventually(lambda: gateway.metric(*BUSY) == 0, "idleness")
