"""Engines that answer each request with a gRPC call of its own: what their clients have in common.

Threads: none of its own. Everything here runs on the event loop of the gateway's engine thread.
"""

import asyncio
import itertools
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeAlias

from engine_adapters.base import Delivery, Finish, FinishReason, Key, Logprobs
from engine_adapters.http2 import CallFailed, Connection, Metadata

MESSAGE_BYTES = 64 << 20
ABORTED_SECONDS = 5.0
"""After it confirmed an abort, an engine has this long to end the call by itself."""

News: TypeAlias = "tuple[int, Sequence[int], Finish | None, Logprobs | None]"
"""(which of the call's answers, its new token ids, the end if this is it, the logprobs of these tokens if it asked)"""


class Reader(Protocol):
    """Understands the messages of one call. Belongs to that call."""

    def read(self, data: bytes) -> Sequence[News]:
        """What a message says; raises ValueError or TypeError when it makes no sense."""

    def end(self) -> Finish:
        """The end of each answer that has none when the engine ends the call without a complaint."""


class _Call(Generic[Key]):
    """One request under way: the keys of those of its answers that somebody waits for, by their number."""

    __slots__ = ("calls", "is_over", "keys", "reader", "request_id")

    def __init__(self, calls: "Calls[Key]", request_id: str, keys: Sequence[Key], reader: Reader) -> None:
        self.calls = calls
        self.request_id = request_id
        self.keys = dict(enumerate(keys))
        self.reader = reader
        self.is_over: asyncio.Event | None = None
        """Made by who waits for it."""

    def received(self, message: bytes) -> None:
        self.calls.take(self, message)

    def ended(self, failure: "CallFailed | None") -> None:
        self.calls.end(self, failure)


