"""When tokens left their source: a file of (monotonic time, tokens, idle seconds before), one entry for each step."""

import struct
import time
from pathlib import Path

ENTRY = struct.Struct("<dId")

Arrivals = list[tuple[float, int]]
"""(monotonic time, tokens at that time), in order."""


class StampFile:
    """Written by the source; an entry is in the file when `note` returns."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def note(self, tokens: int, idle: float = 0.0) -> None:
        if tokens:
            self._file.write(ENTRY.pack(time.monotonic(), tokens, idle))


def read(path: Path) -> Arrivals:
    return [(moment, tokens) for moment, tokens, _ in ENTRY.iter_unpack(path.read_bytes())]


def idle_seconds(path: Path, begins: float, ends: float) -> float:
    """How long the source had nothing to do between two moments, although streams were waiting."""
    entries = ENTRY.iter_unpack(path.read_bytes())
    return float(sum(idle for moment, _, idle in entries if begins <= moment < ends))


def added_latencies(sent: Arrivals, received: Arrivals, skip: int, count: int) -> list[tuple[float, int]]:
    """(seconds, tokens): how long tokens `skip` to `skip + count` were under way.

    The n-th token sent is held against the n-th received. All streams step together, so that is the same token, or,
    if some streams lag by more than a step, one of the same moment: the mean stays exact.
    """
    latencies: list[tuple[float, int]] = []
    sources = iter(sent)
    left_at, waiting = 0.0, 0
    position = 0
    for arrived_at, tokens in received:
        while tokens:
            if not waiting:
                left_at, waiting = next(sources)
            matched = min(tokens, waiting)
            if skip <= position < skip + count:
                latencies.append((arrived_at - left_at, matched))
            tokens, waiting, position = tokens - matched, waiting - matched, position + matched
    return latencies


def percentile(weighted: list[tuple[float, int]], share: float) -> float:
    """The smallest value that at least `share` of the weight does not exceed."""
    rest = share * sum(weight for _, weight in weighted)
    for value, weight in sorted(weighted):
        rest -= weight
        if rest <= 0:
            return value
    raise ValueError("no values")
