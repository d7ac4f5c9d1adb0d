"""The scenarios of the suite, each a file: its question, its arms, the places where they are measured, and how."""

from perf.scenarios import (
    components,
    long_prompts,
    mixed,
    peers,
    processes,
    relief,
    requests,
    scaling,
    stall,
    streaming,
)
from perf.scenarios.scenario import Scenario

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        stall.SCENARIO,
        components.SCENARIO,
        streaming.SCENARIO,
        requests.SCENARIO,
        mixed.SCENARIO,
        long_prompts.SCENARIO,
        scaling.SCENARIO,
        processes.SCENARIO,
        relief.SCENARIO,
        peers.SCENARIO,
    )
}
