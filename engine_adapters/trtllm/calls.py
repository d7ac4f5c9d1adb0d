"""Engines that answer each request with a gRPC call of its own: what their clients have in common.

Threads: none of its own. Everything here runs on the event loop of the gateway's engine thread.
"""

import asyncio
import itertools
import random
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeAlias

from engine_adapters.base import Delivery, Finish, FinishReason, Key, Logprobs
from engine_adapters.http2 import CallFailed, Connection, Metadata

REFUSALS = 6
REFUSAL_PAUSE = 0.05
"""Where more than 1000 calls wait to be taken on, gRPC's server cancels some of them: these are made again, after a
pause that doubles each time."""
MESSAGE_BYTES = 64 << 20
"""Of a request; no server takes more."""
ABORT_TRIES = 4
ABORT_PAUSE = 0.05
"""A server that has not begun with a request yet does not find it."""
ABORTED_SECONDS = 5.0
"""After it confirmed an abort, an engine has this long to end the call by itself."""

News: TypeAlias = "tuple[int, Sequence[int], Finish | None, Logprobs | None]"
"""(which of the call's answers, its new token ids, the end if this is it, the logprobs of these tokens if it asked)"""
CUT_OFF = Finish(FinishReason.ERROR, error="the engine ended the call before the answer's end", retryable=True)


class Reader(Protocol):
    """Understands the messages of one call. Belongs to that call."""

    def read(self, data: bytes) -> Sequence[News]:
        """What a message says, of ended answers too; raises ValueError or TypeError when it makes no sense."""

    def end(self) -> Sequence[News]:
        """The ends that can be told only now, when the engine has ended the call without a complaint."""


class _Call(Generic[Key]):
    """One request under way: the keys of those of its answers that somebody waits for, by their number."""

    __slots__ = (
        "calls",
        "has_begun",
        "is_over",
        "keys",
        "metadata",
        "pause",
        "reader",
        "refusals",
        "request",
        "request_id",
    )

    def __init__(
        self,
        calls: "Calls[Key]",
        request_id: str,
        keys: Sequence[Key],
        request: bytes,
        reader: Reader,
        metadata: Metadata,
    ) -> None:
        self.calls = calls
        self.request_id = request_id
        self.keys = dict(enumerate(keys))
        self.request = request
        self.reader = reader
        self.metadata = metadata
        self.has_begun = False
        self.refusals = 0
        self.pause: asyncio.TimerHandle | None = None
        """Before it is made again."""
        self.is_over: asyncio.Event | None = None
        """Made by who waits for it."""

    def received(self, message: bytes) -> None:
        if not self.has_begun:
            self.has_begun, self.request = True, b""  # it will not be made again, and prompts are large
        self.calls.take(self, message)

    def ended(self, failure: "CallFailed | None") -> None:
        self.calls.end(self, failure)


