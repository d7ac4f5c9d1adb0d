"""Consistent hashing: who gets a key stays who gets it while others come and go, and in other gateways too.

Threads: a ring never changes. It is worked out when it is first asked; two threads may both do that, to the same end.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterator
from itertools import chain

from gateway.routing.candidate import Candidate

POINTS = 64
"""A candidate's places on the ring for each unit of weight; more of them divide the keys more evenly."""
MOST_POINTS = 1024
POINTS_A_DIGEST = 8
STEPS = 256


def stable_hash(data: bytes) -> int:
    """64 bits, the same in every process."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


class Ring:
    def __init__(self, candidates: tuple[Candidate, ...]) -> None:
        self.candidates = candidates
        self._places: tuple[list[int], list[Candidate]] | None = None

    def walk(self, key: bytes) -> Iterator[Candidate]:
        """From the owner of `key` on; who has several places in a row comes as often. Ends after a while."""
        points, owners = self._places or self._worked_out()
        start = bisect_left(points, stable_hash(key))
        for place in range(start, start + min(STEPS, len(owners))):
            yield owners[place % len(owners)]

    def _worked_out(self) -> tuple[list[int], list[Candidate]]:
        places = sorted(chain.from_iterable(map(_places, self.candidates)), key=lambda place: place[0])
        self._places = [point for point, _ in places], [owner for _, owner in places]
        return self._places


def _places(candidate: Candidate) -> list[tuple[int, Candidate]]:
    count = min(MOST_POINTS, max(1, round(POINTS * candidate.weight)))
    name = candidate.name.encode()
    digests = b"".join(
        hashlib.blake2b(name, digest_size=64, salt=number.to_bytes(4)).digest()
        for number in range(-(-count // POINTS_A_DIGEST))
    )
    return [(int.from_bytes(digests[8 * index : 8 * index + 8], "little"), candidate) for index in range(count)]
