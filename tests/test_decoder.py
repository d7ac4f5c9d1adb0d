"""One answer's tokens to text and an end, however the tokens were cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_adapters.base import Finish, FinishReason, Logprobs
from gateway.decoder import AnswerDecoder, AnswerReader, finish_reason
from gateway.errors import BadRequest, EngineFailed
from gateway.parsers.detect import Choice, named_calls, named_reasoning
from gateway.parsers.message import Message
from gateway.parsers.output import Formats
from gateway.parsers.stop import StopStrings
from gateway.tokenizer import Tokenizer
from gateway.types import Finished, OutputOptions, Reading
from tests.demo_model import END_OF_TURN, TOKENIZER, ids_of

TABLE = Tokenizer(TOKENIZER).table
START_OF_TURN: int = TOKENIZER.token_to_id("<|im_start|>")
END_OF_REASONING: int = TOKENIZER.token_to_id("</think>")


CONTENTS = st.lists(st.sampled_from(["a", "b", " END", "EN", "D", "🦊", "é", "<think>", "<|im_start|>"]), max_size=12)
CUTS = st.lists(st.integers(0, 1000), max_size=6)
OPTIONS = st.builds(
    OutputOptions,
    stop=st.lists(st.sampled_from(["END", "ba", "🦊", "a<think>"]), max_size=2).map(tuple),
    include_stop=st.booleans(),
    skip_special_tokens=st.booleans(),
)


def decode(options: OutputOptions, pieces: list[list[int]], finish: Finish) -> tuple[str, Finished | None, int]:
    """All text, how the answer ended, and the tokens up to there; nothing is fed after that."""
    decoder = AnswerDecoder(0, TABLE, options, StopStrings(options.stop))
    text = ""
    for piece in pieces:
        text += decoder.feed(piece, None)
        if decoder.finished is not None:
            return text, decoder.finished, decoder.tokens
    text += decoder.feed([], finish)
    return text, decoder.finished, decoder.tokens


@settings(max_examples=60)
@given(content=CONTENTS, options=OPTIONS, places=CUTS, has_stop_token=st.booleans())
def test_text_and_end_do_not_depend_on_the_cuts(
    content: list[str], options: OutputOptions, places: list[int], has_stop_token: bool
) -> None:
    token_ids = ids_of("".join(content))
    finish = Finish(FinishReason.STOP, matched_stop=END_OF_TURN if has_stop_token else None)
    borders = [0, *sorted(place % (len(token_ids) + 1) for place in places), len(token_ids)]
    pieces = [token_ids[start:end] for start, end in zip(borders, borders[1:], strict=False)]

    text, finished, tokens = decode(options, pieces, finish)

    assert (text, finished, tokens) == decode(options, [token_ids], finish)
    assert finished is not None and finished.finish_reason == "stop"
    whole = TOKENIZER.decode(token_ids, skip_special_tokens=options.skip_special_tokens)
    if isinstance(finished.matched_stop, str):
        assert whole.startswith(text)
        assert text.endswith(finished.matched_stop) == options.include_stop
    else:
        shown = options.include_stop and has_stop_token and not options.skip_special_tokens
        assert text == whole + ("<|im_end|>" if shown else "")


def test_a_stop_string_in_the_last_part_wins_over_the_engines_reason() -> None:
    decoder = AnswerDecoder(3, TABLE, OutputOptions(), StopStrings(("END",)))

    assert decoder.feed(ids_of("the END of"), Finish(FinishReason.LENGTH)) == "the "
    assert decoder.finished == Finished(3, "stop", "END")


def test_a_stop_string_may_be_completed_by_what_was_held_back() -> None:
    replacement = "\N{REPLACEMENT CHARACTER}"
    decoder = AnswerDecoder(0, TABLE, OutputOptions(), StopStrings((f"a{replacement}",)))
    fox = ids_of("🦊")

    assert decoder.feed([*ids_of("ba"), fox[0]], None) == "b"
    assert decoder.feed([], Finish(FinishReason.LENGTH)) == ""
    assert decoder.finished == Finished(0, "stop", f"a{replacement}")


def test_logprobs_end_with_the_stop_string_however_many_tokens_come_at_once() -> None:
    options = OutputOptions(stop=("END",))
    decoder = AnswerDecoder(0, TABLE, options, StopStrings(options.stop))
    token_ids = ids_of("one END two three")
    end = 1 + next(place for place in range(len(token_ids)) if "END" in TOKENIZER.decode(token_ids[: place + 1], True))

    logprobs = Logprobs([-1.0] * len(token_ids), [[]] * len(token_ids))
    event = decoder.event(token_ids, Finish(FinishReason.LENGTH, completion_tokens=len(token_ids)), logprobs)

    assert event is not None and event.logprobs is not None and end < len(token_ids)
    assert (event.text, list(event.token_ids), len(event.logprobs.logprobs)) == ("one ", token_ids[:end], end)
    assert decoder.completion_tokens == end


def test_the_engines_count_of_tokens_is_the_count_once_it_is_known() -> None:
    decoder = AnswerDecoder(0, TABLE, OutputOptions(), StopStrings(()))
    decoder.feed(ids_of("one two"), None)
    assert decoder.completion_tokens == len(ids_of("one two"))

    decoder.feed([], Finish(FinishReason.STOP, matched_stop=END_OF_TURN, completion_tokens=9))
    assert decoder.completion_tokens == 9


def test_reasons_have_openais_names_or_are_errors() -> None:
    assert finish_reason(Finish(FinishReason.STOP)) == "stop"
    assert finish_reason(Finish(FinishReason.LENGTH)) == "length"
    with pytest.raises(BadRequest, match="no such adapter"):
        finish_reason(Finish(FinishReason.REJECTED, error="no such adapter"))
    with pytest.raises(EngineFailed, match="out of memory"):
        finish_reason(Finish(FinishReason.ERROR, error="out of memory"))
    with pytest.raises(EngineFailed, match="aborted"):
        finish_reason(Finish(FinishReason.ABORTED))


FORMATS = Formats(Choice(named_reasoning("qwen3"), ""), Choice(named_calls("hermes"), ""))
CALL = '<tool_call>\n{"name": "f", "arguments": {"k": "🦊 é"}}\n</tool_call>'
ANSWERS = [
    "<think>\nWhy 🦊?\n</think>\n\nSo.",
    f"Well. {CALL}",
    f"<think>Hm.</think>{CALL}\n{CALL}",
    f"<think>Hm {CALL} ok",
    "a <",
]


@settings(max_examples=40)
@given(said=st.sampled_from(ANSWERS), places=CUTS, streams=st.booleans(), stop=st.sampled_from([(), ("So",), ("ok",)]))
def test_what_is_read_does_not_depend_on_the_cuts(
    said: str, places: list[int], streams: bool, stop: tuple[str, ...]
) -> None:
    token_ids = ids_of(said)
    borders = [0, *sorted(place % (len(token_ids) + 1) for place in places), len(token_ids)]
    pieces = [token_ids[start:end] for start, end in zip(borders, borders[1:], strict=False)]

    whole = read_answer([token_ids], stop, streams)

    for answer in (read_answer(pieces, stop, streams), read_answer([[each] for each in token_ids], stop, True)):
        assert answer[:4] == whole[:4]
        if END_OF_REASONING in token_ids:
            assert answer[4] == whole[4] == token_ids.index(END_OF_REASONING) + 1


def read_answer(
    pieces: list[list[int]], stop: tuple[str, ...], streams: bool
) -> tuple[str, str, list[object], str, int]:
    """(content, reasoning, calls, finish reason, reasoning tokens)"""
    parser = FORMATS.parser(Reading(tools={"f": None}, streams_reasoning=streams), opens_reasoning=False)
    assert parser is not None
    reader = AnswerReader(parser, frozenset({END_OF_REASONING}), streams)
    decoder = AnswerDecoder(0, TABLE, OutputOptions(stop=stop), StopStrings(stop), reader)
    message = Message()
    for token_ids in [*pieces, None]:
        event = decoder.event(token_ids or [], Finish(FinishReason.STOP) if token_ids is None else None, None)
        if event is not None:
            message.add_event(event)
        if decoder.finished is not None:
            break
    assert decoder.finished is not None
    calls: list[object] = [(call.name, call.arguments) for call in message.calls]
    return message.content, message.reasoning, calls, decoder.finished.finish_reason, reader.reasoning_tokens


def test_a_special_token_that_is_markup_is_seen_by_the_reader_alone() -> None:
    table = TABLE.with_markers(frozenset({START_OF_TURN}))
    text = [START_OF_TURN, *ids_of("a"), END_OF_TURN]

    assert table.new().feed(text) == "a"
    assert table.new(shows_markers=True).feed(text) == "<|im_start|>a"
    assert TABLE.new(shows_markers=True).feed(text) == "a"


def test_an_answer_that_can_only_be_content_is_not_read_any_more() -> None:
    parser = FORMATS.parser(Reading(), opens_reasoning=False)
    assert parser is not None
    reader = AnswerReader(parser, frozenset())
    decoder = AnswerDecoder(0, TABLE, OutputOptions(), StopStrings(()), reader)
    message = Message()

    for text in ("<think>", "Hm.", "</think>", "\n\n", "So", " it", " is <think>", " so."):
        event = decoder.event(ids_of(text), None, None)
        message.add_event(event) if event else None
    decoder.event([], Finish(FinishReason.STOP), None)

    assert reader.has_read_all
    assert (message.content, message.reasoning) == ("So it is <think> so.", "Hm.")
