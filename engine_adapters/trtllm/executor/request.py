"""One request in TensorRT-LLM: what of its cumulative results has been told, and how its answers end.

Threads: none of its own; the executor's event loop.
"""

from array import array
from collections.abc import Sequence

from engine_adapters.base import Finish, FinishReason, Logprobs, Submission
from engine_adapters.step.server import Output
from engine_adapters.step.session import Stream
from engine_adapters.trtllm.executor.api import Generation, RequestFault, is_split

REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "cancelled": FinishReason.ABORTED}
GOES_ON = ("length", "not_finished")
"""How a prefill ends whose answer goes on."""


class Request:
    """`open` holds the answers whose end has not been told, `is_over` says that the engine has told all.

    `plain` is the engine's answer where there is only one, and its next tokens are all there is to tell before its end.
    """

    __slots__ = (
        "_only",
        "_stops",
        "counts",
        "fault",
        "generation",
        "is_aborted",
        "is_over",
        "open",
        "plain",
        "streams",
        "submission",
    )

    def __init__(
        self, streams: "Sequence[Stream]", submission: Submission, generation: Generation, eos: "Sequence[int]"
    ) -> None:
        self.streams = streams
        self.submission = submission
        self.generation = generation
        self.open = set(range(len(streams)))
        self.is_aborted = False
        self.is_over = False
        self.fault: RequestFault | None = None
        self.counts = [0] * len(streams)
        self._only = generation.outputs[0] if len(streams) == 1 and submission.logprobs is None else None
        self.plain = None if generation.first_tokens else self._only
        self._stops = frozenset(array("I", submission.stop_token_ids))
        if not submission.ignore_eos:
            self._stops |= frozenset(eos)

    def abort(self) -> None:
        """Its end is told when the engine tells it."""
        self.is_aborted = True
        self.generation.abort()

    def tell(self, outputs: "list[Output]", logprobs: "dict[Stream, Logprobs]") -> None:
        """Add what is new since the last time."""
        for index in [*self.open]:
            stream, so_far = self.streams[index], self.generation.outputs[index].token_ids
            count = self.counts[index]
            if self.generation.first_tokens and not count:
                count = self._handed_over(so_far)
                self.plain = self._only if count else None
            token_ids = so_far[count:]
            self.counts[index] = count + len(token_ids)
            finish = None
            if self.is_over or len(self.streams) > 1:
                token_ids, finish = self._end(index, token_ids)
            if token_ids and self.submission.logprobs is not None:
                logprobs[stream] = self.generation.logprobs(index, count, token_ids, self.submission.logprobs)
            if token_ids or finish is not None:
                outputs.append((stream, token_ids, finish))
            if finish is not None:
                self.open.discard(index)

    def _handed_over(self, so_far: "Sequence[int]") -> int:
        """How many of a decode's tokens the prefill has told already: the engine repeats them."""
        first = self.generation.first_tokens
        return len(first) if [*so_far[: len(first)]] == first else 0

    def _end(self, index: int, token_ids: "Sequence[int]") -> "tuple[Sequence[int], Finish | None]":
        """The tokens before a stop, and the end if this is it.

        The engine leaves its own end in place, and any stop of an answer that ends before the others or on its last
        allowed token; and of those answers it does not say that they have ended.
        """
        stop = self._stop_in(index, token_ids)
        if stop is not None:
            if is_split(self.submission):
                self.abort()  # it does not see that nobody will come for what it has read
            finish = self._finish(index, FinishReason.STOP, token_ids[stop])
            return token_ids[:stop], finish
        return token_ids, self._told_end(index) if self.is_over else None

    def _stop_in(self, index: int, token_ids: "Sequence[int]") -> "int | None":
        if self._stops.isdisjoint(token_ids):
            return None
        before = self.counts[index] - len(token_ids)
        for place, token_id in enumerate(token_ids):
            if token_id in self._stops and before + place >= self.submission.min_tokens:
                return place
        return None

    def _told_end(self, index: int) -> Finish:
        answer = self.generation.outputs[index]
        reason, stop = answer.finish_reason, answer.stop_reason
        if self.fault is not None:
            return self._failure(self.fault)
        if is_split(self.submission) and reason in GOES_ON:
            return self._hand_over(index)
        if reason is None and len(self.streams) > 1:
            # Only the last of several answers to end is told of.
            reason = "length" if self.counts[index] >= self.submission.max_tokens else "stop"
        if reason == "timeout":
            return Finish(FinishReason.DEADLINE, error="the engine's own time limit for the request is over")
        if reason not in REASONS or (reason == "cancelled" and not self.is_aborted):
            return self._failure(RequestFault(f"the engine says {reason!r}", False, True))
        return self._finish(index, REASONS[reason], stop if isinstance(stop, int) else None)

    def _finish(self, index: int, reason: FinishReason, stop: "int | None" = None, handoff: bytes = b"") -> Finish:
        submission, is_kept = self.submission, self._stop_is_kept(index, stop)
        prompt_logprobs = None
        if index == 0 and submission.prompt_logprobs is not None:
            prompt = array("I", submission.token_ids)
            prompt_logprobs = self.generation.prompt_logprobs(prompt, submission.prompt_logprobs)
        return Finish(
            reason=reason,
            matched_stop=stop,
            prompt_tokens=len(submission.token_ids) // 4,
            cached_tokens=self.generation.cached_tokens,
            completion_tokens=self.counts[index] + (stop is not None and not is_kept),
            prompt_logprobs=prompt_logprobs,
            handoff=handoff,
        )

    def _stop_is_kept(self, index: int, stop: "int | None") -> bool:
        """Whether a matched stop token is among the engine's own, and so has been counted."""
        token_ids = self.generation.outputs[index].token_ids
        return stop is not None and bool(token_ids) and stop in token_ids[self.counts[index] - 1 :]

    def _hand_over(self, index: int) -> Finish:
        try:
            handoff = self.generation.handoff()
        except TypeError as error:
            return self._failure(RequestFault(f"what the prefill left cannot be handed over: {error}", False, False))
        if not handoff:
            text = "the engine hands nothing over: is cache_transceiver_config set?"
            return self._failure(RequestFault(text, False, False))
        return self._finish(index, FinishReason.LENGTH, handoff=handoff)

    def _failure(self, fault: RequestFault) -> Finish:
        return failure(fault, len(self.submission.token_ids) // 4)


def failure(fault: RequestFault, prompt_tokens: int) -> Finish:
    reason = FinishReason.REJECTED if fault.is_clients else FinishReason.ERROR
    return Finish(reason, prompt_tokens=prompt_tokens, error=str(fault), retryable=fault.is_retryable)
