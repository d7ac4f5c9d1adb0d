"""What a run of the suite leaves: figures by scenario, arm and place, the machine and the interpreters, as JSON."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

Series = list[tuple[float, ...]]
Place = dict[str, Any]
"""Where an arm is measured: parameter and value, such as {"streams": 64}."""


@dataclass
class Sample:
    """One run of one point: figures by name, and what a picture needs."""

    figures: dict[str, float]
    series: dict[str, Series] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """What a number means. `better` is "lower", "higher", or empty where neither is; `digits` behind the point."""

    title: str
    better: str = "lower"
    digits: int = 1


@dataclass
class Point:
    """All runs of one arm at one place; `series` is of the first run."""

    scenario: str
    arm: str
    place: Place
    runs: list[dict[str, float]] = field(default_factory=list)
    series: dict[str, Series] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.scenario, self.arm, place_text(self.place)

    def values(self, figure: str) -> list[float]:
        """Sorted; empty when it was not measured here."""
        return sorted(run[figure] for run in self.runs if figure in run)

    def middle(self, figure: str) -> float:
        return median(self.values(figure))

    def shown(self, figure: str, digits: int) -> str:
        """The median, the least and the most; "" when it was not measured here."""
        values = self.values(figure)
        if not values:
            return ""
        if len(values) == 1 or values[0] == values[-1]:
            return f"{values[0]:.{digits}f}"
        return f"{median(values):.{digits}f} ({values[0]:.{digits}f}-{values[-1]:.{digits}f})"


def place_text(place: Mapping[str, Any]) -> str:
    """Such as "256 streams" or "wire native"."""
    return ", ".join(f"{value} {name}" if isinstance(value, int) else str(value) for name, value in place.items())


@dataclass
class Results:
    """`commands` says for each scenario how its figures are had again, and `builds` are facts by name."""

    scale: str
    started: str
    machine: dict[str, str]
    builds: dict[str, dict[str, str]]
    differences: list[str]
    commands: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    points: list[Point] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def of(self, scenario: str) -> list[Point]:
        return [point for point in self.points if point.scenario == scenario and point.runs]

    def point(self, scenario: str, arm: str, place: Place) -> Point:
        """That point, made if it is not there yet."""
        for point in self.points:
            if (point.scenario, point.arm, point.place) == (scenario, arm, place):
                return point
        self.points.append(Point(scenario, arm, place))
        return self.points[-1]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(rounded(dataclasses.asdict(self)), indent=None, separators=(",", ":")) + "\n")
        part.rename(path)


def rounded(value: Any) -> Any:
    """With six significant digits, so that a file of results stays small and readable."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value


def load(path: Path) -> Results:
    """Raises OSError, and ValueError for what is no file of results."""
    try:
        values = json.loads(path.read_text())
        values["points"] = [Point(**point) for point in values["points"]]
        return Results(**values)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is no file of results: {error}") from error


def in_both(old: Results, new: Results) -> Iterator[tuple[Point, Point]]:
    """The points that two runs have in common."""
    known = {point.key: point for point in old.points if point.runs}
    for point in new.points:
        if point.runs and point.key in known:
            yield known[point.key], point
