"""gpt-oss's harmony: an answer is messages, each with a channel and perhaps a recipient in its head."""

import re
from dataclasses import dataclass

from gateway.parsers.json_value import json_value
from gateway.parsers.markers import Markers
from gateway.parsers.reader import Malformed, Reader, Step

MESSAGE = "<|message|>"
HEAD_OPENS = ("<|start|>", "<|channel|>")
ENDS = ("<|end|>", "<|call|>", "<|return|>")
RECIPIENT = re.compile(r"\bto=(?:functions\.)?(?P<name>[^\s<]+)")
ANALYSIS = re.compile(r"<\|channel\|>\s*analysis\b")
IN_HEAD = Markers([MESSAGE, *ENDS])
IN_BODY = Markers([*HEAD_OPENS, *ENDS])


@dataclass(frozen=True)
class Harmony:
    """Analysis is reasoning if `tells_reasoning`, a message to a function is a call, all else is content."""

    tells_reasoning: bool = True
    tells_calls: bool = True

    @property
    def tags(self) -> tuple[str, ...]:
        """All markup: it must be seen in the text, even where it is a special token."""
        return (MESSAGE, *HEAD_OPENS, *ENDS, "<|constrain|>")

    def run(self, reader: Reader, opens_reasoning: bool | None) -> Step[None]:
        """The whole answer. A prompt that opens the reasoning ends inside of an analysis message."""
        reader.think(bool(opens_reasoning) and self.tells_reasoning)
        while True:
            marker = yield from reader.text_until(IN_BODY)
            if not marker:
                return
            reader.think(False)
            if marker in HEAD_OPENS:
                yield from self._message(reader, marker)

    def _message(self, reader: Reader, opener: str) -> Step[None]:
        """Up to a message's body, or through it if that is a call."""
        reader.open(opener)
        try:
            head, end = yield from reader.head(IN_HEAD)
            if end != MESSAGE:
                raise Malformed("a head without a message")
            head = opener + head
            recipient = RECIPIENT.search(head)
            if recipient and self.tells_calls:
                yield from self._call(reader, recipient["name"])
            reader.close()
            reader.think(bool(ANALYSIS.search(head)) and self.tells_reasoning)
        except Malformed as error:
            reader.fail(str(error))

    def _call(self, reader: Reader, name: str) -> Step[None]:
        reader.begin(name)
        if (yield from reader.peek()) == "{":
            yield from json_value(reader, reader.argue)
        elif (yield from reader.take(*ENDS)):
            reader.argue("{}")
        else:
            yield from reader.expect("{")
        reader.complete()
        yield from reader.blanks()
        yield from reader.take(*ENDS)
