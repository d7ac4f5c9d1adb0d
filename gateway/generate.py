"""The straight line: one request from its input to the events of its answer."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from engine_adapters.base import Finish, FinishReason, Submission
from gateway.config import Config
from gateway.engines import EngineThread, Stream
from gateway.errors import BadRequest, EngineFailed, ModelNotFound, Unavailable
from gateway.http_loop import HttpLoop
from gateway.metrics import RETRIES, WIRE_FAULTS, Registry
from gateway.model import Model
from gateway.parsers.stop import StopScanner
from gateway.pools import INLINE_CHARACTERS, Pool
from gateway.routing import Lease, Router, Worker
from gateway.threads import Supervisor
from gateway.tokenizer import Detokenizer
from gateway.types import ChatInput, Done, Event, GenerateRequest, Prompt, RequestRecord, Text, Usage

ATTEMPTS = 3
FINISH_REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything process-wide that answering a request needs; `loops` grows while the HTTP loops start."""

    config: Config
    models: dict[str, Model]
    router: Router
    engine: EngineThread
    tokenize: Pool
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


async def generate(
    gateway: Gateway, loop: HttpLoop, request: GenerateRequest, record: RequestRecord
) -> AsyncGenerator[Event]:
    """What the model says, until it stops, is stopped, or the caller closes us; the last event is Done."""
    model = gateway.model(request.model)
    prompt = await prepare(gateway, model, request.input)
    record.prepared = time.monotonic()
    record.prompt_tokens = prompt.length
    submission = submission_for(model, request, prompt)
    decoder = OutputDecoder(loop.tables[model.name].new(), request.stop)
    async with open_stream(gateway, loop, model, submission) as (stream, worker, first):
        record.first_token = time.monotonic()
        record.worker = worker.name
        token_ids, finish = first
        while True:
            text = decoder.feed(token_ids, finish)
            record.completion_tokens = decoder.tokens
            if text:
                yield Text(text)
            if finish is not None or decoder.matched_stop is not None:
                if decoder.unknown_tokens:
                    loop.cells.add(WIRE_FAULTS, (worker.name, "unknown_token"), decoder.unknown_tokens)
                end = done(prompt, decoder, finish)
                record.cached_tokens = end.usage.cached_tokens
                yield end
                return
            token_ids, finish = await stream.next()


async def prepare(gateway: Gateway, model: Model, source: ChatInput) -> Prompt:
    """Render and tokenize, on this loop if that is cheaper than the hop to the pool."""
    if source.characters < INLINE_CHARACTERS:
        return render_and_encode(model, source)
    return await gateway.tokenize.run(render_and_encode, model, source)


def render_and_encode(model: Model, source: ChatInput) -> Prompt:
    return Prompt(model.tokenizer.encode(model.template.render(source.messages)))


def submission_for(model: Model, request: GenerateRequest, prompt: Prompt) -> Submission:
    """Raises BadRequest when prompt and completion do not fit the context."""
    room = model.context_length - prompt.length
    max_tokens = room if request.max_tokens is None else request.max_tokens
    if prompt.length == 0:
        raise BadRequest("the prompt has no tokens", param="messages")
    if room < 1 or max_tokens > room:
        asked = "" if request.max_tokens is None else f" and max_tokens asks for {request.max_tokens} more"
        raise BadRequest(
            f"the context of model {model.name!r} is {model.context_length} tokens, "
            f"but the prompt has {prompt.length}{asked}",
            param="messages",
            code="context_length_exceeded",
        )
    return Submission(
        request_id=request.request_id,
        token_ids=prompt.token_ids,
        max_tokens=max_tokens,
        sampling=request.sampling,
        stop_token_ids=model.eos_token_ids,
    )


class OutputDecoder:
    """One choice's tokens to text: detokenize, then look for stop strings."""

    __slots__ = ("_detokenizer", "_scanner", "tokens")

    def __init__(self, detokenizer: Detokenizer, stop: tuple[str, ...]) -> None:
        self._detokenizer = detokenizer
        self._scanner = StopScanner(stop)
        self.tokens = 0

    @property
    def matched_stop(self) -> str | None:
        return self._scanner.matched

    @property
    def unknown_tokens(self) -> int:
        return self._detokenizer.unknown

    def feed(self, token_ids: list[int], finish: Finish | None) -> str:
        """The text that is certain now; all that is left when `finish` says that nothing follows."""
        self.tokens += len(token_ids)
        text = self._scanner.feed(self._detokenizer.feed(token_ids))
        if finish is not None:
            text += self._scanner.feed(self._detokenizer.flush()) + self._scanner.flush()
        return text


def done(prompt: Prompt, decoder: OutputDecoder, finish: Finish | None) -> Done:
    """The last event; raises what `finish` says went wrong."""
    if finish is None or decoder.matched_stop is not None:
        cached = 0 if finish is None else finish.cached_tokens
        return Done("stop", Usage(prompt.length, decoder.tokens, cached), decoder.matched_stop)
    if finish.reason is FinishReason.REJECTED:
        raise BadRequest(finish.error)
    if finish.reason not in FINISH_REASONS:
        raise EngineFailed(finish.error or "the engine aborted the request")
    usage = Usage(prompt.length, finish.completion_tokens or decoder.tokens, finish.cached_tokens)
    return Done(FINISH_REASONS[finish.reason], usage, finish.matched_stop)


@asynccontextmanager
async def open_stream(
    gateway: Gateway, loop: HttpLoop, model: Model, submission: Submission
) -> AsyncIterator[tuple[Stream, Worker, tuple[list[int], Finish | None]]]:
    """A stream that has spoken: (stream, its worker, its first tokens). Leaving it aborts what still runs.

    A worker that fails before the first token costs nothing but time: another one gets the request.
    """
    tried: set[Worker] = set()
    while True:
        with await wait_for_lease(gateway, model, tried) as lease:
            worker = lease.worker
            stream = Stream(loop.mailbox, submission.request_id)
            worker.session.start(stream, submission)
            try:
                token_ids, finish = await stream.next()
                if not (failed_early(token_ids, finish) and len(tried) + 1 < ATTEMPTS):
                    yield stream, worker, (token_ids, finish)
                    return
            finally:
                if not stream.is_finished:
                    worker.session.stop(stream)
        tried.add(worker)
        loop.cells.add(RETRIES, (model.name,))


def failed_early(token_ids: list[int], finish: Finish | None) -> bool:
    return not token_ids and finish is not None and finish.reason is FinishReason.ERROR and finish.retryable


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
