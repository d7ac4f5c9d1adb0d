"""An executor that says exactly what a test tells it to: right, wrong or nothing at all.

Threads: all fakes of the process share one event loop in a thread of its own, which is never closed (grpc.aio breaks
other loops when one is). A test talks to a fake from its own thread.
"""

import asyncio
import queue
import threading
from array import array
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from engine_adapters import codec, tokenizer_file
from engine_adapters.base import FinishReason
from engine_adapters.step import PROTOCOL_VERSION, messages
from tests.demo_model import CONTEXT_LENGTH, END_OF_TURN, TOKENIZER, VOCAB_SIZE, ids_of
from tests.processes import PATIENCE, eventually

BEAT_SECONDS = 0.5


def demo_info(**changes: Any) -> messages.Info:
    """What an executor of the demo model says of itself, with `changes`."""
    fields: dict[str, Any] = {
        "protocol_version": PROTOCOL_VERSION,
        "engine": "fake",
        "engine_version": "1",
        "model": "gateway-demo",
        "vocab_size": VOCAB_SIZE,
        "context_length": CONTEXT_LENGTH,
        "max_running": 8,
        "tokenizer_fingerprint": tokenizer_file.fingerprint(TOKENIZER.get_vocab(with_added_tokens=True)),
        "eos_token_ids": column([END_OF_TURN]),
    }
    return messages.Info(**fields | changes)


def column(values: Iterable[int]) -> bytes:
    return array("I", values).tobytes()


class Loop:
    """The loop that all fakes live on."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="fake executors", daemon=True).start()

    def run[Result](self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """The coroutine's result, waited for in the calling thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)


LOOP = Loop()


class FakeExecutor:
    """Serves the step stream on `address`; `with` stops it. To each submit it says `greeting` at once."""

    def __init__(self, greeting: str = "", info: messages.Info | bytes | None = None, port: int = 0) -> None:
        self.info = info or demo_info()
        self.greeting = greeting
        self.submits: queue.Queue[messages.Submit] = queue.Queue()
        self.aborts: queue.Queue[int] = queue.Queue()
        self.is_silent = False
        self._attached: set[grpc.aio.ServicerContext[Any, Any]] = set()
        self._writing = asyncio.Lock()
        self._dropped = asyncio.Event()
        self.address = LOOP.run(self._start(port))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        LOOP.run(self._server.stop(0))

    @property
    def url(self) -> str:
        return f"step://{self.address}"

    def start_anew(self) -> None:
        """Forget what gateways said before, and say no greeting."""
        self.is_silent = False
        self.greeting = ""
        for old in (self.submits, self.aborts):
            while not old.empty():
                old.get_nowait()

    def wait_until_attached(self) -> None:
        eventually(lambda: self._attached, "a gateway's Attach")

    def next_submit(self) -> messages.Submit:
        return self.submits.get(timeout=PATIENCE)

    def next_abort(self) -> int:
        """The stream id of the next abort."""
        return self.aborts.get(timeout=PATIENCE)

    def say(self, submit: messages.Submit, *token_ids: int) -> None:
        """A frame with tokens for one stream."""
        self.send(frame_of({submit.stream_id: token_ids}))

    def finish(self, submit: messages.Submit, reason: FinishReason = FinishReason.STOP, **fields: Any) -> None:
        """A frame with the end of one stream."""
        self.send(messages.StepFrame(finished=[end_of(submit, reason, **fields)]))

    def send(self, frame: messages.StepFrame | bytes) -> None:
        """A frame to the gateway, written when this returns."""
        self.wait_until_attached()
        LOOP.run(self._write(frame if isinstance(frame, bytes) else codec.encode(frame)))

    def drop(self) -> None:
        """End the gateway's Attach stream; it may attach again."""
        LOOP.run(self._drop())

    async def _start(self, port: int) -> str:
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        handlers: dict[str, Any] = {
            messages.EXECUTOR_ATTACH: grpc.stream_stream_rpc_method_handler(self._attach),
            messages.EXECUTOR_GET_INFO: grpc.unary_unary_rpc_method_handler(self._get_info),
        }
        service = messages.EXECUTOR_ATTACH.split("/")[1]
        by_name = {path.rpartition("/")[2]: handler for path, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, by_name),))
        port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()
        return f"127.0.0.1:{port}"

    async def _get_info(self, _request: bytes, _context: object) -> bytes:
        return self.info if isinstance(self.info, bytes) else codec.encode(self.info)

    async def _attach(self, _requests: object, context: Any) -> None:
        hello = codec.decode(messages.ClientFrame, await context.read())
        assert hello.protocol_version == PROTOCOL_VERSION and not hello.submits
        await context.write(codec.encode(messages.StepFrame(protocol_version=PROTOCOL_VERSION)))
        self._attached.add(context)
        tasks = [asyncio.create_task(work) for work in (self._read(context), self._beat(context), self._dropped.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._attached.discard(context)
            for task in tasks:
                task.cancel()

    async def _read(self, context: Any) -> None:
        while (data := await context.read()) is not grpc.aio.EOF:
            frame = codec.decode(messages.ClientFrame, data)
            for submit in frame.submits:
                if self.greeting:
                    await self._write(codec.encode(frame_of({submit.stream_id: ids_of(self.greeting)})))
                self.submits.put(submit)
            for stream_id in memoryview(frame.aborts).cast("I"):
                self.aborts.put(stream_id)

    async def _beat(self, context: Any) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            if not self.is_silent:
                async with self._writing:
                    await context.write(codec.encode(messages.StepFrame()))

    async def _write(self, data: bytes) -> None:
        async with self._writing:
            for context in [*self._attached]:
                await context.write(data)

    async def _drop(self) -> None:
        self._dropped.set()
        self._dropped = asyncio.Event()


def frame_of(
    tokens: dict[int, Iterable[int]], finished: Iterable[messages.Finished] = (), load: messages.Load | None = None
) -> messages.StepFrame:
    """A frame that gives each stream its tokens."""
    lists = {stream_id: list(token_ids) for stream_id, token_ids in tokens.items()}
    return messages.StepFrame(
        stream_ids=column(lists),
        counts=column(len(token_ids) for token_ids in lists.values()),
        token_ids=column(token_id for token_ids in lists.values() for token_id in token_ids),
        finished=list(finished),
        load=load,
    )


def end_of(submit: messages.Submit, reason: FinishReason = FinishReason.STOP, **fields: Any) -> messages.Finished:
    return messages.Finished(stream_id=submit.stream_id, reason=reason.value, **fields)


def flood(executor: FakeExecutor, submit: messages.Submit) -> None:
    """Say more than the buffers between the gateway and its client hold."""
    token_ids = ids_of(" contiguous") * 10_000
    for _ in range(100):
        executor.say(submit, *token_ids)
