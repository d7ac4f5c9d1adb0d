"""The stall: a steady set of streams, and then long prompts, huge tool schemas or large images arrive beside them.

Under a GIL a thread that parses, renders and tokenizes keeps the event loop's thread from running, so that every stream
stands still. The inter-token latency is that of the steady streams at the client; the disturbances go to a simulator of
their own, so that only the gateway can hold the streams up.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.model import DEMO_FOLDER
from perf import samples
from perf.arms import Arm, start
from perf.builds import Build
from perf.load import Flow
from perf.measure import Context, Drive, drive, percentile, steady
from perf.parameters import Parameters
from perf.processes import Process, folder, word_simulator
from perf.results import Figure, Place, Sample
from perf.scenarios.scenario import Chart, Scenario


@dataclass(frozen=True)
class Disturbance:
    """What `requests` makes so many of, and the model they go to. They come at `share` of the scenario's rate, so that
    most are about as much work, or from so many `clients`, each with the next one when it has its answer."""

    requests: Callable[[int], list[str]]
    share: float = 0.0
    clients: int = 0
    model: Callable[[Path], Path] = samples.wide_model

    def flow(self, rate: float, begins: float, ends: float) -> Flow:
        count = int(rate * self.share * (ends - begins) * 2) + 4 if self.share else 5 * self.clients
        return Flow(
            "disturbance",
            self.requests(count),
            marker=samples.WORD,
            connections=self.clients,
            rate=rate * self.share,
            begins=begins,
            ends=ends,
        )


FIRST = "40k-token prompts"
DISTURBANCES = {
    FIRST: Disturbance(lambda count: samples.long_requests(count, 40_000), 1.0),
    "100k-token prompts": Disturbance(lambda count: samples.long_requests(count, 100_000), 0.4),
    "64 tools": Disturbance(lambda count: samples.tool_requests(count, 64), 0.5),
    "4-megapixel images": Disturbance(
        lambda count: samples.image_requests(count, 2000, 2000), clients=8, model=samples.vision_model
    ),
}
WINDOW_SECONDS = 0.25


def arms(builds: Sequence[Build], parameters: Parameters) -> list[Arm]:
    one = ("--http-threads", "1")
    found = [Arm(build.name, build, one) for build in builds]
    for build in builds:
        if not build.is_free_threaded:
            found.append(Arm(f"{build.name}, 1 CPU thread", build, (*one, "--tokenize-threads", "1")))
            found.append(Arm(f"{build.name}, 2 processes", build, one, processes=2))
    return found


def fits(arm: Arm, place: Place) -> bool:
    return place["disturbance"] == FIRST or " " not in arm.name


@contextmanager
def two_engines(
    context: Context, step_ms: float, model: Callable[[Path], Path] = samples.wide_model, others: int = 1
) -> Iterator[tuple[list[Process], tuple[str, ...]]]:
    """One for the steady streams, one for everything else, and the gateway's options that make them two models;
    `others` share everything else."""
    with folder() as place:
        wide = model(Path(place, "wide"))
        quick = ("--speed", "0", "--model-path", str(wide), "--kv-tokens", "100000000", "--block-size", "8192")
        with ExitStack() as stack:
            paced = stack.enter_context(word_simulator("--decode-base-ms", str(step_ms), build=context.helper))
            rest = [stack.enter_context(word_simulator(*quick, build=context.helper)) for _ in range(others)]
            models = ("--model-path", f"demo={DEMO_FOLDER}", "--model-path", f"wide={wide}")
            urls = [paced.url("demo"), *(each.url("wide") for each in rest)]
            yield [paced, *rest], (*models, *(word for url in urls for word in ("--worker", url)))


def measure(context: Context, arm: Arm, place: Place) -> Sample:
    parameters = context.parameters
    calm, stormy = parameters.stall_calm, parameters.stall_seconds
    disturbance = DISTURBANCES[place["disturbance"]]
    with two_engines(context, parameters.stall_step_ms, disturbance.model) as (engines, options):
        with start(arm.with_settings(*options), engines) as front:
            flows = [
                steady(front, parameters.stall_streams, keeps_gaps=True),
                disturbance.flow(parameters.stall_rate, calm, calm + stormy),
            ]
            run = drive(context, front, engines, flows, parameters.warm_seconds, 2 * calm + stormy)
    gaps = run.flow("streams").gaps
    run.sample.figures.update(stall_figures(run, calm, calm + stormy))
    windows = int((2 * calm + stormy) / WINDOW_SECONDS)
    run.sample.series["over time"] = [
        (number * WINDOW_SECONDS, *(1e3 * percentile(each, share) for share in (0.5, 0.99, 1.0)))
        for number in range(windows)
        if (each := between(gaps, number * WINDOW_SECONDS, (number + 1) * WINDOW_SECONDS))
    ]
    return run.sample


def between(gaps: Sequence[tuple[float, float]], begins: float, ends: float) -> list[float]:
    return [gap for moment, gap in gaps if begins <= moment < ends]


def stall_figures(run: Drive, begins: float, ends: float) -> dict[str, float]:
    """Of the time in which disturbances came, and of the time before for comparison."""
    gaps, disturbance = run.flow("streams").gaps, run.flow("disturbance")
    during, before = between(gaps, begins, ends), between(gaps, 0.0, begins)
    waits = [first - asked for asked, first, _, _ in disturbance.answers]
    return {
        "p99_ms": 1e3 * percentile(during, 0.99),
        "p999_ms": 1e3 * percentile(during, 0.999),
        "p50_ms": 1e3 * percentile(during, 0.5),
        "longest_ms": 1e3 * max(during, default=0.0),
        "calm_p99_ms": 1e3 * percentile(before, 0.99),
        "ttft_p50_ms": 1e3 * percentile(waits, 0.5),
        "ttft_p99_ms": 1e3 * percentile(waits, 0.99),
        "served": float(len(disturbance.answers)),
        "unserved": float(disturbance.unanswered),
    }


STALL_FIGURES = {
    "p99_ms": Figure("inter-token p99, ms"),
    "p999_ms": Figure("p99.9, ms"),
    "p50_ms": Figure("p50, ms"),
    "longest_ms": Figure("longest, ms"),
    "calm_p99_ms": Figure("calm p99, ms"),
    "ttft_p50_ms": Figure("disturbance TTFT p50, ms", "lower", 0),
    "ttft_p99_ms": Figure("p99, ms", "lower", 0),
    "served": Figure("disturbances answered", "", 0),
    "unserved": Figure("not answered", "", 0),
}
SCENARIO = Scenario(
    name="stall",
    title="The stall",
    question="What happens to running streams while long prompts, huge tool schemas or large images arrive?",
    arms=arms,
    places=lambda parameters: [{"disturbance": name} for name in parameters.disturbances],
    fits=fits,
    measure=measure,
    seconds=lambda parameters: 2 * parameters.stall_calm + parameters.stall_seconds + parameters.warm_seconds + 2.5,
    figures=STALL_FIGURES,
    charts=(
        Chart(
            "Inter-token latency while prompts of 40,000 tokens arrive",
            series="over time",
            y="ms between tokens: p50, p99, longest",
            x="seconds",
            log="y",
        ),
        Chart("Inter-token p99 during the stall", "p99_ms", over="disturbance", y="ms", kind="bars", log="y"),
    ),
)
