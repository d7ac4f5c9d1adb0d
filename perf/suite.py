"""`python -m perf suite`: every scenario on every build, written to a file of results and a report.

Each point is measured with fresh processes; of one scenario, every place is gone through arm by arm before it is
measured again, and every other time in reverse, so that what drifts on the machine hits all arms alike.
"""

import argparse
import datetime
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from perf import builds, machine, parameters, results
from perf.arms import Arm
from perf.builds import Build
from perf.measure import Context
from perf.parameters import SCALES, Parameters
from perf.results import Place, Results
from perf.scenarios import SCENARIOS
from perf.scenarios.scenario import Scenario

OUT = machine.ROOT / "perf" / "results"


@dataclass(frozen=True)
class Step:
    """One run of one point."""

    scenario: Scenario
    arm: Arm
    place: Place
    seconds: float


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    try:
        chosen = parameters.changed(SCALES[options.scale], options.set)
        if options.pairs:
            chosen = replace(chosen, pairs=options.pairs)
        found = wanted_builds(builds.find(), chosen)
    except (ValueError, RuntimeError) as error:
        sys.stderr.write(f"perf: {error}\n")
        return 2
    scenarios = [SCENARIOS[name] for name in options.only or SCENARIOS]
    steps = list(plan(scenarios, found, chosen, options.arms))
    announce(found, steps)
    outcome = Results(
        scale=options.scale,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=machine.describe(),
        builds={build.name: build.facts for build in found},
        differences=builds.differences(found),
        commands={each.name: command(each, options) for each in scenarios},
    )
    run(steps, Context(chosen, found, builds.helper(found)), outcome, options.out)
    report(outcome, options)
    return 1 if outcome.failures else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3.13t -m perf suite", description=__doc__)
    parser.set_defaults(scale="full")
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--quick", dest="scale", action="store_const", const="quick", help="a few minutes in all")
    parser.add_argument(
        "--smoke", dest="scale", action="store_const", const="smoke", help="seconds; figures for nobody"
    )
    parser.add_argument("--pairs", type=int, metavar="N", help="runs of each point (default: full 3, quick 1)")
    parser.add_argument("--arms", nargs="+", metavar="TEXT", help="only arms with such a text in their name")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="parameters (perf/parameters.py), such as streams=64,256",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where results.json and the report go")
    return parser.parse_args(arguments)


def command(scenario: Scenario, options: argparse.Namespace) -> str:
    """What has one scenario's figures made again."""
    scale = () if options.scale == "full" else (f"--{options.scale}",)
    pairs = ("--pairs", str(options.pairs)) if options.pairs else ()
    changes = ("--set", *options.set) if options.set else ()
    return f'make perf ARGS="{" ".join(("suite", "--only", scenario.name, *scale, *pairs, *changes))}"'


def wanted_builds(found: list[Build], chosen: Parameters) -> list[Build]:
    names = chosen.only_builds
    return [build for build in found if not names or build.name in names] or found[:1]


def plan(
    scenarios: Sequence[Scenario], found: Sequence[Build], chosen: Parameters, texts: Sequence[str] | None
) -> Iterator[Step]:
    """All steps, in order; arms with equal names are measured once."""
    for scenario in scenarios:
        arms = list({arm.name: arm for arm in scenario.arms(found, chosen)}.values())
        arms = [arm for arm in arms if not texts or any(text in arm.name for text in texts)]
        for turn in range(chosen.pairs):
            for place in scenario.places(chosen):
                for arm in arms if turn % 2 == 0 else reversed(arms):
                    if scenario.fits(arm, place):
                        yield Step(scenario, arm, place, scenario.seconds(chosen))


def announce(found: Sequence[Build], steps: Sequence[Step]) -> None:
    for build in found:
        facts = build.facts
        say(f"{build.name:<14}{facts['version']}, {facts['optimisation']}, PGO {facts['PGO']}, LTO {facts['LTO']}")
    for difference in builds.differences(list(found)):
        say(f"not the same: {difference}")
    if not any(not build.is_free_threaded for build in found):
        say("no GIL build was found: `bash setup/bootstrap.sh --gil` makes .venv-gil")
    say(f"{len(steps)} measurements, about {minutes(sum(step.seconds for step in steps))}")


def run(steps: Sequence[Step], context: Context, outcome: Results, out: Path | None) -> None:
    """Measure; what fails is noted and the rest goes on. Saves after every step."""
    began = time.monotonic()
    planned_left = sum(step.seconds for step in steps)
    planned_done = 0.0
    for number, step in enumerate(steps, 1):
        name = f"{step.scenario.name}: {step.arm.name}, {results.place_text(step.place)}"
        point = outcome.point(step.scenario.name, step.arm.name, step.place)
        try:
            sample = step.scenario.measure(context, step.arm, step.place)
        except Exception as error:  # one point must not cost the others
            outcome.failures.append(f"{name}: {error}")
            say("".join(traceback.format_exception_only(error)).strip())
        else:
            point.runs.append(sample.figures)
            point.series = point.series or sample.series
        outcome.seconds = time.monotonic() - began
        planned_left -= step.seconds
        planned_done += step.seconds
        left = planned_left * outcome.seconds / planned_done
        say(f"[{number}/{len(steps)}, {minutes(left)} left] {name}: {headline(step.scenario, point)}")
        if out is not None:
            outcome.save(out / "results.json")


def headline(scenario: Scenario, point: results.Point) -> str:
    """The first figures of the newest run."""
    if not point.runs:
        return "failed"
    newest = point.runs[-1]
    names = [name for name in scenario.figures if name in newest][:3]
    shown = [f"{scenario.figure(name).title} {newest[name]:.{scenario.figure(name).digits}f}" for name in names]
    errors = newest.get("errors", 0.0)
    return "; ".join(shown) + (f"; {errors:.0f} ERRORS" if errors else "")


def report(outcome: Results, options: argparse.Namespace) -> None:
    from perf import page

    if options.out is None:
        sys.stdout.write(page.markdown(page.document(outcome, charts=False)))
    else:
        outcome.save(options.out / "results.json")
        page.write(outcome, options.out)
        say(f"report: {options.out / 'report.html'}")


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
