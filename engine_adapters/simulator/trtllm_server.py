"""Serves the simulated engine as `trtllm-serve --grpc` would: a call for each request, a message for each token.

As with the real server, the model's own end is among the ids and another stop id is not, the last message repeats
everything, and a prompt's logprobs come one place too early. Stop strings are left to the gateway.

Threads: none of its own. Everything here runs on the event loop that called `start`, the engine's calls included.
"""

import asyncio
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio

from engine_adapters import codec
from engine_adapters.base import (
    Constraint,
    EngineInfo,
    Finish,
    FinishReason,
    KvEvent,
    Logprobs,
    Lora,
    Sampling,
    Submission,
)
from engine_adapters.serving import ServerTls, bind, service_of
from engine_adapters.step.server import SERVER_OPTIONS, Output, StepEngine
from engine_adapters.step.session import Stream
from engine_adapters.trtllm.native import messages
from engine_adapters.trtllm.native.translation import GUIDE_TYPES

REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length", FinishReason.ABORTED: "cancelled"}
GUIDES = {number: kind for kind, number in GUIDE_TYPES.items()}
Context = grpc.aio.ServicerContext[Any, Any]


class AnswerStream(Stream):
    """One answer of a Generate call: the key under which the engine knows it."""

    __slots__ = ("call", "logprobs", "said")

    def __init__(self, call: "Generation", index: int) -> None:
        self.call = call
        self.stream_id = index
        self.request_id = call.request.request_id
        self.is_live = True
        self.said: list[int] = []
        self.logprobs: list[messages.TokenLogprob] = []


class Generation:
    """One Generate call: its answers, and the messages that wait to be written."""

    def __init__(self, request: messages.GenerateRequest, info: EngineInfo) -> None:
        self.request = request
        self.submission = as_submission(request)
        self.streams = [AnswerStream(self, index) for index in range(self.submission.n)]
        self.completes: list[messages.GenerateComplete] = []
        self.failure: Finish | None = None
        self.pending: list[messages.GenerateResponse] = []
        self.wake = asyncio.Event()
        self._eos_token_ids = frozenset(() if request.ignore_eos else info.eos_token_ids)

    @property
    def is_over(self) -> bool:
        return not any(stream.is_live for stream in self.streams)

    def note(
        self, stream: AnswerStream, token_ids: Sequence[int], finish: "Finish | None", scores: "Logprobs | None"
    ) -> None:
        """What a step brought for one answer."""
        if finish is not None and finish.matched_stop in self._eos_token_ids:
            token_ids = [*token_ids, finish.matched_stop]
        entries = [] if scores is None else logprob_entries(token_ids, scores)
        stream.said += token_ids
        stream.logprobs += entries
        if token_ids and self.request.streaming:
            self._say(chunk=self._chunk(stream, token_ids, entries))
        if finish is not None:
            stream.is_live = False
            self._end(stream, finish)
        if self.pending or self.is_over:
            self.wake.set()

    def _say(self, **content: Any) -> None:
        self.pending.append(messages.GenerateResponse(self.request.request_id, **content))

    def _chunk(
        self, stream: AnswerStream, token_ids: Sequence[int], entries: list[messages.TokenLogprob]
    ) -> messages.GenerateStreamChunk:
        prompt_tokens = len(self.submission.token_ids) // 4
        return messages.GenerateStreamChunk(
            token_ids, stream.stream_id, prompt_tokens, len(stream.said), logprobs=entries
        )

    def _end(self, stream: AnswerStream, finish: Finish) -> None:
        """All answers' last messages come together."""
        if finish.reason not in REASONS:
            self.failure = finish
            return
        is_stripped = finish.matched_stop is not None and finish.matched_stop not in self._eos_token_ids
        complete = messages.GenerateComplete(
            output_token_ids=stream.said,
            sequence_index=stream.stream_id,
            finish_reason=REASONS[finish.reason],
            matched_token_id=finish.matched_stop if is_stripped else None,
            prompt_tokens=finish.prompt_tokens,
            completion_tokens=len(stream.said),
            cached_tokens=finish.cached_tokens,
            logprobs=stream.logprobs,
        )
        if finish.prompt_logprobs is not None:
            complete.prompt_logprobs = prompt_entries(self.submission.token_ids, finish.prompt_logprobs)
        self.completes.append(complete)
        if self.is_over:
            for each in self.completes:
                self._say(complete=each)


