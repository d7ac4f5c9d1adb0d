"""The same work on 1 to N threads: short requests on HTTP threads, long prompts on CPU threads; and what gets lost.

Lost to waiting for a core (`waited_share`), to CPU that a unit of work costs more (contended reference counts and locks
spin before they sleep), to sleeps (`switches_per_s`: locks and I/O), to collections (`gc_ms`), or to one thread that is
busy while others are not (`busiest_share`).
"""

from collections.abc import Sequence

from perf import samples
from perf.arms import Arm, start
from perf.builds import Build
from perf.load import Flow
from perf.machine import CORES
from perf.measure import Context, drive, percentile, with_threads
from perf.parameters import Parameters
from perf.results import Figure, Place, Sample
from perf.scenarios.scenario import Chart, Scenario
from perf.scenarios.stall import two_engines

SHORT, LONG = "short requests, HTTP threads", "10k-token prompts, CPU threads"
HELPERS = max(1, CORES // 4)
"""So many load processes, and engines: one would not keep a machine of many cores busy."""
LONG_PROMPTS = max(700, 300 * CORES)
"""More than a gateway answers in the time."""


def arms(builds: Sequence[Build], parameters: Parameters) -> list[Arm]:
    return [Arm(build.name, build) for build in builds]


def places(parameters: Parameters) -> list[Place]:
    return [{"threads": threads, "work": work} for work in (SHORT, LONG) for threads in thread_counts(parameters)]


def thread_counts(parameters: Parameters) -> list[int]:
    """1, 2, 4 … and the cores."""
    return list(parameters.scaling_threads) or [*(1 << power for power in range(CORES.bit_length() - 1)), CORES]


def measure(context: Context, arm: Arm, place: Place) -> Sample:
    parameters, threads = context.parameters, place["threads"]
    if place["work"] == SHORT:
        arm, model = with_threads(arm, threads), "wide"
        requests = [samples.http_request(samples.CHAT_PATH, stream=True, max_tokens=1, model=model)]
        clients = 16 * threads
    else:
        arm = with_threads(arm, max(1, threads // 4), threads)
        requests, clients = samples.long_requests(LONG_PROMPTS, 10_000), 2 * threads
    with two_engines(context, parameters.step_ms, others=HELPERS) as (engines, options):
        with start(arm.with_settings(*options), engines) as front:
            flow = Flow("requests", requests, marker=samples.WORD, connections=clients)
            run = drive(context, front, engines, [flow], parameters.warm_seconds, parameters.scaling_seconds, HELPERS)
    flow_result = run.flow("requests")
    run.sample.figures |= {
        "requests_per_s": flow_result.ended / run.result.seconds,
        "us_per_request": 1e6 * run.result.usage["front"].cpu / max(1, flow_result.ended),
        "p99_ms": 1e3 * percentile([ended - asked for asked, _, ended, _ in flow_result.answers], 0.99),
    }
    return run.sample


SCENARIO = Scenario(
    name="scaling",
    title="Scaling over threads",
    question="How much more do two threads do than one, and where is the rest lost?",
    arms=arms,
    places=places,
    measure=measure,
    seconds=lambda parameters: parameters.scaling_seconds + parameters.warm_seconds + 2.5,
    figures={
        "requests_per_s": Figure("requests/s", "higher", 0),
        "us_per_request": Figure("CPU, µs/request", "lower", 0),
        "p99_ms": Figure("p99, ms"),
    },
    charts=(
        Chart("Requests a second over threads", "requests_per_s", over="threads", y="requests/s", x="threads"),
        Chart("CPU per request over threads", "us_per_request", over="threads", y="µs", x="threads", log="y"),
    ),
    counts_throughput=True,
    notes=(
        "With few cores the load and the engines take some of them: CPU per request tells more than requests/s there.",
    ),
)
