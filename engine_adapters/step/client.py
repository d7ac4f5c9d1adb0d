"""The gateway's half of the step stream: one Attach stream to one executor, all requests in it.

Threads: none of its own. Everything here runs on the event loop of the gateway's engine thread.
"""

import asyncio
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from engine_adapters import codec, http2
from engine_adapters.base import Delivery, EngineInfo, EngineLost, Finish, FinishReason, Key, KvEvent, Load, Submission
from engine_adapters.http2 import CallFailed
from engine_adapters.image import MemoryFile, Payload
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
Answer = TypeVar("Answer", bound=codec.Message)


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
        self._tls = tls
        self._connection: http2.Connection | None = None
        self._keys: dict[int, Key] = {}
        self._stream_ids: dict[Key, int] = {}
        self._aborted: set[int] = set()
        self._next_stream_id = 1
        self._submits: deque[messages.Submit] = deque()
        self._aborts: list[int] = []
        self._is_flushing = False
        self._is_clear = False
        """Whether the executor has room for another frame."""
        self._load = Load()
        self._last_frame_at = time.monotonic()
        self._uploader = Uploader(self._upload)
        self._uploading: dict[int, tuple[messages.Submit, asyncio.Task[None]]] = {}
        self._reads_memory = False
        self._deliver: Callable[[list[Delivery[Key]]], None] = _to_nobody
        self._end: asyncio.Future[None] | None = None
        """Of the Attach stream: fails with what ended it."""

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
        self._connection = await http2.reach(self._address, self._tls, CONNECT_SECONDS)
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
        self._deliver = deliver
        self._end = asyncio.get_running_loop().create_future()
        self._last_frame_at = time.monotonic()
        probe = memory.probe()  # held until the stream ends
        try:
            self._is_clear = self._wire.begin(messages.EXECUTOR_ATTACH, codec.encode(_hello(probe)), self)
            self._flush()
            while (left := self._last_frame_at + SILENCE_SECONDS - time.monotonic()) > 0:
                await asyncio.wait((self._end,), timeout=left)
                if self._end.done():
                    return self._end.result()
            raise EngineLost(f"{self._address} has been silent for {SILENCE_SECONDS:g} s")
        finally:
            self._end.cancel()
            self._deliver = _to_nobody
            self._wire.cancel(self)
            for _, task in self._uploading.values():
                task.cancel()

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
        self._flush_soon()

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
            self._flush_soon()
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
        except CallFailed as error:
            speaks = error.code == "DEADLINE_EXCEEDED" and self._last_frame_at > began
            return "" if speaks or error.code == "UNIMPLEMENTED" else str(error)
        return "" if reply.healthy else reply.message or "it says that it is not healthy"

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    @property
    def _wire(self) -> http2.Connection:
        assert self._connection is not None, "connect comes first"
        return self._connection

    async def _ask(
        self, method: str, question: codec.Message, answer: type[Answer], seconds: float = CONNECT_SECONDS
    ) -> Answer:
        try:
            return await self._call(method, question, answer, seconds)
        except CallFailed as error:
            raise EngineLost(f"{self._address} does not answer: {error}") from error
        except codec.DecodeError as error:
            self._count_fault("malformed_frame")
            raise EngineLost(f"{self._address} answers what is no step stream's: {error}") from error

    async def _call(
        self, method: str, question: codec.Message, answer: type[Answer], seconds: float = CONNECT_SECONDS
    ) -> Answer:
        """Raises CallFailed and DecodeError."""
        return codec.decode(answer, await self._wire.ask(method, codec.encode(question), seconds))

    # --- what is sent -----------------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        """With what else comes in this turn of the loop."""
        if not self._is_flushing:
            self._is_flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Send what has gathered, in as few frames as their size allows; aborts travel in the first of them."""
        self._is_flushing = False
        try:
            while self._is_clear and (self._submits or self._aborts):
                self._is_clear = self._wire.send(self, codec.encode(self._next_frame()))
        except Exception as error:
            self._fail(error)

    def sent(self) -> None:
        self._is_clear = True
        self._flush()

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

    # --- what comes -------------------------------------------------------------------------------------------------

    def received(self, message: bytes) -> None:
        if self._end is None or self._end.done():
            return
        self._last_frame_at = time.monotonic()
        try:
            self._take(message)
        except Exception as error:
            self._fail(error)

    def ended(self, failure: "CallFailed | None") -> None:
        what = f"the stream to {self._address} broke: {failure}" if failure else f"{self._address} ended the stream"
        self._fail(EngineLost(what))

    def _fail(self, error: Exception) -> None:
        """Whatever it is, whoever awaits `run` shall hear of it, and nobody else."""
        if self._end is not None and not self._end.done():
            self._end.set_exception(error)

    def _take(self, message: bytes) -> None:
        try:
            deliveries = self._deliveries(codec.decode(messages.StepFrame, message))
        except (codec.DecodeError, ValueError, TypeError) as error:
            # Tokens are lost with it and nobody knows whose: every stream must learn that it is broken.
            self._count_fault("malformed_frame")
            raise EngineLost(f"{self._address} sent a malformed frame: {error}") from error
        if deliveries:
            self._deliver(deliveries)

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


def _hello(probe: "tuple[bytes, MemoryFile] | None") -> messages.ClientFrame:
    hello = messages.ClientFrame(protocol_version=PROTOCOL_VERSION)
    if probe is not None:
        hello.memory_probe_content, file = probe
        hello.memory_probe = messages.MemoryFile(file.pid, file.fd, file.inode, file.size)
    return hello


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
