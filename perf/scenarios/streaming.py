"""What a streamed token costs: CPU of the gateway and added latency, over 1 to 1024 streams.

CPU is user and system time of all threads of the process. Added latency is the time from the engine step that made a
token (stamped in the simulator before it writes its frame) to the moment when the load's poll finds it; for the bare
app, from the moment when it begins its step.
"""

from collections.abc import Sequence

from perf import stamps
from perf.arms import Arm, start
from perf.builds import Build
from perf.measure import Context, Drive, drive, steady
from perf.parameters import Parameters
from perf.processes import Process, word_simulator
from perf.results import Figure, Place, Sample
from perf.scenarios.scenario import Chart, Scenario

ASIDE = 256
"""Streams at which the arms beside the comparison of builds are measured."""


def arms(builds: Sequence[Build], parameters: Parameters) -> list[Arm]:
    first = builds[0]
    one = ("--http-threads", "1")
    by_build = [Arm(build.name, build, one) for build in builds]
    return [
        *by_build,
        Arm(f"{first.name} granian", first, (*one, "--server", "granian")),
        Arm(f"{first.name} native wire", first, one, wire="trtllm"),
        Arm(f"{first.name} bare app", first, ("--tokens", "30000", "--step-ms", str(parameters.step_ms)), kind="bare"),
    ]


def fits(arm: Arm, place: Place) -> bool:
    return " " not in arm.name or place["streams"] == ASIDE


def measure(context: Context, arm: Arm, place: Place) -> Sample:
    parameters = context.parameters
    with (
        word_simulator("--decode-base-ms", str(parameters.step_ms), build=context.helper, wire=arm.wire) as engine,
        start(arm, [engine]) as front,
    ):
        flow = steady(front, place["streams"])
        engines = [] if arm.kind == "bare" else [engine]
        run = drive(context, front, engines, [flow], parameters.warm_seconds, parameters.streaming_seconds)
        run.sample.figures.update(token_figures(run, front.source, place["streams"]))
        return run.sample


def token_figures(run: Drive, source: Process, streams: int) -> dict[str, float]:
    """Of a flow named "streams" alone."""
    flow = run.flow("streams")
    delays = stamps.added_latencies(source.sent(), flow.arrivals, flow.tokens_before, flow.tokens)
    cpu = run.result.usage["front"].cpu
    return {
        "us_per_token": 1e6 * cpu / flow.tokens,
        "tokens_per_s": flow.tokens / run.result.seconds,
        "added_p50_ms": 1e3 * stamps.percentile(delays, 0.5),
        "added_p99_ms": 1e3 * stamps.percentile(delays, 0.99),
        "events_per_token": flow.events / flow.tokens,
    }


TOKEN_FIGURES = {
    "us_per_token": Figure("CPU, µs/token"),
    "tokens_per_s": Figure("tokens/s", "higher", 0),
    "added_p50_ms": Figure("added latency p50, ms"),
    "added_p99_ms": Figure("added latency p99, ms"),
    "events_per_token": Figure("events/token", "", 2),
}
SCENARIO = Scenario(
    name="streaming",
    title="Streamed tokens",
    question="What does a streamed token cost, and how does that change with the number of streams?",
    arms=arms,
    places=lambda parameters: [{"streams": streams} for streams in parameters.streams],
    fits=fits,
    measure=measure,
    seconds=lambda parameters: parameters.streaming_seconds + parameters.warm_seconds + 2.0,
    figures=TOKEN_FIGURES,
    charts=(
        Chart("CPU per streamed token", "us_per_token", over="streams", y="µs of CPU per token", x="streams", log="xy"),
        Chart("Added latency p99", "added_p99_ms", over="streams", y="ms", x="streams", log="xy"),
    ),
)
