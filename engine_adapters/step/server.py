"""The executor's half of the step stream: serves an engine to gateways, one frame per engine step and gateway.

Threads: none of its own. Everything here runs on the event loop that called `start`, the engine's calls included.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import grpc
import grpc.aio

from engine_adapters import codec
from engine_adapters.base import EngineInfo, Finish, FinishReason, KvEvent, Load, Logprobs, Submission
from engine_adapters.image import MemoryFile
from engine_adapters.serving import ServerTls, bind, service_of
from engine_adapters.step import ANSWERS_LIMIT, PROTOCOL_VERSION, STREAM_ID_LIMIT, memory, messages, translation
from engine_adapters.step.kv_index import KvIndex
from engine_adapters.step.payloads import NoRoom, PayloadMissing, Uploads, as_images
from engine_adapters.step.problems import find_image_problem, find_problem
from engine_adapters.step.session import Session, Stream

HELLO_SECONDS = 10.0
BEAT_SECONDS = 0.3
"""A session that sent nothing between two beats gets a frame: at most 0.6 s pass without one."""
STUCK_SECONDS = 30.0
"""A gateway that takes no frame for this long is dropped and its streams aborted."""
SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
)

NO_LOGPROBS: "Mapping[Stream, Logprobs]" = {}

Context = grpc.aio.ServicerContext[Any, Any]
log = logging.getLogger(__name__)


Output = tuple[Stream, Sequence[int], Finish | None]
"""(stream, its new token ids, the end if this is it)"""


class StepEngine(Protocol):
    """What an engine does for the harness. Every method is called on the harness's event loop and must not block."""

    def info(self) -> EngineInfo:
        """What the engine serves."""

    def submit(self, streams: Sequence[Stream], submission: Submission) -> None:
        """Start a stream for each of the `submission.n` answers.

        The columns are whole, the prompt is not empty, its ids are in the vocabulary, there is such a rank, phase and
        kind of constraint. Everything that comes of it goes to `emit`, a refusal (Finish REJECTED of each stream)
        included.
        """

    def abort(self, stream: Stream) -> None:
        """Stop a stream; once its slot is free, `emit` its Finish, ABORTED unless it ended otherwise just before."""

    def load(self) -> Load:
        """How busy the engine is now; asked for each frame."""

    def health(self) -> str:
        """What is wrong with the engine; empty when nothing is."""


