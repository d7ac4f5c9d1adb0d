"""One answer's tokens to events: detokenize, look for stop strings, read reasoning and calls, say how it ended."""

from collections.abc import Sequence

from engine_adapters.base import Finish, FinishReason, Logprobs
from gateway.errors import BadRequest, DeadlineExceeded, EngineFailed
from gateway.parsers.output import OutputParser
from gateway.parsers.stop import StopScanner, StopStrings
from gateway.tokenizer import DetokenizerTable
from gateway.types import Content, Finished, OutputOptions, Piece, Reasoning, Text

FINISH_REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


class AnswerDecoder:
    """Belongs to one answer of one request; `stops` are the stop strings of `options`.

    After `finished` is set it must not be fed.
    """

    __slots__ = ("_active", "_detokenizer", "_index", "_options", "_scanner", "finish", "finished", "reader", "tokens")

    def __init__(
        self,
        index: int,
        table: DetokenizerTable,
        options: OutputOptions,
        stops: StopStrings,
        reader: "AnswerReader | None" = None,
    ) -> None:
        self._index = index
        self._options = options
        self._detokenizer = table.new(options.skip_special_tokens, shows_markers=reader is not None)
        self._scanner = StopScanner(stops, options.include_stop)
        self.reader = self._active = reader
        self.tokens = 0
        self.finish: Finish | None = None
        self.finished: Finished | None = None

    @property
    def unknown_tokens(self) -> int:
        return self._detokenizer.unknown

    @property
    def completion_tokens(self) -> int:
        """What the engine counted, which includes a matched stop token; our own count while it has not said, and up to
        a stop string, behind which an engine may have gone on."""
        if self._scanner.matched is not None:
            return self.tokens
        return self.finish.completion_tokens if self.finish and self.finish.completion_tokens else self.tokens

    def event(self, token_ids: Sequence[int], finish: Finish | None, logprobs: Logprobs | None) -> Text | None:
        """What is certain now, as `feed` says; None when it is nothing."""
        before = self.tokens
        text = self.feed(token_ids, finish)
        used = self.tokens - before
        if used < len(token_ids):
            token_ids = token_ids[:used]
            if logprobs is not None:
                logprobs = Logprobs(logprobs.logprobs[:used], logprobs.alternatives[:used])
        reader = self._active
        if reader is None:
            return Text(self._index, text, token_ids, logprobs) if text or logprobs is not None else None
        text, pieces = reader.read(text, token_ids, self.finished)
        if reader.has_read_all:
            self._active = None
        if text or pieces or logprobs is not None:
            return Text(self._index, text, token_ids, logprobs, pieces)
        return None

    def feed(self, token_ids: Sequence[int], finish: Finish | None) -> str:
        """The text that is certain now, all that is left when `finish` says that nothing follows.

        Sets `finished` when the answer has ended; raises BadRequest or EngineFailed if `finish` says so.
        """
        text = self._read(token_ids)
        if finish is not None:
            self.finish = finish
            text += self._end(finish)
        if self._scanner.matched is not None:
            self.finished = Finished(self._index, "stop", self._scanner.matched)
        elif finish is not None:
            self.finished = Finished(self._index, finish_reason(finish), finish.matched_stop)
        return text

    def _read(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, counted up to the one that completes a stop string: how they were delivered is no
        matter."""
        if len(token_ids) < 2 or not self._options.stop:
            self.tokens += len(token_ids)
            return self._scanner.feed(self._detokenizer.feed(token_ids))
        text = ""
        for token_id in token_ids:
            self.tokens += 1
            text += self._scanner.feed(self._detokenizer.feed((token_id,)))
            if self._scanner.matched is not None:
                break
        return text

    def _end(self, finish: Finish) -> str:
        rest = ""
        if self._options.include_stop and finish.matched_stop is not None:
            rest = self._detokenizer.feed([finish.matched_stop])
        return self._scanner.feed(rest + self._detokenizer.flush()) + self._scanner.flush()


class AnswerReader:
    """Reads what an answer's text holds besides text, and counts the tokens of its reasoning.

    `end_ids` are those of single tokens that end the reasoning; where these are not the end, the share of the text
    that is reasoning says which tokens of one delivery are.
    """

    __slots__ = ("_end_ids", "_held", "_streams_reasoning", "has_read_all", "parser", "reasoning_tokens")

    def __init__(self, parser: OutputParser, end_ids: frozenset[int], streams_reasoning: bool = True) -> None:
        self.parser = parser
        self.reasoning_tokens = 0
        self.has_read_all = False
        """Nothing but content can follow: it need not be read any more."""
        self._end_ids = end_ids
        self._streams_reasoning = streams_reasoning
        self._held = ""
        """Reasoning that is to come in one piece."""

    def read(self, text: str, token_ids: Sequence[int], finished: Finished | None) -> tuple[str, Sequence[Piece]]:
        """(what is nothing but content, else all pieces); changes the finish reason to "tool_calls" if that is it."""
        parser = self.parser
        if finished is None and self._streams_reasoning and parser.passes(text):
            if not parser.is_reasoning:
                self.has_read_all = parser.has_read_all
                return text, ()
            self.reasoning_tokens += len(token_ids)
            return "", (Reasoning(text),) if text else ()
        was_reasoning = parser.is_reasoning
        pieces = parser.feed(text)
        if finished is not None:
            pieces += parser.flush()
            if parser.calls and finished.finish_reason == "stop":
                finished.finish_reason = "tool_calls"
        if was_reasoning or parser.is_reasoning or (pieces and isinstance(pieces[0], Reasoning)):
            self._count(token_ids, text, pieces)
        if not self._streams_reasoning:
            pieces = self._in_one(pieces, finished is not None)
        if len(pieces) == 1 and isinstance(pieces[0], Content):
            return pieces[0].text, ()
        return "", pieces

    def _count(self, token_ids: Sequence[int], text: str, pieces: Sequence[Piece]) -> None:
        if self.parser.is_reasoning:
            self.reasoning_tokens += len(token_ids)
            return
        for place, token_id in enumerate(token_ids):
            if token_id in self._end_ids:
                self.reasoning_tokens += place + 1
                return
        characters = sum(len(piece.text) for piece in pieces if isinstance(piece, Reasoning))
        self.reasoning_tokens += min(len(token_ids), round(len(token_ids) * characters / max(1, len(text))))

    def _in_one(self, pieces: list[Piece], is_end: bool) -> list[Piece]:
        rest: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, Reasoning):
                self._held += piece.text
            else:
                rest.append(piece)
        if self._held and (rest or is_end):
            held, self._held = self._held, ""
            return [Reasoning(held), *rest]
        return rest


def finish_reason(finish: Finish) -> str:
    """OpenAI's word for it; raises when it is none."""
    if finish.reason is FinishReason.REJECTED:
        raise BadRequest(finish.error)
    if finish.reason is FinishReason.DEADLINE:
        raise DeadlineExceeded(finish.error)
    if finish.reason not in FINISH_REASONS:
        raise EngineFailed(finish.error or "the engine aborted the request")
    return FINISH_REASONS[finish.reason]
