"""The straight line: one request from its input to the events of its answer."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from engine_adapters.base import Finish, FinishReason, Logprobs, Submission
from engine_adapters.images import keyed
from gateway.decoder import AnswerDecoder, AnswerReader
from gateway.errors import BadRequest, Unavailable
from gateway.gateway import Gateway
from gateway.http_loop import HttpLoop
from gateway.leg import Leg
from gateway.metrics import (
    NO_TOOL_CALLS,
    RETRIES,
    RETRIES_REFUSED,
    TOOL_CALLS,
    WIRE_FAULTS,
)
from gateway.model import Model
from gateway.parsers.stop import StopStrings
from gateway.prepare import prepare
from gateway.retries import pause_before
from gateway.routing import Lease, Query, Worker
from gateway.streams import Take
from gateway.submissions import constraint_for, fitted, refuse_unsupported, submission_for
from gateway.types import (
    Event,
    GenerateRequest,
    Prompt,
    RequestRecord,
    Usage,
    Waiting,
)

INLINE_STOP_CHARACTERS = 500
"""With more of them, making the automaton of the stop strings would hold the loop up for more than half a
millisecond."""


class Output(Protocol):
    """Where the events of an answer go."""

    def put(self, event: Event) -> bool:
        """Take an event; False asks for a `flush` before the next one."""

    async def flush(self) -> None:
        """Wait until more can be taken."""


async def generate(
    gateway: Gateway,
    loop: HttpLoop,
    request: GenerateRequest,
    record: RequestRecord,
    output: Output,
    prompt: Prompt | None = None,
) -> None:
    """Have `output` told what the model says, until it stops or is stopped; the last event is Usage.

    `prompt` is the request's if it has been prepared already. What `output` holds back at the end is for the caller to
    flush: the end of a stream is one write.
    """
    model = gateway.model(request.model)
    if prompt is None:
        prompt = await prepare(gateway, loop, model, request, record)
    infos = gateway.infos(model) if request.constraint is not None else []
    constraint = constraint_for(model, request, prompt, infos)
    submission = submission_for(model, request, prompt, constraint, record.ends_at)
    stops = await stop_strings(gateway, request.output.stop)
    decoders = [
        AnswerDecoder(index, model.tokenizer.table, request.output, stops, reader_for(model, request, prompt))
        for index in range(request.n)
    ]
    prompt_tokens, attempts = prompt.length, Attempts(gateway, loop, model, submission, record)
    del prompt, submission  # the attempts keep the images, and no longer than they need them
    try:
        async with attempts as stream:
            answering = Answering(decoders, record, output, stream.drop)
            while True:
                if not await stream.pump(answering.take):
                    output.put(Waiting())
                if not answering.unfinished:
                    break
                await output.flush()
    finally:
        account(loop, record, decoders)
    first = decoders[0].finish
    prompt_logprobs = first.prompt_logprobs if first else None
    tokens = (record.completion_tokens, record.cached_tokens)
    output.put(Usage(prompt_tokens, *tokens, prompt_logprobs, record.reasoning_tokens))


async def stop_strings(gateway: Gateway, stops: tuple[str, ...]) -> StopStrings:
    if sum(map(len, stops)) < INLINE_STOP_CHARACTERS:
        return StopStrings(stops)
    return await gateway.tokenize.run(StopStrings, stops)


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


def reader_for(model: Model, request: GenerateRequest, prompt: Prompt) -> AnswerReader | None:
    """What finds reasoning and calls in one answer; None where there is nothing to find."""
    if request.reading is None:
        return None
    parser = model.formats.parser(request.reading, prompt.opens_reasoning is not None)
    if parser is None:
        return None
    return AnswerReader(parser, model.reasoning_end_ids, request.reading.streams_reasoning)


class Attempts:
    """One submission's stream, on as many workers as it takes to get a first token out of one of them.

    `async with` it: leaving aborts what still runs and gives the lease back. A worker that fails before the first
    token costs the client nothing but time, while the request's time and the model's retry budget allow another try.

    Where a model has prefill and decode workers, a prefill worker says the first token, and if the answer goes on a
    decode worker says the others. A decode that fails is not tried again: the client has that token already.
    """

    def __init__(
        self, gateway: Gateway, loop: HttpLoop, model: Model, submission: Submission, record: RequestRecord
    ) -> None:
        self._gateway = gateway
        self._loop = loop
        self._model = model
        self._submission = submission
        self._record = record
        self._query = query_of(submission, record)
        self._tried: set[Worker] = set()
        self._attempts = 0
        self._pause = 0.0
        self._budget = loop.budgets[model.name]
        self._budget.earn()
        self._has_begun = False
        self._must_retry = False
        self._leg: Leg | None = None
        self._prefilled: Finish | None = None
        self._prefilled_at = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    async def pump(self, take: Take) -> bool:
        """`Stream.pump` of the worker at hand; the first delivery comes with a pause behind it. Raises Unavailable."""
        while True:
            leg = self._leg or await self._start()
            if leg.phase == "decode":
                return await leg.pump(partial(self._take_decoded, take))
            if self._has_begun and not leg.phase:
                return await leg.pump(take)
            self._must_retry = False
            result = await leg.pump(partial(self._take_first, take))
            if not self._must_retry:
                if self._prefilled is not None:
                    self._leave()
                return result
            self._give_up_worker()
            await asyncio.sleep(self._pause)

    def drop(self, index: int) -> None:
        """An answer is complete before the engine knows it."""
        if self._leg is not None:
            self._leg.drop(index)

    def _take_first(
        self, take: Take, index: int, token_ids: Sequence[int], finish: Finish | None, logprobs: Logprobs | None
    ) -> bool:
        """Of an answer the first tokens, of a prefill all there is."""
        if not self._has_begun and has_failed_early(token_ids, finish) and self._may_retry():
            self._must_retry = True
            return False
        if self._leg is not None:
            self._leg.lease.begin()
        if not self._has_begun and token_ids:
            self._record.first_token = time.monotonic()
        self._has_begun = True
        if finish is not None and finish.handoff:
            self._prefilled, self._prefilled_at = finish, time.monotonic()
            finish = None
        if self._submission.images and self._leg is not None and not self._leg.phase:
            self._submission = replace(self._submission, images=())  # megabytes, and the engine has them
        if token_ids or finish is not None:
            take(index, token_ids, finish, logprobs)
        return False

    def _take_decoded(
        self, take: Take, index: int, token_ids: Sequence[int], finish: Finish | None, logprobs: Logprobs | None
    ) -> bool:
        """What only the prefill knows of the prompt is said at the end."""
        self._record.handoff_seconds = self._record.handoff_seconds or time.monotonic() - self._prefilled_at
        if finish is not None and self._prefilled is not None:
            prompt = self._prefilled
            finish = replace(finish, cached_tokens=prompt.cached_tokens, prompt_logprobs=prompt.prompt_logprobs)
        return take(index, token_ids, finish, logprobs)

    async def _start(self) -> Leg:
        self._attempts += 1
        leg = self._leg = Leg(await wait_for_lease(self._gateway, self._next_lease), self._loop)
        worker, record = leg.lease.worker, self._record
        state = self._gateway.router.state(worker)
        refuse_unsupported(self._submission, state.info if state else None)
        submission = self._phase_of(leg.lease.role)
        if submission.images:
            submission = fitted(submission, state.info if state else None)
        if self._prefilled is None:
            record.worker, record.routed = worker.name, time.monotonic()
        else:
            record.worker += f"+{worker.name}"
        leg.start(submission)
        return leg

    def _next_lease(self) -> Lease:
        """Raises Unavailable, and BadRequest when waiting would not help."""
        router, model, several = self._gateway.router, self._model.served_by, self._submission.n > 1
        if self._prefilled is not None:
            return router.lease(model, self._tried, self._query, "decode")
        splits = router.splits(model)
        if splits and several and "any" not in router.ready_roles(model):
            raise BadRequest("n must be 1: this model's workers do prefill or decode, of one answer each", param="n")
        return router.lease(model, self._tried, self._query, "prefill" if splits and not several else "any")

    def _phase_of(self, role: str) -> Submission:
        """What of the submission a worker with this role is to do."""
        if role == "prefill":
            return replace(self._submission, phase="prefill")
        if self._prefilled is not None:
            return replace(self._submission, phase="decode", handoff=self._prefilled.handoff, prompt_logprobs=None)
        return self._submission

    def _may_retry(self) -> bool:
        """Whether there is time and budget for another attempt; decides on the pause before it."""
        if self._attempts > self._gateway.config.retries:
            return False
        self._pause = pause_before(self._attempts)
        if 0 < self._record.ends_at < time.monotonic() + self._pause:
            return False
        if self._budget.spend():
            return True
        self._loop.cells.add(RETRIES_REFUSED, (self._model.name,))
        return False

    def _give_up_worker(self) -> None:
        if self._leg is not None:
            self._tried.add(self._leg.lease.worker)
        self._leave()
        self._loop.cells.add(RETRIES, (self._model.name,))

    def _leave(self) -> None:
        leg, self._leg = self._leg, None
        if leg is not None:
            leg.leave()


def has_failed_early(token_ids: Sequence[int], finish: Finish | None) -> bool:
    """Whether the engine is at fault before anything of an answer has been seen."""
    return not token_ids and finish is not None and finish.reason is FinishReason.ERROR and finish.retryable


def query_of(submission: Submission, record: RequestRecord) -> Query:
    """What of a request the router is to know."""
    lora_id = submission.lora.id if submission.lora else 0
    # Blocks are shared only where the images are the same, too.
    token_ids = keyed(submission.token_ids, submission.images)
    return Query(token_ids, (lora_id, submission.cache_salt), record.routing_key, submission.n)


async def wait_for_lease(gateway: Gateway, lease: Callable[[], Lease]) -> Lease:
    """What `lease()` gives, after a while if it raises Unavailable just now; raises that when it goes on doing so."""
    try:
        return lease()
    except Unavailable as error:
        unavailable = error
    changed = asyncio.Event()
    unsubscribe = gateway.router.subscribe(partial(wake, asyncio.get_running_loop(), changed))
    try:
        async with asyncio.timeout(gateway.config.connect_seconds):
            while True:
                try:
                    return lease()
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
