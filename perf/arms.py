"""What is measured: an arm is a build, and a server started on it before some engines."""

import dataclasses
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from perf import installed, samples, stamps
from perf.builds import Build
from perf.processes import Process, first_line, folder, free_ports, port_of, started, wait_until_ready


@dataclass(frozen=True)
class Arm:
    """`settings` are the gateway's options; so many `processes` share one port; `kind` is one of KINDS."""

    name: str
    build: Build
    settings: tuple[str, ...] = ()
    processes: int = 1
    wire: str = "step"
    kind: str = "gateway"
    launcher: tuple[str, ...] = ("gateway",)
    """The module that starts a gateway, and what it wants before the gateway's options."""

    @property
    def model(self) -> str:
        return installed.SMG_MODEL if self.kind == "smg" else "demo"

    def with_settings(self, *settings: str) -> "Arm":
        return dataclasses.replace(self, settings=(*self.settings, *settings))


@dataclass(frozen=True)
class Front:
    """A started arm: where requests go. `source` is where its tokens come from, with their stamps."""

    port: int
    pids: list[int]
    source: Process
    path: str = samples.CHAT_PATH
    model: str = "demo"
    has_metrics: bool = False

    def gc_ms(self) -> float:
        """How long collections have stopped it so far, in all its life; 0 where that is not told."""
        if not self.has_metrics:
            return 0.0
        return 1e3 * metric(scrape(self.port), "gateway_gc_seconds_total")

    def cache_hits(self) -> float:
        """The share of prompts' tokens that came from the token cache, of one of its processes."""
        text = scrape(self.port)
        known, asked = (metric(text, f"gateway_{name}_tokens_total") for name in ("token_cache", "prompt"))
        return known / asked if asked else 0.0


def scrape(port: int) -> str:
    """The metrics of whichever process answers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        return str(response.read().decode())


def metric(text: str, name: str) -> float:
    """The sum of a metric's series."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


@contextmanager
def gateway(arm: Arm, engines: Sequence[Process]) -> Iterator[Front]:
    """One gateway, or as many as the arm says, behind one port."""
    (port,) = free_ports(1) if arm.processes > 1 else (0,)
    options = ["--port", str(port), "--log-level", "error"]
    if not any(setting.startswith("--worker") for setting in arm.settings):
        options += [word for engine in engines for word in ("--worker", engine.url())]
    options += [*arm.settings]
    if arm.build.has_gil:
        options.append("--allow-gil")
    if arm.processes > 1:
        options.append("--reuse-port")
    command = [arm.build.python, "-m", *arm.launcher, *options]
    with ExitStack() as stack:
        popens = [
            stack.enter_context(started(command, env=arm.build.environment, stderr=subprocess.DEVNULL))
            for _ in range(arm.processes)
        ]
        ports = [port_of(first_line(popen)) for popen in popens]
        yield Front(ports[0], [popen.pid for popen in popens], engines[0], has_metrics=True)


@contextmanager
def bare_app(arm: Arm, engines: Sequence[Process]) -> Iterator[Front]:
    """The same writes without the gateway's work, as a yardstick; what it writes is asked of a gateway first."""
    with gateway(dataclasses.replace(arm, settings=()), engines) as real:
        texts = [*samples.bare_events(real.port), *samples.bare_reply(real.port)]
    with folder() as place:
        stamp_file = place / "stamps"
        command = [arm.build.python, "-m", "perf.bare_app", "--stamps", str(stamp_file), *arm.settings, *texts]
        with started(command, env=arm.build.environment) as popen:
            port = port_of(first_line(popen))
            yield Front(port, [popen.pid], Process(popen, port, stamp_file), path="/events")


@contextmanager
def smg(arm: Arm, engines: Sequence[Process]) -> Iterator[Front]:
    with installed.smg(engines[0]) as process:
        yield Front(process.port, [process.pid], engines[0], model=installed.SMG_MODEL)


@contextmanager
def monolith(arm: Arm, engines: Sequence[Process]) -> Iterator[Front]:
    """A plain front in the engine's own process: `engines` are not used."""
    (port,) = free_ports(1)
    with folder() as place:
        stamp_file = place / "stamps"
        python = str(installed.front_python(arm.build))
        command = [python, "-m", "perf.monolith", str(stamp_file), str(port), *arm.settings]
        with started(command, env=arm.build.environment, stdout=subprocess.DEVNULL) as popen:
            wait_until_ready(f"http://127.0.0.1:{port}/health", popen)
            yield Front(port, [popen.pid], Process(popen, port, stamp_file))


Start = Callable[[Arm, Sequence[Process]], AbstractContextManager[Front]]
KINDS: dict[str, Start] = {"gateway": gateway, "bare": bare_app, "smg": smg, "monolith": monolith}


def start(arm: Arm, engines: Sequence[Process]) -> AbstractContextManager[Front]:
    return KINDS[arm.kind](arm, engines)


def idle_share(front: Front, begins: float, ends: float) -> float:
    """Of the simulated GPU's time between two moments."""
    assert front.source.stamps is not None
    return stamps.idle_seconds(front.source.stamps, begins, ends) / (ends - begins)
