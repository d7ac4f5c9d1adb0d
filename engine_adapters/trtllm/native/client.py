"""The gateway's half of TensorRT-LLM's own wire: one Generate call for each submission.

Threads: none of its own. Everything here runs on the event loop of the gateway's engine thread.
"""

import asyncio
import itertools
import random
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from engine_adapters import codec, http2
from engine_adapters.base import Delivery, EngineInfo, EngineLost, Finish, FinishReason, Key, Load, Submission
from engine_adapters.http2 import CallFailed
from engine_adapters.trtllm.native import messages, translation
from engine_adapters.trtllm.native.call import Call

CONNECT_SECONDS = 5.0
TICK_SECONDS = 0.5
POLL_SECONDS = 1.5
"""An engine that has said nothing for this long is asked how it is, well before the gateway takes its silence for
trouble: that keeps the connection alive, too. It logs a line each time."""
BUSY_POLL_SECONDS = 10.0
"""One that speaks is asked no more often than this: tokens do not tell that an engine is failing."""
SILENCE_SECONDS = 10.0
"""An engine that says nothing for this long is taken for dead."""
ABORT_SECONDS = 5.0
"""For an answer to an Abort, and then for the end of the aborted call."""
ABORT_TRIES = 4
ABORT_PAUSE = 0.05
"""A server that has not begun with a request yet does not find it."""

REFUSALS = 6
REFUSAL_PAUSE = 0.05
"""Where more than 1000 calls wait to be taken on, gRPC's server cancels some of them: these are made again, after a
pause that doubles each time."""

Answer = TypeVar("Answer", bound=codec.Message)


class Generation(Generic[Key]):
    """A Generate call on its way: what receives its messages."""

    __slots__ = ("call", "client", "has_begun", "is_over", "pause", "refusals")

    def __init__(self, client: "NativeClient[Key]", call: Call[Key]) -> None:
        self.client = client
        self.call = call
        self.has_begun = False
        self.refusals = 0
        self.pause: asyncio.TimerHandle | None = None
        """Before it is made again."""
        self.is_over: asyncio.Event | None = None
        """Made by who waits for it."""

    def received(self, message: bytes) -> None:
        self.has_begun = True
        self.client.take(self, message)

    def ended(self, failure: "CallFailed | None") -> None:
        self.client.end(self, failure)


