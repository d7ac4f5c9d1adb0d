"""The gateway's half of the step stream: one Attach stream to one executor, all requests in it.

Threads: none of its own. Everything here runs on the event loop of the gateway's engine thread.
"""

import asyncio
import time
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Generic, TypeAlias, TypeVar

import grpc
import grpc.aio

from engine_adapters import codec
from engine_adapters.base import Delivery, EngineInfo, EngineLost, Finish, FinishReason, Key, KvEvent, Load, Submission
from engine_adapters.image import Payload
from engine_adapters.step import ANSWERS_LIMIT, PROTOCOL_VERSION, STREAM_ID_LIMIT, memory, messages, translation
from engine_adapters.step.outgoing import Uploader, UploadFailed, image_messages
from engine_adapters.tls import WorkerTls

CONNECT_SECONDS = 5.0
UPLOAD_SECONDS = 30.0
"""For a piece."""
SILENCE_SECONDS = 10.0
"""An executor speaks every second; one that says nothing for this long is taken for dead."""
FRAME_BYTES = 1 << 20
"""A ClientFrame takes no further prompt once it is this large, so that no abort waits behind many long ones."""
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
Answer = TypeVar("Answer", bound=codec.Message)
AttachCall: TypeAlias = "grpc.aio.StreamStreamCall[messages.ClientFrame, bytes]"


