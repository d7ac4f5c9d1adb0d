"""How much is measured: the parameters of every scenario, for a full run, a quick one, and a smoke test of the suite.

The smoke test only shows that everything works; its figures mean nothing.
"""

from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Parameters:
    """Of all scenarios. Seconds are those of a window; every point also takes its start and `warm_seconds`."""

    pairs: int = 3
    """Runs of every point, the arms in turns."""
    warm_seconds: float = 0.7
    only_builds: tuple[str, ...] = ()

    component_seconds: float = 0.15
    component_rounds: int = 2

    streams: tuple[int, ...] = (1, 64, 256, 1024)
    streaming_seconds: float = 2.5
    step_ms: float = 20.0

    request_loads: tuple[str, ...] = ("open loop", "as many as possible", "as many as possible, not streamed")
    """Of perf/scenarios/requests.py."""
    request_rate: int = 250
    """Requests a second of the open loop."""
    request_connections: int = 32
    request_seconds: float = 2.0

    disturbances: tuple[str, ...] = ("40k-token prompts", "100k-token prompts", "64 tools", "4-megapixel images")
    """Of perf/scenarios/stall.py."""
    stall_streams: int = 256
    stall_calm: float = 1.5
    """Seconds before and after."""
    stall_seconds: float = 4.0
    stall_rate: float = 8.0
    """Disturbances a second."""
    stall_step_ms: float = 20.0

    mixed_streams: int = 32
    mixed_rates: tuple[int, ...] = (2, 4, 8, 16, 24, 32)
    """Long prompts a second beside the steady streams."""
    mixed_seconds: float = 3.0
    mixed_bound_ms: float = 40.0
    """The inter-token p99 up to which a rate counts as served: two engine steps, so one token in a hundred may be late
    by a step."""

    prompt_tokens: tuple[int, ...] = (1_000, 10_000, 40_000, 100_000)
    prompt_clients: tuple[int, ...] = (2,)
    prompt_seconds: float = 1.5

    scaling_threads: tuple[int, ...] = ()
    """Of HTTP and CPU; empty: 1, 2, 4 … up to the cores."""
    scaling_seconds: float = 2.0

    relief_streams: int = 64
    relief_rate: float = 2.0
    relief_seconds: float = 3.0

    peer_streams: tuple[int, ...] = (64, 256)
    peer_loads: tuple[str, ...] = ("one-token requests", "8k words each its own")
    """Of perf/scenarios/peers.py."""
    peer_seconds: float = 2.0

    policy_seconds: float = 5.0


FULL = Parameters()
QUICK = replace(
    FULL,
    pairs=1,
    only_builds=("3.13t", "3.13"),
    component_seconds=0.05,
    streams=(256,),
    streaming_seconds=1.5,
    request_loads=("as many as possible",),
    request_seconds=1.5,
    disturbances=("40k-token prompts",),
    stall_calm=1.0,
    stall_seconds=3.0,
    mixed_rates=(8,),
    mixed_seconds=2.5,
    prompt_tokens=(40_000,),
    scaling_seconds=1.5,
    relief_seconds=2.0,
    peer_streams=(256,),
    peer_loads=("one-token requests",),
    peer_seconds=1.5,
    policy_seconds=3.0,
)
SMOKE = replace(
    QUICK,
    warm_seconds=0.1,
    only_builds=("3.13t",),
    component_seconds=0.0,
    component_rounds=1,
    streams=(2,),
    streaming_seconds=0.3,
    step_ms=10.0,
    request_loads=("open loop", "as many as possible"),
    request_rate=20,
    request_connections=2,
    request_seconds=0.3,
    stall_streams=2,
    stall_calm=0.2,
    stall_seconds=0.4,
    mixed_streams=2,
    mixed_rates=(4,),
    mixed_seconds=0.4,
    prompt_tokens=(1_000,),
    prompt_clients=(1,),
    prompt_seconds=0.3,
    scaling_threads=(1,),
    scaling_seconds=0.3,
    relief_streams=2,
    relief_seconds=0.3,
    peer_streams=(2,),
    peer_seconds=0.3,
)
SCALES = {"full": FULL, "quick": QUICK, "smoke": SMOKE}


def changed(parameters: Parameters, assignments: list[str]) -> Parameters:
    """With `name=value` or `name=1,2,3` in place of what they name; raises ValueError for what makes no sense."""
    known = {item.name: getattr(parameters, item.name) for item in fields(Parameters)}
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or name not in known:
            raise ValueError(f"{assignment}: expected NAME=VALUE, where NAME is one of {', '.join(known)}")
        values[name] = _read(known[name], text)
    return replace(parameters, **values)


def _read(old: Any, text: str) -> Any:
    if isinstance(old, tuple):
        kind: Any = type(old[0]) if old else str if not text.replace(",", "").isdigit() else int
        return tuple(kind(each) for each in text.split(",") if each)
    return type(old)(text)
