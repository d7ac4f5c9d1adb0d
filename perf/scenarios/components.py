"""What the parts cost by themselves, and how much more of them 1 to N threads do: no network, no other process."""

import json
import subprocess
from collections.abc import Sequence

from perf.arms import Arm
from perf.builds import Build
from perf.components import COMPONENTS
from perf.machine import ROOT
from perf.measure import Context
from perf.parameters import Parameters
from perf.results import Figure, Place, Sample
from perf.scenarios.scaling import thread_counts
from perf.scenarios.scenario import Chart, Scenario

PREPARE = COMPONENTS[0].title


def arms(builds: Sequence[Build], parameters: Parameters) -> list[Arm]:
    return [Arm(build.name, build) for build in builds]


def measure(context: Context, arm: Arm, place: Place) -> Sample:
    parameters = context.parameters
    arguments = (str(place["threads"]), str(parameters.component_seconds), str(parameters.component_rounds))
    done = subprocess.run(
        [arm.build.python, "-m", "perf.components", *arguments],
        cwd=ROOT,
        env=arm.build.environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures = {}
    for title, (rate, cpu) in json.loads(done.stdout).items():
        figures[title] = rate
        figures[f"{title}: µs"] = 1e6 * cpu
    return Sample(figures)


SCENARIO = Scenario(
    name="components",
    title="Components",
    question="What does each part cost, and how much more do several threads do?",
    arms=arms,
    places=lambda parameters: [{"threads": threads} for threads in thread_counts(parameters)],
    measure=measure,
    seconds=lambda parameters: (
        len(COMPONENTS) * parameters.component_rounds * (parameters.component_seconds + 0.03) + 1.5
    ),
    figures={
        **{component.title: Figure(f"{component.title}, calls/s", "higher", 0) for component in COMPONENTS},
        **{f"{component.title}: µs": Figure(f"{component.title}, µs", "lower", 2) for component in COMPONENTS},
    },
    charts=(Chart("Speedup over threads: prompts prepared", PREPARE, over="threads", y="prompts/s", x="threads"),),
)
