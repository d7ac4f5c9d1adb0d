"""Engines that answer each request with a gRPC stream of its own: what their clients have in common.

Threads: none of its own. Everything here runs on the event loop of the gateway's engine thread.
"""

import asyncio
import itertools
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeAlias, TypeVar

import grpc
import grpc.aio

from engine_adapters import codec
from engine_adapters.base import Delivery, Finish, FinishReason, Key, Logprobs

MESSAGE_BYTES = 64 << 20
CALL_SECONDS = 5.0
"""For an answer to a question; what is not answered in this time is not answered at all."""
ABORTED_SECONDS = 1.0
"""After it confirmed an abort, an engine has this long to end the stream by itself."""
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    # TensorRT-LLM's servers take pings that come less than 10 s apart for an attack.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)

Answer = TypeVar("Answer", bound=codec.Message)
News: TypeAlias = "tuple[int, Sequence[int], Finish | None, Logprobs | None]"
"""(which of the call's answers, its new token ids, the end if this is it, the logprobs of these tokens if it asked)"""
GenerateCall: TypeAlias = "grpc.aio.UnaryStreamCall[bytes, bytes]"
Metadata: TypeAlias = "tuple[tuple[str, str], ...]"


class Reader(Protocol):
    """Understands the messages of one call. Belongs to that call."""

    def read(self, data: bytes) -> Sequence[News]:
        """What a message says; raises ValueError or TypeError when it makes no sense."""

    def end(self) -> Finish:
        """The end of each answer that has none when the engine closes the call without a complaint."""


class _Call(Generic[Key]):
    """One request under way: the keys of those of its answers that somebody waits for, by their number."""

    __slots__ = ("keys", "reader", "request_id", "stream", "task")

    def __init__(self, request_id: str, keys: Sequence[Key], reader: Reader, stream: GenerateCall) -> None:
        self.request_id = request_id
        self.keys = dict(enumerate(keys))
        self.reader = reader
        self.stream = stream
        self.task: asyncio.Task[None] | None = None


class Calls(Generic[Key]):
    """The requests that one client has under way on `channel`. Every call is read until it ends, whoever waits for it.

    `abort(request_id)` asks the engine to stop a request; it returns whether the call will now end by itself.
    `count_fault` is told of messages that make no sense. Deliveries go to `deliver`, gathered for a turn of the loop.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        generate: str,
        abort: Callable[[str], Awaitable[bool]],
        count_fault: Callable[[str], None],
    ) -> None:
        self._generate: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(generate)
        self._abort = abort
        self._count_fault = count_fault
        self._calls: dict[Key, tuple[_Call[Key], int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._deliveries: list[Delivery[Key]] = []
        self._numbers = itertools.count(1)
        self._name = uuid.uuid4().hex[:8]
        self.deliver: Callable[[list[Delivery[Key]]], None] = _nobody
        self.last_message_at = time.monotonic()
        self.tokens = 0
        """Delivered since this was made."""
        self.unconfirmed_aborts = 0
        self.connection_failed = asyncio.Event()
        """Set when a call ended because the engine could not be reached."""

    def __len__(self) -> int:
        return len(self._calls)

    def new_request_id(self, request_id: str) -> str:
        """One that no attempt of any gateway has used: engines do not check, or refuse."""
        return f"{request_id}-{self._name}-{next(self._numbers)}"

    def start(
        self, keys: Sequence[Key], request_id: str, request: bytes, reader: Reader, metadata: Metadata = ()
    ) -> None:
        """Send a request whose answers go to `keys`."""
        if len(request) > MESSAGE_BYTES:
            self.refuse(keys, f"the request has {len(request)} bytes, and this engine takes {MESSAGE_BYTES} at most")
            return
        call = _Call(request_id, keys, reader, self._generate(request, metadata=metadata))
        for index, key in call.keys.items():
            self._calls[key] = call, index
        call.task = self._spawn(self._read(call))

    def refuse(self, keys: Sequence[Key], problem: str) -> None:
        """End answers to a request that this engine cannot be asked."""
        for key in keys:
            self._put((key, (), Finish(FinishReason.REJECTED, error=problem), None))

    def abort(self, key: Key) -> None:
        """Nothing more is delivered for `key`; the request is stopped when this was the last one."""
        self._deliveries = [delivery for delivery in self._deliveries if delivery[0] != key]
        call, index = self._calls.pop(key, (None, 0))
        if call is None:
            return
        del call.keys[index]
        if not call.keys:
            self.unconfirmed_aborts += 1
            self._spawn(self._stop(call))

    def stop_delivering(self) -> None:
        """The streams are dead: whoever waits is told so by others."""
        self.deliver = _nobody

    async def close(self) -> None:
        """Cancel everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self, call: _Call[Key]) -> None:
        stream, read = call.stream, call.reader.read
        try:
            while isinstance(data := await stream.read(), bytes):
                self.last_message_at = time.monotonic()
                for news in read(data):
                    self._take(call, *news)
            finish = call.reader.end()
        except grpc.aio.AioRpcError as error:
            finish = finish_of(error)
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self.connection_failed.set()
        except (ValueError, TypeError) as error:
            self._count_fault("malformed_frame")
            finish = Finish(FinishReason.ERROR, error=f"the engine sent a malformed message: {error}", retryable=True)
        finally:
            stream.cancel()
        for index in [*call.keys]:
            self._take(call, index, (), finish, None)

    def _take(
        self, call: _Call[Key], index: int, token_ids: Sequence[int], finish: Finish | None, logprobs: Logprobs | None
    ) -> None:
        key = call.keys.get(index)
        if key is None:
            return
        if finish is not None:
            del call.keys[index], self._calls[key]
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

    async def _stop(self, call: _Call[Key]) -> None:
        """Abort, and only then cancel: of a call that is merely cancelled TensorRT-LLM may not notice anything."""
        assert call.task is not None
        try:
            if await self._abort(call.request_id):
                await asyncio.wait({call.task}, timeout=ABORTED_SECONDS)
        finally:
            call.task.cancel()
            self.unconfirmed_aborts -= 1

    def _spawn(self, work: "Awaitable[None]") -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _nobody(_deliveries: object) -> None:
    """Nobody is there yet, or any more."""


async def ask(channel: grpc.aio.Channel, method: str, question: codec.Message, answer: type[Answer]) -> Answer:
    """One question to an engine that is running; raises AioRpcError, and DecodeError for an answer that is none."""
    call: grpc.aio.UnaryUnaryMultiCallable[codec.Message, bytes] = channel.unary_unary(
        method, request_serializer=codec.encode
    )
    return codec.decode(answer, await call(question, timeout=CALL_SECONDS))


def describe(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"


REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""What an engine says of a request that no other one would take either."""
CLIENTS_FAULTS = (
    "should not exceed",  # The sum of prompt length (..), query length (..) should not exceed max_num_tokens (..)
    "max_seq_len",
    "larger than max",  # Received message larger than max (.. vs. ..)
    "message larger",
)
"""TensorRT-LLM reports these as failures of its own; the request is what must change."""


def finish_of(error: grpc.aio.AioRpcError) -> Finish:
    """What a call that failed means for its answers."""
    details = error.details() or error.code().name
    if error.code() in REFUSALS or is_clients_fault(details):
        return Finish(FinishReason.REJECTED, error=details)
    return Finish(FinishReason.ERROR, error=describe(error), retryable=True)


def is_clients_fault(message: str) -> bool:
    """Whether an engine that reports a failure means that the request asked too much."""
    return any(text in message for text in CLIENTS_FAULTS)
