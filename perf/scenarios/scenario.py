"""What a scenario is to the suite."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from perf.arms import Arm
from perf.builds import Build
from perf.measure import COMMON, Context
from perf.parameters import Parameters
from perf.results import Figure, Place, Sample


def everywhere(arm: Arm, place: Place) -> bool:
    return True


@dataclass(frozen=True)
class Chart:
    """A line for each arm: a figure, or figure by figure, over a parameter of the places.

    With `series`, what each arm's first run kept under that name, over time, in a panel of its own.
    """

    title: str
    figure: str = ""
    over: str = ""
    series: str = ""
    y: str = ""
    x: str = ""
    log: str = ""
    """Which axes: "x", "y" or "xy"."""
    kind: str = "lines"
    """Or "bars": arms beside each other, a group for each place."""


@dataclass(frozen=True)
class Scenario:
    """`measure` is called for every arm at every place that `fits`, each time with fresh processes of its own.

    `figures` are those of its own, the headline first; those in COMMON come on top. Without any, a sample's own names
    are the figures (components). `seconds` is how long a point takes, about.
    """

    name: str
    title: str
    question: str
    arms: Callable[[Sequence[Build], Parameters], list[Arm]]
    places: Callable[[Parameters], list[Place]]
    measure: Callable[[Context, Arm, Place], Sample]
    seconds: Callable[[Parameters], float]
    figures: dict[str, Figure]
    charts: tuple[Chart, ...] = ()
    fits: Callable[[Arm, Place], bool] = everywhere
    counts_throughput: bool = False
    """Whether its headline is wrong when load and engines take too much of the machine."""
    notes: tuple[str, ...] = field(default=())
    """What its figures do not say."""

    def figure(self, name: str) -> Figure:
        return self.figures.get(name) or COMMON.get(name) or Figure(name, "higher", 0)
