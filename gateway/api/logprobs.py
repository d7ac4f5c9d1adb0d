"""Logprobs in the two shapes OpenAI has for them."""

from collections.abc import Sequence
from typing import Any

from engine_adapters.base import Logprobs
from gateway.tokenizer import DetokenizerTable
from gateway.types import Text

FLOOR = -9999.0
"""For what an engine gives as minus infinity, which JSON cannot say; OpenAI's own value."""


def chat_logprobs(table: DetokenizerTable, event: Text) -> list[dict[str, Any]]:
    """`logprobs.content` of a chat answer for the tokens of one event; empty when it has none."""
    if event.logprobs is None:
        return []
    return [
        chat_token(table, token_id, logprob)
        | {"top_logprobs": [chat_token(table, other, value) for other, value in alternatives]}
        for token_id, logprob, alternatives in zip(
            event.token_ids, event.logprobs.logprobs, event.logprobs.alternatives, strict=True
        )
    ]


def chat_token(table: DetokenizerTable, token_id: int, logprob: float) -> dict[str, Any]:
    token = table.token_bytes(token_id)
    return {"token": token.decode(errors="replace"), "logprob": finite(logprob), "bytes": list(token)}


def finite(logprob: float) -> float:
    """What JSON can say: an engine's infinities and NaNs become the nearest that makes sense."""
    return min(logprob, 0.0) if logprob > FLOOR else FLOOR


class CompletionLogprobs:
    """The four parallel lists of a completion's `logprobs`, and where the text is by now."""

    def __init__(self, table: DetokenizerTable, skip_special_tokens: bool) -> None:
        self._table = table
        self._detokenizer = table.new(skip_special_tokens)
        self._offset = 0

    def skip(self, text: str) -> None:
        """Text without logprobs that stands before what comes next."""
        self._offset += len(text)

    def of(
        self, token_ids: Sequence[int], logprobs: Logprobs, is_prompt: bool = False, hidden: int = 0
    ) -> dict[str, list[Any]]:
        """For the next tokens; a prompt's first token has no logprob, since nothing comes before it.

        The first `hidden` ones are not in the text.
        """
        tokens = [self._table.token_text(token_id) for token_id in token_ids]
        offsets = []
        for number, token_id in enumerate(token_ids):
            offsets.append(self._offset)
            if number >= hidden:
                self._offset += len(self._detokenizer.feed([token_id]))
        values: list[float | None] = [finite(logprob) for logprob in logprobs.logprobs]
        tops: list[dict[str, float] | None] = [self._alternatives(each) for each in logprobs.alternatives]
        if is_prompt and values:
            values[0] = tops[0] = None
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def _alternatives(self, alternatives: Any) -> dict[str, float]:
        # The best of tokens that look alike stays.
        return {self._table.token_text(token_id): finite(logprob) for token_id, logprob in reversed(alternatives)}
