"""What an answer's pieces add up to."""

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.parsers.detect import named_calls, named_reasoning
from gateway.parsers.output import Format
from gateway.parsers.reader import Tools
from gateway.types import CallDelta, Content, Piece, Reasoning


@dataclass
class Answer:
    """`calls` are (name, arguments) of the complete ones; the markup of broken ones is content."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list, compare=False)


def format_of(calls: str | None, reasoning: str | None = None) -> Format:
    return Format(named_reasoning(reasoning) if reasoning else None, named_calls(calls) if calls else None)


def read(form: Format, pieces: Iterable[str], tools: Tools | None = None, opens: bool | None = None) -> Answer:
    """The answer that comes in these pieces."""
    parser = form.parser(tools, opens)
    said: list[Piece] = []
    for piece in pieces:
        if parser.passes(piece):
            said.append(Reasoning(piece) if parser.is_reasoning else Content(piece))
        else:
            said += parser.feed(piece)
    return added_up([*said, *parser.flush()])


def added_up(pieces: Sequence[Piece]) -> Answer:
    answer = Answer()
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for piece in pieces:
        match piece:
            case Content(text):
                answer.content += text
            case Reasoning(text):
                answer.reasoning += text
            case CallDelta(number=number) if piece.name:
                assert number == len(names), "numbers count up, names come once"
                names[number], arguments[number] = piece.name, ""
                answer.ids.append(piece.id)
            case CallDelta(number=number) if piece.is_complete:
                answer.calls.append((names[number], json.loads(arguments[number])))
            case CallDelta(broken=markup) if markup:
                answer.content += markup
            case CallDelta(number=number):
                assert piece.arguments
                arguments[number] += piece.arguments
    return answer


def cut(text: str, places: Sequence[int]) -> list[str]:
    """`text` in pieces; places beyond it count from its start again."""
    borders = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(borders)]
