"""Continuous batching in simulated time: who runs, how long a step takes, and what comes out of it.

The scheduler knows no clock and no network. Whoever drives it says what time it is, in seconds of engine time:

    end = scheduler.begin_step(now)      # admit, plan a step; None when nobody can go on now
    outputs = scheduler.end_step()       # at that time: the step's tokens and ends
"""

import itertools
import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

from engine_adapters.base import Finish, FinishReason, KvEvent, Submission
from engine_adapters.simulator import handoff
from engine_adapters.simulator.rank import Capacity, Output, Rank
from engine_adapters.simulator.run import Key, Plan, Prompt, Run


@dataclass(frozen=True)
class Costs:
    """What a step costs in seconds: its prompts, and when streams decode, a fixed part and a part for each.

    What a prefill has read comes over beside the steps, in a time of its own.
    """

    prefill_tokens_per_second: float = 8000.0
    decode_base: float = 0.006
    decode_per_request: float = 0.00035
    transfer_base: float = 0.002
    transfer_tokens_per_second: float = 400_000.0

    def step(self, prefill_tokens: int, decoding: int) -> float:
        decode = self.decode_base + self.decode_per_request * decoding if decoding else 0.0
        return prefill_tokens / self.prefill_tokens_per_second + decode

    def transfer(self, tokens: int) -> float:
        return self.transfer_base + tokens / self.transfer_tokens_per_second


class Scheduler(Generic[Key]):
    """Ranks that step together, as under attention data parallelism: a step takes as long as its slowest rank.

    `plan_for` says what a submission will be answered, by the index of the answer. A stream's first token comes at the
    end of the step in which the last piece of its prompt was read.
    """

    def __init__(
        self,
        plan_for: Callable[[Submission, int], Plan],
        costs: Costs,
        capacity: Capacity,
        eos_token_ids: frozenset[int],
    ) -> None:
        self.step = 0
        self.tokens_generated = 0
        self._plan_for = plan_for
        self._costs = costs
        self._capacity = capacity
        self._eos_token_ids = eos_token_ids
        self.ranks: list[Rank[Key]] = [Rank(capacity, number, costs.transfer) for number in range(capacity.dp_size)]
        self._runs: dict[Key, tuple[Rank[Key], Run[Key]]] = {}
        self._arrivals = itertools.count()
        self._ends_at = 0.0

    @property
    def is_step_deserted(self) -> bool:
        """Whether everybody in the step under way has been aborted, so that it need not be waited for."""
        return all(rank.is_idle for rank in self.ranks)

    def submit(self, keys: Sequence[Key], submission: Submission) -> "Finish | None":
        """Queue a stream for each answer; returns their end when they cannot be served."""
        prompt_tokens = len(submission.token_ids) // 4
        room, problem = self._room(prompt_tokens)
        said, steps, problem = _handed_over(submission, problem)
        if problem:
            return Finish(FinishReason.REJECTED, prompt_tokens=prompt_tokens, error=problem)
        plans = [self._plan_for(submission, index) for index in range(len(keys))]
        for plan in plans:
            if plan.reason is FinishReason.REJECTED:
                return Finish(plan.reason, prompt_tokens=prompt_tokens, error=plan.error, retryable=plan.retryable)
        prompt = Prompt.of(submission, self._capacity.block_size)
        stops = frozenset(array("I", submission.stop_token_ids))
        if not submission.ignore_eos:
            stops |= self._eos_token_ids
        arrival = next(self._arrivals)
        rank = self.ranks[submission.dp_rank]
        runs = []
        for index, (key, plan) in enumerate(zip(keys, plans, strict=True)):
            order, limit = (submission.priority, arrival, index), min(submission.max_tokens, room)
            run = Run(key, order, prompt, plan, limit, submission.min_tokens, stops, said=[*said], index=steps)
            run.hands_over, run.is_handed_over = submission.phase == "prefill", submission.phase == "decode"
            self._runs[key] = rank, run
            runs.append(run)
        runs[0].followers = runs[1:]
        rank.add(runs[0])
        return None

    def abort(self, key: Key) -> "Finish | None":
        """Free a stream's place at once; None when there is no such stream."""
        known = self._runs.pop(key, None)
        if known is None:
            return None
        rank, run = known
        rank.remove(run)
        return run.finish(FinishReason.ABORTED)

    def begin_step(self, now: float) -> "float | None":
        """Plan a step of all ranks; returns when it ends, None when nobody can go on now."""
        work = [rank.begin_step(now) for rank in self.ranks]
        if not any(map(any, work)):
            return None
        self._ends_at = now + max(itertools.starmap(self._costs.step, work))
        return self._ends_at

    def end_step(self) -> "list[Output[Key]]":
        """What the planned step brought, rank after rank, in the order of admission."""
        self.step += 1
        outputs: list[Output[Key]] = []
        for rank in self.ranks:
            outputs += rank.end_step(self._ends_at)
        self.tokens_generated += sum([len(token_ids) for _, token_ids, _ in outputs])
        for key in [key for key, _, finish in outputs if finish is not None]:
            del self._runs[key]
        return outputs

    def next_ready_at(self) -> "float | None":
        """When the first of the delayed streams goes on, if any ever does."""
        earliest = min(rank.next_ready_at() for rank in self.ranks)
        return earliest if earliest < math.inf else None

    def clear_cache(self) -> None:
        """Forget all cached blocks that no stream holds."""
        for rank in self.ranks:
            rank.cache.clear()

    def take_kv_events(self) -> list[KvEvent]:
        """What has changed in the prefix caches since the last time."""
        events: list[KvEvent] = []
        for rank in self.ranks:
            if rank.cache.events:
                events += rank.cache.events
                rank.cache.events.clear()
        return events

    def _room(self, prompt_tokens: int) -> tuple[int, str]:
        """How many tokens the answer may have, or why there can be none."""
        context_length = self._capacity.context_length
        if prompt_tokens >= context_length:
            return 0, (
                f"the prompt has {prompt_tokens} tokens, which leaves no room for an answer in this model's context of "
                f"{context_length}"
            )
        blocks = self._capacity.kv_tokens // self._capacity.block_size
        kv_tokens = blocks * self._capacity.block_size
        if prompt_tokens > kv_tokens:
            return 0, f"the prompt has {prompt_tokens} tokens, more than the {kv_tokens} this engine has memory for"
        # The last token said needs no room: nothing follows from it.
        return min(context_length - prompt_tokens, kv_tokens - prompt_tokens + 1), ""


def _handed_over(submission: Submission, problem: str) -> tuple[list[int], int, str]:
    """(tokens said before, steps that took, why the handoff is no good or the problem there was before)"""
    if submission.phase != "decode" or problem:
        return [], 0, problem
    try:
        return (*handoff.unpack(submission.handoff), "")
    except ValueError as error:
        return [], 0, str(error)
