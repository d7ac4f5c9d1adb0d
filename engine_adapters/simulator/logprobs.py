"""Made-up logprobs: plausible, best first, and the same whenever the same token follows the same one at a place."""

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace

from engine_adapters.base import Logprobs, Submission
from engine_adapters.simulator import handoff
from engine_adapters.step.server import Output
from engine_adapters.step.session import Stream

DECAY = math.log(0.6)
"""Behind the best token, each next one is this much less likely."""
FIRST_BEHIND_BEST = math.log(1 - 0.6)
STRIDE = 7919


class Oracle:
    """How likely the tokens of one text are. A greedy text always says the best; another mostly, at times a bad one."""

    def __init__(self, candidates: Sequence[int], count: int, is_greedy: bool, previous: int, position: int) -> None:
        self._candidates = candidates
        self._count = min(count, len(candidates))
        self._is_greedy = is_greedy
        self._previous = previous
        self._position = position

    def judge(self, token_ids: Sequence[int]) -> Logprobs:
        """The logprobs of the next tokens."""
        logprobs: list[float] = []
        alternatives: list[list[tuple[int, float]]] = []
        for token_id in token_ids:
            chance = _mixed((self._previous << 32 | token_id) + self._position * 0x9E3779B97F4A7C15)
            place = 0 if self._is_greedy else _place(chance >> 40)
            best = math.log(0.3 + 0.65 * (chance & 0xFFFF) / 0x10000)
            logprobs.append(_logprob(best, place))
            alternatives.append([*self._alternatives(token_id, place, best, chance >> 16)])
            self._previous = token_id
            self._position += 1
        return Logprobs(logprobs, alternatives)

    def _alternatives(self, token_id: int, place: int, best: float, start: int) -> Iterator[tuple[int, float]]:
        others = self._others(token_id, start)
        for each in range(self._count):
            yield token_id if each == place else next(others), _logprob(best, each)

    def _others(self, token_id: int, start: int) -> Iterator[int]:
        size = len(self._candidates)
        stride = STRIDE if size % STRIDE else 1  # a prime: all candidates come before one comes again
        for step in range(size):
            other = self._candidates[(start + step * stride) % size]
            if other != token_id:
                yield other


class LogprobSource:
    """Adds logprobs to what an engine says, for the streams that asked. `candidates` are the tokens to choose from."""

    def __init__(self, candidates: Sequence[int]) -> None:
        self._candidates = candidates
        self._oracles: dict[Stream, Oracle] = {}
        self._prompts: dict[Stream, Submission] = {}

    def note(self, streams: Sequence[Stream], submission: Submission) -> None:
        """These streams have been started."""
        if submission.logprobs is not None:
            text = memoryview(submission.token_ids).cast("I").tolist()
            text += handoff.unpack(submission.handoff)[0] if submission.phase == "decode" else []
            last, position = text[-1], len(text)
            is_greedy = submission.sampling.temperature == 0
            for stream in streams:
                self._oracles[stream] = Oracle(self._candidates, submission.logprobs, is_greedy, last, position)
        if submission.prompt_logprobs is not None:
            self._prompts[streams[0]] = submission

    def judge(self, outputs: Sequence[Output]) -> tuple[Sequence[Output], dict[Stream, Logprobs]]:
        """The outputs, ends with the logprobs of their prompts, and the logprobs of their tokens."""
        if not self._oracles and not self._prompts:
            return outputs, {}
        logprobs = {
            stream: self._oracles[stream].judge(token_ids)
            for stream, token_ids, _ in outputs
            if token_ids and stream in self._oracles
        }
        return [self._with_prompt(output) for output in outputs], logprobs

    def _with_prompt(self, output: Output) -> Output:
        stream, token_ids, finish = output
        if finish is None:
            return output
        self._oracles.pop(stream, None)
        submission = self._prompts.pop(stream, None)
        if submission is None:
            return output
        return stream, token_ids, replace(finish, prompt_logprobs=self._of_prompt(submission))

    def _of_prompt(self, submission: Submission) -> Logprobs:
        first, *others = array("I", submission.token_ids)
        oracle = Oracle(self._candidates, submission.prompt_logprobs or 0, False, first, 1)
        judged = oracle.judge(others)
        return Logprobs([0.0, *judged.logprobs], [(), *judged.alternatives])


def _mixed(value: int) -> int:
    """64 bits in which each bit of the value shows (splitmix64)."""
    value &= 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31


def _place(chance: int) -> int:
    """Where the chosen token stands among all, 0 for the best: 0 in 7 of 10 cases, far behind in one."""
    tenth = chance % 10
    if tenth < 7:
        return 0
    return 1 + chance // 10 % 3 if tenth < 9 else 25 + chance // 10 % 25


def _logprob(best: float, place: int) -> float:
    """The logprob at a place; all together make up a probability of 1."""
    return best if place == 0 else math.log1p(-math.exp(best)) + FIRST_BEHIND_BEST + (place - 1) * DECAY
