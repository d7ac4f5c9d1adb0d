"""/v1/completions: prompts as text or token ids, one or many, each answered n times."""

import asyncio
import math
from dataclasses import dataclass, replace
from typing import Any

from engine_adapters.base import Logprobs
from gateway.api.answer import Answer
from gateway.api.body import Fields
from gateway.api.logprobs import CompletionLogprobs
from gateway.api.lowering import ACCEPTED, MAX_LOGPROBS, Logging, column, read_request, read_shape, refuse_unfit
from gateway.api.reply import json_text, on_one_line, quoted
from gateway.gateway import Gateway
from gateway.generate import Output, generate
from gateway.http_loop import HttpLoop
from gateway.model import Model
from gateway.parsers.message import Message
from gateway.prepare import prepare
from gateway.submissions import refuse_oversized
from gateway.tasks import together
from gateway.types import (
    Event,
    Finished,
    GenerateRequest,
    Input,
    Prompt,
    RequestRecord,
    Shape,
    Text,
    TextInput,
    TokensInput,
    Usage,
    Waiting,
)

DEFAULT_MAX_TOKENS = 16
SUFFIX = ("suffix",)
MAX_PROMPTS = 256


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt of the request; its choices are numbered from `first_index` on."""

    request: GenerateRequest
    first_index: int
    echo: bool


def lower(fields: Fields, gateway: Gateway, loop: HttpLoop, record: RequestRecord) -> "CompletionAnswer":
    """Raises BadRequest with the path of what is wrong, or ModelNotFound."""
    model = gateway.model(fields.text("model"))
    record.model = model.name
    inputs = read_prompts(fields, model)
    refuse_unfit(fields, SUFFIX, "is not supported: these models write on, they do not fill in")
    best_of, n = fields.integer("best_of", 1, 128), fields.integer("n", 1, 128) or 1
    if best_of not in (None, n):
        fields.refuse("best_of", "is not supported unless it equals n")
    echo = fields.boolean("echo")
    logprobs = fields.integer("logprobs", 0, MAX_LOGPROBS)
    logging = Logging(logprobs, logprobs if echo else None)
    first = read_request(fields, record.request_id, model, inputs[0], logging, DEFAULT_MAX_TOKENS)
    shape = read_shape(fields)
    if first.output.stop and logging.prompt_logprobs is not None:
        fields.refuse(
            "echo", "with logprobs cannot be combined with stop: a prompt's logprobs come with the engine's end"
        )
    if shape.stream and logging.prompt_logprobs is not None:
        fields.refuse("echo", "with logprobs cannot be streamed: a prompt's logprobs come at the end")
    fields.log_unread(ACCEPTED)
    jobs = [Job(replace(first, input=source), index * n, echo) for index, source in enumerate(inputs)]
    return CompletionAnswer(gateway, loop, jobs, record, shape)


def read_prompts(fields: Fields, model: Model) -> list[Input]:
    """A string, a list of strings, token ids, or a list of lists of token ids."""
    value = fields.value("prompt")
    if value is None:
        fields.refuse("prompt", "is required")
    prompts = [value] if isinstance(value, str) or is_token_ids(value) else value
    if not isinstance(prompts, list) or not prompts:
        fields.refuse("prompt", "must be a string, a list of strings, token ids, or a list of lists of token ids")
    if len(prompts) > MAX_PROMPTS:
        fields.refuse("prompt", f"must hold at most {MAX_PROMPTS} prompts")
    return [
        read_prompt(fields, "prompt" if prompts is not value else f"prompt[{index}]", prompt, model)
        for index, prompt in enumerate(prompts)
    ]


def is_token_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], int)


def read_prompt(fields: Fields, name: str, prompt: object, model: Model) -> Input:
    if isinstance(prompt, str) and prompt:
        return TextInput(prompt, fields.boolean("add_special_tokens", default=True))
    if isinstance(prompt, list) and prompt:
        return TokensInput(column(prompt, fields.path(name), model))
    fields.refuse(name, "must be a non-empty string or a non-empty list of token ids")


class CompletionAnswer(Answer):
    prefix = "cmpl"
    whole_kind = chunk_kind = "text_completion"

    def __init__(self, gateway: Gateway, loop: HttpLoop, jobs: list[Job], record: RequestRecord, shape: Shape) -> None:
        choices = sum(job.request.n for job in jobs)
        model = gateway.model(jobs[0].request.model)
        super().__init__(model, record, shape, choices)
        self._gateway = gateway
        self._loop = loop
        self._jobs = jobs
        self._table = model.tokenizer.table
        skips = jobs[0].request.output.skip_special_tokens
        self._counters = [CompletionLogprobs(self._table, skips) for _ in range(choices)]
        self._logprobs: list[dict[str, list[Any]] | None] = [None] * choices
        self._prompt_logprobs: list[dict[str, list[Any]] | None] = [None] * choices

    def most_tokens(self) -> int:
        return sum(job.request.most_tokens() for job in self._jobs)

    async def generate(self, output: Output) -> None:
        """All prompts at once; the first that fails ends the others."""
        if len(self._jobs) == 1:
            (job,) = self._jobs
            await self._generate_one(job, await self._prepare(job, self._record), self._record, output)
            return
        received, routing_key = self._record.received, self._record.routing_key
        records = [RequestRecord(job.request.request_id, received, routing_key=routing_key) for job in self._jobs]
        total = Total(output, self._record, records, self.shape.continuous_usage)
        work = list(zip(self._jobs, records, strict=True))
        try:
            # All of them before the first is answered: what does not fit is refused with a status.
            prompts = await together([self._prepare(job, record) for job, record in work])
            await together(
                [
                    self._generate_flushed(job, prompt, record, total)
                    for (job, record), prompt in zip(work, prompts, strict=True)
                ]
            )
        finally:
            total.sum_up()
        output.put(total.usage)

    def note(self, event: Text) -> None:
        self._logprobs[event.index] = joined(self._logprobs[event.index], self._logprobs_of(event))

    def whole_choice(self, index: int, message: Message, finish_reason: str) -> dict[str, Any]:
        logprobs = joined(self._prompt_logprobs[index], self._logprobs[index])
        return {"index": index, "text": message.content, "logprobs": logprobs, "finish_reason": finish_reason}

    def opening(self, index: int) -> str:
        return ""

    def chunk(self, event: Text) -> str:
        logprobs = self._logprobs_of(event)
        as_json = on_one_line(json_text(logprobs)) if logprobs else "null"
        return CHUNK % (event.index, quoted(event.text), as_json, "null")

    def last_chunk(self, event: Finished) -> str:
        return CHUNK % (event.index, '""', "null", quoted(event.finish_reason))

    def _logprobs_of(self, event: Text) -> dict[str, list[Any]] | None:
        if event.logprobs is None:
            return None
        return self._counters[event.index].of(event.token_ids, event.logprobs)

    async def _prepare(self, job: Job, record: RequestRecord) -> Prompt:
        """Raises BadRequest when the prompt does not fit."""
        model = self._gateway.model(job.request.model)
        prompt = await prepare(self._gateway, self._loop, model, job.request, record)
        refuse_oversized(model, job.request, prompt)
        return prompt

    async def _generate_one(self, job: Job, prompt: Prompt, record: RequestRecord, output: Output) -> None:
        """One prompt's answers, under the numbers of its choices; with `echo`, they begin with the prompt."""
        request, text = job.request, ""
        if job.echo:
            request, text = self._echo(request, prompt)
            for index in range(job.first_index, job.first_index + request.n):
                self._counters[index].skip(text)
        numbered = Numbered(self, job, request, output, text)
        await generate(self._gateway, self._loop, request, record, numbered, prompt)

    async def _generate_flushed(self, job: Job, prompt: Prompt, record: RequestRecord, output: Output) -> None:
        """The same, one prompt among several: its end does not wait for theirs."""
        await self._generate_one(job, prompt, record, output)
        await output.flush()

    def note_prompt(self, job: Job, request: GenerateRequest, logprobs: Logprobs) -> None:
        """The logprobs of a prompt that was echoed."""
        if isinstance(request.input, TokensInput):
            token_ids = memoryview(request.input.token_ids).cast("I").tolist()
            hidden = hidden_tokens(self._gateway.model(request.model), job.request.input, request.input.token_ids)
            of_prompt = CompletionLogprobs(self._table, False).of(token_ids, logprobs, is_prompt=True, hidden=hidden)
            for index in range(job.first_index, job.first_index + request.n):
                self._prompt_logprobs[index] = of_prompt

    def _echo(self, request: GenerateRequest, prompt: Prompt) -> tuple[GenerateRequest, str]:
        """The request with its prompt as the tokens it will be, and these as text."""
        model = self._gateway.model(request.model)
        shown = memoryview(prompt.token_ids).cast("I")[hidden_tokens(model, request.input, prompt.token_ids) :]
        text = model.tokenizer.decode(shown.tolist(), skip_special_tokens=False)
        return replace(request, input=TokensInput(prompt.token_ids), truncate_prompt_tokens=None), text


