"""The straight line: one request from its input to the events of its answer."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from engine_adapters.base import Constraint, EngineInfo, Finish, FinishReason, Logprobs, Submission
from gateway.config import Config
from gateway.decoder import AnswerDecoder, AnswerReader
from gateway.engines import EngineThread
from gateway.errors import BadRequest, ModelNotFound, Unavailable
from gateway.http_loop import HttpLoop
from gateway.metrics import NO_TOOL_CALLS, RETRIES, TOOL_CALLS, WIRE_FAULTS, Registry
from gateway.model import Model
from gateway.pools import INLINE_CHARACTERS, Pool
from gateway.routing import Lease, Router, Worker
from gateway.schemas import Validators
from gateway.streams import Stream, Take
from gateway.threads import Supervisor
from gateway.types import (
    ChatInput,
    Event,
    GenerateRequest,
    Input,
    Prompt,
    RequestRecord,
    TextInput,
    TokensInput,
    Usage,
    Waiting,
)

ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything process-wide that answering a request needs; `loops` grows while the HTTP loops start."""

    config: Config
    models: dict[str, Model]
    router: Router
    engine: EngineThread
    tokenize: Pool
    validators: Validators
    registry: Registry
    supervisor: Supervisor
    loops: list[HttpLoop] = field(default_factory=list)

    def model(self, name: str) -> Model:
        """Raises ModelNotFound."""
        model = self.models.get(name)
        if model is None:
            raise ModelNotFound(
                f"the model {name!r} is not served here; there is {', '.join(map(repr, self.models))}", param="model"
            )
        return model


class Output(Protocol):
    """Where the events of an answer go."""

    def put(self, event: Event) -> bool:
        """Take an event; False asks for a `flush` before the next one."""

    async def flush(self) -> None:
        """Wait until more can be taken."""


async def generate(
    gateway: Gateway, loop: HttpLoop, request: GenerateRequest, record: RequestRecord, output: Output
) -> None:
    """Have `output` told what the model says, until it stops or is stopped; the last event is Usage."""
    model = gateway.model(request.model)
    prompt = await prepare(gateway, model, request, record)
    submission = submission_for(model, request, prompt, constraint_for(gateway, model, request, prompt))
    decoders = [
        AnswerDecoder(index, loop.tables[model.name], request.output, reader_for(model, request, prompt))
        for index in range(request.n)
    ]
    try:
        async with Attempts(gateway, loop, model, submission, record) as stream:
            answering = Answering(decoders, record, output, stream.drop)
            while answering.unfinished:
                if not await stream.pump(answering.take):
                    output.put(Waiting())
                await output.flush()
    finally:
        account(loop, record, decoders)
    first = decoders[0].finish
    prompt_logprobs = first.prompt_logprobs if first else None
    tokens = (record.completion_tokens, record.cached_tokens)
    output.put(Usage(prompt.length, *tokens, prompt_logprobs, record.reasoning_tokens))


class Answering:
    """The path of every token: decoded and put out in one call. `drop(index)` is told of answers that end here."""

    def __init__(
        self, decoders: list[AnswerDecoder], record: RequestRecord, output: Output, drop: Callable[[int], None]
    ) -> None:
        self._decoders = decoders
        self._record = record
        self._output = output
        self._drop = drop
        self.unfinished = len(decoders)

    def take(self, index: int, token_ids: Sequence[int], finish: Finish | None, logprobs: Logprobs | None) -> bool:
        """False when the output wants a flush or everything has ended; raises what `finish` says went wrong."""
        decoder, put = self._decoders[index], self._output.put
        event = decoder.event(token_ids, finish, logprobs)
        self._record.completion_tokens += len(token_ids)
        goes_on = True
        if event is not None:
            goes_on = put(event)
        if decoder.finished is not None:
            self.unfinished -= 1
            if finish is None:
                self._drop(index)
            goes_on = put(decoder.finished) and goes_on and self.unfinished > 0
        return goes_on


def account(loop: HttpLoop, record: RequestRecord, decoders: list[AnswerDecoder]) -> None:
    """Note what a request took, however it ended."""
    record.last_token = time.monotonic()
    record.completion_tokens = sum(decoder.completion_tokens for decoder in decoders)
    record.cached_tokens = max(decoder.finish.cached_tokens if decoder.finish else 0 for decoder in decoders)
    readers = [decoder.reader for decoder in decoders if decoder.reader]
    record.reasoning_tokens = sum(reader.reasoning_tokens for reader in readers)
    for reader in readers:
        cells = {TOOL_CALLS: reader.parser.calls, NO_TOOL_CALLS: reader.parser.faults}
        for metric, count in cells.items():
            if count:
                loop.cells.add(metric, (record.model, reader.parser.name), count)
    unknown = sum(decoder.unknown_tokens for decoder in decoders)
    if unknown:
        loop.cells.add(WIRE_FAULTS, (record.worker, "unknown_token"), unknown)


