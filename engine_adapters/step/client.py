"""The gateway's half of the step stream: one Attach stream to one executor, all requests in it.

Threads: none of its own. Everything here runs on the event loop of the gateway's engine thread.
"""

import asyncio
import time
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

import grpc
import grpc.aio

from engine_adapters import codec
from engine_adapters.base import Delivery, EngineInfo, EngineLost, Finish, FinishReason, Key, Load, Submission
from engine_adapters.step import PROTOCOL_VERSION, messages

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 10.0
"""An executor speaks every second; one that says nothing for this long is taken for dead."""
FRAME_BYTES = 1 << 20
"""A ClientFrame takes no further prompt once it is this large, so that no abort waits behind many long ones."""
STREAM_ID_LIMIT = 1 << 32
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)
REASONS = {reason.value: reason for reason in FinishReason}
Answer = TypeVar("Answer", bound=codec.Message)
AttachCall: TypeAlias = "grpc.aio.StreamStreamCall[messages.ClientFrame, bytes]"


class StepClient(Generic[Key]):
    """An `Engine` behind a step stream at `address` ("host:port"). After EngineLost, make a new one.

    `count_fault(kind)` is told of whatever the executor sent that made no sense: "malformed_frame", "unknown_stream".
    """

    def __init__(self, address: str, count_fault: Callable[[str], None]) -> None:
        self._address = address
        self._count_fault = count_fault
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._keys: dict[int, Key] = {}
        self._stream_ids: dict[Key, int] = {}
        self._aborted: set[int] = set()
        self._next_stream_id = 1
        self._submits: deque[messages.Submit] = deque()
        self._aborts: list[int] = []
        self._something_to_send = asyncio.Event()
        self._load = Load()
        self._last_frame_at = time.monotonic()

    @property
    def load(self) -> Load:
        return self._load

    @property
    def last_frame_at(self) -> float:
        return self._last_frame_at

    @property
    def unconfirmed_aborts(self) -> int:
        return len(self._aborted)

    async def connect(self) -> EngineInfo:
        info = await self._ask(messages.EXECUTOR_GET_INFO, messages.InfoRequest(), messages.Info)
        if info.protocol_version != PROTOCOL_VERSION:
            raise EngineLost(
                f"{self._address} speaks version {info.protocol_version} of the step stream, this gateway speaks "
                f"{PROTOCOL_VERSION}; update the older of the two"
            )
        return EngineInfo(
            engine=info.engine,
            engine_version=info.engine_version,
            model=info.model,
            vocab_size=info.vocab_size,
            context_length=info.context_length,
            max_running=info.max_running,
            tokenizer_fingerprint=info.tokenizer_fingerprint,
            eos_token_ids=tuple(memoryview(info.eos_token_ids).cast("I")),
        )

    async def run(self, deliver: Callable[[list[Delivery[Key]]], None]) -> None:
        attach: grpc.aio.StreamStreamMultiCallable[messages.ClientFrame, bytes] = self._channel.stream_stream(
            messages.EXECUTOR_ATTACH, request_serializer=codec.encode
        )
        call = attach()
        halves = [asyncio.create_task(self._send(call)), asyncio.create_task(self._receive(call, deliver))]
        try:
            done, _ = await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
            for half in done:
                half.result()
        except grpc.aio.AioRpcError as error:
            raise EngineLost(f"the stream to {self._address} broke: {_describe(error)}") from error
        finally:
            call.cancel()
            for half in halves:
                half.cancel()
            await asyncio.gather(*halves, return_exceptions=True)

    def submit(self, key: Key, submission: Submission) -> None:
        stream_id = self._new_stream_id()
        self._keys[stream_id] = key
        self._stream_ids[key] = stream_id
        sampling = submission.sampling
        self._submits.append(
            messages.Submit(
                stream_id=stream_id,
                request_id=submission.request_id,
                token_ids=submission.token_ids,
                sampling=messages.Sampling(temperature=sampling.temperature, top_p=sampling.top_p, seed=sampling.seed),
                max_tokens=submission.max_tokens,
                stop_token_ids=submission.stop_token_ids,
                ignore_eos=submission.ignore_eos,
            )
        )
        self._something_to_send.set()

    def abort(self, key: Key) -> None:
        stream_id = self._stream_ids.pop(key, None)
        if stream_id is None:
            return
        del self._keys[stream_id]
        for submit in self._submits:
            if submit.stream_id == stream_id:
                self._submits.remove(submit)  # the executor never heard of it
                return
        self._aborted.add(stream_id)
        self._aborts.append(stream_id)
        self._something_to_send.set()

    async def close(self) -> None:
        await self._channel.close()

    async def _ask(self, method: str, question: codec.Message, answer: type[Answer]) -> Answer:
        call = self._channel.unary_unary(
            method, request_serializer=codec.encode, response_deserializer=lambda data: codec.decode(answer, data)
        )
        try:
            result: Answer = await call(question, timeout=CONNECT_SECONDS, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise EngineLost(f"{self._address} does not answer: {_describe(error)}") from error
        return result

    async def _send(self, call: AttachCall) -> None:
        """Write what has gathered, in as few frames as their size allows; aborts travel in the first of them."""
        await call.write(messages.ClientFrame(protocol_version=PROTOCOL_VERSION))
        while True:
            await self._something_to_send.wait()
            self._something_to_send.clear()
            while self._submits or self._aborts:
                await call.write(self._next_frame())

    def _next_frame(self) -> messages.ClientFrame:
        frame = messages.ClientFrame(aborts=array("I", self._aborts).tobytes())
        self._aborts.clear()
        size = 0
        while self._submits and size < FRAME_BYTES:
            submit = self._submits.popleft()
            frame.submits.append(submit)
            size += len(submit.token_ids) + len(submit.stop_token_ids)
        return frame

    async def _receive(self, call: AttachCall, deliver: Callable[[list[Delivery[Key]]], None]) -> None:
        while True:
            data = await _in_time(call.read(), self._address)
            if not isinstance(data, bytes):
                raise EngineLost(f"{self._address} ended the stream: {await call.code()} {await call.details()}")
            self._last_frame_at = time.monotonic()
            try:
                deliveries = self._deliveries(codec.decode(messages.StepFrame, data))
            except (codec.DecodeError, ValueError, TypeError) as error:
                # Tokens are lost with it and nobody knows whose: every stream must learn that it is broken.
                self._count_fault("malformed_frame")
                raise EngineLost(f"{self._address} sent a malformed frame: {error}") from error
            if deliveries:
                deliver(deliveries)

    def _deliveries(self, frame: messages.StepFrame) -> list[Delivery[Key]]:
        """What a frame means for the streams we know; raises ValueError or TypeError when its columns do not fit."""
        ends = self._ends(frame)
        if frame.load is not None:
            load = frame.load
            self._load = Load(
                load.running, load.waiting, load.kv_tokens_used, load.kv_tokens_total, load.tokens_per_second
            )
        deliveries: list[Delivery[Key]] = []
        keys = self._keys
        for stream_id, token_ids in columns(frame):
            key = keys.get(stream_id)
            if key is None:
                self._note_unknown(stream_id)
            else:
                deliveries.append((key, token_ids, ends.pop(stream_id, None) if ends else None))
        for stream_id, finish in ends.items():
            key = keys.get(stream_id)
            if key is not None:
                deliveries.append((key, (), finish))
            elif stream_id not in self._aborted:
                self._count_fault("unknown_stream")
        for finished in frame.finished:
            self._forget(finished.stream_id)
        return deliveries

    def _ends(self, frame: messages.StepFrame) -> dict[int, Finish]:
        return {finished.stream_id: _finish(finished) for finished in frame.finished}

    def _note_unknown(self, stream_id: int) -> None:
        # Tokens that were under way when we aborted are no fault.
        if stream_id not in self._aborted:
            self._count_fault("unknown_stream")

    def _forget(self, stream_id: int) -> None:
        self._aborted.discard(stream_id)
        key = self._keys.pop(stream_id, None)
        if key is not None:
            del self._stream_ids[key]

    def _new_stream_id(self) -> int:
        while True:
            stream_id = self._next_stream_id
            self._next_stream_id = (stream_id + 1) % STREAM_ID_LIMIT
            if stream_id not in self._keys and stream_id not in self._aborted:
                return stream_id


def columns(frame: messages.StepFrame) -> list[tuple[int, Sequence[int]]]:
    """(stream id, its token ids) in the frame's order; raises ValueError or TypeError when the columns do not fit."""
    stream_ids = memoryview(frame.stream_ids).cast("I").tolist()
    token_ids = memoryview(frame.token_ids).cast("I").tolist()
    if not frame.counts:
        if len(stream_ids) != len(token_ids):
            raise ValueError("one token for each stream")
        return [(stream_id, (token_id,)) for stream_id, token_id in zip(stream_ids, token_ids, strict=True)]
    counts = memoryview(frame.counts).cast("I").tolist()
    if len(counts) != len(stream_ids) or sum(counts) != len(token_ids):
        raise ValueError("counts must tell how the token ids are divided")
    result: list[tuple[int, Sequence[int]]] = []
    start = 0
    for stream_id, count in zip(stream_ids, counts, strict=True):
        result.append((stream_id, token_ids[start : start + count]))
        start += count
    return result


def _finish(finished: messages.Finished) -> Finish:
    return Finish(
        reason=REASONS.get(finished.reason, FinishReason.ERROR),
        matched_stop=finished.matched_stop,
        prompt_tokens=finished.prompt_tokens,
        cached_tokens=finished.cached_tokens,
        completion_tokens=finished.completion_tokens,
        error=finished.error or ("" if finished.reason in REASONS else f"unknown finish reason {finished.reason}"),
        retryable=finished.retryable,
    )


async def _in_time(read: Awaitable[object], address: str) -> object:
    try:
        return await asyncio.wait_for(read, SILENCE_SECONDS)
    except asyncio.TimeoutError:
        raise EngineLost(f"{address} has been silent for {SILENCE_SECONDS:g} s") from None


def _describe(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"