class Calls(Generic[Key]):
    """The requests that one client has under way. Every call is read until it ends, whoever waits for it.

    `generate` is the method's path. `abort(request_id)` asks the engine to stop a request and says whether the call
    will now end by itself. `count_fault` is told of messages that make no sense. Requests go out over `connection`,
    which must be set before the first; deliveries go to `deliver`, gathered for a turn of the loop.
    """

    def __init__(
        self, generate: str, abort: Callable[[str], Awaitable[bool]], count_fault: Callable[[str], None]
    ) -> None:
        self.connection: Connection
        self._generate = generate
        self._abort = abort
        self._count_fault = count_fault
        self._running: dict[Key, tuple[_Call[Key], int]] = {}
        self._stops: set[asyncio.Task[None]] = set()
        self._deliveries: list[Delivery[Key]] = []
        self._numbers = itertools.count(1)
        self._name = uuid.uuid4().hex[:8]
        self.deliver: Callable[[list[Delivery[Key]]], None] = _nobody
        self.last_message_at = time.monotonic()
        self.tokens = 0
        """Delivered since this was made."""
        self.connection_failed = asyncio.Event()
        """Set when a call ended because the engine could not be reached."""

    def __len__(self) -> int:
        """How many answers somebody waits for."""
        return len(self._running)

    @property
    def unconfirmed_aborts(self) -> int:
        return len(self._stops)

    def new_request_id(self, request_id: str) -> str:
        """One that no attempt of any gateway has used: engines refuse, or do not check."""
        return f"{request_id}-{self._name}-{next(self._numbers)}"

    def start(
        self, keys: Sequence[Key], request_id: str, request: bytes, reader: Reader, metadata: Metadata = ()
    ) -> None:
        """Send a request whose answers go to `keys`."""
        if len(request) > MESSAGE_BYTES:
            self.refuse(keys, f"the request has {len(request)} bytes, and this engine takes {MESSAGE_BYTES} at most")
            return
        call = _Call(self, request_id, keys, reader)
        for index, key in call.keys.items():
            self._running[key] = call, index
        self.connection.call(self._generate, request, call, metadata)

    def refuse(self, keys: Sequence[Key], problem: str) -> None:
        """End answers to a request that this engine cannot be asked."""
        for key in keys:
            self._put((key, (), Finish(FinishReason.REJECTED, error=problem), None))

    def abort(self, key: Key) -> None:
        """Nothing more is delivered for `key`; the request is stopped when this was the last one."""
        self._deliveries = [delivery for delivery in self._deliveries if delivery[0] != key]
        call, index = self._running.pop(key, (None, 0))
        if call is None:
            return
        del call.keys[index]
        if not call.keys:
            self._stop(call)

    def close(self) -> None:
        """The streams are dead, and whoever waits is told so by others."""
        self.deliver = _nobody
        for task in self._stops:
            task.cancel()

    def take(self, call: _Call[Key], message: bytes) -> None:
        """A call's message has come."""
        self.last_message_at = time.monotonic()
        if not call.keys:
            return  # it is on its way to its end
        try:
            for index, token_ids, finish, logprobs in call.reader.read(message):
                self._say(call, index, token_ids, finish, logprobs)
        except (ValueError, TypeError) as error:
            self._count_fault("malformed_frame")
            problem = f"the engine sent a malformed message: {error}"
            self._end_all(call, Finish(FinishReason.ERROR, error=problem, retryable=True))
            self._stop(call)

    def end(self, call: _Call[Key], failure: "CallFailed | None") -> None:
        """A call is over."""
        if call.is_over is not None:
            call.is_over.set()
        if failure is not None and failure.code == "UNAVAILABLE":
            self.connection_failed.set()
        if call.keys:
            self._end_all(call, call.reader.end() if failure is None else finish_of(failure))

    def _end_all(self, call: _Call[Key], finish: Finish) -> None:
        for index in [*call.keys]:
            self._say(call, index, (), finish, None)

    def _say(
        self,
        call: _Call[Key],
        index: int,
        token_ids: Sequence[int],
        finish: "Finish | None",
        logprobs: "Logprobs | None",
    ) -> None:
        key = call.keys.get(index)
        if key is None:
            return
        if finish is not None:
            del call.keys[index], self._running[key]
        self.tokens += len(token_ids)
        self._put((key, token_ids, finish, logprobs))

    def _put(self, delivery: Delivery[Key]) -> None:
        if not self._deliveries:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._deliveries.append(delivery)

    def _hand_over(self) -> None:
        deliveries, self._deliveries = self._deliveries, []
        if deliveries:
            self.deliver(deliveries)

    def _stop(self, call: _Call[Key]) -> None:
        call.is_over = asyncio.Event()
        task = asyncio.ensure_future(self._see_to_its_end(call, call.is_over))
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)

    async def _see_to_its_end(self, call: _Call[Key], is_over: asyncio.Event) -> None:
        """Abort, and only then cancel: of a call that is merely cancelled an engine may not notice anything."""
        try:
            if await self._abort(call.request_id):
                await asyncio.wait_for(is_over.wait(), ABORTED_SECONDS)
        except asyncio.TimeoutError:
            pass  # it has had its time
        finally:
            self.connection.cancel(call)


def _nobody(_deliveries: object) -> None:
    """Nobody is there yet, or any more."""


REFUSALS = frozenset("INVALID_ARGUMENT OUT_OF_RANGE FAILED_PRECONDITION NOT_FOUND UNIMPLEMENTED".split())
"""What an engine says of a request that no other one would take either."""
CLIENTS_FAULTS = (
    "should not exceed",  # The sum of prompt length (..), query length (..) should not exceed max_num_tokens (..)
    "max_seq_len",
    "larger than max",  # Received message larger than max (.. vs. ..)
)
"""TensorRT-LLM reports these as failures of its own; the request is what must change."""


def finish_of(failure: CallFailed) -> Finish:
    """What a call that failed means for its answers."""
    if failure.code in REFUSALS or is_clients_fault(failure.details):
        return Finish(FinishReason.REJECTED, error=failure.details or failure.code)
    return Finish(FinishReason.ERROR, error=str(failure), retryable=True)


def is_clients_fault(message: str) -> bool:
    """Whether an engine that reports a failure means that the request asked too much."""
    return any(text in message for text in CLIENTS_FAULTS)
