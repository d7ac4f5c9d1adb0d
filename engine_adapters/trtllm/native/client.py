"""The gateway's half of TensorRT-LLM's own wire: one Generate call for each submission.

Threads: none of its own. Everything here runs on the event loop of the gateway's engine thread.
"""

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

import grpc
import grpc.aio

from engine_adapters import codec
from engine_adapters.base import Delivery, EngineInfo, EngineLost, Finish, FinishReason, Key, Load, Submission
from engine_adapters.trtllm.native import messages, translation
from engine_adapters.trtllm.native.call import Call

CONNECT_SECONDS = 5.0
TICK_SECONDS = 0.5
POLL_SECONDS = 1.5
"""An engine that has said nothing for this long is asked how it is, well before the gateway takes its silence for
trouble. It logs a line each time."""
BUSY_POLL_SECONDS = 10.0
"""One that speaks is asked no more often than this: tokens do not tell that an engine is failing."""
SILENCE_SECONDS = 10.0
"""An engine that says nothing for this long is taken for dead."""
ABORT_SECONDS = 5.0
"""For an answer to an Abort, and then for the end of the aborted call."""
ABORT_TRIES = 4
ABORT_PAUSE = 0.05
"""A server that has not begun with a request yet does not find it."""
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # The server forbids pings that come faster than one in 10 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)
Answer = TypeVar("Answer", bound=codec.Message)
Generate: TypeAlias = "grpc.aio.UnaryStreamMultiCallable[bytes, bytes]"