class StepClient(Generic[Key]):
    """An `Engine` behind a step stream at `address` ("host:port"). After EngineLost, which making one may raise too,
    make a new one.

    `count_fault(kind)` is told of whatever the executor sent that made no sense: "malformed_frame", "unknown_stream",
    "kv_gap".

    `on_kv_events(events, is_first)` is told how the executor's prefix cache changes. The first call, for the first
    frame, means that whatever was known of this executor is void; these events and the next ones tell what there is.
    When events were missed ("kv_gap") the next ones come all the same and what they add up to may be wrong, until a new
    client attaches.
    """

    def __init__(
        self,
        address: str,
        count_fault: Callable[[str], None],
        on_kv_events: "Callable[[Sequence[KvEvent], bool], None] | None" = None,
        tls: "WorkerTls | None" = None,
    ) -> None:
        self._address = address
        self._count_fault = count_fault
        self._on_kv_events = on_kv_events
        self._kv_events = 0
        self._channel = _channel(address, tls)
        self._waits = tls is None
        """For a connection. With TLS a failure is told at once, and why: it is seldom one that goes by."""
        self._keys: dict[int, Key] = {}
        self._stream_ids: dict[Key, int] = {}
        self._aborted: set[int] = set()
        self._next_stream_id = 1
        self._submits: deque[messages.Submit] = deque()
        self._aborts: list[int] = []
        self._something_to_send = asyncio.Event()
        self._load = Load()
        self._last_frame_at = time.monotonic()
        self._uploader = Uploader(self._upload)
        self._uploading: dict[int, tuple[messages.Submit, asyncio.Task[None]]] = {}
        self._reads_memory = False
        self._deliver: Callable[[list[Delivery[Key]]], None] = _to_nobody

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
        try:
            return translation.as_info(info)
        except (ValueError, TypeError) as error:
            raise EngineLost(f"{self._address} says of itself what makes no sense: {error}") from error

    async def run(self, deliver: Callable[[list[Delivery[Key]]], None]) -> None:
        attach: grpc.aio.StreamStreamMultiCallable[messages.ClientFrame, bytes] = self._channel.stream_stream(
            messages.EXECUTOR_ATTACH, request_serializer=codec.encode
        )
        call = attach()
        self._deliver = deliver
        halves = [asyncio.create_task(self._send(call)), asyncio.create_task(self._receive(call, deliver))]
        try:
            done, _ = await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
            for half in done:
                half.result()
        except grpc.aio.AioRpcError as error:
            raise EngineLost(f"the stream to {self._address} broke: {_describe(error)}") from error
        except asyncio.InvalidStateError as error:  # what grpc.aio makes of a write to a call that has just ended
            raise EngineLost(f"the stream to {self._address} broke: {error}") from error
        finally:
            call.cancel()
            for half in (*halves, *(task for _, task in self._uploading.values())):
                half.cancel()
            await asyncio.gather(*halves, return_exceptions=True)

    def submit(self, keys: Sequence[Key], submission: Submission) -> None:
        if len(keys) != submission.n or not 0 < submission.n <= ANSWERS_LIMIT:
            raise ValueError(f"{len(keys)} keys for n = {submission.n}, which must be 1 to {ANSWERS_LIMIT}")
        first = self._new_stream_ids(len(keys))
        for stream_id, key in enumerate(keys, first):
            self._keys[stream_id] = key
            self._stream_ids[key] = stream_id
        message = translation.submit_message(first, submission)
        if submission.images:
            message.images, payloads = image_messages(submission.images, self._reads_memory)
            if payloads:
                task = asyncio.create_task(self._submit_behind(message, payloads))
                self._uploading[first] = message, task
                return
        self._queue(message)

    def _queue(self, message: messages.Submit) -> None:
        self._submits.append(message)
        self._something_to_send.set()

    async def _submit_behind(self, message: messages.Submit, payloads: "list[tuple[bytes, Payload]]") -> None:
        """Upload what the message refers to, then send it."""
        try:
            await self._uploader.send(payloads)
        except (UploadFailed, EngineLost) as error:
            finish = Finish(FinishReason.ERROR, error=f"an image could not be uploaded: {error}", retryable=True)
            stream_ids = _stream_ids(message)
            self._aborted.difference_update(stream_ids)  # the executor never heard of them
            ended = [(self._keys[each], (), finish, None) for each in stream_ids if each in self._keys]
            for stream_id in stream_ids:
                self._forget(stream_id)
            self._deliver([*ended])
        else:
            self._queue(message)
        finally:
            del self._uploading[message.stream_id]

    async def _upload(self, piece: messages.UploadRequest) -> messages.UploadReply:
        return await self._ask(messages.EXECUTOR_UPLOAD, piece, messages.UploadReply, UPLOAD_SECONDS)

    def abort(self, key: Key) -> None:
        stream_id = self._stream_ids.pop(key, None)
        if stream_id is None:
            return
        del self._keys[stream_id]
        self._aborted.add(stream_id)
        queued = next((submit for submit in self._unsent() if stream_id in _stream_ids(submit)), None)
        if queued is None:
            self._aborts.append(stream_id)
            self._something_to_send.set()
        elif self._aborted.issuperset(_stream_ids(queued)):
            if queued.stream_id in self._uploading:
                self._uploading[queued.stream_id][1].cancel()
            else:
                self._submits.remove(queued)
            self._aborted.difference_update(_stream_ids(queued))  # the executor never heard of it

    def _unsent(self) -> "Iterator[messages.Submit]":
        yield from self._submits
        for message, _ in self._uploading.values():
            yield message

    async def check_health(self) -> str:
        began = time.monotonic()
        try:
            reply = await self._call(messages.EXECUTOR_HEALTH, messages.HealthRequest(), messages.HealthReply)
        except codec.DecodeError as error:
            return f"its answer to a health check cannot be read: {error}"
        except grpc.aio.AioRpcError as error:
            speaks = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and self._last_frame_at > began
            return "" if speaks or error.code() is grpc.StatusCode.UNIMPLEMENTED else _describe(error)
        return "" if reply.healthy else reply.message or "it says that it is not healthy"

    async def close(self) -> None:
        await self._channel.close()

    async def _ask(
        self, method: str, question: codec.Message, answer: type[Answer], seconds: float = CONNECT_SECONDS
    ) -> Answer:
        try:
            return await self._call(method, question, answer, seconds)
        except grpc.aio.AioRpcError as error:
            raise EngineLost(f"{self._address} does not answer: {_describe(error)}") from error
        except codec.DecodeError as error:
            self._count_fault("malformed_frame")
            raise EngineLost(f"{self._address} answers what is no step stream's: {error}") from error

    async def _call(
        self, method: str, question: codec.Message, answer: type[Answer], seconds: float = CONNECT_SECONDS
    ) -> Answer:
        """Raises AioRpcError and DecodeError."""
        call: grpc.aio.UnaryUnaryMultiCallable[codec.Message, bytes] = self._channel.unary_unary(
            method, request_serializer=codec.encode
        )
        # Decoded here: of a deserializer that raises, grpc.aio makes a None.
        return codec.decode(answer, await call(question, timeout=seconds, wait_for_ready=self._waits))

    async def _send(self, call: AttachCall) -> None:
        """Write what has gathered, in as few frames as their size allows; aborts travel in the first of them."""
        probe = memory.probe()  # held until the stream ends
        hello = messages.ClientFrame(protocol_version=PROTOCOL_VERSION)
        if probe is not None:
            hello.memory_probe_content, file = probe
            hello.memory_probe = messages.MemoryFile(file.pid, file.fd, file.inode, file.size)
        await call.write(hello)
        while True:
            await self._something_to_send.wait()
            self._something_to_send.clear()
            while self._submits or self._aborts:
                await call.write(self._next_frame())

    def _next_frame(self) -> messages.ClientFrame:
        aborts, self._aborts = self._aborts, []
        frame = messages.ClientFrame()
        size = 0
        while self._submits and size < FRAME_BYTES:
            submit = self._submits.popleft()
            frame.submits.append(submit)
            size += (
                len(submit.token_ids) + len(submit.stop_token_ids) + sum(len(each.payload) for each in submit.images)
            )
            aborts += self._aborted.intersection(_stream_ids(submit))  # some of its answers, while it was queued
        frame.aborts = array("I", aborts).tobytes()
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
        ends = {finished.stream_id: translation.as_finish(finished) for finished in frame.finished}
        logprobs = {entry.stream_id: translation.as_logprobs(entry) for entry in frame.logprobs}
        if frame.load is not None:
            self._load = translation.as_load(frame.load)
        if frame.kv_events or frame.protocol_version:
            self._note_kv_events(frame)
            self._reads_memory |= frame.reads_memory
        deliveries: list[Delivery[Key]] = []
        keys = self._keys
        for stream_id, token_ids in columns(frame):
            key = keys.get(stream_id)
            if key is None:
                self._note_unknown(stream_id)
            else:
                scores = logprobs.get(stream_id) if logprobs else None
                if scores is not None and len(scores.logprobs) != len(token_ids):
                    raise ValueError("each token of a stream must have its logprob")
                deliveries.append((key, token_ids, ends.pop(stream_id, None) if ends else None, scores))
        for stream_id, finish in ends.items():
            key = keys.get(stream_id)
            if key is not None:
                deliveries.append((key, (), finish, None))
            elif stream_id not in self._aborted:
                self._count_fault("unknown_stream")
        for finished in frame.finished:
            self._forget(finished.stream_id)
        return deliveries

    def _note_kv_events(self, frame: messages.StepFrame) -> None:
        self._kv_events += len(frame.kv_events)
        if frame.kv_event_number != (self._kv_events if frame.kv_events else 0):
            self._count_fault("kv_gap")
            self._kv_events = frame.kv_event_number
        if self._on_kv_events is not None:
            events = map(translation.as_kv_event, frame.kv_events)
            self._on_kv_events([event for event in events if event is not None], frame.protocol_version > 0)

    def _note_unknown(self, stream_id: int) -> None:
        # Tokens that were under way when we aborted are no fault.
        if stream_id not in self._aborted:
            self._count_fault("unknown_stream")

    def _forget(self, stream_id: int) -> None:
        self._aborted.discard(stream_id)
        key = self._keys.pop(stream_id, None)
        if key is not None:
            del self._stream_ids[key]

    def _new_stream_ids(self, count: int) -> int:
        """The first of `count` ids in a row that are free."""
        while True:
            first = self._next_stream_id
            stream_ids = range(first, first + count)
            self._next_stream_id = stream_ids.stop if stream_ids.stop < STREAM_ID_LIMIT else 0
            if stream_ids.stop <= STREAM_ID_LIMIT and not any(map(self._is_taken, stream_ids)):
                return first

    def _is_taken(self, stream_id: int) -> bool:
        return stream_id in self._keys or stream_id in self._aborted


def _to_nobody(deliveries: object) -> None:
    """Before `run` there is nobody to hear."""


def _channel(address: str, tls: "WorkerTls | None") -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    try:
        return grpc.aio.secure_channel(address, tls.channel_credentials(), options=CHANNEL_OPTIONS)
    except OSError as error:
        raise EngineLost(f"the files for TLS with {address} cannot be read: {error}") from error


def _stream_ids(submit: messages.Submit) -> range:
    return range(submit.stream_id, submit.stream_id + (submit.n or 1))


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


async def _in_time(read: Awaitable[object], address: str) -> object:
    try:
        return await asyncio.wait_for(read, SILENCE_SECONDS)
    except asyncio.TimeoutError:
        raise EngineLost(f"{address} has been silent for {SILENCE_SECONDS:g} s") from None


def _describe(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"
