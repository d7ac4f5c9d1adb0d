"""`python3.13t -m perf`: lists the measurements; with the name of one, runs it."""

import signal
import sys
from collections.abc import Callable, Sequence

from gateway.__main__ import check_version, switch_off_gil
from perf import chats, decisions, executor, images, parsers, peers, profile, requests, routing, streaming


def text(arguments: Sequence[str]) -> None:
    from perf import text  # not above: it loads tokenizers, which warns before the GIL is off

    text.main(arguments)


MEASUREMENTS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "streaming": (streaming.main, "CPU of the gateway and added latency per streamed token, beside a bare ASGI app"),
    "requests": (requests.main, "CPU of the gateway per one-token request, streamed and not, beside a bare ASGI app"),
    "routing": (routing.main, "TTFT, hit rate and load spread of each policy, on executors in simulated time"),
    "chats": (chats.main, "the same, smaller, with real processes"),
    "decisions": (decisions.main, "routing decisions a second, by policy, workers and threads; and the block index"),
    "peers": (
        peers.main,
        "CPU of the gateway beside SMG's, per streamed token and per long prompt",
    ),
    "parsers": (
        parsers.main,
        "CPU per token of reading reasoning and calls; long arguments, threads, tools",
    ),
    "executor": (executor.main, "CPU of our executor for TensorRT-LLM per token, beside a bare reader of its API"),
    "images": (images.main, "CPU of preprocessing an image, gain of more threads, beside transformers' processors"),
    "text": (text, "the text path: prompts from JSON to ids with and without the token cache, tokens to events"),
    "profile": (profile.main, "where the gateway's CPU goes, by layer and by function"),
}


def usage() -> str:
    lines = [f"  {name:<12}{summary}" for name, (_, summary) in MEASUREMENTS.items()]
    return "python3.13t -m perf MEASUREMENT [--help]\n\n" + "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        sys.stdout.write(usage())
        return 0
    if arguments[0] not in MEASUREMENTS:
        sys.stderr.write(f"there is no measurement {arguments[0]!r}\n{usage()}")
        return 2
    # As an exception, so that the processes we started end with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    MEASUREMENTS[arguments[0]][0](arguments[1:])
    return 0


if __name__ == "__main__":
    check_version()
    switch_off_gil()
    sys.exit(main(sys.argv[1:]))