class NativeClient(Generic[Key]):
    """An `Engine` behind `trtllm-serve --grpc` at `address` ("host:port"). After EngineLost, make a new one.

    `count_fault("malformed_frame")` is told of messages that cannot be read.
    """

    def __init__(self, address: str, count_fault: Callable[[str], None]) -> None:
        self._address = address
        self._count_fault = count_fault
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._generate: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(
            messages.TRTLLM_SERVICE_GENERATE
        )
        self._info = translation.as_info(messages.GetModelInfoResponse(), messages.GetServerInfoResponse())
        # Unique among all gateways that share the engine: it does not see to that, and mixes equal ones up.
        self._suffix = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._calls: dict[Key, Call[Key]] = {}
        self._tasks: dict[Call[Key], asyncio.Task[None]] = {}
        self._aborts: dict[Call[Key], asyncio.Task[None]] = {}
        self._ready: list[Delivery[Key]] = []
        self._deliver: Callable[[list[Delivery[Key]]], None] | None = None
        self._is_doubtful = asyncio.Event()
        self._last_frame_at = time.monotonic()

    @property
    def load(self) -> Load:
        """The wire does not tell: these are our own calls."""
        return Load(running=len(self._tasks))

    @property
    def last_frame_at(self) -> float:
        return self._last_frame_at

    @property
    def unconfirmed_aborts(self) -> int:
        return len(self._aborts)

    async def connect(self) -> EngineInfo:
        await self._check_health()
        model = await self._ask_if_there(
            messages.TRTLLM_SERVICE_GET_MODEL_INFO, messages.GetModelInfoRequest(), messages.GetModelInfoResponse
        )
        server = await self._ask_if_there(
            messages.TRTLLM_SERVICE_GET_SERVER_INFO, messages.GetServerInfoRequest(), messages.GetServerInfoResponse
        )
        self._info = translation.as_info(model, server)
        return self._info

    async def run(self, deliver: Callable[[list[Delivery[Key]]], None]) -> None:
        self._deliver = deliver
        try:
            await self._watch_health()
        finally:
            self._deliver = None
            for task in (*self._tasks.values(), *self._aborts.values()):
                task.cancel()

    def submit(self, keys: Sequence[Key], submission: Submission) -> None:
        if len(keys) != submission.n or not keys:
            raise ValueError(f"{len(keys)} keys for n = {submission.n}")
        call = Call(f"{submission.request_id}-{self._suffix}-{next(self._numbers)}", keys, submission)
        try:
            request = codec.encode(translation.generate_message(call.request_id, submission, self._info))
        except ValueError as error:
            self._gather([(key, (), Finish(FinishReason.REJECTED, error=str(error)), None) for key in keys])
            return
        self._calls.update(dict.fromkeys(keys, call))
        self._tasks[call] = asyncio.create_task(self._receive(call, request))

    def abort(self, key: Key) -> None:
        call = self._calls.pop(key, None)
        if call is not None:
            call.forget(key)
            if call.is_over:
                self._stop(call)

    async def close(self) -> None:
        await self._channel.close()

    # --- calls ------------------------------------------------------------------------------------------------------

    async def _receive(self, call: Call[Key], request: bytes) -> None:
        """Read a call to its end, whoever still wants it: a server that cannot write on never learns of an abort, and
        its engine goes on for nobody."""
        rpc: grpc.aio.UnaryStreamCall[bytes, bytes] = self._generate(request)
        failure = None
        try:
            async for message in rpc:
                self._take(call, message)
        except grpc.aio.AioRpcError as error:
            failure = self._failure(error)
        except codec.DecodeError as error:
            self._count_fault("malformed_frame")
            failure = Finish(FinishReason.ERROR, error=f"the engine's message cannot be read: {error}", retryable=True)
        finally:
            rpc.cancel()
            del self._tasks[call]
        deliveries: list[Delivery[Key]] = []
        call.end(failure, deliveries)
        self._gather(deliveries)

    def _take(self, call: Call[Key], message: bytes) -> None:
        deliveries: list[Delivery[Key]] = []
        response = codec.decode(messages.GenerateResponse, message)
        if call.is_over and response.chunk is not None:
            self._stop(call)  # a server that does not know of stop ids goes on
            return
        call.take(response, deliveries)
        self._gather(deliveries)

    def _failure(self, error: grpc.aio.AioRpcError) -> Finish:
        code = error.code().name
        if code == "UNAVAILABLE":
            self._is_doubtful.set()
        return translation.finish_of_status(code, error.details() or "")

    def _gather(self, deliveries: list[Delivery[Key]]) -> None:
        """Hand deliveries over with all others of this turn of the loop: HTTP loops are woken once for them."""
        if not self._ready:
            self._last_frame_at = time.monotonic()
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._ready += deliveries

    def _hand_over(self) -> None:
        deliveries, self._ready = self._ready, []
        for key, _, finish, _ in deliveries:
            if finish is not None:
                self._calls.pop(key, None)
        if self._deliver is not None and deliveries:
            self._deliver(deliveries)

    # --- aborts -----------------------------------------------------------------------------------------------------

    def _stop(self, call: Call[Key]) -> None:
        if call in self._tasks and call not in self._aborts:
            self._aborts[call] = asyncio.create_task(self._abort(call, self._tasks[call]))

    async def _abort(self, call: Call[Key], receiving: asyncio.Task[None]) -> None:
        """Have the engine stop, see the call to its end, and only then, if it has none, cancel it: a cancelled call can
        be lost on a server that waits to write."""
        try:
            for _ in range(ABORT_TRIES):
                if await self._has_aborted(call) or receiving.done():
                    break
                await asyncio.sleep(ABORT_PAUSE)
            await asyncio.wait([receiving], timeout=ABORT_SECONDS)
        except grpc.aio.AioRpcError:
            self._is_doubtful.set()
        finally:
            receiving.cancel()
            del self._aborts[call]

    async def _has_aborted(self, call: Call[Key]) -> bool:
        question = messages.AbortRequest(call.request_id)
        answer = await self._ask(messages.TRTLLM_SERVICE_ABORT, question, messages.AbortResponse, ABORT_SECONDS)
        return answer.success

    # --- health and questions -----------------------------------------------------------------------------------------

    async def _watch_health(self) -> None:
        asked_at = time.monotonic()
        while True:
            is_doubtful = await _is_set_within(self._is_doubtful, TICK_SECONDS)
            self._is_doubtful.clear()
            is_overdue = time.monotonic() - asked_at > BUSY_POLL_SECONDS
            if is_doubtful or is_overdue or self._seconds_silent > POLL_SECONDS:
                await self._check_health()
                asked_at = time.monotonic()

    async def _check_health(self) -> None:
        """Raises EngineLost when the engine says that it is not well, or nothing at all for too long."""
        question = messages.HealthCheckRequest()
        try:
            answer = await self._ask(
                messages.TRTLLM_SERVICE_HEALTH_CHECK, question, messages.HealthCheckResponse, SILENCE_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            is_busy = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and self._seconds_silent < SILENCE_SECONDS
            if error.code() is grpc.StatusCode.UNIMPLEMENTED or is_busy:
                return
            raise EngineLost(f"{self._address} does not answer: {describe(error)}") from error
        self._last_frame_at = time.monotonic()
        if answer.status.strip().upper() != "OK":
            raise EngineLost(f"{self._address} says it is not healthy: {answer.status.strip() or 'no reason given'}")

    @property
    def _seconds_silent(self) -> float:
        return time.monotonic() - self._last_frame_at

    async def _ask_if_there(self, method: str, question: codec.Message, answer: type[Answer]) -> Answer:
        """An empty answer where the server does not have the method."""
        try:
            return await self._ask(method, question, answer, CONNECT_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return answer()
            raise EngineLost(f"{self._address} does not answer: {describe(error)}") from error

    async def _ask(self, method: str, question: codec.Message, answer: type[Answer], seconds: float) -> Answer:
        """Raises grpc.aio.AioRpcError."""
        call = self._channel.unary_unary(
            method, request_serializer=codec.encode, response_deserializer=lambda data: codec.decode(answer, data)
        )
        result: Answer = await call(question, timeout=seconds)
        return result


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        return await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:  # on 3.10 not yet the built-in one
        return False


def describe(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"
