"""Time to the first token over the length of the prompt and the number of clients, with cold caches and warm ones.

The engine's own prefill costs nothing here: all of it is the gateway's. Cold prompts are all different; warm ones are
one prompt that has been seen; and there are some that share four fifths with those before.
"""

import itertools
from collections.abc import Sequence

from perf import samples
from perf.arms import Arm, start
from perf.builds import Build
from perf.load import Flow
from perf.measure import Context, drive, percentile
from perf.parameters import Parameters
from perf.results import Figure, Place, Sample
from perf.scenarios.scenario import Chart, Scenario
from perf.scenarios.stall import two_engines

COLD, WARM, SHARED = "cold", "warm", "4/5 shared"
SHARED_FROM = 40_000
"""Tokens from which prompts that share their beginning are measured."""


def arms(builds: Sequence[Build], parameters: Parameters) -> list[Arm]:
    return [Arm(build.name, build, ("--http-threads", "1")) for build in builds if " " not in build.name]


def places(parameters: Parameters) -> list[Place]:
    return [
        {"tokens": tokens, "clients": clients, "cache": cache}
        for cache in (COLD, WARM, SHARED)
        for clients in parameters.prompt_clients
        for tokens in parameters.prompt_tokens
        if cache != SHARED or tokens >= SHARED_FROM
    ]


def bodies(cache: str, tokens: int) -> list[str]:
    """More than a fast gateway answers in the time."""
    if cache == WARM:
        return samples.long_requests(1, tokens)
    if cache == COLD:
        return samples.long_requests(30 + 3_000_000 // tokens, tokens)
    (shared,) = samples.documents(1, tokens * 4 // 5)
    prompts = (f"{shared}\n\n{own}" for own in samples.documents(600, tokens // 5))
    return [
        samples.http_request(samples.CHAT_PATH, stream=True, max_tokens=1, model="wide", prompt=prompt)
        for prompt in itertools.islice(prompts, 60 + 1_500_000 // tokens)
    ]


def measure(context: Context, arm: Arm, place: Place) -> Sample:
    parameters, tokens = context.parameters, place["tokens"]
    requests = bodies(place["cache"], tokens)
    with two_engines(context, parameters.step_ms) as (engines, options):
        with start(arm.with_settings(*options), engines) as front:
            flow = Flow("prompts", requests, marker=samples.WORD, connections=place["clients"])
            run = drive(context, front, engines, [flow], parameters.warm_seconds, parameters.prompt_seconds)
    prompts = run.flow("prompts")
    waits = [first - asked for asked, first, _, _ in prompts.answers]
    run.sample.figures |= {
        "ttft_p50_ms": 1e3 * percentile(waits, 0.5),
        "ttft_p99_ms": 1e3 * percentile(waits, 0.99),
        "prompts_per_s": prompts.ended / run.result.seconds,
        "cpu_ms_per_prompt": 1e3 * run.result.usage["front"].cpu / max(1, prompts.ended),
    }
    return run.sample


SCENARIO = Scenario(
    name="long_prompts",
    title="Long prompts",
    question="How long does a first token take over the length of its prompt?",
    arms=arms,
    places=places,
    measure=measure,
    seconds=lambda parameters: parameters.prompt_seconds + parameters.warm_seconds + 2.5,
    figures={
        "ttft_p50_ms": Figure("TTFT p50, ms"),
        "ttft_p99_ms": Figure("TTFT p99, ms"),
        "prompts_per_s": Figure("prompts/s", "higher", 1),
        "cpu_ms_per_prompt": Figure("CPU, ms/prompt"),
    },
    charts=(
        Chart(
            "Time to first token", "ttft_p50_ms", over="tokens", y="TTFT p50, ms", x="tokens in the prompt", log="xy"
        ),
    ),
    counts_throughput=True,
)
