"""What the messages of one Generate call mean for the answers that were asked for.

Threads: none of its own. A reader belongs to its call.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from engine_adapters import codec
from engine_adapters.base import Finish, FinishReason, Logprobs, Submission
from engine_adapters.trtllm.calls import CUT_OFF, News
from engine_adapters.trtllm.native import messages
from engine_adapters.trtllm.native.translation import as_logprobs, as_prompt_logprobs, finish_of_error, is_greedy

REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "cancelled": FinishReason.ABORTED}
FAILURES = {
    "timeout": Finish(FinishReason.DEADLINE, error="the engine's own time limit ended the answer"),
    "error": Finish(FinishReason.ERROR, error="the engine failed and did not say why", retryable=True),
    "not_finished": Finish(FinishReason.ERROR, error="the engine left the answer unfinished"),
}
SILENT = Finish(FinishReason.ERROR, error="the engine ended the answer without a reason", retryable=True)


class Answer:
    """One sequence of a call. `indexes` are the answers that it is: several where all are the same. `is_over`: its end
    has been told. `is_unexplained`: its end came without a reason."""

    __slots__ = ("indexes", "is_over", "is_unexplained", "said")

    def __init__(self, indexes: Iterable[int]) -> None:
        self.indexes = tuple(indexes)
        self.said = 0
        self.is_over = False
        self.is_unexplained = False


class CallReader:
    """Reads the messages of a call that asks for all answers to `submission`."""

    __slots__ = ("_answers", "_cached_tokens", "_is_explained", "_stops", "submission")

    def __init__(self, submission: Submission) -> None:
        self.submission = submission
        indexes = range(submission.n)
        self._answers = [Answer(indexes)] if is_greedy(submission.sampling) else [Answer([each]) for each in indexes]
        self._stops = frozenset(memoryview(submission.stop_token_ids).cast("I"))
        self._is_explained = False
        self._cached_tokens = 0

    def read(self, data: bytes) -> Sequence[News]:
        response = codec.decode(messages.GenerateResponse, data)
        chunk, complete = response.chunk, response.complete
        if chunk is not None:
            answer = self._answer(chunk.sequence_index)
            if answer is None:
                return ((chunk.sequence_index, chunk.token_ids, None, None),)  # a server that does not know of stop ids
            if chunk.token_ids:
                self._cached_tokens = chunk.cached_tokens
                return self._say(answer, chunk.token_ids, chunk.logprobs, None)
        elif complete is not None:
            answer = self._answer(complete.sequence_index)
            if answer is not None:
                self._cached_tokens = complete.cached_tokens
                # What it repeats of the chunks is known, and may be shorter than what was said then.
                token_ids: Sequence[int] = () if answer.said else complete.output_token_ids
                return self._say(answer, token_ids, complete.logprobs, complete)
        elif response.error is not None:
            failure = finish_of_error(response.error)
            return [news for answer in self._unfinished() for news in self._news(answer, (), failure, None)]
        return ()

    def end(self) -> Sequence[News]:
        return [
            news
            for answer in self._unfinished()
            for news in self._news(answer, (), self._unexplained_end(answer), None)
        ]

    def _unfinished(self) -> list[Answer]:
        return [answer for answer in self._answers if not answer.is_over]

    def _answer(self, index: int) -> "Answer | None":
        """None when it is over."""
        answer = self._answers[index] if index < len(self._answers) else None
        return answer if answer is not None and not answer.is_over else None

    def _say(
        self,
        answer: Answer,
        token_ids: Sequence[int],
        entries: Sequence[messages.TokenLogprob],
        complete: "messages.GenerateComplete | None",
    ) -> Sequence[News]:
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
        return self._news(answer, token_ids, finish, logprobs) if token_ids or finish is not None else ()

    def _until_stop(self, answer: Answer, token_ids: Sequence[int]) -> "tuple[Sequence[int], int | None]":
        """The tokens before a stop, and that: the engine leaves the model's own end among them, and some servers do not
        know of stop ids at all. Before `min_tokens` an engine masks stops, so that there is none."""
        for place, token_id in enumerate(token_ids):
            if token_id in self._stops and answer.said + place >= self.submission.min_tokens:
                return token_ids[:place], token_id
        return token_ids, None

    def _news(
        self, answer: Answer, token_ids: Sequence[int], finish: "Finish | None", logprobs: "Logprobs | None"
    ) -> Sequence[News]:
        if finish is not None:
            answer.is_over = True
        return [(index, token_ids, finish, logprobs) for index in answer.indexes]

    # --- ends -------------------------------------------------------------------------------------------------------

    def _end_of(self, answer: Answer, complete: messages.GenerateComplete) -> "Finish | None":
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

    def _unexplained_end(self, answer: Answer) -> Finish:
        """Of several answers, those that end before the last one have no reason. But if none has one, the engine
        failed: it does not say so."""
        if not answer.is_unexplained:
            return CUT_OFF
        if not self._is_explained:
            return SILENT
        is_full = answer.said >= self.submission.max_tokens
        return self._finish(answer, FinishReason.LENGTH if is_full else FinishReason.STOP)

    def _finish(self, answer: Answer, reason: FinishReason, matched_stop: "int | None" = None) -> Finish:
        return Finish(
            reason=reason,
            matched_stop=matched_stop,
            prompt_tokens=len(self.submission.token_ids) // 4,
            cached_tokens=self._cached_tokens,
            completion_tokens=answer.said + (matched_stop is not None),
        )

    def _with_prompt_logprobs(self, answer: Answer, complete: messages.GenerateComplete, finish: Finish) -> Finish:
        count = self.submission.prompt_logprobs
        if count is None or answer is not self._answers[0]:
            return finish
        prompt = memoryview(self.submission.token_ids).cast("I").tolist()
        return replace(finish, prompt_logprobs=as_prompt_logprobs(complete.prompt_logprobs, prompt, count))
