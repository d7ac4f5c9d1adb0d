"""Long prompts beside steady streams: how many a second before the streams suffer.

Each rate is a point of its own; a rate is served when the streams' inter-token p99 stays under a bound and the prompts
are answered as fast as they come. `served_rate` is what was answered a second where that holds, and 0 where not.
"""

from collections.abc import Sequence

from perf import samples
from perf.arms import Arm, start
from perf.builds import Build
from perf.load import Flow
from perf.measure import Context, drive, percentile, steady
from perf.parameters import Parameters
from perf.results import Figure, Place, Sample
from perf.scenarios.scenario import Chart, Scenario
from perf.scenarios.stall import two_engines

PROMPT_TOKENS = 40_000
KEPT_UP = 0.8
"""Of the prompts that came, how many must have been answered in the window."""


def arms(builds: Sequence[Build], parameters: Parameters) -> list[Arm]:
    one = ("--http-threads", "1")
    plain = [build for build in builds if " " not in build.name]
    found = [Arm(build.name, build, one) for build in plain]
    found += [Arm(f"{build.name}, 2 processes", build, one, processes=2) for build in plain if build.has_gil]
    return found


def measure(context: Context, arm: Arm, place: Place) -> Sample:
    parameters, rate = context.parameters, place["prompts/s"]
    requests = samples.long_requests(int(rate * (parameters.mixed_seconds + 1) * 1.5) + 4, PROMPT_TOKENS)
    with two_engines(context, parameters.stall_step_ms) as (engines, options):
        with start(arm.with_settings(*options), engines) as front:
            flows = [
                steady(front, parameters.mixed_streams, keeps_gaps=True),
                Flow("prompts", requests, marker=samples.WORD, rate=rate, begins=0.0),
            ]
            run = drive(context, front, engines, flows, parameters.warm_seconds, parameters.mixed_seconds)
    prompts = run.flow("prompts")
    gaps = [gap for _, gap in run.flow("streams").gaps]
    came = len(prompts.answers) + prompts.unanswered
    p99_ms = 1e3 * percentile(gaps, 0.99)
    keeps_up = len(prompts.answers) >= KEPT_UP * came
    run.sample.figures |= {
        "served_rate": prompts.ended / run.result.seconds if keeps_up and p99_ms <= parameters.mixed_bound_ms else 0.0,
        "answered_per_s": prompts.ended / run.result.seconds,
        "p99_ms": p99_ms,
        "ttft_p50_ms": 1e3 * percentile([first - asked for asked, first, _, _ in prompts.answers], 0.5),
        "unanswered": float(prompts.unanswered),
    }
    return run.sample


SCENARIO = Scenario(
    name="mixed",
    title="Long prompts beside streams",
    question="How many long prompts a second does a gateway take before its streams suffer?",
    arms=arms,
    places=lambda parameters: [{"prompts/s": rate} for rate in parameters.mixed_rates],
    measure=measure,
    seconds=lambda parameters: parameters.mixed_seconds + parameters.warm_seconds + 2.5,
    figures={
        "served_rate": Figure("served/s within the bound", "higher", 1),
        "answered_per_s": Figure("answered/s", "higher", 1),
        "p99_ms": Figure("streams' inter-token p99, ms"),
        "ttft_p50_ms": Figure("TTFT p50, ms", "lower", 0),
        "unanswered": Figure("unanswered at the end", "lower", 0),
    },
    charts=(
        Chart(
            "Streams' inter-token p99 beside long prompts", "p99_ms", over="prompts/s", y="ms", x="prompts/s", log="y"
        ),
    ),
    counts_throughput=True,
)
