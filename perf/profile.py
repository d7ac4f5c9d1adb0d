"""Where the gateway's CPU time goes: samples of Python stacks, sorted into layers.

A sample belongs to the innermost frame that some layer knows: what lies further in, in the standard library or in C,
is that layer's doing. Samples of one wave give the shares, a wave without samples gives the µs they are shares of.
Threads without Python (gRPC has some) cannot be sampled: their time is spread over the layers.
"""

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from perf import arms, builds, samples
from perf.arms import Arm
from perf.load import Flow, Job
from perf.loads import run
from perf.measure import steady
from perf.processes import word_simulator
from perf.report import table

Stack = list[tuple[str, str]]
"""(path of the file, function), innermost first."""

LAYERS = (
    ("epoll", "/selectors.py", ""),
    ("socket send", "/asyncio/selector_events.py", "write"),
    ("socket receive, accept", "/asyncio/selector_events.py", ""),
    ("asyncio streams", "/asyncio/streams.py", ""),
    ("asyncio loop and tasks", "/asyncio/", ""),
    ("HTTP/1.1", "/gateway/http1/", ""),
    ("hypercorn", "/hypercorn/", ""),
    ("starlette", "/starlette/", ""),
    ("gRPC", "/grpc/", ""),
    ("codec", "/engine_adapters/codec.py", ""),
    ("codec", "/engine_adapters/scalars.py", ""),
    ("step client", "/engine_adapters/step/", ""),
    ("mailbox", "/gateway/threads.py", ""),
    ("streams and sessions", "/gateway/engines.py", ""),
    ("streams and sessions", "/gateway/streams.py", ""),
    ("routing", "/gateway/routing/", ""),
    ("decoder", "/gateway/tokenizer/detokenize.py", ""),
    ("decoder", "/gateway/parsers/", ""),
    ("decoder", "/gateway/generate.py", "feed"),
    ("template and tokenizer", "/gateway/tokenizer/", ""),
    ("generate", "/gateway/generate.py", ""),
    ("JSON and SSE", "/gateway/api/", ""),
    ("request records", "/gateway/", ""),
)
THREADS = (("engine", "/gateway/engines.py", "_run"), ("http", "/gateway/server.py", "_run"))


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        switch, dump = str(Path(folder, "switch")), Path(folder, "dump")
        os.mkfifo(switch)
        launcher = ("perf.profiled_gateway", switch, str(dump))
        total, unit = measured(options, switch, launcher)
        stacks = list(read_stacks(dump.read_text()))
    sys.stdout.write(f"{total:.1f} µs per {unit}; {len(stacks)} samples\n\n")
    for name, rows_of in TABLES:
        counts = Counter((thread_of(stack), what) for stack in stacks for what in rows_of(stack))
        rows = [
            [thread, what, f"{count / len(stacks):.1%}", f"{count / len(stacks) * total:.2f}"]
            for (thread, what), count in counts.most_common(options.top)
        ]
        sys.stdout.write(table(("thread", name, "share", f"µs per {unit}"), rows) + "\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3.13t -m perf profile", description=__doc__)
    parser.add_argument("what", choices=["tokens", "requests"], help="the load: streams, or one-token requests")
    parser.add_argument("--streams", type=int, default=64, metavar="N")
    parser.add_argument("--seconds", type=float, default=8.0, metavar="N", help="of each of the two runs")
    parser.add_argument("--step-ms", type=float, default=21.3, metavar="MS", help="no multiple of the tick")
    parser.add_argument("--whole", action="store_true", help="requests: not streamed")
    parser.add_argument("--concurrency", type=int, default=32, metavar="N")
    parser.add_argument("--http-threads", type=int, default=1, metavar="N")
    parser.add_argument("--server", default="hypercorn", metavar="NAME")
    parser.add_argument("--top", type=int, default=25, metavar="N", help="rows of each table")
    return parser.parse_args(arguments)


def measured(options: argparse.Namespace, switch: str, launcher: tuple[str, ...]) -> tuple[float, str]:
    """Samples a run; returns the µs of a token or request in a run that is not sampled, and "token" or "request"."""
    found = builds.find()
    build, helper = found[0], builds.helper(found)
    settings = ("--http-threads", str(options.http_threads), "--server", options.server)
    pace = ("--decode-base-ms", str(options.step_ms)) if options.what == "tokens" else ("--speed", "0")
    arm = Arm(build.name, build, settings, launcher=launcher)
    with word_simulator(*pace, build=helper) as engine, arms.start(arm, [engine]) as front:
        if options.what == "tokens":
            flow = steady(front, options.streams)
        else:
            request = samples.http_request(front.path, stream=not options.whole, max_tokens=1)
            flow = Flow("requests", [request], connections=options.concurrency)
        job = Job(front.port, {"front": front.pids}, [flow], 1.0, options.seconds)
        quiet = run(job, helper)
        run(replace(job, profile_switch=switch), helper)
    done = quiet.flows[flow.name]
    count = done.tokens if options.what == "tokens" else done.ended
    return 1e6 * quiet.usage["front"].cpu / count, options.what.removesuffix("s")


def read_stacks(dump: str) -> Iterator[Stack]:
    """The stacks that faulthandler wrote."""
    for text in dump.split("Stack (most recent call first):\n"):
        stack = []
        for line in text.splitlines():
            # '  File "/usr/lib/python3.13/threading.py", line 995 in run'
            path, quote, rest = line.removeprefix('  File "').partition('", line ')
            if quote:
                stack.append((path, rest.partition(" in ")[2]))
        if stack:
            yield stack


def layer_of(stack: Stack) -> list[str]:
    return [next((layer for path, function in stack if (layer := _find(LAYERS, path, function))), "other")]


def thread_of(stack: Stack) -> str:
    return next((thread for path, function in reversed(stack) if (thread := _find(THREADS, path, function))), "other")


def function_of(stack: Stack) -> list[str]:
    return [_name(*stack[0])]


def callers_of(stack: Stack) -> list[str]:
    """Every function of ours on the stack, once."""
    return list(
        {_name(path, function) for path, function in stack if "/gateway/" in path or "/engine_adapters/" in path}
    )


TABLES = (
    ("layer", layer_of),
    ("function by itself", function_of),
    ("function of ours with all it calls", callers_of),
)


def _name(path: str, function: str) -> str:
    return f"{'/'.join(Path(path).parts[-2:])} {function}"


def _find(table: tuple[tuple[str, str, str], ...], path: str, function: str) -> str | None:
    return next((name for name, part, wanted in table if part in path and wanted in ("", function)), None)
