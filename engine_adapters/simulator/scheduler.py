"""Continuous batching in simulated time: who runs, how long a step takes, and what comes out of it.

The scheduler knows no clock and no network. Whoever drives it says what time it is, in seconds of engine time:

    end = scheduler.begin_step(now)      # admit, plan a step; None when nobody can go on now
    outputs = scheduler.end_step()       # at that time: the step's tokens and ends
"""

import itertools
import math
from array import array
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from engine_adapters.base import Finish, FinishReason, Submission

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Costs:
    """What a step costs in seconds: its prompts, and when streams decode, a fixed part and a part for each."""

    prefill_tokens_per_second: float = 8000.0
    decode_base: float = 0.006
    decode_per_request: float = 0.00035

    def step(self, prefill_tokens: int, decoding: int) -> float:
        decode = self.decode_base + self.decode_per_request * decoding if decoding else 0.0
        return prefill_tokens / self.prefill_tokens_per_second + decode


@dataclass(frozen=True)
class Plan:
    """Everything one stream is going to say if it is not cut short.

    `steps` holds the tokens of each engine step, `delays` by index the seconds to wait before a step. With `repeats`
    the steps begin again at the end; without, the stream ends with the last one, for `reason`.
    """

    steps: Sequence[tuple[int, ...]]
    delays: Mapping[int, float] = field(default_factory=dict)
    repeats: bool = False
    reason: FinishReason = FinishReason.STOP
    error: str = ""
    retryable: bool = False


@dataclass(slots=True, eq=False)
class Run(Generic[Key]):
    """One stream in the engine."""

    key: Key
    plan: Plan
    prompt_tokens: int
    limit: int
    stops: frozenset[int]
    index: int = 0
    generated: int = 0
    ready_at: float = 0.0
    is_prefilled: bool = False
    is_gone: bool = False

    def advance(self) -> tuple[Sequence[int], "Finish | None"]:
        """The tokens of the next step, and the end if this is it."""
        steps = self.plan.steps
        token_ids: Sequence[int] = steps[self.index % len(steps)] if steps else ()
        self.index += 1
        if not self.stops.isdisjoint(token_ids):
            place = next(place for place, token_id in enumerate(token_ids) if token_id in self.stops)
            if self.generated + place < self.limit:
                self.generated += place + 1
                return token_ids[:place], self.finish(FinishReason.STOP, matched_stop=token_ids[place])
        self.generated += len(token_ids)
        if self.generated >= self.limit:
            token_ids = token_ids[: len(token_ids) - (self.generated - self.limit)]
            self.generated = self.limit
            return token_ids, self.finish(FinishReason.LENGTH)
        if self.index >= len(steps) and not (self.plan.repeats and steps):
            return token_ids, self.finish(self.plan.reason)
        return token_ids, None

    def finish(self, reason: FinishReason, matched_stop: "int | None" = None) -> Finish:
        return Finish(
            reason=reason,
            matched_stop=matched_stop,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.generated,
            error=self.plan.error if reason is self.plan.reason else "",
            retryable=self.plan.retryable and reason is self.plan.reason,
        )


class Scheduler(Generic[Key]):
    """A first-come-first-served batch of at most `max_running` streams.

    `plan_for` says what a submission will be answered. A running stream keeps its place until it ends; a prompt is
    read whole in the step that admits it, and its first token comes at the end of that step.
    """

    def __init__(
        self,
        plan_for: Callable[[Submission], Plan],
        costs: Costs,
        max_running: int,
        context_length: int,
        eos_token_ids: frozenset[int],
    ) -> None:
        self.step = 0
        self.kv_tokens_used = 0
        self.tokens_generated = 0
        self._plan_for = plan_for
        self._costs = costs
        self._max_running = max_running
        self._context_length = context_length
        self._eos_token_ids = eos_token_ids
        self._waiting: deque[Run[Key]] = deque()
        self._running: dict[Key, Run[Key]] = {}
        self._working: list[Run[Key]] = []
        self._ends_at = 0.0

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_step_deserted(self) -> bool:
        """Whether everybody in the step under way has been aborted, so that it need not be waited for."""
        return all(run.is_gone for run in self._working)

    def submit(self, key: Key, submission: Submission) -> "Finish | None":
        """Queue a stream; returns its end when it cannot be served."""
        prompt_tokens = len(submission.token_ids) // 4
        room = self._context_length - prompt_tokens
        if room < 1:
            return Finish(
                FinishReason.REJECTED,
                prompt_tokens=prompt_tokens,
                error=f"the prompt has {prompt_tokens} tokens, which leaves no room for an answer in this model's "
                f"context of {self._context_length}",
            )
        plan = self._plan_for(submission)
        if plan.reason is FinishReason.REJECTED:
            return Finish(plan.reason, prompt_tokens=prompt_tokens, error=plan.error, retryable=plan.retryable)
        stops = frozenset(array("I", submission.stop_token_ids))
        if not submission.ignore_eos:
            stops |= self._eos_token_ids
        self._waiting.append(Run(key, plan, prompt_tokens, min(submission.max_tokens, room), stops))
        return None

    def abort(self, key: Key) -> "Finish | None":
        """Free a stream's place at once; None when there is no such stream."""
        run = self._running.get(key)
        if run is not None:
            self._leave(run)
            return run.finish(FinishReason.ABORTED)
        run = next((run for run in self._waiting if run.key == key), None)
        if run is not None:
            self._waiting.remove(run)
            return run.finish(FinishReason.ABORTED)
        return None

    def begin_step(self, now: float) -> "float | None":
        """Admit who has waited longest and plan a step; returns when it ends, None when nobody can go on now."""
        self._working = [run for run in self._running.values() if run.ready_at <= now]
        decoding = len(self._working)
        while self._waiting and len(self._running) < self._max_running:
            run = self._waiting.popleft()
            self._running[run.key] = run
            self.kv_tokens_used += run.prompt_tokens
            self._working.append(run)
        if not self._working:
            return None
        prefill_tokens = sum(run.prompt_tokens for run in itertools.islice(self._working, decoding, None))
        self._ends_at = now + self._costs.step(prefill_tokens, decoding)
        return self._ends_at

    def end_step(self) -> "list[tuple[Key, Sequence[int], Finish | None]]":
        """What the planned step brought, in the order of admission."""
        self.step += 1
        outputs: list[tuple[Key, Sequence[int], Finish | None]] = []
        generated = 0
        for run in self._working:
            if run.is_gone or (not run.is_prefilled and self._must_wait_for_first_token(run)):
                continue
            generated -= run.generated
            token_ids, finish = run.advance()
            generated += run.generated
            if finish is not None:
                self._leave(run)
            elif run.plan.delays:
                run.ready_at = self._ends_at + run.plan.delays.get(run.index, 0.0)
            outputs.append((run.key, token_ids, finish))
        self._working = []
        self.kv_tokens_used += generated
        self.tokens_generated += generated
        return outputs

    def next_ready_at(self) -> "float | None":
        """When the first of the delayed streams goes on, if any ever does."""
        earliest = min((run.ready_at for run in self._running.values()), default=math.inf)
        return earliest if earliest < math.inf else None

    def _must_wait_for_first_token(self, run: "Run[Key]") -> bool:
        run.is_prefilled = True
        delay = run.plan.delays.get(0, 0.0)
        if delay:
            run.ready_at = self._ends_at + delay
        return delay > 0

    def _leave(self, run: "Run[Key]") -> None:
        run.is_gone = True
        del self._running[run.key]
        self.kv_tokens_used -= run.prompt_tokens + run.generated
