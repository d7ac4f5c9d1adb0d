"""What the grammars read from and speak to: text that comes in pieces, and the pieces of the answer it becomes.

A grammar is a generator over a `Reader`: straight-line code that yields wherever it needs more text. It moves `at`
forwards and never back over what it has passed on, so an answer takes linear time; and since it sees the text only
through methods that wait for as much as they need, what it says does not depend on where the text was cut.

Threads: a Reader belongs to one answer.
"""

import re
import secrets
import string
from collections.abc import Callable, Generator, Mapping
from typing import Any

from gateway.parsers.markers import Markers
from gateway.types import CallDelta, Content, Piece, Reasoning

type Step[Result] = Generator[None, None, Result]
"""A grammar, or a part of one: yields when it needs more text."""
type Say = Callable[[str], object]
"""Takes text that is certain."""

MAX_HEAD = 512
"""Characters of a name with what surrounds it; what is longer is no call."""
MOST_FAULTS = 20
BLANKS = re.compile(r"\s*").match
ALPHANUMERIC = string.ascii_letters + string.digits


class Malformed(Exception):
    """The text is not what the grammar allows, or ends before it should; the message says why."""


class Tools:
    """The tools a request declares: their parameters' JSON schemas by name. None allows any name."""

    __slots__ = ("first_call", "most_calls", "schemas")

    def __init__(
        self, schemas: Mapping[str, Any] | None = None, first_call: int = 0, most_calls: int | None = None
    ) -> None:
        self.schemas = schemas
        self.first_call = first_call
        """How many calls the conversation has seen, for models that count them."""
        self.most_calls = most_calls
        """How many an answer may have."""

    def allow(self, name: str, calls: int) -> bool:
        """Whether there may be a call of `name` behind so many."""
        return (self.schemas is None or name in self.schemas) and (self.most_calls is None or calls < self.most_calls)

    def schema(self, name: str) -> Any:
        return (self.schemas or {}).get(name)


