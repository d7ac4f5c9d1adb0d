"""The gateway's half of TensorRT-LLM's own wire: one Generate call for each submission.

Threads: none of its own. Everything here runs on the event loop of the gateway's engine thread.
"""

import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from engine_adapters import codec, http2
from engine_adapters.base import Delivery, EngineInfo, EngineLost, Key, Load, Submission
from engine_adapters.http2 import CallFailed
from engine_adapters.tls import WorkerTls
from engine_adapters.trtllm.calls import Calls, is_set_within, time_limit
from engine_adapters.trtllm.native import messages, translation
from engine_adapters.trtllm.native.call import CallReader

CONNECT_SECONDS = 5.0
TICK_SECONDS = 0.5
POLL_SECONDS = 1.5
"""An engine that has said nothing for this long is asked how it is, well before the gateway takes its silence for
trouble: that keeps the connection alive, too. It logs a line each time."""
SILENCE_SECONDS = 10.0
"""An engine that says nothing for this long is taken for dead."""
ABORT_SECONDS = 5.0
"""For an answer to an Abort."""

Answer = TypeVar("Answer", bound=codec.Message)


class NativeClient(Generic[Key]):
    """An `Engine` behind `trtllm-serve --grpc` at `address` ("host:port"). After EngineLost, make a new one.

    `count_fault("malformed_frame")` is told of messages that cannot be read. This wire tells nothing of the prefix
    cache: `on_kv_events` is never called.
    """

    def __init__(
        self,
        address: str,
        count_fault: Callable[[str], None],
        on_kv_events: object = None,
        tls: "WorkerTls | None" = None,
    ) -> None:
        self._address = address
        self._tls = tls
        self._connection: http2.Connection | None = None
        self._calls: Calls[Key] = Calls(messages.TRTLLM_SERVICE_GENERATE, self._has_aborted, count_fault)
        self._info = translation.as_info(messages.GetModelInfoResponse(), messages.GetServerInfoResponse())
        self._answered_at = time.monotonic()

    @property
    def load(self) -> Load:
        """The wire does not tell: these are our own answers."""
        return Load(running=len(self._calls))

    @property
    def last_frame_at(self) -> float:
        return max(self._answered_at, self._calls.last_message_at)

    @property
    def unconfirmed_aborts(self) -> int:
        return self._calls.unconfirmed_aborts

    async def connect(self) -> EngineInfo:
        self._connection = self._calls.connection = await http2.reach(self._address, self._tls, CONNECT_SECONDS)
        if problem := await self.check_health():
            raise EngineLost(f"{self._address} does not serve: {problem}")
        model = await self._ask_if_there(
            messages.TRTLLM_SERVICE_GET_MODEL_INFO, messages.GetModelInfoRequest(), messages.GetModelInfoResponse
        )
        server = await self._ask_if_there(
            messages.TRTLLM_SERVICE_GET_SERVER_INFO, messages.GetServerInfoRequest(), messages.GetServerInfoResponse
        )
        self._info = translation.as_info(model, server)
        return self._info

    async def run(self, deliver: Callable[[list[Delivery[Key]]], None]) -> None:
        self._calls.deliver = deliver
        try:
            await self._keep_alive()
        finally:
            self._calls.close()

    def submit(self, keys: Sequence[Key], submission: Submission) -> None:
        if len(keys) != submission.n or not keys:
            raise ValueError(f"{len(keys)} keys for n = {submission.n}")
        request_id = self._calls.new_request_id(submission.request_id)
        try:
            request = codec.encode(translation.generate_message(request_id, submission, self._info))
        except ValueError as error:
            self._calls.refuse(keys, str(error))
        else:
            self._calls.start(keys, request_id, request, CallReader(submission), time_limit(submission.ends_at))

    def abort(self, key: Key) -> None:
        self._calls.abort(key)

    async def check_health(self) -> str:
        began = time.monotonic()
        question = messages.HealthCheckRequest()
        try:
            answer = await self._ask(
                messages.TRTLLM_SERVICE_HEALTH_CHECK, question, messages.HealthCheckResponse, CONNECT_SECONDS
            )
        except CallFailed as error:
            speaks = error.code == "DEADLINE_EXCEEDED" and self.last_frame_at > began
            return "" if speaks or error.code == "UNIMPLEMENTED" else str(error)
        self._answered_at = time.monotonic()
        status = answer.status.strip()
        return "" if status.upper() == "OK" else f"it says it is not healthy: {status or 'no reason given'}"

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    @property
    def _wire(self) -> http2.Connection:
        assert self._connection is not None, "an engine is used once it is connected"
        return self._connection

    async def _has_aborted(self, request_id: str) -> bool:
        question = messages.AbortRequest(request_id)
        answer = await self._ask(messages.TRTLLM_SERVICE_ABORT, question, messages.AbortResponse, ABORT_SECONDS)
        return answer.success

    # --- health and questions -----------------------------------------------------------------------------------------

    async def _keep_alive(self) -> None:
        """Raises EngineLost when the engine cannot be reached, or says nothing at all for too long."""
        while True:
            is_doubtful = await is_set_within(self._calls.is_doubtful, TICK_SECONDS)
            self._calls.is_doubtful.clear()
            if not is_doubtful and self._seconds_silent <= POLL_SECONDS:
                continue
            try:
                question = messages.HealthCheckRequest()
                await self._ask(
                    messages.TRTLLM_SERVICE_HEALTH_CHECK, question, messages.HealthCheckResponse, SILENCE_SECONDS
                )
            except CallFailed as error:
                is_busy = error.code == "DEADLINE_EXCEEDED" and self._seconds_silent < SILENCE_SECONDS
                if error.code != "UNIMPLEMENTED" and not is_busy:
                    raise EngineLost(f"{self._address} does not answer: {error}") from error
            else:
                self._answered_at = time.monotonic()

    @property
    def _seconds_silent(self) -> float:
        return time.monotonic() - self.last_frame_at

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
