"""What policies do for the first token: multi-turn chats that share system prompts, on executors in simulated time.

Conversations arrive at random (Poisson) and each goes on, after a pause, where its last answer stopped. With
`--gateways 2` each request comes to either, and each sees only its own requests and what the executors report.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import fields

from gateway.routing import POLICIES
from perf.fleet import Outcome, Setting, Simulation
from perf.report import table

HEADER = ("policy", "TTFT ms mean", "p50", "p99", "hit rate %", "busiest / mean", "requests", "unanswered")


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    names = options.policies.split(",") if options.policies else [*POLICIES]
    setting = Setting(**{item.name: getattr(options, item.name) for item in fields(Setting)})
    rows = []
    for name in names:
        began = time.monotonic()
        simulation = Simulation(setting, name)
        rows.append(row(name, simulation.run()))
        simulation.check_idle()
        sys.stderr.write(f"{name}: {time.monotonic() - began:.0f} s\n")
    sys.stdout.write(table(HEADER, rows))


def row(name: str, outcome: Outcome) -> list[str]:
    return [
        name,
        *(f"{1000 * seconds:.0f}" for seconds in (outcome.ttft_mean, outcome.ttft_p50, outcome.ttft_p99)),
        f"{100 * outcome.hit_rate:.1f}",
        f"{outcome.spread:.2f}",
        str(outcome.requests),
        str(outcome.unanswered),
    ]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3.13t -m perf routing", description=__doc__)
    parser.add_argument("--policies", default="", metavar="NAME,NAME", help="which ones (default: all)")
    for item in fields(Setting):
        flag = "--" + item.name.replace("_", "-")
        if isinstance(item.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=item.default)
        else:
            kind = type(item.default)
            parser.add_argument(flag, type=kind, default=item.default, metavar="N", help=f"(default: {item.default})")
    return parser.parse_args(arguments)