class Calls(Generic[Key]):
    """The requests that one client has under way. Every call is read until it ends, whoever waits for it.

    `generate` is the method's path. `abort(request_id)` asks the engine to stop a request; it says whether the engine
    knew it, so that the call will now end by itself, and may raise CallFailed. `count_fault` is told of messages that
    make no sense. Requests go out over `connection`, which must be set before the first; deliveries go to `deliver`,
    gathered for a turn of the loop.
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
        self._name = secrets.token_hex(4)
        self.deliver: Callable[[list[Delivery[Key]]], None] = _nobody
        self.last_message_at = time.monotonic()
        self.tokens = 0
        """Delivered since this was made."""
        self.is_doubtful = asyncio.Event()
        """Set when the engine could not be reached for a call or an abort."""

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
        call = _Call(self, request_id, keys, request, reader, metadata)
        for index, key in call.keys.items():
            self._running[key] = call, index
        self._send(call)

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
        if call.is_over is not None:
            return  # it is being stopped
        try:
            for index, token_ids, finish, logprobs in call.reader.read(message):
                if call.keys:
                    self._say(call, index, token_ids, finish, logprobs)
                elif token_ids:
                    self._stop(call)  # the engine goes on where it should have ended
                    return
        except (ValueError, TypeError) as error:
            self._count_fault("malformed_frame")
            problem = f"the engine sent a malformed message: {error}"
            self._end_all(call, Finish(FinishReason.ERROR, error=problem, retryable=True))
            self._stop(call)

    def end(self, call: _Call[Key], failure: "CallFailed | None") -> None:
        """A call is over."""
        was_refused = failure is not None and failure.code == "CANCELLED" and not call.has_begun
        if was_refused and call.keys and call.refusals < REFUSALS:
            seconds = REFUSAL_PAUSE * 2**call.refusals * random.uniform(1, 2)
            call.refusals += 1
            call.pause = asyncio.get_running_loop().call_later(seconds, self._send, call)
            return
        if call.is_over is not None:
            call.is_over.set()
        if failure is not None:
            if failure.code == "UNAVAILABLE":
                self.is_doubtful.set()
            self._end_all(call, finish_of(failure))
        elif call.keys:
            for index, token_ids, finish, logprobs in call.reader.end():
                self._say(call, index, token_ids, finish, logprobs)
            self._end_all(call, CUT_OFF)

    def _send(self, call: _Call[Key]) -> None:
        call.pause = None
        self.connection.call(self._generate, call.request, call, call.metadata)

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
        if call.pause is not None:
            call.pause.cancel()  # the engine knows nothing of it
            return
        call.is_over = asyncio.Event()
        task = asyncio.ensure_future(self._see_to_its_end(call, call.is_over))
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)

    async def _see_to_its_end(self, call: _Call[Key], is_over: asyncio.Event) -> None:
        """Have the engine stop, see the call to its end, and only then, if it has none, cancel it: a cancelled call can
        be lost on a server that waits to write, and its engine goes on for nobody."""
        try:
            for _ in range(ABORT_TRIES):
                if await self._abort(call.request_id):
                    await is_set_within(is_over, ABORTED_SECONDS)
                    break
                if await is_set_within(is_over, ABORT_PAUSE):
                    break
        except CallFailed:
            self.is_doubtful.set()
        finally:
            self.connection.cancel(call)


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        return await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:  # on 3.10 not yet the built-in one
        return False


def _nobody(_deliveries: object) -> None:
    """Nobody is there yet, or any more."""


OF_THE_REQUEST = frozenset("INVALID_ARGUMENT OUT_OF_RANGE FAILED_PRECONDITION NOT_FOUND UNIMPLEMENTED".split())
"""Statuses that say that no other engine would take the request either."""
FAULTS_OF_THE_REQUEST = re.compile(
    r"should not exceed|max_seq_len|max_num_tokens|max_tokens must be|larger than max|identify image file",
    re.IGNORECASE,
)
"""What TensorRT-LLM says of a bad request under a status that blames the engine."""


GRACE_SECONDS = 1.0
"""A call's own limit is later than its request's by this: an Abort, which comes before it, is the surer end."""


def time_limit(ends_at: float) -> Metadata:
    """gRPC's header for a call that nobody waits for any more after `ends_at`."""
    if not ends_at:
        return ()
    milliseconds = int(1000 * (max(0.0, ends_at - time.monotonic()) + GRACE_SECONDS))
    # At most eight digits.
    return (("grpc-timeout", f"{milliseconds}m" if milliseconds < 100_000_000 else "99999999S"),)


def finish_of(failure: CallFailed) -> Finish:
    """What a call that failed means for its answers."""
    if failure.code == "DEADLINE_EXCEEDED":
        return Finish(FinishReason.DEADLINE, error=f"the engine ended the call with {failure}")
    if failure.code in OF_THE_REQUEST or is_clients_fault(failure.details):
        return Finish(FinishReason.REJECTED, error=failure.details or failure.code)
    return Finish(FinishReason.ERROR, error=f"the engine ended the call with {failure}", retryable=True)


def is_clients_fault(message: str) -> bool:
    """Whether an engine that reports a failure means that the request asked too much."""
    return FAULTS_OF_THE_REQUEST.search(message) is not None
