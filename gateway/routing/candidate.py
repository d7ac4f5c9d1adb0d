"""Who can take a request: one data-parallel rank of one worker, how much it has to do, and who has the least.

Threads: the router changes candidates and boards under its lock; policies read them without one. What they read may be
one request old, never torn: each value is replaced whole.
"""

import random

from engine_adapters.base import Load, RankLoad
from gateway.routing.worker import Worker

REQUEST_TOKENS = 64.0
"""What a running answer costs those beside it, in prompt tokens: it slows every step down, and holds memory."""
PRESSURE_TOKENS = 256.0
"""What a half full KV cache costs; at nine tenths it is nine times as much."""
FULLEST = 0.99
MEAN_PROMPT = 512.0
"""How long a prompt is taken to be while nothing is known."""
SMOOTHING = 0.05


class Candidate:
    """`worker`'s rank `dp_rank`. `bit` is its alone among all candidates of the router, 1 << `slot`.

    `load` is the work ahead of a newcomer, in prompt tokens for a weight of 1: the tokens of ours that wait to be read,
    what others have waiting as far as the engine's report tells, the answers that run, and how full the KV cache is.
    `turn` says when it was last chosen; before that it is at random, so that gateways do not all begin with the same.
    """

    __slots__ = (
        "_boards",
        "_kv_total",
        "_kv_used",
        "_leased",
        "_mean_prompt",
        "_others",
        "_others_waiting",
        "_reading",
        "answers",
        "bit",
        "dp_rank",
        "in_flight",
        "load",
        "reading",
        "slot",
        "turn",
        "weight",
        "worker",
    )

    def __init__(self, worker: Worker, dp_rank: int, slot: int, weight: float | None = None) -> None:
        self.worker = worker
        self.dp_rank = dp_rank
        self.slot = slot
        self.bit = 1 << slot
        self.weight = worker.address.weight if weight is None else weight
        self.in_flight = 0
        """Requests of ours."""
        self.answers = 0
        self.reading = 0.0
        """Prompt tokens of ours that are not cached, of requests without their first token."""
        self.load = 0.0
        self.turn = -random.random()
        self._reading = 0
        self._mean_prompt = MEAN_PROMPT
        self._others = self._others_waiting = 0
        self._kv_used = self._kv_total = self._leased = 0.0
        self._boards: list[tuple[Board, int]] = []

    def __repr__(self) -> str:
        return f"<{self.name}: {self.in_flight} in flight, load {self.load:.0f}>"

    @property
    def name(self) -> str:
        return f"{self.worker.name}#{self.dp_rank}"

    def take(self, tokens: float, answers: int, turn: int) -> None:
        """A request goes here, of whose prompt `tokens` must be read."""
        self.in_flight += 1
        self.answers += answers
        self._reading += 1
        self.reading += tokens
        self._leased += tokens
        self._mean_prompt += SMOOTHING * (tokens - self._mean_prompt)
        self.turn = turn
        self._weigh(1)

    def begin(self, tokens: float) -> None:
        """A request's prompt has been read, or will not be."""
        self._reading -= 1
        self.reading -= tokens
        self._weigh(0)

    def give_back(self, answers: int) -> None:
        self.in_flight -= 1
        self.answers -= answers
        self._weigh(-1)

    def note(self, load: RankLoad | Load) -> None:
        """What the engine says of itself; what is not ours in it comes from other gateways."""
        self._others = max(0, load.running + load.waiting - self.answers)
        self._others_waiting = min(self._others, max(0, load.waiting - self._reading))
        self._kv_used, self._kv_total = load.kv_tokens_used, load.kv_tokens_total
        self._leased = 0.0
        self._weigh(0)

    def set_weight(self, weight: float) -> None:
        """Boards that it is on do not know the new sum of weights."""
        self.weight = weight
        self._weigh(0)

    def enter(self, board: "Board", place: int) -> None:
        """Keep `board` informed from now on."""
        self._boards.append((board, place))

    def leave(self, board: "Board") -> None:
        self._boards = [entry for entry in self._boards if entry[0] is not board]

    def _weigh(self, change: int) -> None:
        work = self.reading + self._others_waiting * self._mean_prompt
        work += REQUEST_TOKENS * (self.answers + self._others)
        if self._kv_total:
            use = min(FULLEST, (self._kv_used + self._leased) / self._kv_total)
            work += PRESSURE_TOKENS * use / (1.0 - use)
        self.load = work / self.weight
        for board, place in self._boards:
            board.in_flight += change
            board.update(place)


class Board:
    """A tournament among candidates that is played on after each change: `least` has the least load, and among equals
    was chosen the longest ago. A change costs one comparison a level, a look at the winner costs nothing.

    `in_flight` and `weight` are those of all together.
    """

    def __init__(self, candidates: tuple[Candidate, ...]) -> None:
        self.in_flight = sum(candidate.in_flight for candidate in candidates)
        self.weight = sum(candidate.weight for candidate in candidates)
        size = self._size = len(candidates)
        # A binary tree in an array: node n is played between 2n and 2n + 1, and the candidates are the last nodes.
        self._winners: list[Candidate] = [candidates[0]] * size + list(candidates)
        for node in range(size - 1, 0, -1):
            self._play(node)

    @property
    def least(self) -> Candidate:
        return self._winners[1]

    def update(self, place: int) -> None:
        """The load of the candidate at `place` has changed."""
        node = (place + self._size) >> 1
        while node:
            self._play(node)
            node >>= 1

    def _play(self, node: int) -> None:
        winners = self._winners
        left, right = winners[2 * node], winners[2 * node + 1]
        is_right = right.load < left.load or (right.load == left.load and right.turn < left.turn)
        winners[node] = right if is_right else left