class NativeClient(Generic[Key]):
    """An `Engine` behind `trtllm-serve --grpc` at `address` ("host:port"). After EngineLost, make a new one.

    `count_fault("malformed_frame")` is told of messages that cannot be read.
    """

    def __init__(self, address: str, count_fault: Callable[[str], None]) -> None:
        self._address = address
        self._count_fault = count_fault
        self._connection: http2.Connection | None = None
        self._info = translation.as_info(messages.GetModelInfoResponse(), messages.GetServerInfoResponse())
        self._suffix = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._running: dict[Key, Generation[Key]] = {}
        self._open: set[Generation[Key]] = set()
        self._aborts: dict[Generation[Key], asyncio.Task[None]] = {}
        self._ready: list[Delivery[Key]] = []
        self._deliver: Callable[[list[Delivery[Key]]], None] | None = None
        self._is_doubtful = asyncio.Event()
        self._last_frame_at = time.monotonic()

    @property
    def load(self) -> Load:
        """The wire does not tell: these are our own calls."""
        return Load(running=len(self._open))

    @property
    def last_frame_at(self) -> float:
        return self._last_frame_at

    @property
    def unconfirmed_aborts(self) -> int:
        return len(self._aborts)

    async def connect(self) -> EngineInfo:
        try:
            connecting = http2.connect(self._address)
            self._connection = await asyncio.wait_for(connecting, CONNECT_SECONDS)
        except (OSError, asyncio.TimeoutError) as error:
            raise EngineLost(f"{self._address} does not answer: {error or 'no connection in time'}") from error
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
            for task in self._aborts.values():
                task.cancel()

    def submit(self, keys: Sequence[Key], submission: Submission) -> None:
        if len(keys) != submission.n or not keys:
            raise ValueError(f"{len(keys)} keys for n = {submission.n}")
        generation = Generation(self, Call(keys, submission))
        try:
            self._send(generation)
        except ValueError as error:
            self._gather([(key, (), Finish(FinishReason.REJECTED, error=str(error)), None) for key in keys])
        else:
            self._running.update(dict.fromkeys(keys, generation))

    def abort(self, key: Key) -> None:
        generation = self._running.pop(key, None)
        if generation is not None:
            generation.call.forget(key)
            if generation.call.is_over:
                self._stop(generation)

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    @property
    def _wire(self) -> http2.Connection:
        assert self._connection is not None, "an engine is used once it is connected"
        return self._connection

    # --- calls ------------------------------------------------------------------------------------------------------

    def take(self, generation: Generation[Key], message: bytes) -> None:
        """A message of a call has come."""
        self._last_frame_at = time.monotonic()
        deliveries: list[Delivery[Key]] = []
        try:
            response = codec.decode(messages.GenerateResponse, message)
        except codec.DecodeError as error:
            self._count_fault("malformed_frame")
            finish = Finish(FinishReason.ERROR, error=f"the engine's message cannot be read: {error}", retryable=True)
            generation.call.end(finish, deliveries)
            self._stop(generation)
        else:
            if generation.call.is_over and response.chunk is not None:
                self._stop(generation)  # a server that does not know of stop ids goes on
            generation.call.take(response, deliveries)
        self._gather(deliveries)

    def end(self, generation: Generation[Key], failure: "CallFailed | None") -> None:
        """A call is over."""
        call = generation.call
        is_refused = failure is not None and failure.code == "CANCELLED" and not generation.has_begun
        if is_refused and not call.is_over and generation.refusals < REFUSALS:
            seconds = REFUSAL_PAUSE * 2**generation.refusals * random.uniform(1, 2)
            generation.refusals += 1
            generation.pause = asyncio.get_running_loop().call_later(seconds, self._send, generation)
            return
        self._open.discard(generation)
        if generation.is_over is not None:
            generation.is_over.set()
        if failure is not None and failure.code == "UNAVAILABLE":
            self._is_doubtful.set()
        deliveries: list[Delivery[Key]] = []
        finish = None if failure is None else translation.finish_of_status(failure.code, failure.details)
        call.end(finish, deliveries)
        self._gather(deliveries)

    def _send(self, generation: Generation[Key]) -> None:
        """Make the call, or make it again, under an id unique among all gateways that share the engine: it does not see
        to that, and mixes equal ones up. Raises ValueError for what the engine could not serve."""
        submission = generation.call.submission
        request_id = f"{submission.request_id}-{self._suffix}-{next(self._numbers)}"
        request = codec.encode(translation.generate_message(request_id, submission, self._info))
        generation.pause = None
        generation.call.request_id = request_id
        self._open.add(generation)
        self._wire.call(messages.TRTLLM_SERVICE_GENERATE, request, generation)

    def _gather(self, deliveries: list[Delivery[Key]]) -> None:
        """Hand deliveries over with all others of this turn of the loop: HTTP loops are woken once for them."""
        if not self._ready and deliveries:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._ready += deliveries

    def _hand_over(self) -> None:
        deliveries, self._ready = self._ready, []
        for key, _, finish, _ in deliveries:
            if finish is not None:
                self._running.pop(key, None)
        if self._deliver is not None:
            self._deliver(deliveries)

    # --- aborts -----------------------------------------------------------------------------------------------------

    def _stop(self, generation: Generation[Key]) -> None:
        if generation.pause is not None:
            generation.pause.cancel()  # the engine knows nothing of it
            self._open.discard(generation)
        elif generation in self._open and generation not in self._aborts:
            generation.is_over = asyncio.Event()
            self._aborts[generation] = asyncio.create_task(self._abort(generation, generation.is_over))

    async def _abort(self, generation: Generation[Key], is_over: asyncio.Event) -> None:
        """Have the engine stop, see the call to its end, and only then, if it has none, cancel it: a cancelled call can
        be lost on a server that waits to write, and its engine goes on for nobody."""
        try:
            for _ in range(ABORT_TRIES):
                if await self._has_aborted(generation.call) or is_over.is_set():
                    break
                await asyncio.sleep(ABORT_PAUSE)
            await _is_set_within(is_over, ABORT_SECONDS)
        except CallFailed:
            self._is_doubtful.set()
        finally:
            self._wire.cancel(generation)
            self._open.discard(generation)
            del self._aborts[generation]

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
        except CallFailed as error:
            is_busy = error.code == "DEADLINE_EXCEEDED" and self._seconds_silent < SILENCE_SECONDS
            if error.code == "UNIMPLEMENTED" or is_busy:
                return
            raise EngineLost(f"{self._address} does not answer: {error}") from error
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
        except CallFailed as error:
            if error.code == "UNIMPLEMENTED":
                return answer()
            raise EngineLost(f"{self._address} does not answer: {error}") from error

    async def _ask(self, method: str, question: codec.Message, answer: type[Answer], seconds: float) -> Answer:
        """Raises CallFailed."""
        try:
            return codec.decode(answer, await self._wire.ask(method, codec.encode(question), seconds))
        except codec.DecodeError as error:
            raise CallFailed("INTERNAL", f"the answer cannot be read: {error}") from error


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        return await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:  # on 3.10 not yet the built-in one
        return False
