"""TensorRT-LLM as a `StepEngine`: starts and stops requests, and makes one report of what all of them got in a step.

Threads: none of its own. Everything here runs on the event loop that `run` is awaited on; TensorRT-LLM's own threads
put results into its queues, which wake that loop.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from engine_adapters.base import EngineInfo, Finish, FinishReason, Load, Logprobs, Submission
from engine_adapters.step.meter import TokenMeter
from engine_adapters.step.server import Output, StepServer
from engine_adapters.step.session import Stream
from engine_adapters.trtllm.executor.api import RequestFault, TensorRt
from engine_adapters.trtllm.executor.reports import KvTranslator, as_load
from engine_adapters.trtllm.executor.request import Request, failure

HEALTH_SECONDS = 1.0
log = logging.getLogger(__name__)


class EngineDead(Exception):
    """TensorRT-LLM has given up; the message says why."""


class TrtllmEngine:
    """Every request is followed by a task of its own, since that is how the LLM API tells of results. The tasks only
    note that there is news; one pass over all requests then makes the frame."""

    def __init__(self, info: EngineInfo, trt: TensorRt) -> None:
        self._info = info
        self._trt = trt
        self._server: StepServer | None = None
        self._loop = asyncio.get_running_loop()
        self._requests: dict[Stream, tuple[Request, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[Request, None] = {}
        self._has_news = False
        self._step = 0
        self._tokens = 0
        self._meter = TokenMeter()
        self._stats: Mapping[str, Any] = {}
        self._kv = KvTranslator(info.kv_block_size)

    def info(self) -> EngineInfo:
        return self._info

    def health(self) -> str:
        return self._trt.problem()

    def load(self) -> Load:
        return as_load(self._stats, len(self._requests), self._meter.rate())

    def submit(self, streams: "Sequence[Stream]", submission: Submission) -> None:
        try:
            generation = self._trt.generate(submission, self._info.vocab_size)
        except RequestFault as fault:
            log.info("%r is refused: %s", streams[0], fault)
            self._emit([(stream, (), failure(fault, len(submission.token_ids) // 4)) for stream in streams])
            return
        request = Request(streams, submission, generation, self._info.eos_token_ids)
        self._requests.update((stream, (request, index)) for index, stream in enumerate(streams))
        self._running[request] = None
        task = self._loop.create_task(self._follow(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def abort(self, stream: Stream) -> None:
        known = self._requests.get(stream)
        if known is None:
            return
        request, index = known
        if request.open == {index}:
            request.abort()
        else:
            # The engine stops all answers to a prompt or none.
            request.open.discard(index)
            del self._requests[stream]
            self._emit([(stream, (), Finish(FinishReason.ABORTED))])

    async def run(self, server: StepServer) -> None:
        """Serve until the engine dies; raises EngineDead."""
        self._server = server
        reports = [self._report("stats", self._note_stats)]
        if "kv_events" in self._info.features:
            reports.append(self._report("kv_cache_events", self._note_kv_events))
        tasks = [self._loop.create_task(report) for report in reports]
        try:
            while True:
                await asyncio.sleep(HEALTH_SECONDS)
                if problem := self._trt.problem():
                    raise EngineDead(problem)
        finally:
            for task in tasks:
                task.cancel()

    async def stop(self, timeout: float) -> None:
        """Abort what runs, and give the engine `timeout` seconds to confirm it."""
        for request in self._running:
            request.abort()
        if self._tasks:
            await asyncio.wait([*self._tasks], timeout=timeout)

    async def _follow(self, request: Request) -> None:
        try:
            await request.generation.follow(self._note)
        except Exception as error:  # whatever the engine raises, the client must hear of it
            request.fault = self._trt.fault(error)
            log.warning("%r failed: %s", request.streams[0], request.fault)
        request.is_over = True
        self._note()

    def _note(self) -> None:
        if not self._has_news:
            self._has_news = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """One frame's worth: what all requests have got since the last time, which is a step of the engine's."""
        self._has_news = False
        outputs: list[Output] = []
        logprobs: dict[Stream, Logprobs] = {}
        others: list[Request] = []
        for request in self._running:
            if request.plain is None or request.is_over:
                others.append(request)
                continue
            # What follows is most of what a token costs here.
            so_far, counts = request.plain.token_ids, request.counts
            count = counts[0]
            if len(so_far) > count:
                counts[0] = len(so_far)
                outputs.append((request.streams[0], so_far[count:], None))
        for request in others:
            self._tell(request, outputs, logprobs)
        self._tokens += sum([len(token_ids) for _, token_ids, _ in outputs])
        self._meter.note(self._tokens)
        self._step += 1
        self._emit(outputs, logprobs)

    def _tell(self, request: Request, outputs: "list[Output]", logprobs: "dict[Stream, Logprobs]") -> None:
        """Several answers, logprobs, the first tokens of a decode, and every end."""
        before = request.open.copy()
        request.tell(outputs, logprobs)
        for index in before - request.open:
            del self._requests[request.streams[index]]
        if request.is_over:
            del self._running[request]

    def _emit(self, outputs: "Sequence[Output]", logprobs: "Mapping[Stream, Logprobs] | None" = None) -> None:
        if self._server is not None:
            self._server.emit(self._step, outputs, logprobs or {})

    async def _report(self, kind: str, note: "Callable[[list[Any]], None]") -> None:
        try:
            await self._trt.report(kind, note)
        except Exception as error:  # an engine without these reports serves all the same
            log.warning("no %s from here on: %s", kind.replace("_", " "), error)

    def _note_stats(self, stats: "Sequence[Mapping[str, Any]]") -> None:
        self._stats = stats[-1]

    def _note_kv_events(self, events: "Iterable[Mapping[str, Any]]") -> None:
        translated = self._kv.translate(events)
        if translated and self._server is not None:
            self._server.emit_kv_events(translated)