async def prepare(gateway: Gateway, model: Model, request: GenerateRequest, record: RequestRecord) -> Prompt:
    """Render and tokenize, on this loop if that is cheaper than the hop to the pool."""
    started = time.monotonic()
    if request.input.characters < INLINE_CHARACTERS:
        prompt = render_and_encode(model, request.input)
    else:
        prompt = await gateway.tokenize.run(render_and_encode, model, request.input)
    if request.truncate_prompt_tokens is not None:
        prompt = replace(prompt, token_ids=prompt.token_ids[-4 * request.truncate_prompt_tokens :])
    record.prepared = time.monotonic()
    record.prompt_tokens = prompt.length
    # Added up, since an echoed prompt comes here twice, the second time as tokens.
    record.render_seconds += prompt.render_seconds
    record.tokenize_seconds += prompt.tokenize_seconds
    record.queue_seconds += max(0.0, record.prepared - started - prompt.render_seconds - prompt.tokenize_seconds)
    return prompt


def render_and_encode(model: Model, source: Input) -> Prompt:
    if isinstance(source, TokensInput):
        return Prompt(source.token_ids)
    started = time.monotonic()
    text, opens_reasoning = (source.text, None) if isinstance(source, TextInput) else model.templates.render(source)
    rendered = time.monotonic()
    token_ids = model.tokenizer.encode(text)
    if source.add_special_tokens:
        token_ids = model.tokenizer.specials.around(token_ids)
    return Prompt(token_ids, rendered - started, time.monotonic() - rendered, opens_reasoning)


def reader_for(model: Model, request: GenerateRequest, prompt: Prompt) -> AnswerReader | None:
    """What finds reasoning and calls in one answer; None where there is nothing to find."""
    if request.reading is None:
        return None
    parser = model.formats.parser(request.reading, prompt.opens_reasoning is not None)
    if parser is None:
        return None
    return AnswerReader(parser, model.reasoning_end_ids, request.reading.streams_reasoning)


def constraint_for(gateway: Gateway, model: Model, request: GenerateRequest, prompt: Prompt) -> Constraint | None:
    """The request's, such that it leaves the reasoning alone where the model is going to reason."""
    constraint = request.constraint
    if constraint is not None and request.constraint_is_wish:
        states = gateway.router.snapshot().values()
        infos = [state.info for state in states if state.model == model.name and state.info is not None]
        if not all(f"constraint.{constraint.kind}" in info.features for info in infos):
            return None
    if constraint is None or constraint.kind == "structural_tag" or not model.reasoning_end:
        return constraint
    tail = prompt.token_ids[-CLOSED_TAIL:]
    if prompt.opens_reasoning is None and any(
        tail.startswith(model.reasoning_end, start) for start in range(0, len(tail), 4)
    ):
        return constraint  # the prompt has opened and closed it
    return replace(constraint, begins_after=model.reasoning_end)


CLOSED_TAIL = 4 * 8
"""Bytes of a prompt's last tokens, in which a template closes the reasoning that is not wanted."""


def submission_for(model: Model, request: GenerateRequest, prompt: Prompt, constraint: Constraint | None) -> Submission:
    """Raises BadRequest when prompt and completion do not fit the context."""
    param = "messages" if isinstance(request.input, ChatInput) else "prompt"
    if prompt.length == 0:
        raise BadRequest("the prompt has no tokens", param=param)
    room = model.context_length - prompt.length
    max_tokens = room if request.max_tokens is None else request.max_tokens
    if room < 1 or max_tokens > room:
        asked = "" if request.max_tokens is None else f" and max_tokens asks for {request.max_tokens} more"
        raise BadRequest(
            f"the context of model {model.name!r} is {model.context_length} tokens, "
            f"but the prompt has {prompt.length}{asked}",
            param=param,
            code="context_length_exceeded",
        )
    return Submission(
        request_id=request.request_id,
        token_ids=prompt.token_ids,
        max_tokens=max_tokens,
        sampling=request.sampling,
        # Engines differ in which of the model's ends they know.
        stop_token_ids=request.stop_token_ids + (b"" if request.ignore_eos else model.eos_token_ids),
        ignore_eos=request.ignore_eos,
        min_tokens=request.min_tokens,
        n=request.n,
        logprobs=request.logprobs,
        prompt_logprobs=request.prompt_logprobs,
        priority=request.priority,
        cache_salt=request.cache_salt,
        lora=request.lora,
        constraint=constraint,
        kv_retention=request.kv_retention,
        stream=request.stream,
    )


