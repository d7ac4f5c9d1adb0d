"""What a run's figures say against the goals of the project, in sentences; and what they cannot say."""

from collections.abc import Iterator
from statistics import median

from perf.measure import MOST_OF_MACHINE
from perf.results import Place, Point, Results
from perf.scenarios import SCENARIOS
from perf.scenarios.components import PREPARE
from perf.scenarios.stall import DISTURBANCES

NOISE_OF_OTHERS = 0.1
"""Above this share of the machine for processes that are not ours, a run's figures are not to be trusted."""


def findings(outcome: Results) -> list[str]:
    return [*against_gil(outcome), *against_smg(outcome)]


def against_gil(outcome: Results) -> Iterator[str]:
    free, gil = "3.13t", "3.13"
    yield from ratio(outcome, "components", PREPARE, (free, gil), {"threads": 2}, "prompts prepared by 2 threads", 1.8)
    for disturbance in DISTURBANCES:
        yield from stall(outcome, (free, gil), disturbance)
    best = {arm: best_rate(outcome, arm) for arm in (free, gil, f"{gil}, 2 processes")}
    if best[free] is not None and best[gil] is not None:
        told = f"Long prompts a second within the streams' bound: {free} {best[free]:.1f}, {gil} {best[gil]:.1f}"
        if (several := best[f"{gil}, 2 processes"]) is not None:
            told += f", {gil} as 2 processes {several:.1f}"
        yield told + " (goal: 1.5 times the GIL's, and not below the processes'). Rates are tried, not searched."


def stall(outcome: Results, arms: tuple[str, str], disturbance: str) -> Iterator[str]:
    """The wait for the engine's step is in both figures, hence a second one without it."""
    place = {"disturbance": disturbance}
    title = f"inter-token p99 beside {disturbance}, GIL to no GIL"
    found = [find(outcome, "stall", arm, place) for arm in arms]
    for sentence in ratio(outcome, "stall", "p99_ms", (arms[1], arms[0]), place, title, 5):
        free, gil = (point.middle("p99_ms") - point.middle("p50_ms") for point in found if point is not None)
        yield f"{sentence} Beyond the median, an engine's step: {free:.1f} and {gil:.1f} ms."


def best_rate(outcome: Results, arm: str) -> float | None:
    """The most that was served within the bound, by the median of each rate's runs."""
    rates = [point.middle("served_rate") for point in outcome.of("mixed") if point.arm == arm]
    return max(rates, default=None)


def against_smg(outcome: Results) -> Iterator[str]:
    base, ours, granian = "SMG, native wire", "ours, step stream", "ours, step stream, granian"
    for place, figure, arm, goal in (
        ({"streams": 256}, "us_per_token", granian, 0.7),
        ({"streams": 256}, "us_per_token", ours, 1.1),
        ({"load": "one-token requests"}, "us_per_request", granian, 1.2),
        ({"streams": 256}, "rss_mb", ours, 1.5),
    ):
        title = SCENARIOS["peers"].figure(figure).title
        yield from ratio(outcome, "peers", figure, (arm, base), place, f"{title}, {arm}, to SMG's", goal, at_most=True)


def ratio(
    outcome: Results,
    scenario: str,
    figure: str,
    arms: tuple[str, str],
    place: Place,
    title: str,
    goal: float,
    *,
    at_most: bool = False,
) -> Iterator[str]:
    """A sentence on the ratio of two arms, by the median of the runs' ratios; none when one was not measured."""
    first, second = (find(outcome, scenario, arm, place) for arm in arms)
    if first is None or second is None:
        return
    pairs = zip(first.runs, second.runs, strict=False)
    ratios = sorted(a[figure] / b[figure] for a, b in pairs if b.get(figure))
    if not ratios:
        return
    middle = median(ratios)
    is_met = middle <= goal if at_most else middle >= goal
    yield (
        f"{title[0].upper()}{title[1:]}: {middle:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}); "
        f"goal {'<=' if at_most else '>='} {goal:g}, {'met' if is_met else 'missed'}."
    )


def find(outcome: Results, scenario: str, arm: str, place: Place) -> Point | None:
    return next((point for point in outcome.of(scenario) if (point.arm, point.place) == (arm, place)), None)


def cautions(outcome: Results) -> list[str]:
    """Where load and engines took too much, where others were busy, and where something went wrong."""
    found = []
    for name, scenario in SCENARIOS.items():
        points = [point for point in outcome.of(name) if point.values("load_share")]
        if not points:
            continue
        crowded = [point for point in points if point.middle("load_share") > MOST_OF_MACHINE]
        if crowded and scenario.counts_throughput:
            found.append(
                f"{scenario.title}: load and engines took more than {MOST_OF_MACHINE:.0%} of the machine at "
                f"{len(crowded)} of {len(points)} points; compare CPU there, not requests a second."
            )
        disturbed = [point for point in points if point.middle("others_share") > NOISE_OF_OTHERS]
        if disturbed:
            found.append(f"{scenario.title}: other processes were busy at {len(disturbed)} of {len(points)} points.")
        late = [point for point in points if point.middle("lateness_ms") > 5.0]
        if late:
            found.append(f"{scenario.title}: the load itself was late by more than 5 ms at {len(late)} points.")
        wrong = sum(run.get("errors", 0.0) for point in points for run in point.runs)
        if wrong:
            found.append(f"{scenario.title}: {wrong:.0f} errors.")
    if int(outcome.machine.get("cores", "0")) < 4:
        found.append("With so few cores, whatever the load and the engines take is taken from the gateway.")
    return found
