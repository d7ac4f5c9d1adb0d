"""`python3.13t -m perf`: lists the measurements; with the name of one, runs it."""

import importlib
import signal
import sys
from collections.abc import Sequence

from gateway.__main__ import check_version, switch_off_gil

MEASUREMENTS = {
    "suite": "GIL against no GIL, threads against processes, and peers: all scenarios and a report",
    "compare": "two files of results: what got better or worse, and what is noise",
    "page": "the report of a file of results, made anew",
    "routing": "TTFT, hit rate and load spread of each policy, on executors in simulated time",
    "chats": "the same, smaller, with real processes",
    "decisions": "routing decisions a second, by policy, workers and threads; and the block index",
    "limits": "what keys, quotas and admission add to a request",
    "parsers": "CPU per token of reading reasoning and calls; long arguments, threads, tools",
    "executor": "CPU of our executor for TensorRT-LLM per token, beside a bare reader of its API",
    "images": "CPU of preprocessing an image, gain of more threads, beside transformers' processors",
    "text": "the text path: prompts from JSON to ids with and without the token cache, tokens to events",
    "profile": "where the gateway's CPU goes, by layer and by function",
}


def usage() -> str:
    from perf.scenarios import SCENARIOS

    lines = [f"  {name:<14}{summary}" for name, summary in MEASUREMENTS.items()]
    scenarios = [f"  {name:<14}{scenario.question}" for name, scenario in SCENARIOS.items()]
    return (
        "python3.13t -m perf MEASUREMENT [--help]\n\n"
        + "\n".join(lines)
        + "\n\nscenarios of the suite, each also by itself:\n\n"
        + "\n".join(scenarios)
        + "\n"
    )


def main(arguments: Sequence[str]) -> int:
    from perf.scenarios import SCENARIOS

    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    name, *rest = arguments
    if name in SCENARIOS:
        name, rest = "suite", ["--only", name, *rest]
    if name not in MEASUREMENTS:
        sys.stderr.write(f"there is no measurement {name!r}\n{usage()}")
        return 2
    # As an exception, so that the processes we started end with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Not above: some load tokenizers, which warns before the GIL is off.
    code = importlib.import_module(f"perf.{name}").main(rest)
    return code or 0


if __name__ == "__main__":
    check_version()
    switch_off_gil()
    sys.exit(main(sys.argv[1:]))
