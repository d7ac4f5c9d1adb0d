"""The executor's half of the step stream: serves an engine to gateways, one frame per engine step and gateway.

Threads: none of its own. Everything here runs on the event loop that called `start`, the engine's calls included.
"""

import asyncio
import logging
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import grpc
import grpc.aio

from engine_adapters import codec
from engine_adapters.base import EngineInfo, Finish, FinishReason, Load, Sampling, Submission
from engine_adapters.step import PROTOCOL_VERSION, messages
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

Context = grpc.aio.ServicerContext[Any, Any]
log = logging.getLogger(__name__)


Output = tuple[Stream, Sequence[int], Finish | None]
"""(stream, its new token ids, the end if this is it)"""


class StepEngine(Protocol):
    """What an engine does for the harness. Every method is called on the harness's event loop and must not block."""

    def info(self) -> EngineInfo:
        """What the engine serves."""

    def submit(self, stream: Stream, submission: Submission) -> None:
        """Start a stream. The columns are whole, the prompt is not empty, its ids are in the vocabulary.

        Everything that comes of it goes to `emit`, a refusal (Finish REJECTED) included.
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
        self._step = 0
        self._frame_taken = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self._heart: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, chosen by the system when `port` is 0. Raises OSError when it cannot be had."""
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((self._handlers(),))
        try:
            bound: int = server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {host} port {port}: it is taken, or not ours to take") from error
        await server.start()
        self._server = server
        self._heart = asyncio.create_task(self._beat())
        return bound

    def emit(self, step: int, outputs: Iterable[Output]) -> None:
        """Send what an engine step brought: one frame to each gateway concerned.

        Returns at once. What a gateway does not read in time is joined to its next frame. Outputs for a stream that
        has ended are dropped.
        """
        self._step = step
        for stream, token_ids, finish in outputs:
            if not stream.is_live:
                continue
            if token_ids:
                pending = stream.session.token_ids
                gathered = pending.get(stream.stream_id)
                if gathered is None:
                    pending[stream.stream_id] = [*token_ids]
                else:
                    gathered.extend(token_ids)
            if finish is not None:
                stream.session.end(stream, finish)
        for session in self._sessions:
            if session.has_news:
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
        service = messages.EXECUTOR_ATTACH.split("/")[1]
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            messages.EXECUTOR_ATTACH: grpc.stream_stream_rpc_method_handler(self._attach),
            messages.EXECUTOR_GET_INFO: grpc.unary_unary_rpc_method_handler(self._get_info),
            messages.EXECUTOR_HEALTH: grpc.unary_unary_rpc_method_handler(self._health),
        }
        return grpc.method_handlers_generic_handler(
            service, {path.split("/")[-1]: handler for path, handler in methods.items()}
        )

    async def _get_info(self, _request: bytes, _context: Context) -> bytes:
        info = self._info
        return codec.encode(
            messages.Info(
                protocol_version=PROTOCOL_VERSION,
                engine=info.engine,
                engine_version=info.engine_version,
                model=info.model,
                vocab_size=info.vocab_size,
                context_length=info.context_length,
                max_running=info.max_running,
                tokenizer_fingerprint=info.tokenizer_fingerprint,
                eos_token_ids=array("I", info.eos_token_ids).tobytes(),
            )
        )

    async def _health(self, _request: bytes, _context: Context) -> bytes:
        problem = self._engine.health()
        return codec.encode(messages.HealthReply(healthy=not problem, message=problem))

    # --- sessions ---------------------------------------------------------------------------------------------------

    async def _attach(self, _requests: object, context: Context) -> None:
        await self._check_hello(context)
        session = Session(context.peer())
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

    async def _check_hello(self, context: Context) -> None:
        try:
            data = await asyncio.wait_for(context.read(), HELLO_SECONDS)
            version = codec.decode(messages.ClientFrame, data).protocol_version if data is not grpc.aio.EOF else 0
        except (asyncio.TimeoutError, codec.DecodeError):
            version = 0
        if version != PROTOCOL_VERSION:
            self.faults["bad_hello"] += 1
            log.warning("%s asked for version %d of the step stream, refused", context.peer(), version)
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this executor speaks version {PROTOCOL_VERSION} of the step stream; the first frame must carry that "
                f"as protocol_version, but it carried {version or 'none'}: update the older of gateway and executor",
            )

    async def _read(self, session: Session, context: Context) -> None:
        while (data := await context.read()) is not grpc.aio.EOF:
            try:
                frame = codec.decode(messages.ClientFrame, data)
            except codec.DecodeError as error:
                self._note_fault("malformed_frame", session, str(error))
                continue
            for submit in frame.submits:
                self._submit(session, submit)
            if frame.aborts:
                self._abort(session, frame.aborts)

    async def _write(self, session: Session, context: Context) -> None:
        version = PROTOCOL_VERSION
        while True:
            frame = session.next_frame(self._step, self._engine.load())
            frame.protocol_version, version = version, 0
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
        stream_id = submit.stream_id
        previous = session.streams.get(stream_id)
        if previous is not None:
            # The gateway cannot tell two streams of one id apart, so neither goes on.
            self._reject(previous, f"stream id {stream_id} was used again while its stream was live")
            self._engine.abort(previous)
            return
        stream = session.streams[stream_id] = Stream(session, stream_id, submit.request_id)
        if problem := find_problem(submit, self._info.vocab_size):
            self._reject(stream, problem)
            return
        if session.is_ending:
            self.emit(self._step, [(stream, (), Finish(FinishReason.ERROR, error="shutting down", retryable=True))])
            return
        try:
            self._engine.submit(stream, as_submission(submit))
        except Exception as error:  # whatever an engine does, the other streams go on
            log.exception("the engine failed to take %r", stream)
            self.emit(self._step, [(stream, (), Finish(FinishReason.ERROR, error=f"the engine failed: {error!r}"))])

    def _reject(self, stream: Stream, problem: str) -> None:
        self._note_fault("bad_submit", stream.session, f"{stream.request_id}: {problem}")
        self.emit(self._step, [(stream, (), Finish(FinishReason.REJECTED, error=problem))])

    def _abort(self, session: Session, aborts: bytes) -> None:
        if len(aborts) % 4:
            self._note_fault("bad_aborts", session, f"{len(aborts)} bytes are no column of u32")
            return
        for stream_id in memoryview(aborts).cast("I"):
            stream = session.streams.get(stream_id)
            if stream is not None:
                self._engine.abort(stream)

    def _abort_streams(self, session: Session) -> None:
        """Nobody is left to hear of these streams: take them from the engine."""
        for stream in [*session.streams.values()]:
            stream.is_live = False
            self._engine.abort(stream)
        session.streams.clear()

    def _end_streams(self, session: Session, finish: Finish) -> None:
        for stream in [*session.streams.values()]:
            session.end(stream, finish)
            self._engine.abort(stream)

    def _note_fault(self, kind: str, session: Session, what: str) -> None:
        self.faults[kind] += 1
        log.warning("%s: %s: %s", session.peer, kind, what)


def find_problem(submit: messages.Submit, vocab_size: int) -> str:
    """Why no engine could serve this; empty when one could."""
    for name in ("token_ids", "stop_token_ids"):
        if len(getattr(submit, name)) % 4:
            return f"{name} has {len(getattr(submit, name))} bytes and is no column of u32"
    if not submit.token_ids:
        return "the prompt is empty"
    if submit.max_tokens < 1:
        return "max_tokens must be at least 1"
    largest = max(memoryview(submit.token_ids).cast("I"))
    if largest >= vocab_size:
        return f"token id {largest} is not in this model's vocabulary of {vocab_size}"
    return ""


def as_submission(submit: messages.Submit) -> Submission:
    sampling = submit.sampling or messages.Sampling()
    return Submission(
        request_id=submit.request_id,
        token_ids=submit.token_ids,
        max_tokens=submit.max_tokens,
        sampling=Sampling(temperature=sampling.temperature, top_p=sampling.top_p, seed=sampling.seed),
        stop_token_ids=submit.stop_token_ids,
        ignore_eos=submit.ignore_eos,
    )


def _log_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a session broke", exc_info=error)
