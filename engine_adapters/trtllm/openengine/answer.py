"""What the events of one Generate call say of its answer."""

from collections.abc import Sequence

from engine_adapters import codec
from engine_adapters.base import Finish, FinishReason, Logprobs, Submission
from engine_adapters.trtllm.calls import News, is_clients_fault
from engine_adapters.trtllm.openengine import messages
from engine_adapters.trtllm.openengine.messages import GenerateResponse, TokenInfo, Usage
from engine_adapters.trtllm.openengine.translation import as_logprobs, first_tokens

REFUSALS = (
    messages.ERROR_CODE_INVALID_ARGUMENT,
    messages.ERROR_CODE_UNSUPPORTED_FEATURE,
    messages.ERROR_CODE_MODEL_NOT_FOUND,
)
NOTHING: tuple[News, ...] = ()


class AnswerReader:
    """Reads the events of a call that answers `submission` once.

    A stop token that the engine leaves in the output is taken out: the last token of a message waits for the next one
    if it is among `submission.stop_token_ids`. TensorRT-LLM's decode begins with what its prefill has delivered
    already; that is taken out too. Raises ValueError for a `submission.handoff` that is no KvSessionRef.
    """

    __slots__ = ("_asked", "_count", "_held", "_is_prefill", "_last", "_prompt", "_repeated", "_stops")

    def __init__(self, submission: Submission, is_prefill: bool) -> None:
        self._asked = submission
        self._stops = frozenset(memoryview(submission.stop_token_ids).cast("I"))
        self._is_prefill = is_prefill
        self._repeated = first_tokens(submission.handoff) if submission.handoff else []
        self._count = 1 if submission.phase == "decode" else 0
        self._last: int | None = None
        self._held: TokenInfo | None = None
        self._prompt: Logprobs | None = None

    def read(self, data: bytes) -> Sequence[News]:
        response = codec.decode(GenerateResponse, data)
        if response.token is not None:
            return self._tokens(response.token.tokens)
        usage = response.usage or Usage()
        if response.finished is not None:
            return self._finished(response.finished, usage)
        if response.prefill_ready is not None:
            return self._prefilled(response.prefill_ready, usage)
        if response.error is not None:
            return self._failed(response.error)
        if response.prompt is not None:
            self._note_prompt(response.prompt.tokens)
        return NOTHING

    def end(self) -> Sequence[News]:
        return NOTHING

    def _tokens(self, tokens: list[TokenInfo]) -> Sequence[News]:
        while self._repeated and tokens:
            # An engine that does not begin with them has nothing to take out.
            if tokens[0].token_id != self._repeated.pop(0):
                self._repeated.clear()
            else:
                del tokens[0]
        if self._held is not None:
            tokens.insert(0, self._held)
            self._held = None
        if tokens and tokens[-1].token_id in self._stops:
            self._held = tokens.pop()
        return (self._news(tokens, None),) if tokens else NOTHING

    def _news(self, tokens: Sequence[TokenInfo], finish: "Finish | None") -> News:
        token_ids = [token.token_id for token in tokens]
        self._count += len(token_ids)
        if token_ids:
            self._last = token_ids[-1]
        alternatives = self._asked.logprobs
        if alternatives is None or not token_ids:
            return 0, token_ids, finish, None
        return 0, token_ids, finish, as_logprobs(tokens, alternatives)

    def _finished(self, finished: messages.GenerationFinished, usage: Usage) -> Sequence[News]:
        rest = [] if self._held is None else [self._held]
        if finished.reason == messages.FINISH_REASON_STOP:
            matched = self._matched(finished.stop_match)
            if matched is not None and self._held is not None and self._held.token_id == matched:
                rest = []
            # An end that we did not know has been delivered, and counted, before anybody could tell.
            is_counted = matched is None or (matched == self._last and matched not in self._stops)
            count = self._count + len(rest) + (not is_counted)
            return (self._news(rest, self._finish(FinishReason.STOP, count, usage, matched)),)
        if finished.reason == messages.FINISH_REASON_LENGTH:
            if self._is_prefill:
                return (self._error("the engine ended the prefill without a handoff"),)
            return (self._news(rest, self._finish(FinishReason.LENGTH, self._count + len(rest), usage)),)
        return (self._error(finished.message or "the engine cancelled the request"),)

    def _matched(self, match: "messages.StopMatch | None") -> "int | None":
        """The token that ended the answer, by the engine's word or, when it says nothing, by its being held back."""
        if match is not None and match.stop_token_id is not None:
            return match.stop_token_id
        if match is not None and match.eos_token_id is not None:
            return match.eos_token_id
        return None if self._held is None else self._held.token_id

    def _prefilled(self, ready: messages.PrefillReady, usage: Usage) -> Sequence[News]:
        if not self._is_prefill or not ready.kv_session:
            raise ValueError(
                "a prefill that nobody asked for" if not self._is_prefill else "a prefill without a session"
            )
        rest = [] if self._held is None else [self._held]
        if not rest and not self._count:
            rest = [TokenInfo(token_id) for token_id in first_tokens(ready.kv_session)]
        count = self._count + len(rest)
        return (self._news(rest, self._finish(FinishReason.LENGTH, count, usage, handoff=ready.kv_session)),)

    def _finish(
        self, reason: FinishReason, count: int, usage: Usage, matched: "int | None" = None, handoff: bytes = b""
    ) -> Finish:
        return Finish(
            reason,
            matched_stop=matched,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_prompt_tokens or 0,
            completion_tokens=count,
            prompt_logprobs=self._prompt,
            handoff=handoff,
        )

    def _failed(self, error: messages.EngineError) -> Sequence[News]:
        if error.code in REFUSALS or is_clients_fault(error.message):
            return ((0, (), Finish(FinishReason.REJECTED, error=error.message), None),)
        return (self._error(error.message or f"the engine failed with code {error.code}"),)

    def _error(self, message: str) -> News:
        # `EngineError.retryable` is about the same engine; the gateway asks whether another one may do better.
        return 0, (), Finish(FinishReason.ERROR, error=message, retryable=True), None

    def _note_prompt(self, tokens: list[TokenInfo]) -> None:
        alternatives = self._asked.prompt_logprobs
        if alternatives is not None and tokens:
            tokens[0] = TokenInfo(tokens[0].token_id, 0.0)  # nothing comes before it
            self._prompt = as_logprobs(tokens, alternatives)
