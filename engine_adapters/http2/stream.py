"""A call, and whoever made it.

Threads: a stream is its connection's alone, and changed by that.
"""

import asyncio
import struct
from typing import Protocol, TypeAlias

from engine_adapters.http2.status import CallFailed

PREFIX = struct.Struct(">BI")
"""Of a gRPC message: whether it is compressed, and its length."""
Metadata: TypeAlias = "tuple[tuple[str, str], ...]"
"""Headers of a call's own: ASCII, the names in lower case."""


def framed(message: bytes) -> bytes:
    """A message as it stands in a call, not compressed."""
    return PREFIX.pack(0, len(message)) + message


class Receiver(Protocol):
    """Whoever made a call."""

    def received(self, message: bytes) -> None:
        """A message has come."""

    def ended(self, failure: "CallFailed | None") -> None:
        """The call is over. It is the last thing to be said of it, and not said when we cancel it ourselves."""


class Sender(Receiver, Protocol):
    """Whoever made a call of which more messages are sent."""

    def sent(self) -> None:
        """What had not gone out at once has now."""


class Stream:
    """One call. `sender` is its receiver, if that has more to say."""

    __slots__ = (
        "headers",
        "metadata",
        "number",
        "path",
        "received",
        "receiver",
        "rest",
        "send_window",
        "sender",
        "unsent",
    )

    def __init__(self, path: str, metadata: Metadata, message: bytes, receiver: Receiver) -> None:
        self.path = path
        self.metadata = metadata
        self.number = 0
        self.receiver = receiver
        self.sender: Sender | None = None
        self.send_window = 0
        self.unsent = memoryview(framed(message))
        self.rest = b""
        self.received = 0
        self.headers: dict[str, str] = {}

    def tell_if_sent(self) -> None:
        """What had to wait may have gone out."""
        if self.sender is not None and not self.unsent:
            self.sender.sent()


class Question:
    """A call with one message for an answer."""

    def __init__(self, answer: "asyncio.Future[bytes]") -> None:
        self.answer = answer
        self._message: bytes | None = None

    def received(self, message: bytes) -> None:
        self._message = message

    def ended(self, failure: "CallFailed | None") -> None:
        if self.answer.done():
            return
        if failure is None and self._message is not None:
            self.answer.set_result(self._message)
        else:
            self.answer.set_exception(failure or CallFailed("INTERNAL", "the server ended the call without an answer"))