class Reader:
    """The text from `at` on is unread. `say` goes to the answer's reasoning or content, whichever `is_reasoning` says.

    A call is `open`ed at the start of its markup, `begin`s when its name is certain, and is `complete` or else `fail`s:
    then all of its markup becomes text again. White space between and before calls is markup.
    """

    __slots__ = (
        "_begun",
        "_gap",
        "_kind",
        "_open_call",
        "_parts",
        "_pieces",
        "_raw",
        "_raw_from",
        "_was_refused",
        "at",
        "calls",
        "ended",
        "fault_count",
        "faults",
        "in_text",
        "is_reasoning",
        "new_id",
        "passed",
        "refused",
        "text",
        "tools",
    )

    def __init__(self, tools: Tools | None) -> None:
        self.text = ""
        self.at = 0
        self.passed = 0
        """Characters of the answer that are no longer in `text`."""
        self.ended = False
        self.tools = tools or Tools({})
        self.new_id: Callable[[Reader], str] = call_id
        self.is_reasoning = False
        self.calls = 0
        """Complete ones."""
        self.refused = 0
        """Calls of tools that were not declared."""
        self.fault_count = 0
        """How many times something looked like a call and was none."""
        self.faults: list[tuple[int, str]] = []
        """(place in the answer, why) of the first MOST_FAULTS of these."""
        self.in_text: Markers | None = None
        """What would end the text that is being read, if all so far has been said."""
        self._begun = 0
        self._pieces: list[Piece] = []
        self._kind: type[Content] | type[Reasoning] | int | None = None
        self._parts: list[str] = []
        self._gap: str | None = None if tools is None else ""
        self._raw: list[str] | None = None
        self._raw_from = 0
        self._open_call: int | None = None
        self._was_refused = False

    # Text in.

    def add(self, text: str) -> None:
        """More text; what has been read is forgotten, save the markup of an open call."""
        at = self.at
        if at:
            if self._raw is not None:
                self._raw.append(self.text[self._raw_from : at])
                self._raw_from = 0
            self.passed += at
            self.text = self.text[at:] + text
            self.at = 0
        else:
            self.text += text

    def more(self) -> Step[None]:
        """Waits for more text; raises Malformed when there is none."""
        if self.ended:
            raise Malformed("the answer ends inside of it")
        yield

    def blanks(self, say: Say | None = None) -> Step[None]:
        """Skips white space, or passes it to `say`."""
        while True:
            match = BLANKS(self.text, self.at)
            if match and match[0]:
                self.at = match.end()
                if say is not None:
                    say(match[0])
            if self.at < len(self.text) or self.ended:
                return
            yield

    def peek(self) -> Step[str]:
        """The next character behind white space; "" at the end."""
        yield from self.blanks()
        return self.text[self.at : self.at + 1]

    def take(self, *options: str) -> Step[str]:
        """The longest of the `options` that comes next, read; "" if none does."""
        longest = max(map(len, options), default=0)
        while True:
            rest = self.text[self.at : self.at + longest]
            if self.ended or not any(len(option) > len(rest) and option.startswith(rest) for option in options):
                break
            yield
        taken = max((option for option in options if rest.startswith(option)), key=len, default="")
        self.at += len(taken)
        return taken

    def expect(self, option: str) -> Step[None]:
        """Reads white space and `option`; raises Malformed when something else comes."""
        yield from self.blanks()
        if not (yield from self.take(option)):
            if self.at == len(self.text):
                yield from self.more()
            raise Malformed(f"{self.text[self.at : self.at + 8]!r} where {option!r} should be")

    def until(self, markers: Markers, say: Say) -> Step[str]:
        """Passes text to `say` up to the first marker, which it reads and returns; "" at the end of the answer."""
        while True:
            end, marker = markers.search(self.text, self.at)
            if self.ended and not marker:
                end = len(self.text)
            if end > self.at:
                say(self.text[self.at : end])
                self.at = end
            if marker or self.ended:
                self.at += len(marker)
                return marker
            yield

    def text_until(self, markers: Markers) -> Step[str]:
        """The same for the text of the answer; while it waits, `in_text` has the markers."""
        while True:
            end, marker = markers.search(self.text, self.at)
            if self.ended and not marker:
                end = len(self.text)
            if end > self.at:
                self.say(self.text[self.at : end])
                self.at = end
            if marker or self.ended:
                self.at += len(marker)
                return marker
            if self.at == len(self.text) and (self.is_reasoning or self._gap is None):
                self.in_text = markers
            yield
            self.in_text = None

    def head(self, ends: Markers) -> Step[tuple[str, str]]:
        """(the text up to the first of `ends`, that end); raises Malformed if none comes soon."""
        while True:
            end, marker = ends.search(self.text, self.at)
            if end - self.at > MAX_HEAD:
                raise Malformed("no name")
            if marker:
                head = self.text[self.at : end]
                self.at = end + len(marker)
                return head, marker
            yield from self.more()

    # Pieces out.

    def say(self, text: str) -> None:
        """Text of the answer."""
        if self.is_reasoning:
            self._put(Reasoning, text)
            return
        if self._gap is not None:
            if text.isspace():
                self._gap += text
                return
            text, self._gap = self._gap + text, None
        self._put(Content, text)

    def think(self, is_reasoning: bool) -> None:
        """What follows is reasoning, or is not."""
        self.is_reasoning = is_reasoning

    def open(self, marker: str) -> None:
        """`marker`, just read, begins what may be a call."""
        self._raw, self._gap = [self._gap or ""], None
        self._raw_from = self.at - len(marker)
        self._was_refused = False

    def begin(self, name: str, own_id: str = "") -> None:
        """A call's name is certain."""
        if not self.tools.allow(name, self.calls):
            self._open_call = -1
            return
        self._flush_parts()
        self.is_reasoning = False
        self._open_call = self._begun
        self._begun += 1
        self._pieces.append(CallDelta(self._open_call, id=own_id or self.new_id(self), name=name))

    def argue(self, text: str) -> None:
        """More of the open call's arguments, as JSON."""
        if self._open_call is not None and self._open_call >= 0:
            self._put(self._open_call, text)

    def complete(self) -> None:
        """The open call is whole."""
        call, self._open_call = self._open_call, None
        raw = self._take_raw()
        self._raw = []
        if call is None or call < 0:
            self.refused += 1
            self._was_refused = True
            self._fault("a call that was not allowed", raw)
            self.say(raw)
        else:
            self.calls += 1
            self._was_refused = False
            self._flush_parts()
            self._pieces.append(CallDelta(call, is_complete=True))

    def close(self) -> None:
        """The markup around calls ends here."""
        raw = self._take_raw()
        if self._was_refused:
            self.say(raw)
        else:
            self._gap = raw[len(raw.rstrip()) :]

    def fail(self, why: str, is_common: bool = False) -> None:
        """What was opened is no call up to here, or not a whole one; `is_common`: what opened it need not be markup."""
        call, self._open_call = self._open_call, None
        raw = self._take_raw()
        if call is None or call < 0:
            if not is_common:
                self._fault(why, raw)
            self.say(raw)
            return
        self._flush_parts()
        self._pieces.append(CallDelta(call, broken=raw))
        self._fault(why, raw)
        self._gap = None

    def end(self) -> None:
        """The answer is over."""
        if self._gap and not self.calls:
            self._put(Content, self._gap)
        self._gap = None

    def pieces(self) -> list[Piece]:
        """What has been said since the last time."""
        self._flush_parts()
        pieces, self._pieces = self._pieces, []
        return pieces

    def _put(self, kind: type[Content] | type[Reasoning] | int, text: str) -> None:
        if kind != self._kind:
            self._flush_parts()
            self._kind = kind
        self._parts.append(text)

    def _flush_parts(self) -> None:
        if not self._parts:
            return
        text = "".join(self._parts)
        self._parts = []
        if not text:
            return
        if isinstance(self._kind, int):
            self._pieces.append(CallDelta(self._kind, arguments=text))
        elif self._kind is not None:
            self._pieces.append(self._kind(text))

    def _take_raw(self) -> str:
        """The markup since it was last taken."""
        raw = "".join(self._raw or ()) + self.text[self._raw_from : self.at]
        self._raw, self._raw_from = None, self.at
        return raw

    def _fault(self, why: str, raw: str) -> None:
        self.fault_count += 1
        if len(self.faults) < MOST_FAULTS:
            self.faults.append((self.passed + self.at - len(raw), why))


def call_id(_: Reader) -> str:
    return "call_" + secrets.token_hex(12)


def short_id(_: Reader) -> str:
    """Mistral's chat templates take no other ids."""
    return "".join(secrets.choice(ALPHANUMERIC) for _ in range(9))