class StepServer:
    """Serves one engine. `faults` counts what gateways sent that made no sense, by kind."""

    def __init__(self, engine: StepEngine) -> None:
        self.faults: Counter[str] = Counter()
        self._engine = engine
        self._info = engine.info()
        self._sessions: set[Session] = set()
        self._kv_index = KvIndex()
        self._uploads = Uploads()
        self._step = 0
        self._frame_taken = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self._heart: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int, tls: "ServerTls | None" = None) -> int:
        """Listen; returns the port, chosen by the system when `port` is 0. Raises OSError when it cannot be had."""
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((self._handlers(),))
        bound = bind(server, host, port, tls)
        await server.start()
        self._server = server
        self._heart = asyncio.create_task(self._beat())
        return bound

    def emit(self, step: int, outputs: Iterable[Output], logprobs: "Mapping[Stream, Logprobs]" = NO_LOGPROBS) -> None:
        """Send what an engine step brought: one frame to each gateway concerned.

        `logprobs` are of the outputs' tokens, all of them, for streams that asked. Returns at once. What a gateway does
        not read in time is joined to its next frame. Outputs for a stream that has ended are dropped. The caller does
        not change what it has given.
        """
        self._step = step
        for stream, each in logprobs.items():
            if stream.is_live:
                stream.session.add_logprobs(stream.stream_id, each)
        for stream, token_ids, finish in outputs:
            if not stream.is_live:
                continue
            if token_ids:
                pending = stream.session.token_ids
                gathered = pending.get(stream.stream_id)
                if gathered is None:
                    pending[stream.stream_id] = token_ids
                else:
                    pending[stream.stream_id] = [*gathered, *token_ids]
            if finish is not None:
                stream.session.end(stream, finish)
        for session in self._sessions:
            if session.has_news:
                session.wake.set()

    def emit_kv_events(self, events: Iterable[KvEvent]) -> None:
        """Tell all gateways how the prefix cache changed; who attaches later is told what has become of it."""
        events = [*events]
        for event in events:
            self._kv_index.apply(event)
        for session in self._sessions:
            session.kv_events += events
            session.wake.set()

    async def frames_taken(self, timeout: float) -> None:
        """Wait until all that was emitted is on its way in some frame, but no longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while any(session.has_news for session in self._sessions):
            self._frame_taken.clear()
            try:
                await asyncio.wait_for(self._frame_taken.wait(), deadline - time.monotonic())
            except asyncio.TimeoutError:  # on 3.10 not yet the built-in one
                return

    async def stop(self, reason: str, timeout: float = 1.0) -> None:
        """End every stream with a retryable ERROR, close the sessions, and stop listening, all within `timeout`."""
        for session in self._sessions:
            session.is_ending = True
            self._end_streams(session, Finish(FinishReason.ERROR, error=reason, retryable=True))
            session.wake.set()
        if self._heart is not None:
            self._heart.cancel()
        if self._server is not None:
            await self._server.stop(timeout)

    def _handlers(self) -> grpc.GenericRpcHandler:
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            messages.EXECUTOR_ATTACH: grpc.stream_stream_rpc_method_handler(self._attach),
            messages.EXECUTOR_GET_INFO: grpc.unary_unary_rpc_method_handler(self._get_info),
            messages.EXECUTOR_HEALTH: grpc.unary_unary_rpc_method_handler(self._health),
            messages.EXECUTOR_UPLOAD: grpc.unary_unary_rpc_method_handler(self._upload),
        }
        return service_of(methods)

    async def _get_info(self, _request: bytes, _context: Context) -> bytes:
        return codec.encode(translation.info_message(self._info))

    async def _health(self, _request: bytes, _context: Context) -> bytes:
        problem = self._engine.health()
        return codec.encode(messages.HealthReply(healthy=not problem, message=problem))

    async def _upload(self, request: bytes, context: Context) -> bytes:
        try:
            received = self._uploads.receive(codec.decode(messages.UploadRequest, request))
        except (codec.DecodeError, ValueError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except NoRoom as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        return codec.encode(messages.UploadReply(received))

    # --- sessions ---------------------------------------------------------------------------------------------------

    async def _attach(self, _requests: object, context: Context) -> None:
        hello = await self._check_hello(context)
        # In one go: the snapshot holds what was emitted before, and the session gets what is emitted from now on.
        session = Session(context.peer(), self._kv_index.snapshot(), _reads_memory(hello))
        self._sessions.add(session)
        log.info("%s attached", session.peer)
        reader = asyncio.create_task(self._read(session, context))
        session.writer = asyncio.create_task(self._write(session, context))
        try:
            await asyncio.wait({reader, session.writer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reader.cancel()
            session.writer.cancel()
            self._sessions.remove(session)
            self._abort_streams(session)
            # Not waited for: grpc.aio may be cancelling this very call, and the two end by themselves.
            for task in (reader, session.writer):
                task.add_done_callback(_log_failure)
            log.info("%s is gone", session.peer)
        if session.objection:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, session.objection)

    async def _check_hello(self, context: Context) -> messages.ClientFrame:
        hello = messages.ClientFrame()
        try:
            data = await asyncio.wait_for(context.read(), HELLO_SECONDS)
            hello = codec.decode(messages.ClientFrame, data) if data is not grpc.aio.EOF else hello
        except (asyncio.TimeoutError, codec.DecodeError):
            pass
        version = hello.protocol_version
        if version != PROTOCOL_VERSION:
            self.faults["bad_hello"] += 1
            log.warning("%s asked for version %d of the step stream, refused", context.peer(), version)
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this executor speaks version {PROTOCOL_VERSION} of the step stream; the first frame must carry that "
                f"as protocol_version, but it carried {version or 'none'}: update the older of gateway and executor",
            )
        return hello

    async def _read(self, session: Session, context: Context) -> None:
        """Obey the gateway until it leaves, or sends what cannot be read: then it waits for streams nobody started."""
        while (data := await context.read()) is not grpc.aio.EOF:
            try:
                frame = codec.decode(messages.ClientFrame, data)
                aborts = memoryview(frame.aborts).cast("I")
            except (codec.DecodeError, TypeError) as error:
                session.objection = f"a malformed frame: {error}"
                self._note_fault("malformed_frame", session, str(error))
                return
            for submit in frame.submits:
                self._submit(session, submit)
            self._abort(session, aborts)

    async def _write(self, session: Session, context: Context) -> None:
        version = PROTOCOL_VERSION
        while True:
            frame = session.next_frame(self._step, self._engine.load())
            frame.protocol_version, frame.reads_memory = version, session.reads_memory and version > 0
            version = 0
            self._frame_taken.set()
            session.writing_since = time.monotonic()
            data = codec.encode(frame)
            try:
                await context.write(data)
            except Exception as error:  # grpc.aio has no common class for "the gateway has left"
                log.debug("%s: a frame could not be written: %r", session.peer, error)
                return
            session.writing_since = None
            if session.is_ending and not session.has_news:
                return
            await session.wake.wait()
            session.wake.clear()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            now = time.monotonic()
            for session in self._sessions:
                if session.writing_since is not None and now - session.writing_since > STUCK_SECONDS:
                    self._note_fault("stuck_gateway", session, f"took no frame for {STUCK_SECONDS:g} s, dropped")
                    assert session.writer is not None
                    session.writer.cancel()
                elif session.is_quiet:
                    session.wake.set()
                session.is_quiet = True

    # --- requests ---------------------------------------------------------------------------------------------------

    def _submit(self, session: Session, submit: messages.Submit) -> None:
        first = submit.stream_id
        stream_ids = range(first, min(first + min(submit.n or 1, ANSWERS_LIMIT), STREAM_ID_LIMIT))
        used = [session.streams[stream_id] for stream_id in stream_ids if stream_id in session.streams]
        fresh = [Stream(session, each, submit.request_id) for each in stream_ids if each not in session.streams]
        session.streams.update((stream.stream_id, stream) for stream in fresh)
        if used:
            # The gateway cannot tell two streams of one id apart, so neither goes on.
            self._reject([*used, *fresh], f"{used} had not ended when their ids were used again")
            for stream in used:
                self._engine.abort(stream)
        elif problem := find_problem(submit, self._info):
            self._reject(fresh, problem)
        elif session.is_ending:
            self._end(fresh, Finish(FinishReason.ERROR, error="shutting down", retryable=True))
        elif submit.images:
            self._start_with_images(fresh, submit)
        else:
            self._start(fresh, translation.as_submission(submit))

    def _start_with_images(self, streams: list[Stream], submit: messages.Submit) -> None:
        try:
            images = as_images(submit.images, self._uploads)
        except (PayloadMissing, OSError) as error:
            self._note_fault("missing_payload", streams[0].session, str(error))
            self._end(streams, Finish(FinishReason.ERROR, error=str(error), retryable=True))
            return
        problem = find_image_problem(images, submit, self._info)
        if problem:
            self._reject(streams, problem)
        else:
            self._start(streams, translation.as_submission(submit, images))

    def _start(self, streams: list[Stream], submission: Submission) -> None:
        if submission.ends_at:
            seconds = submission.ends_at - time.monotonic()
            for stream in streams:
                stream.deadline = asyncio.get_running_loop().call_later(seconds, self._expire, stream)
        try:
            self._engine.submit(streams, submission)
        except Exception as error:  # whatever an engine does, the other streams go on
            log.exception("the engine failed to take %r", streams)
            self._end(streams, Finish(FinishReason.ERROR, error=f"the engine failed: {error!r}"))

    def _expire(self, stream: Stream) -> None:
        """The gateway wants no more of it, whether or not it comes to say so."""
        stream.session.end(stream, Finish(FinishReason.DEADLINE, error="the request's time is over"))
        stream.session.wake.set()
        self._engine.abort(stream)

    def _reject(self, streams: list[Stream], problem: str) -> None:
        self._note_fault("bad_submit", streams[0].session, f"{streams[0].request_id}: {problem}")
        self._end(streams, Finish(FinishReason.REJECTED, error=problem))

    def _end(self, streams: Iterable[Stream], finish: Finish) -> None:
        self.emit(self._step, [(stream, (), finish) for stream in streams])

    def _abort(self, session: Session, aborts: "memoryview[int]") -> None:
        for stream_id in aborts:
            stream = session.streams.get(stream_id)
            if stream is not None:
                self._engine.abort(stream)

    def _abort_streams(self, session: Session) -> None:
        """Nobody is left to hear of these streams: take them from the engine."""
        for stream in [*session.streams.values()]:
            stream.kill()
            self._engine.abort(stream)
        session.streams.clear()

    def _end_streams(self, session: Session, finish: Finish) -> None:
        for stream in [*session.streams.values()]:
            session.end(stream, finish)
            self._engine.abort(stream)

    def _note_fault(self, kind: str, session: Session, what: str) -> None:
        self.faults[kind] += 1
        log.warning("%s: %s: %s", session.peer, kind, what)


def _reads_memory(hello: messages.ClientFrame) -> bool:
    """Whether we can see what the gateway shares: it is on this host, in the same namespace of processes, and ours."""
    probe = hello.memory_probe
    if probe is None:
        return False
    try:
        return memory.read(MemoryFile(probe.pid, probe.fd, probe.inode, probe.size)) == hello.memory_probe_content
    except (OSError, ValueError):
        return False


def _log_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a session broke", exc_info=error)
