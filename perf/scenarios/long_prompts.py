"""Time to the first token over the length of the prompt and the number of clients, with cold caches and warm ones.

The engine's own prefill costs nothing here: all of it is the gateway's. Cold prompts are all different; warm ones are
one prompt that has been seen; and there are some that share four fifths with those before, with the token cache and
without.
"""

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
CACHE_OFF = ("--cache-mb", "0")
MOST_TOKENS = 40_000_000
"""In all prompts of a run: 160 MB."""
SHARED_FROM = 40_000
"""Tokens from which prompts that share their beginning are measured."""


def arms(builds: Sequence[Build], parameters: Parameters) -> list[Arm]:
    settings = ("--http-threads", "1")
    plain = [build for build in builds if " " not in build.name]
    without_cache = Arm(f"{plain[0].name}, cache off", plain[0], (*settings, *CACHE_OFF))
    return [*(Arm(build.name, build, settings) for build in plain), without_cache]


def fits(arm: Arm, place: Place) -> bool:
    return CACHE_OFF[0] not in arm.settings or place["cache"] == SHARED


def places(parameters: Parameters) -> list[Place]:
    return [
        {"tokens": tokens, "clients": clients, "cache": cache}
        for cache in (COLD, WARM, SHARED)
        for clients in parameters.prompt_clients
        for tokens in parameters.prompt_tokens
        if cache != SHARED or tokens >= SHARED_FROM
    ]


def bodies(cache: str, tokens: int, clients: int) -> list[str]:
    """More than a fast gateway answers in the time: none is to come again and be known."""
    if cache == WARM:
        return samples.long_requests(1, tokens)
    pairs = max(1, clients // 2)
    if cache == COLD:
        return samples.long_requests(min(MOST_TOKENS // tokens, pairs * (30 + 3_000_000 // tokens)), tokens)
    (shared,) = samples.documents(1, tokens * 4 // 5)
    own = samples.documents(min(MOST_TOKENS // tokens, pairs * (60 + 1_500_000 // tokens)), tokens // 5)
    return [
        samples.http_request(samples.CHAT_PATH, stream=True, max_tokens=1, model="wide", prompt=f"{shared}\n\n{text}")
        for text in own
    ]


def measure(context: Context, arm: Arm, place: Place) -> Sample:
    parameters, tokens = context.parameters, place["tokens"]
    requests = bodies(place["cache"], tokens, place["clients"])
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
    fits=fits,
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
