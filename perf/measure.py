"""One run of one point: an arm under some load, and the figures that are taken everywhere."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from perf import load, loads, samples
from perf.arms import Arm, Front
from perf.builds import Build
from perf.load import Flow, FlowResult
from perf.machine import CORES
from perf.parameters import Parameters
from perf.processes import Process
from perf.results import Figure, Sample

MOST_OF_MACHINE = 0.25
"""Above this share of the machine for load and engines together, figures of throughput say little."""


@dataclass(frozen=True)
class Context:
    """What every scenario measures with."""

    parameters: Parameters
    builds: Sequence[Build]
    helper: Build
    """What load and simulators run on."""


@dataclass(frozen=True)
class Drive:
    """What a load brought, and when its window was, by the monotonic clock of the engine's stamps."""

    result: load.Result
    sample: Sample

    def flow(self, name: str) -> FlowResult:
        return self.result.flows[name]


COMMON = {
    "cpu": Figure("gateway's cores", "lower", 2),
    "rss_mb": Figure("RSS, MB", "lower", 0),
    "threads": Figure("threads", "", 0),
    "gc_ms": Figure("GC pauses, ms", "lower", 0),
    "waited_share": Figure("waited for a core, share of its CPU", "lower", 2),
    "switches_per_s": Figure("thread sleeps/s", "", 0),
    "busiest_share": Figure("busiest thread's share of a core", "", 2),
    "load_share": Figure("load and engines, share of machine", "", 2),
    "others_share": Figure("others' share of machine", "", 2),
    "lateness_ms": Figure("load late by, p99 ms", "", 1),
    "errors": Figure("errors", "lower", 0),
}
"""In every sample, whatever its scenario is about."""


def drive(
    context: Context,
    front: Front,
    engines: Sequence[Process],
    flows: list[Flow],
    warm: float,
    seconds: float,
    load_processes: int = 1,
) -> Drive:
    """Put a started arm under load; errors are figures, with the first one's text in the suite's log."""
    pids = {"front": front.pids, "engine": [engine.pid for engine in engines]}
    if not engines:
        del pids["engine"]
    collected = front.gc_ms()
    result = loads.run(load.Job(front.port, pids, flows, warm, seconds), context.helper, load_processes)
    usage, window = result.usage, result.seconds
    own = usage["front"]
    engine_cpu = usage["engine"].cpu if "engine" in usage else 0.0
    known = own.cpu + engine_cpu + usage["load"].cpu
    figures = {
        "cpu": own.cpu / window,
        "rss_mb": own.resident_mb,
        "threads": float(len(own.by_thread)),
        "gc_ms": max(0.0, front.gc_ms() - collected),
        "waited_share": own.waited / max(own.cpu, 1e-9),
        "switches_per_s": own.switches / window,
        "busiest_share": own.busiest / window,
        "load_share": (engine_cpu + usage["load"].cpu) / window / CORES,
        "others_share": max(0.0, result.busy - known / window / CORES),
        "lateness_ms": 1e3 * result.lateness_p99,
        "errors": float(sum(flow.errors for flow in result.flows.values())),
    }
    for name, flow in result.flows.items():
        if flow.errors:
            sys.stderr.write(f"{flow.errors} errors of {name}, such as {flow.first_error}\n")
    return Drive(result, Sample(figures))


def steady(front: Front, streams: int, name: str = "streams", keeps_gaps: bool = False) -> Flow:
    """Streams that never end."""
    request = samples.http_request(front.path, stream=True, max_tokens=30_000, model=front.model)
    return Flow(name, [request], marker=samples.WORD, connections=streams, is_steady=True, keeps_gaps=keeps_gaps)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed; 0.0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def with_threads(arm: Arm, http: int, cpu: int = 0) -> Arm:
    """With so many threads for HTTP, and for CPU work if that is said."""
    settings = ("--http-threads", str(http), *(("--tokenize-threads", str(cpu)) if cpu else ()))
    return arm.with_settings(*settings)
