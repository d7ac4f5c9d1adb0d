"""Reads one answer: `feed` gives what is certain of its reasoning, content and calls, `flush` the rest."""

import logging
from collections.abc import Callable

from gateway import log
from gateway.parsers.call_families import CALL_FAMILIES
from gateway.parsers.detect import Choice
from gateway.parsers.family import CallFamily, ReasoningFamily
from gateway.parsers.formats import Plan, Wrapping
from gateway.parsers.harmony import Harmony
from gateway.parsers.reader import Reader, Tools, call_id
from gateway.types import Piece, Reading

ARRAY = next(family for family in CALL_FAMILIES if family.name == "array")


class Format:
    """A reasoning family and a call family, made ready. Shared by all answers of a model; nothing in it changes."""

    def __init__(self, reasoning: ReasoningFamily | None, calls: CallFamily | None, is_harmony: bool = False) -> None:
        self.name = "+".join(family.name for family in (reasoning, calls) if family)
        self.plan = plan_of(reasoning, calls, is_harmony)
        self.new_id: Callable[[Reader], str] = calls.new_id if calls else call_id
        self.reads_calls = calls is not None
        self.is_plain = not self.plan.tags and not self.reads_calls and reasoning is None

    def parser(self, tools: Tools | None = None, opens_reasoning: bool | None = None) -> "OutputParser":
        """For one answer. `tools` None: any call is one. `opens_reasoning` says whether the prompt ends inside of the
        reasoning; None leaves it to what the family's prompts do."""
        return OutputParser(self, tools or Tools(), opens_reasoning)


def plan_of(reasoning: ReasoningFamily | None, calls: CallFamily | None, is_harmony: bool) -> Plan | Harmony:
    wrapping = reasoning.wrapping if reasoning else None
    grammar = calls.grammar if calls else None
    if is_harmony or isinstance(wrapping, Harmony) or isinstance(grammar, Harmony):
        return Harmony(isinstance(wrapping, Harmony), isinstance(grammar, Harmony))
    return Plan(wrapping, grammar, calls.drops if calls else ())


class Formats:
    """All formats of one model: its own, in part or whole, and that of forced calls."""

    def __init__(self, reasoning: Choice[ReasoningFamily], calls: Choice[CallFamily]) -> None:
        self.reasoning = reasoning
        self.calls = calls
        self.is_harmony = any(
            isinstance(format_, Harmony)
            for format_ in (
                reasoning.family.wrapping if reasoning.family else None,
                calls.family.grammar if calls.family else None,
            )
        )
        """Its answers are messages with heads, which are no text for anyone."""
        self._forced = calls.family if self.is_harmony else ARRAY
        self._formats = {
            (separates, family): Format(reasoning.family if separates else None, family, self.is_harmony)
            for separates in (True, False)
            for family in {None, calls.family, self._forced}
        }

    @property
    def reasoning_starts(self) -> tuple[str, ...]:
        """What a model that reasons writes first, if its prompt has not; empty when there is no such thing."""
        wrapping = self.reasoning.family.wrapping if self.reasoning.family else None
        return wrapping.starts if isinstance(wrapping, Wrapping) else ()

    @property
    def reasoning_ends(self) -> tuple[str, ...]:
        """What ends the reasoning; empty when there is none, or it has no one end."""
        wrapping = self.reasoning.family.wrapping if self.reasoning.family else None
        return wrapping.ends if isinstance(wrapping, Wrapping) else ()

    @property
    def tags(self) -> frozenset[str]:
        """All markup, so that it is seen even where it is a special token."""
        return frozenset(tag for form in self._formats.values() for tag in form.plan.tags)

    def parser(self, reading: Reading, opens_reasoning: bool) -> "OutputParser | None":
        """For one answer; None when there is nothing to be found in it."""
        family = self._forced if reading.is_forced else self.calls.family if reading.tools is not None else None
        form = self._formats[reading.separates_reasoning, family]
        if form.is_plain:
            return None
        return form.parser(Tools(reading.tools or {}, reading.first_call, reading.most_calls), opens_reasoning)


class OutputParser:
    """Belongs to one answer. The joined pieces do not depend on how its text was cut; after `flush` it is over."""

    __slots__ = ("_reader", "_steps", "name")

    def __init__(self, form: Format, tools: Tools, opens_reasoning: bool | None) -> None:
        self.name = form.name
        self._reader = Reader(tools if form.reads_calls else None)
        self._reader.new_id = form.new_id
        self._steps = form.plan.run(self._reader, opens_reasoning)
        next(self._steps, None)
        self._reader.in_text = None  # what has been said already waits for the first `feed`

    @property
    def calls(self) -> int:
        """Complete ones so far."""
        return self._reader.calls

    @property
    def faults(self) -> int:
        """How many times something looked like a call and was none."""
        return self._reader.fault_count

    @property
    def is_reasoning(self) -> bool:
        """Whether what comes next would be reasoning."""
        return self._reader.is_reasoning

    @property
    def has_read_all(self) -> bool:
        """Whether nothing but content can follow what was passed or fed last, and nothing is held back."""
        reader = self._reader
        return reader.in_text is not None and not reader.in_text.texts and not reader.is_reasoning

    def passes(self, text: str) -> bool:
        """Whether `text` is more of the same reasoning or content and nothing else; then it need not be fed."""
        reader = self._reader
        if reader.in_text is None or reader.in_text.may_begin(text) is not None:
            return False
        reader.passed += len(text)
        return True

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
                log.event(logging.DEBUG, "no tool call", parser=self.name, position=place, why=why)
        return reader.pieces()
