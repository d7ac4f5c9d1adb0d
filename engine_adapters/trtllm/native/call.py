"""One Generate call as we see it: what its messages mean for the answers that were asked for.

Threads: none of its own. A call belongs to the client that made it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Generic

from engine_adapters.base import Delivery, Finish, FinishReason, Key, Logprobs, Submission
from engine_adapters.trtllm.native import messages
from engine_adapters.trtllm.native.translation import as_logprobs, as_prompt_logprobs, finish_of_error, is_greedy

REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "cancelled": FinishReason.ABORTED}
FAILURES = {
    "timeout": Finish(FinishReason.ERROR, error="the engine's own time limit ended the answer"),
    "error": Finish(FinishReason.ERROR, error="the engine failed and did not say why", retryable=True),
    "not_finished": Finish(FinishReason.ERROR, error="the engine left the answer unfinished"),
}
SILENT = Finish(FinishReason.ERROR, error="the engine ended the answer without a reason", retryable=True)
CUT_OFF = Finish(FinishReason.ERROR, error="the engine ended the stream before the answer", retryable=True)


class Answer(Generic[Key]):
    """One sequence of a call. `keys` are those who want it: several where all answers are the same, none when it is
    over. `is_unexplained`: its end came without a reason."""

    __slots__ = ("is_unexplained", "keys", "said")

    def __init__(self, keys: Sequence[Key]) -> None:
        self.keys = [*keys]
        self.said = 0
        self.is_unexplained = False


class Call(Generic[Key]):
    """What is open of one Generate call. Deliveries are appended to the list that each method is given."""

    __slots__ = ("_answers", "_cached_tokens", "_is_explained", "_stops", "request_id", "submission")

    def __init__(self, request_id: str, keys: Sequence[Key], submission: Submission) -> None:
        self.request_id = request_id
        self.submission = submission
        self._answers = [Answer(keys)] if is_greedy(submission.sampling) else [Answer([key]) for key in keys]
        self._stops = frozenset(memoryview(submission.stop_token_ids).cast("I"))
        self._is_explained = False
        self._cached_tokens = 0

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for anything more of it."""
        return not any(answer.keys for answer in self._answers)

    def forget(self, key: Key) -> None:
        """Nobody wants to hear of this answer any more."""
        for answer in self._answers:
            if key in answer.keys:
                answer.keys.remove(key)

    def take(self, response: messages.GenerateResponse, deliveries: "list[Delivery[Key]]") -> None:
        """What a message brings."""
        chunk, complete = response.chunk, response.complete
        if chunk is not None:
            answer = self._answer(chunk.sequence_index)
            if answer is not None and chunk.token_ids:
                self._cached_tokens = chunk.cached_tokens
                self._say(answer, chunk.token_ids, chunk.logprobs, None, deliveries)
        elif complete is not None:
            answer = self._answer(complete.sequence_index)
            if answer is not None:
                self._cached_tokens = complete.cached_tokens
                # What it repeats of the chunks is known, and may be shorter than what was said then.
                token_ids: Sequence[int] = () if answer.said else complete.output_token_ids
                self._say(answer, token_ids, complete.logprobs, complete, deliveries)
        elif response.error is not None:
            self.end(finish_of_error(response.error), deliveries)

    def end(self, failure: "Finish | None", deliveries: "list[Delivery[Key]]") -> None:
        """The call is over: every answer that has had none gets its end."""
        for answer in self._answers:
            if answer.keys:
                self._deliver(answer, (), None, failure or self._unexplained_end(answer), deliveries)

    def _answer(self, index: int) -> "Answer[Key] | None":
        """None when nobody waits for it."""
        answer = self._answers[index] if index < len(self._answers) else None
        return answer if answer is not None and answer.keys else None

    def _say(
        self,
        answer: Answer[Key],
        token_ids: Sequence[int],
        entries: Sequence[messages.TokenLogprob],
        complete: "messages.GenerateComplete | None",
        deliveries: "list[Delivery[Key]]",
    ) -> None:
        matched_stop = None
        if not self._stops.isdisjoint(token_ids):
            token_ids, matched_stop = self._until_stop(answer, token_ids)
        answer.said += len(token_ids)
        count, logprobs, finish = self.submission.logprobs, None, None
        if count is not None and token_ids:
            logprobs = as_logprobs(entries, token_ids, count)
        if matched_stop is not None:
            finish = self._finish(answer, FinishReason.STOP, matched_stop)
        elif complete is not None:
            finish = self._end_of(answer, complete)
        if complete is not None and finish is not None:
            finish = self._with_prompt_logprobs(answer, complete, finish)
        if token_ids or finish is not None:
            self._deliver(answer, token_ids, logprobs, finish, deliveries)

    def _until_stop(self, answer: Answer[Key], token_ids: Sequence[int]) -> "tuple[Sequence[int], int | None]":
        """The tokens before a stop, and that: the engine leaves the model's own end among them, and some servers do not
        know of stop ids at all. Before `min_tokens` an engine masks stops, so that there is none."""
        for place, token_id in enumerate(token_ids):
            if token_id in self._stops and answer.said + place >= self.submission.min_tokens:
                return token_ids[:place], token_id
        return token_ids, None

    def _deliver(
        self,
        answer: Answer[Key],
        token_ids: Sequence[int],
        logprobs: "Logprobs | None",
        finish: "Finish | None",
        deliveries: "list[Delivery[Key]]",
    ) -> None:
        for key in answer.keys:
            deliveries.append((key, token_ids, finish, logprobs))
        if finish is not None:
            answer.keys = []

    # --- ends -------------------------------------------------------------------------------------------------------

    def _end_of(self, answer: Answer[Key], complete: messages.GenerateComplete) -> "Finish | None":
        """None when it cannot be told before the call is over."""
        reason = complete.finish_reason
        if reason in REASONS:
            self._is_explained = True
            return self._finish(answer, REASONS[reason], complete.matched_token_id)
        if reason:
            unknown = Finish(FinishReason.ERROR, error=f"the engine ended the answer for {reason!r}")
            return FAILURES.get(reason, unknown)
        answer.is_unexplained = True
        return None

    def _unexplained_end(self, answer: Answer[Key]) -> Finish:
        """Of several answers, those that end before the last one have no reason. But if none has one, the engine
        failed: it does not say so."""
        if not answer.is_unexplained:
            return CUT_OFF
        if not self._is_explained:
            return SILENT
        is_full = answer.said >= self.submission.max_tokens
        return self._finish(answer, FinishReason.LENGTH if is_full else FinishReason.STOP)

    def _finish(self, answer: Answer[Key], reason: FinishReason, matched_stop: "int | None" = None) -> Finish:
        return Finish(
            reason=reason,
            matched_stop=matched_stop,
            prompt_tokens=len(self.submission.token_ids) // 4,
            cached_tokens=self._cached_tokens,
            completion_tokens=answer.said + (matched_stop is not None),
        )

    def _with_prompt_logprobs(self, answer: Answer[Key], complete: messages.GenerateComplete, finish: Finish) -> Finish:
        count = self.submission.prompt_logprobs
        if count is None or answer is not self._answers[0]:
            return finish
        prompt = memoryview(self.submission.token_ids).cast("I").tolist()
        return replace(finish, prompt_logprobs=as_prompt_logprobs(complete.prompt_logprobs, prompt, count))
