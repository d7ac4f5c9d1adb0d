"""What the engine's process is spared: its CPU per token and the simulated GPU's idle time, by where the text is made.

At a gateway over the step stream, at a gateway over the native wire, and in the engine's own process: a plain front
(uvicorn, FastAPI, tokenizers) that parses, tokenizes, detokenizes and writes events between the steps of the engine, on
a Python with a GIL. All of them get the same streams and, beside those, long prompts.
"""

import time
from collections.abc import Sequence

from perf import samples
from perf.arms import Arm, idle_share, start
from perf.builds import Build
from perf.load import Flow
from perf.measure import Context, Drive, drive, percentile, steady
from perf.parameters import Parameters
from perf.processes import word_simulator
from perf.results import Figure, Place, Sample
from perf.scenarios.scenario import Scenario

CALM, STORMY = "streams", "streams and 10k-token prompts"
PROMPT_TOKENS = 10_000


def arms(builds: Sequence[Build], parameters: Parameters) -> list[Arm]:
    first, one = builds[0], ("--http-threads", "1")
    found = [Arm("gateway, step stream", first, one), Arm("gateway, native wire", first, one, wire="trtllm")]
    gil = next((build for build in builds if not build.is_free_threaded), None)
    if gil is not None:
        found.append(Arm("in the engine's process", gil, ("--step-ms", str(parameters.step_ms)), kind="monolith"))
    return found


def measure(context: Context, arm: Arm, place: Place) -> Sample:
    parameters = context.parameters
    options = ("--decode-base-ms", str(parameters.step_ms), "--block-size", "1024", "--kv-tokens", "100000000")
    with (
        word_simulator(*options, build=context.helper, wire=arm.wire) as engine,
        start(arm, [engine]) as front,
    ):
        flows = [steady(front, parameters.relief_streams, keeps_gaps=True)]
        if place["load"] == STORMY:
            requests = samples.long_requests(40, PROMPT_TOKENS, model=front.model)
            flows.append(Flow("prompts", requests, marker=samples.WORD, rate=parameters.relief_rate))
        is_one = arm.kind == "monolith"
        engines = [] if is_one else [engine]
        run = drive(context, front, engines, flows, parameters.warm_seconds, parameters.relief_seconds)
        ended = time.monotonic()
        idle = idle_share(front, ended - run.result.seconds, ended)
    run.sample.figures |= relief_figures(run, "front" if is_one else "engine", idle)
    return run.sample


def relief_figures(run: Drive, engine: str, idle: float) -> dict[str, float]:
    streams, usage = run.flow("streams"), run.result.usage
    tokens = max(1, sum(flow.tokens for flow in run.result.flows.values()))
    return {
        "engine_us_per_token": 1e6 * usage[engine].cpu / tokens,
        "idle_percent": 100 * idle,
        "tokens_per_s": streams.tokens / run.result.seconds,
        "all_us_per_token": 1e6 * sum(usage[role].cpu for role in usage if role != "load") / tokens,
        "gap_p99_ms": 1e3 * percentile([gap for _, gap in streams.gaps], 0.99),
    }


SCENARIO = Scenario(
    name="relief",
    title="Engine relief",
    question="What is the engine's process spared when text is made elsewhere?",
    arms=arms,
    places=lambda parameters: [{"load": CALM}, {"load": STORMY}],
    measure=measure,
    seconds=lambda parameters: parameters.relief_seconds + parameters.warm_seconds + 2.0,
    figures={
        "engine_us_per_token": Figure("engine's process, CPU µs/token"),
        "idle_percent": Figure("GPU idle, %", "lower", 1),
        "tokens_per_s": Figure("tokens/s of the streams", "higher", 0),
        "all_us_per_token": Figure("all processes, CPU µs/token"),
        "gap_p99_ms": Figure("inter-token p99, ms"),
    },
    notes=(
        "The simulator's own work for a token is in the engine's CPU of every arm; its timers wake up to 1 ms late, "
        "which counts as idle.",
    ),
)
