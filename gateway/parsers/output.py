"""Reads one answer: `feed` gives what is certain of its reasoning, content and calls, `flush` the rest."""

import logging
from collections.abc import Callable

from gateway import log
from gateway.parsers.call_families import CallFamily
from gateway.parsers.formats import Plan
from gateway.parsers.harmony import Harmony
from gateway.parsers.reader import Reader, Tools, call_id
from gateway.parsers.reasoning_families import ReasoningFamily
from gateway.types import Piece


class Format:
    """A reasoning family and a call family, made ready. Shared by all answers of a model; nothing in it changes."""

    def __init__(self, reasoning: ReasoningFamily | None, calls: CallFamily | None) -> None:
        self.name = "+".join(family.name for family in (reasoning, calls) if family)
        self.plan = plan_of(reasoning, calls)
        self.new_id: Callable[[Reader], str] = calls.new_id if calls else call_id
        self.reads_calls = calls is not None

    def parser(self, tools: Tools | None = None, opens_reasoning: bool | None = None) -> "OutputParser":
        """For one answer. `tools` None: any call is one. `opens_reasoning` says whether the prompt ends inside of the
        reasoning; None leaves it to what the family's prompts do."""
        return OutputParser(self, tools or Tools(), opens_reasoning)


def plan_of(reasoning: ReasoningFamily | None, calls: CallFamily | None) -> Plan | Harmony:
    wrapping = reasoning.wrapping if reasoning else None
    grammar = calls.grammar if calls else None
    if isinstance(wrapping, Harmony) or isinstance(grammar, Harmony):
        return Harmony(isinstance(wrapping, Harmony), isinstance(grammar, Harmony))
    return Plan(wrapping, grammar, calls.drops if calls else ())


class OutputParser:
    """Belongs to one answer. The joined pieces do not depend on how its text was cut; after `flush` it is over."""

    __slots__ = ("_name", "_reader", "_steps")

    def __init__(self, form: Format, tools: Tools, opens_reasoning: bool | None) -> None:
        self._name = form.name
        self._reader = Reader(tools if form.reads_calls else None)
        self._reader.new_id = form.new_id
        self._steps = form.plan.run(self._reader, opens_reasoning)
        next(self._steps, None)

    @property
    def calls(self) -> int:
        """Complete ones so far."""
        return self._reader.calls

    @property
    def faults(self) -> int:
        """How many times something looked like a call and was none."""
        return len(self._reader.faults)

    @property
    def is_reasoning(self) -> bool:
        """Whether what comes next would be reasoning."""
        return self._reader.is_reasoning

    def feed(self, text: str) -> list[Piece]:
        """What is certain now; adjacent pieces of a kind are one."""
        if not text:
            return []
        self._reader.add(text)
        next(self._steps, None)
        return self._reader.pieces()

    def flush(self) -> list[Piece]:
        """What was held back. What is open now was cut off, and is text."""
        reader = self._reader
        reader.ended = True
        for _ in self._steps:
            pass
        reader.end()
        if reader.faults and log.logger.isEnabledFor(logging.DEBUG):
            for place, why in reader.faults:
                log.event(logging.DEBUG, "no tool call", parser=self._name, position=place, why=why)
        return reader.pieces()
