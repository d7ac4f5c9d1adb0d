"""Streams: one request's tokens on their way from the engine thread to its HTTP loop.

Threads: a `Stream` is made and touched only on its HTTP loop, where deliveries reach it through that loop's mailbox.
The engine thread owns `open_choices` and writes `progressed_at`; the watch reads it and marks `stalled`.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine_adapters.base import Delivery, Finish, Logprobs
from gateway.threads import Mailbox

KEEP_ALIVE_SECONDS = 15.0
"""Once a stream has been quiet for so long at most, and half of it at least, its client hears that it is alive."""


@dataclass(eq=False, slots=True)
class Choice:
    """One of the answers a stream asked for: the key under which an engine knows it."""

    stream: "Stream"
    index: int


type Batch = list[Delivery[Choice]]


@dataclass(slots=True)
class Gathered:
    """What has come for one choice while nobody took it; its logprobs are in as many pieces as they came."""

    token_ids: list[int]
    finish: Finish | None
    logprobs: list[Logprobs]


type Take = Callable[[int, Sequence[int], Finish | None, Logprobs | None], bool]
"""Takes (choice, new token ids, the end if this is it, logprobs); False asks for a pause."""


class Stream:
    """One request's tokens on their way from the engine thread to its HTTP loop.

    While a `pump` runs, deliveries go straight to its `take`, on the loop and at once: no task wakes up for a token.
    In between they gather here, without a bound of our own: an engine sends no more than the request's max_tokens.
    """

    __slots__ = (
        "_gathered",
        "_is_quiet",
        "_streams",
        "_take",
        "_unfinished",
        "_waiter",
        "choices",
        "mailbox",
        "open_choices",
        "progressed_at",
        "request_id",
        "stalled",
    )

    def __init__(self, streams: "LoopStreams", request_id: str, n: int) -> None:
        self.mailbox = streams.mailbox
        self._streams = streams
        self.request_id = request_id
        self.choices = [Choice(self, index) for index in range(n)]
        self.open_choices = set(self.choices)
        """The engine thread's: those it may still deliver for."""
        self.progressed_at = time.monotonic()
        self.stalled = False
        self._unfinished = set(range(n))
        self._gathered: dict[int, Gathered] = {}
        self._take: Take | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._is_quiet = False
        streams.open.add(self)

    async def pump(self, take: Take) -> bool:
        """Have `take` called with all that comes until it asks for a pause; what it raises is raised here.

        False when it is only that nothing has come for a while.
        """
        waiter = self._waiter = asyncio.Future(loop=self.mailbox.loop)
        self._take = take
        while self._gathered and self._take is not None:
            index = next(iter(self._gathered))
            gathered = self._gathered.pop(index)
            self._hand_over(index, gathered.token_ids, gathered.finish, joined(gathered.logprobs))
        try:
            return await waiter
        finally:
            self._take = self._waiter = None

    def deliver(self, index: int, token_ids: Sequence[int], finish: Finish | None, logprobs: Logprobs | None) -> None:
        """Called on the stream's loop; what comes after a choice's end is ignored."""
        if index not in self._unfinished:
            return
        if finish is not None:
            self._unfinished.discard(index)
        if self._take is not None:
            self._hand_over(index, token_ids, finish, logprobs)
            return
        gathered = self._gathered.get(index)
        if gathered is None:
            gathered = self._gathered[index] = Gathered([], None, [])
        gathered.token_ids.extend(token_ids)
        gathered.finish = finish
        if logprobs is not None:
            gathered.logprobs.append(logprobs)

    def forget(self, index: int) -> None:
        """A choice nobody wants to hear of any more."""
        self._unfinished.discard(index)
        self._gathered.pop(index, None)

    def close(self) -> list[Choice]:
        """No more of it is wanted; returns the choices whose end has not arrived here."""
        self._streams.open.discard(self)
        unfinished = [self.choices[index] for index in self._unfinished]
        self._unfinished.clear()
        self.choices = []  # they know their stream: without cycles there is nothing for the collector to find
        return unfinished

    def _hand_over(
        self, index: int, token_ids: Sequence[int], finish: Finish | None, logprobs: Logprobs | None
    ) -> None:
        take, waiter = self._take, self._waiter
        if take is None or waiter is None or waiter.done():
            return  # cancelled just now: nobody is there to read it
        self._is_quiet = False
        try:
            if take(index, token_ids, finish, logprobs):
                return
            error = None
        except Exception as raised:  # it belongs to the request's task
            error = raised
        self._take = None
        if waiter.done():
            return  # `take` itself found that the client has left, and its task was cancelled
        if error is None:
            waiter.set_result(True)
        else:
            waiter.set_exception(error)

    def tick(self) -> None:
        """Called now and then: end a `pump` that has had nothing to do since the last time."""
        if self._is_quiet and self._waiter is not None and not self._waiter.done():
            self._take = None
            self._waiter.set_result(False)
        self._is_quiet = True


class LoopStreams:
    """The open streams of one HTTP loop, made on it: the mailbox for their tokens, and one timer for all of them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.mailbox: Mailbox[Batch] = Mailbox(self._loop, deliver_all)
        self.open: set[Stream] = set()
        self._loop.call_later(KEEP_ALIVE_SECONDS / 2, self._tick)

    def _tick(self) -> None:
        for stream in tuple(self.open):
            stream.tick()
        self._loop.call_later(KEEP_ALIVE_SECONDS / 2, self._tick)


def joined(pieces: list[Logprobs]) -> Logprobs | None:
    """The logprobs of consecutive stretches of one choice."""
    if len(pieces) < 2:
        return pieces[0] if pieces else None
    return Logprobs(
        [logprob for piece in pieces for logprob in piece.logprobs],
        [alternatives for piece in pieces for alternatives in piece.alternatives],
    )


def deliver_all(deliveries: Batch) -> None:
    """What an HTTP loop's mailbox does with a batch."""
    for choice, token_ids, finish, logprobs in deliveries:
        choice.stream.deliver(choice.index, token_ids, finish, logprobs)
