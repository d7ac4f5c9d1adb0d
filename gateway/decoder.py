"""One answer's tokens to events: detokenize, look for stop strings, say how it ended."""

from collections.abc import Sequence

from engine_adapters.base import Finish, FinishReason
from gateway.errors import BadRequest, EngineFailed
from gateway.parsers.stop import StopScanner, StopStrings
from gateway.tokenizer import DetokenizerTable
from gateway.types import Finished, OutputOptions

FINISH_REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


class AnswerDecoder:
    """Belongs to one answer of one request; `stops` are the stop strings of `options`.

    After `finished` is set it must not be fed.
    """

    __slots__ = ("_detokenizer", "_index", "_options", "_scanner", "finish", "finished", "tokens")

    def __init__(self, index: int, table: DetokenizerTable, options: OutputOptions, stops: StopStrings) -> None:
        self._index = index
        self._options = options
        self._detokenizer = table.new(options.skip_special_tokens)
        self._scanner = StopScanner(stops, options.include_stop)
        self.tokens = 0
        self.finish: Finish | None = None
        self.finished: Finished | None = None

    @property
    def unknown_tokens(self) -> int:
        return self._detokenizer.unknown

    @property
    def completion_tokens(self) -> int:
        """What the engine counted, which includes a matched stop token; our own count while it has not said."""
        return self.finish.completion_tokens if self.finish and self.finish.completion_tokens else self.tokens

    def feed(self, token_ids: Sequence[int], finish: Finish | None) -> str:
        """The text that is certain now, all that is left when `finish` says that nothing follows.

        Sets `finished` when the answer has ended; raises BadRequest or EngineFailed if `finish` says so.
        """
        self.tokens += len(token_ids)
        text = self._scanner.feed(self._detokenizer.feed(token_ids))
        if finish is not None:
            self.finish = finish
            text += self._end(finish)
        if self._scanner.matched is not None:
            self.finished = Finished(self._index, "stop", self._scanner.matched)
        elif finish is not None:
            self.finished = Finished(self._index, finish_reason(finish), finish.matched_stop)
        return text

    def _end(self, finish: Finish) -> str:
        rest = ""
        if self._options.include_stop and finish.matched_stop is not None:
            rest = self._detokenizer.feed([finish.matched_stop])
        return self._scanner.feed(rest + self._detokenizer.flush()) + self._scanner.flush()


def finish_reason(finish: Finish) -> str:
    """OpenAI's word for it; raises when it is none."""
    if finish.reason is FinishReason.REJECTED:
        raise BadRequest(finish.error)
    if finish.reason not in FINISH_REASONS:
        raise EngineFailed(finish.error or "the engine aborted the request")
    return FINISH_REASONS[finish.reason]