@dataclass(slots=True)
class Numbered:
    """An `Output` for one of several prompts: gives its choices their numbers in the whole request.

    `echo` goes out with the first event: what can still be refused with a status of its own is refused before that.
    """

    answer: CompletionAnswer
    job: Job
    request: GenerateRequest
    output: Output
    echo: str

    def put(self, event: Event) -> bool:
        if self.echo and not isinstance(event, Waiting):
            echo, self.echo = self.echo, ""
            for index in range(self.job.first_index, self.job.first_index + self.request.n):
                self.output.put(Text(index, echo))
        if isinstance(event, Text | Finished):
            event.index += self.job.first_index
        elif isinstance(event, Usage) and event.prompt_logprobs is not None:
            self.answer.note_prompt(self.job, self.request, event.prompt_logprobs)
        return self.output.put(event)

    async def flush(self) -> None:
        await self.output.flush()


class Total:
    """An `Output` that passes everything on but the prompts' usages, which it adds up.

    The record of the whole request follows with every event if it `is_live`, else at the end.
    """

    def __init__(self, output: Output, record: RequestRecord, records: list[RequestRecord], is_live: bool) -> None:
        self._output = output
        self._record = record
        self._records = records
        self._is_live = is_live
        self._flushing = asyncio.Lock()
        self.usage = Usage(0, 0, 0)

    def put(self, event: Event) -> bool:
        if isinstance(event, Usage):
            self.usage.prompt_tokens += event.prompt_tokens
            self.usage.completion_tokens += event.completion_tokens
            self.usage.cached_tokens += event.cached_tokens
            return True
        if self._is_live:
            self.sum_up()
        return self._output.put(event)

    async def flush(self) -> None:
        async with self._flushing:
            await self._output.flush()

    def sum_up(self) -> None:
        """Make the record of the whole request say what its prompts took together."""
        total, records = self._record, self._records
        total.prompt_tokens = sum(record.prompt_tokens for record in records)
        total.completion_tokens = sum(record.completion_tokens for record in records)
        total.cached_tokens = sum(record.cached_tokens for record in records)
        total.worker = ",".join(sorted({record.worker for record in records if record.worker}))
        first = min(records, key=lambda record: record.first_token or math.inf)
        for name in STAGES_OF_THE_FIRST:
            setattr(total, name, getattr(first, name))
        total.last_token = max(record.last_token for record in records)


STAGES_OF_THE_FIRST = (
    "prepared",
    "routed",
    "first_token",
    "render_seconds",
    "tokenize_seconds",
    "queue_seconds",
    "handoff_seconds",
    "token_cache",
)
"""What the whole request waited for is what its first token waited for."""
CHUNK = '{"index":%d,"text":%s,"logprobs":%s,"finish_reason":%s}'


def hidden_tokens(model: Model, source: Input, token_ids: bytes) -> int:
    """How many tokens at the beginning were put there by us: an echo does not show them."""
    prefix = model.tokenizer.specials.prefix
    is_ours = isinstance(source, TextInput) and source.add_special_tokens and token_ids.startswith(prefix)
    return len(prefix) // 4 if is_ours else 0


def joined(first: dict[str, list[Any]] | None, then: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
    """Two stretches of `logprobs` in one."""
    if first is None or then is None:
        return first or then
    return {name: values + then[name] for name, values in first.items()}
