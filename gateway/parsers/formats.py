"""What a format is, and the path of an answer through it: reasoning, text, calls."""

from dataclasses import dataclass, field
from typing import Protocol

from gateway.parsers.markers import Markers
from gateway.parsers.reader import Malformed, Reader, Step


class CallGrammar(Protocol):
    """How a family writes its calls. `markers` are what one may begin with, `tags` all its markup."""

    @property
    def markers(self) -> tuple[str, ...]: ...

    @property
    def tags(self) -> tuple[str, ...]: ...

    def read(self, reader: Reader, opener: str) -> Step[None]:
        """Reads what is behind `opener`; raises Malformed where it is no call."""


@dataclass(frozen=True)
class Wrapping:
    """How a family wraps its reasoning: between one of `starts` and one of `ends`.

    `lead` and `after`, or the beginnings of them, are markup behind these. `opens`: the prompt has the start, unless
    it is known that it has not. `ends_at_call`: a call ends the reasoning, too. `drops` are markup in the answer.
    """

    starts: tuple[str, ...]
    ends: tuple[str, ...]
    opens: bool = False
    ends_at_call: bool = True
    lead: str = "\n"
    after: str = "\n\n"
    drops: tuple[str, ...] = ()
    in_content: str = ""
    """All of it is content, reasoning and markup included, with this in front."""


@dataclass(frozen=True)
class Plan:
    """A reasoning format and a call format together, with their markers compiled; shared by all answers."""

    wrapping: Wrapping | None
    calls: CallGrammar | None
    drops: tuple[str, ...] = ()
    _in_reasoning: Markers = field(init=False)
    _in_content: Markers = field(init=False)
    _call_markers: frozenset[str] = field(init=False)
    _bare: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        calls = self.calls.markers if self.calls else ()
        wrapping = self.wrapping or Wrapping((), ())
        ends = [before + end for end in wrapping.ends for before in ("", "\n")]
        object.__setattr__(self, "drops", (*self.drops, *wrapping.drops))
        bare = getattr(self.calls, "bare", ())
        # A mere bracket says nothing in the middle of thoughts.
        marked = [marker for marker in calls if marker[-1:] not in bare] if wrapping.ends_at_call else ()
        object.__setattr__(self, "_in_reasoning", Markers([*ends, *marked]))
        object.__setattr__(self, "_in_content", Markers([*calls, *self.drops]))
        object.__setattr__(self, "_call_markers", frozenset(calls))
        object.__setattr__(self, "_bare", bare)

    @property
    def tags(self) -> tuple[str, ...]:
        """All markup: it must be seen in the text, even where it is a special token."""
        wrapping = self.wrapping
        around = (*wrapping.starts, *wrapping.ends) if wrapping else ()
        return (*around, *(self.calls.tags if self.calls else ()), *self.drops)

    def run(self, reader: Reader, opens_reasoning: bool | None) -> Step[None]:
        """The whole answer."""
        if self.wrapping is not None:
            yield from self._start(reader, self.wrapping, opens_reasoning)
        if not reader.is_reasoning:
            yield from self._bare_call(reader)
        while True:
            markers = self._in_reasoning if reader.is_reasoning else self._in_content
            marker = yield from reader.text_until(markers)
            if not marker:
                return
            if marker in self._call_markers:
                yield from self._calls(reader, marker)
            elif reader.is_reasoning and self.wrapping is not None:
                reader.think(False)
                yield from _skip(reader, self.wrapping.after)
                yield from self._bare_call(reader)

    def _start(self, reader: Reader, wrapping: Wrapping, opens: bool | None) -> Step[None]:
        if wrapping.in_content:
            reader.say(wrapping.in_content)
            return
        parts: list[str] = []
        yield from reader.blanks(parts.append)
        blanks = "".join(parts)
        reader.think(wrapping.opens if opens is None else opens)
        if (yield from reader.take(*wrapping.starts)):
            reader.think(True)
            yield from _skip(reader, wrapping.lead)
        elif blanks:
            reader.say(blanks.removeprefix(wrapping.lead) if reader.is_reasoning else blanks)

    def _bare_call(self, reader: Reader) -> Step[None]:
        """A call that has no marker of its own is one at the start of an answer."""
        if self._bare:
            yield from reader.blanks(reader.say)
            if opener := (yield from reader.take(*self._bare)):
                yield from self._calls(reader, opener)

    def _calls(self, reader: Reader, marker: str) -> Step[None]:
        reader.open(marker)
        try:
            if self.calls is not None:
                yield from self.calls.read(reader, marker)
            reader.close()
        except Malformed as error:
            reader.fail(str(error), is_common=marker[-1:] in self._bare)


def _skip(reader: Reader, text: str) -> Step[None]:
    """Reads as much of `text` as comes, character by character."""
    for character in text:
        if not (yield from reader.take(character)):
            return