class Attempts:
    """One submission's stream, on as many workers as it takes to get a first token out of one of them.

    `async with` it: leaving aborts what still runs and gives the lease back. A worker that fails before the first
    token costs the client nothing but time.
    """

    def __init__(
        self, gateway: Gateway, loop: HttpLoop, model: Model, submission: Submission, record: RequestRecord
    ) -> None:
        self._gateway = gateway
        self._loop = loop
        self._model = model
        self._submission = submission
        self._record = record
        self._tried: set[Worker] = set()
        self._attempts = 0
        self._has_begun = False
        self._must_retry = False
        self._lease: Lease | None = None
        self._stream: Stream | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    async def pump(self, take: Take) -> bool:
        """`Stream.pump` of the worker at hand; the first delivery comes with a pause behind it. Raises Unavailable."""
        while True:
            stream = self._stream or await self._start()
            if self._has_begun:
                return await stream.pump(take)
            self._must_retry = False
            result = await stream.pump(partial(self._take_first, take))
            if not self._must_retry:
                return result
            self._try_another()

    def drop(self, index: int) -> None:
        """An answer is complete before the engine knows it."""
        if self._stream is not None and self._lease is not None:
            self._lease.worker.session.stop([self._stream.choices[index]])
            self._stream.forget(index)

    def _take_first(
        self, take: Take, index: int, token_ids: Sequence[int], finish: Finish | None, logprobs: Logprobs | None
    ) -> bool:
        if has_failed_early(token_ids, finish) and self._attempts < ATTEMPTS:
            self._must_retry = True
            return False
        self._has_begun = True
        if token_ids:
            self._record.first_token = time.monotonic()
        take(index, token_ids, finish, logprobs)
        return False

    async def _start(self) -> Stream:
        self._attempts += 1
        lease = self._lease = await wait_for_lease(self._gateway, self._model, self._tried)
        worker, record = lease.worker, self._record
        refuse_unsupported(self._submission, self._gateway.router.snapshot()[worker].info)
        record.worker, record.routed = worker.name, time.monotonic()
        stream = self._stream = Stream(self._loop.mailbox, self._submission.request_id, self._submission.n)
        worker.session.start(stream, self._submission)
        return stream

    def _try_another(self) -> None:
        if self._lease is not None:
            self._tried.add(self._lease.worker)
        self._leave()
        self._loop.cells.add(RETRIES, (self._model.name,))

    def _leave(self) -> None:
        stream, self._stream = self._stream, None
        lease, self._lease = self._lease, None
        if lease is None:
            return
        if stream is not None:
            stream.close()
            if unfinished := stream.unfinished:
                lease.worker.session.stop(unfinished)
        lease.release()


def has_failed_early(token_ids: Sequence[int], finish: Finish | None) -> bool:
    """Whether the engine is at fault before anything of an answer has been seen."""
    return not token_ids and finish is not None and finish.reason is FinishReason.ERROR and finish.retryable


PLAIN = Submission("", b"", 0)
OPTIONAL_FIELDS = ("min_tokens", "n", "logprobs", "prompt_logprobs", "priority", "cache_salt", "lora", "kv_retention")
OPTIONAL_SAMPLING = ("top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias")


def refuse_unsupported(submission: Submission, info: EngineInfo | None) -> None:
    """Raises BadRequest for the first field that was set and that the engine does not honour."""
    if info is None:
        return
    used = [name for name in OPTIONAL_FIELDS if getattr(submission, name) != getattr(PLAIN, name)]
    used += [name for name in OPTIONAL_SAMPLING if getattr(submission.sampling, name) not in (None, ())]
    if submission.constraint is not None:
        used.append(f"constraint.{submission.constraint.kind}")
        used += ["constraint.begins_after"] if submission.constraint.begins_after else []
    for name in used:
        if name not in info.features:
            raise BadRequest(f"{name} is not supported by the engine of this model ({info.engine})", param=name)


async def wait_for_lease(gateway: Gateway, model: Model, tried: set[Worker]) -> Lease:
    """A lease, after a while if no worker is ready just now; raises Unavailable."""
    try:
        return gateway.router.lease(model.name, tried)
    except Unavailable as error:
        unavailable = error
    changed = asyncio.Event()
    unsubscribe = gateway.router.subscribe(partial(wake, asyncio.get_running_loop(), changed))
    try:
        async with asyncio.timeout(gateway.config.connect_seconds):
            while True:
                try:
                    return gateway.router.lease(model.name, tried)
                except Unavailable as error:
                    unavailable = error
                await changed.wait()
                changed.clear()
    except TimeoutError:
        raise unavailable from None
    finally:
        unsubscribe()


def wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """Set `event` from another thread."""
    with suppress(RuntimeError):  # the loop closed, and with it went who was waiting
        loop.call_soon_threadsafe(event.set)