class TrtllmServer:
    """Serves one engine, in the place of a `StepServer`."""

    def __init__(self, engine: StepEngine) -> None:
        self._engine = engine
        self._info = engine.info()
        self._calls: dict[str, Generation] = {}
        self._written = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, port: int, tls: "ServerTls | None" = None) -> int:
        """Listen; returns the port, chosen by the system when `port` is 0. Raises OSError when it cannot be had."""
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((self._handlers(),))
        bound = bind(server, host, port, tls)
        await server.start()
        self._server = server
        return bound

    def emit(self, _step: int, outputs: Iterable[Output], logprobs: "Mapping[Stream, Logprobs] | None" = None) -> None:
        """Have what an engine step brought written, a message for each answer."""
        for stream, token_ids, finish in outputs:
            if isinstance(stream, AnswerStream) and stream.is_live:
                stream.call.note(stream, token_ids, finish, logprobs.get(stream) if logprobs else None)

    def emit_kv_events(self, _events: Iterable[KvEvent]) -> None:
        """No server tells of them on this wire."""

    async def frames_taken(self, timeout: float) -> None:
        """Wait until all messages are on their way, but no longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while any(call.pending for call in self._calls.values()):
            self._written.clear()
            try:
                await asyncio.wait_for(self._written.wait(), deadline - time.monotonic())
            except asyncio.TimeoutError:  # on 3.10 not yet the built-in one
                return

    async def stop(self, _reason: str, timeout: float = 1.0) -> None:
        """Stop listening and cut what runs, as the real server does."""
        if self._server is not None:
            await self._server.stop(timeout)

    def _handlers(self) -> grpc.GenericRpcHandler:
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            messages.TRTLLM_SERVICE_GENERATE: grpc.unary_stream_rpc_method_handler(self._generate),
            messages.TRTLLM_SERVICE_ABORT: grpc.unary_unary_rpc_method_handler(self._abort),
            messages.TRTLLM_SERVICE_HEALTH_CHECK: grpc.unary_unary_rpc_method_handler(self._check_health),
            messages.TRTLLM_SERVICE_GET_MODEL_INFO: grpc.unary_unary_rpc_method_handler(self._get_model_info),
            messages.TRTLLM_SERVICE_GET_SERVER_INFO: grpc.unary_unary_rpc_method_handler(self._get_server_info),
        }
        return service_of(methods)

    async def _generate(self, data: bytes, context: Context) -> None:
        request = codec.decode(messages.GenerateRequest, data)
        if problem := find_problem(request, self._info):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
        call = self._calls[request.request_id] = Generation(request, self._info)
        try:
            self._engine.submit(call.streams, call.submission)
            while not call.is_over or call.pending:
                await call.wake.wait()
                call.wake.clear()
                pending, call.pending = call.pending, []
                self._written.set()
                for message in pending:
                    await context.write(codec.encode(message))
        finally:
            self._calls.pop(request.request_id, None)
            for stream in call.streams:
                if stream.is_live:
                    stream.is_live = False
                    self._engine.abort(stream)
        if call.failure is not None:
            is_rejected = call.failure.reason is FinishReason.REJECTED
            code = grpc.StatusCode.INVALID_ARGUMENT if is_rejected else grpc.StatusCode.INTERNAL
            await context.abort(code, call.failure.error)

    async def _abort(self, data: bytes, _context: Context) -> bytes:
        request_id = codec.decode(messages.AbortRequest, data).request_id
        call = self._calls.get(request_id)
        for stream in call.streams if call is not None else ():
            self._engine.abort(stream)
        found = "not found" if call is None else "aborted"
        return codec.encode(messages.AbortResponse(call is not None, f"Request {request_id} {found}"))

    async def _check_health(self, _data: bytes, _context: Context) -> bytes:
        return codec.encode(messages.HealthCheckResponse(self._engine.health() or "OK"))

    async def _get_model_info(self, _data: bytes, _context: Context) -> bytes:
        info = self._info
        answer = messages.GetModelInfoResponse(
            info.model, max_seq_len=info.context_length, max_batch_size=info.max_running, vocab_size=info.vocab_size
        )
        return codec.encode(answer)

    async def _get_server_info(self, _data: bytes, _context: Context) -> bytes:
        answer = messages.GetServerInfoResponse(self._info.engine_version, "tensorrt-llm", 1, 1, 1, 1)
        return codec.encode(answer)


# --- the border's values from messages, and back --------------------------------------------------------------------


def find_problem(request: messages.GenerateRequest, info: EngineInfo) -> str:
    """Why the engine could not serve this; empty when it could."""
    if request.tokenized is None or not request.tokenized.input_token_ids:
        return "Missing tokenized input"
    largest = max(request.tokenized.input_token_ids)
    if largest >= info.vocab_size:
        return f"token id {largest} is not in this model's vocabulary of {info.vocab_size}"
    if not request.max_tokens:
        return "max_tokens must be at least 1"
    if len(request.embedding_bias) not in (0, info.vocab_size):
        return f"embedding_bias length ({len(request.embedding_bias)}) must match vocab_size ({info.vocab_size})"
    sampling = request.sampling_config or messages.SamplingConfig()
    if sampling.num_return_sequences > 1 and sampling.temperature == 0:
        return "Greedy decoding in the LLM API does not allow multiple returns"
    return ""


def as_submission(request: messages.GenerateRequest) -> Submission:
    output = request.output_config or messages.OutputConfig()
    sampling = request.sampling_config or messages.SamplingConfig()
    guided, lora = request.guided_decoding, request.lora_config
    assert request.tokenized is not None
    return Submission(
        request_id=request.request_id,
        token_ids=array("I", request.tokenized.input_token_ids).tobytes(),
        max_tokens=request.max_tokens,
        sampling=_sampling(sampling, request.embedding_bias),
        stop_token_ids=array("I", request.stop_token_ids).tobytes(),
        ignore_eos=request.ignore_eos,
        min_tokens=sampling.min_tokens or 0,
        n=sampling.num_return_sequences or 1,
        logprobs=output.logprobs,
        prompt_logprobs=output.prompt_logprobs,
        lora=Lora(f"lora_{lora.task_id}", lora.task_id) if lora is not None and lora.task_id else None,
        constraint=Constraint(GUIDES[guided.guide_type], guided.guide) if guided is not None and guided.guide else None,
        stream=request.streaming,
    )


def _sampling(message: messages.SamplingConfig, embedding_bias: Sequence[float]) -> Sampling:
    seed = message.seed
    return Sampling(
        temperature=message.temperature,
        top_p=message.top_p,
        seed=None if seed is None else (seed + (1 << 63)) % (1 << 64) - (1 << 63),
        top_k=message.top_k,
        min_p=message.min_p,
        frequency_penalty=message.frequency_penalty,
        presence_penalty=message.presence_penalty,
        repetition_penalty=message.repetition_penalty,
        logit_bias=tuple((token_id, bias) for token_id, bias in enumerate(embedding_bias) if bias),
    )


def logprob_entries(token_ids: Sequence[int], scores: Logprobs) -> list[messages.TokenLogprob]:
    """The token itself is always among the alternatives, and those are in no order."""
    entries = []
    for token_id, logprob, alternatives in zip(token_ids, scores.logprobs, scores.alternatives):  # noqa: B905
        tops = {token_id: logprob, **dict(alternatives)}
        top_logprobs = [messages.TopLogprob(*pair) for pair in sorted(tops.items())]
        entries.append(messages.TokenLogprob(token_id, logprob, top_logprobs))
    return entries


def prompt_entries(token_ids: bytes, scores: Logprobs) -> list[messages.TokenLogprob]:
    """What is said of the next token stands beside each."""
    prompt = memoryview(token_ids).cast("I").tolist()
    entries = logprob_entries(prompt, scores)[1:]
    for token_id, entry in zip(prompt, entries):  # noqa: B905
        entry.token_id, entry.logprob = token_id, 0.0
    return entries
