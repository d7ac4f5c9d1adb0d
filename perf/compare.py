"""`python -m perf compare A.json B.json`: what got better or worse from one run to the other, and what is noise.

A figure has changed when the runs of one file all lie on the same side of those of the other, and further apart than
either of them is wide: by MOST of the median at least. With fewer than three runs of a point nothing is said of it.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from perf import results
from perf.report import table
from perf.results import Figure, Point, Results
from perf.scenarios import SCENARIOS

LEAST = 0.05
"""A change of less than this share is not worth a line."""
RUNS = 3


@dataclass(frozen=True)
class Change:
    name: str
    figure: Figure
    old: list[float]
    new: list[float]

    @property
    def ratio(self) -> float:
        return median(self.new) / median(self.old) if median(self.old) else float("inf")

    @property
    def is_worse(self) -> bool:
        return (self.ratio > 1) == (self.figure.better == "lower")


def main(arguments: Sequence[str]) -> int:
    """The exit code is 1 when something got worse."""
    parser = argparse.ArgumentParser(prog="python3.13t -m perf compare", description=__doc__)
    parser.add_argument("old", type=Path, metavar="A.json")
    parser.add_argument("new", type=Path, metavar="B.json")
    options = parser.parse_args(arguments)
    try:
        old, new = results.load(options.old), results.load(options.new)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"perf: {error}\n")
        return 2
    for warning in cautions(old, new):
        sys.stdout.write(f"caution: {warning}\n")
    found = list(changes(old, new))
    worse = [change for change in found if change.is_worse]
    show("worse", worse)
    show("better", [change for change in found if not change.is_worse])
    compared = sum(1 for _ in results.in_both(old, new))
    sys.stdout.write(f"{compared} points in both files; whatever is not listed is within the noise\n")
    return 1 if worse else 0


def cautions(old: Results, new: Results) -> Iterator[str]:
    for fact in ("cores", "processor"):
        if old.machine.get(fact) != new.machine.get(fact):
            yield f"another machine: {old.machine.get(fact)} and {new.machine.get(fact)}"
    if old.scale != new.scale:
        yield f"a {old.scale} run and a {new.scale} one"
    for name in old.builds.keys() & new.builds.keys():
        if old.builds[name] != new.builds[name]:
            yield f"{name} was built otherwise"


def changes(old: Results, new: Results) -> Iterator[Change]:
    for before, after in results.in_both(old, new):
        for name in sorted({name for run in after.runs for name in run}):
            figure = SCENARIOS[after.scenario].figure(name) if after.scenario in SCENARIOS else Figure(name, "")
            if figure.better and has_changed(before, after, name):
                title = f"{after.scenario}: {after.arm}, {results.place_text(after.place)}: {figure.title}"
                yield Change(title, figure, before.values(name), after.values(name))


def has_changed(before: Point, after: Point, name: str) -> bool:
    old, new = before.values(name), after.values(name)
    if min(len(old), len(new)) < RUNS:
        return False
    apart = max(new[0] - old[-1], old[0] - new[-1])
    wide = max(old[-1] - old[0], new[-1] - new[0])
    return apart > wide and abs(median(new) - median(old)) > LEAST * abs(median(old))


def show(word: str, found: Sequence[Change]) -> None:
    if not found:
        return
    rows = [[each.name, shown(each.old, each), shown(each.new, each), f"{each.ratio:.2f}"] for each in found]
    sys.stdout.write(f"{word}\n" + table((word, "before", "after", "ratio"), rows) + "\n")


def shown(values: Sequence[float], change: Change) -> str:
    digits = change.figure.digits
    return f"{median(values):.{digits}f} ({values[0]:.{digits}f}-{values[-1]:.{digits}f})"
