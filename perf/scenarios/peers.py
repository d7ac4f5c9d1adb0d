"""The gateway beside others, on the same wire and simulator: SMG, in Rust; and a plain GIL front, as engines have them.

CPU is that of each front's process; the plain front runs the simulated engine in its process, so that its figure is to
be held against `all_us_per_token` of the others, which has the simulator's.
"""

from collections.abc import Sequence

from perf import samples
from perf.arms import Arm, start
from perf.builds import Build
from perf.load import Flow
from perf.measure import Context, Drive, drive, steady
from perf.parameters import Parameters
from perf.processes import word_simulator
from perf.results import Figure, Place, Sample
from perf.scenarios.requests import REQUEST_FIGURES, request_figures
from perf.scenarios.scenario import Scenario
from perf.scenarios.streaming import TOKEN_FIGURES, token_figures

SHORT = "one-token requests"
SAME, OWN = "8k words the same", "8k words each its own"
"""One-token requests too."""
LONG_TOKENS = 10_000
MOST_A_SECOND = 500
"""No front answers more requests of their own, so that of as many for each second none is sent twice."""


def arms(builds: Sequence[Build], parameters: Parameters) -> list[Arm]:
    first, one = builds[0], ("--http-threads", "1")
    granian = (*one, "--server", "granian")
    found = [
        Arm("SMG, native wire", first, kind="smg", wire="trtllm"),
        Arm("ours, native wire", first, one, wire="trtllm"),
        Arm("ours, native wire, granian", first, granian, wire="trtllm"),
        Arm("ours, step stream", first, one),
        Arm("ours, step stream, granian", first, granian),
    ]
    gil = next((build for build in builds if not build.is_free_threaded), None)
    if gil is not None:
        found.append(Arm("plain GIL front", gil, kind="monolith"))
    return found


def places(parameters: Parameters) -> list[Place]:
    streams: list[Place] = [{"streams": streams} for streams in parameters.peer_streams]
    return [*streams, *({"load": name} for name in parameters.peer_loads)]


def measure(context: Context, arm: Arm, place: Place) -> Sample:
    parameters = context.parameters
    paced = "streams" in place
    pace = ("--decode-base-ms", str(parameters.step_ms)) if paced else ("--speed", "0", "--block-size", "1024")
    if arm.kind == "monolith":
        arm = arm.with_settings("--step-ms", str(parameters.step_ms if paced else 0))
    with (
        word_simulator(*pace, build=context.helper, wire=arm.wire) as engine,
        start(arm, [engine]) as front,
    ):
        if paced:
            flow = steady(front, place["streams"])
        else:
            flow = Flow("requests", bodies(place["load"], front.model, parameters), marker=samples.WORD, connections=16)
        engines = [] if arm.kind == "monolith" else [engine]
        run = drive(context, front, engines, [flow], parameters.warm_seconds, parameters.peer_seconds)
        own = token_figures(run, front.source, place["streams"]) if paced else request_figures(run, "requests")
    run.sample.figures |= own | with_engine(run, flow.name)
    return run.sample


def bodies(load: str, model: str, parameters: Parameters) -> list[str]:
    if load == SHORT:
        return [samples.http_request(samples.CHAT_PATH, stream=True, max_tokens=1, model=model)]
    own = int(MOST_A_SECOND * (parameters.warm_seconds + parameters.peer_seconds))
    return samples.long_requests(1 if load == SAME else own, LONG_TOKENS, model)


def with_engine(run: Drive, name: str) -> dict[str, float]:
    """CPU of the front and the engine together, for a token or a request."""
    flow = run.flow(name)
    cpu = sum(used.cpu for role, used in run.result.usage.items() if role != "load")
    return {"all_us": 1e6 * cpu / max(1, flow.tokens if name == "streams" else flow.ended)}


SCENARIO = Scenario(
    name="peers",
    title="Peers",
    question="What do other fronts cost for the same work?",
    arms=arms,
    places=places,
    measure=measure,
    seconds=lambda parameters: parameters.peer_seconds + parameters.warm_seconds + 2.5,
    figures={**TOKEN_FIGURES, **REQUEST_FIGURES, "all_us": Figure("front and engine, CPU µs")},
    notes=("SMG's worker is chosen round robin, with its caches of prompts on.",),
)
