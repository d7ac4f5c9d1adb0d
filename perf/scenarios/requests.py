"""What a one-token request costs and how long it takes: at random moments (open loop), and as many as can be had.

The simulator answers at once, so that a request's latency is what the gateway adds.
"""

from collections.abc import Sequence
from dataclasses import replace

from perf import samples
from perf.arms import Arm, start
from perf.builds import Build
from perf.load import Flow
from perf.measure import Context, Drive, drive, percentile
from perf.parameters import Parameters
from perf.processes import word_simulator
from perf.results import Figure, Place, Sample
from perf.scenarios.scenario import Scenario

OPEN = "open loop"
CLOSED = "as many as possible"
WHOLE = "as many as possible, not streamed"


def arms(builds: Sequence[Build], parameters: Parameters) -> list[Arm]:
    one, two = ("--http-threads", "1"), ("--http-threads", "2")
    found = [Arm(build.name, build, one) for build in builds]
    found += [Arm(f"{build.name}, 2 HTTP threads", build, two) for build in builds if " " not in build.name]
    found += [
        Arm(f"{build.name}, 2 processes", build, one, processes=2)
        for build in builds
        if build.has_gil and not build.is_free_threaded
    ]
    first = builds[0]
    return [
        *found,
        Arm(f"{first.name} granian", first, (*one, "--server", "granian")),
        Arm(f"{first.name} bare app", first, kind="bare"),
    ]


def fits(arm: Arm, place: Place) -> bool:
    """Latency and whole answers are measured where they say something new."""
    if place["load"] == OPEN:
        return "threads" not in arm.name and "GIL on" not in arm.name and arm.kind != "bare"
    return place["load"] == CLOSED or arm.name.endswith(("t", "granian", "app"))


def measure(context: Context, arm: Arm, place: Place) -> Sample:
    parameters = context.parameters
    with (
        word_simulator("--speed", "0", build=context.helper, wire=arm.wire) as engine,
        start(arm, [engine]) as front,
    ):
        is_streamed = place["load"] != WHOLE
        path = front.path if is_streamed or arm.kind != "bare" else "/reply"
        request = samples.http_request(path, stream=is_streamed, max_tokens=1, model=front.model)
        flow = Flow("requests", [request], marker=samples.WORD)
        if place["load"] == OPEN:
            flow = replace(flow, rate=parameters.request_rate)
        else:
            flow = replace(flow, connections=parameters.request_connections)
        engines = [] if arm.kind == "bare" else [engine]
        run = drive(context, front, engines, [flow], parameters.warm_seconds, parameters.request_seconds)
    run.sample.figures.update(request_figures(run, "requests"))
    return run.sample


def request_figures(run: Drive, name: str) -> dict[str, float]:
    """Of a flow of requests; its CPU is all that the gateway used."""
    flow, seconds = run.flow(name), run.result.seconds
    whole = [ended - asked for asked, _, ended, _ in flow.answers]
    return {
        "us_per_request": 1e6 * run.result.usage["front"].cpu / max(flow.ended, 1),
        "requests_per_s": flow.ended / seconds,
        "p50_ms": 1e3 * percentile(whole, 0.5),
        "p95_ms": 1e3 * percentile(whole, 0.95),
        "p99_ms": 1e3 * percentile(whole, 0.99),
    }


REQUEST_FIGURES = {
    "us_per_request": Figure("CPU, µs/request", "lower", 0),
    "requests_per_s": Figure("requests/s", "higher", 0),
    "p50_ms": Figure("latency p50, ms"),
    "p95_ms": Figure("p95, ms"),
    "p99_ms": Figure("p99, ms"),
}
SCENARIO = Scenario(
    name="requests",
    title="One-token requests",
    question="What does a request cost, and what latency does the gateway add to it?",
    arms=arms,
    places=lambda parameters: [{"load": load} for load in parameters.request_loads],
    fits=fits,
    measure=measure,
    seconds=lambda parameters: parameters.request_seconds + parameters.warm_seconds + 2.0,
    figures=REQUEST_FIGURES,
    counts_throughput=True,
)
