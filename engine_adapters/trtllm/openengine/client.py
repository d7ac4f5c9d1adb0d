"""The gateway's side of OpenEngine: one gRPC stream per answer, and questions about health and load.

Threads: none of its own. Everything here runs on the event loop of the gateway's engine thread.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from engine_adapters import codec, http2
from engine_adapters.base import Delivery, EngineInfo, EngineLost, Key, Load, Submission
from engine_adapters.http2 import CallFailed
from engine_adapters.tls import WorkerTls
from engine_adapters.trtllm.calls import Calls, is_set_within, time_limit
from engine_adapters.trtllm.openengine import messages, translation
from engine_adapters.trtllm.openengine.answer import AnswerReader
from engine_adapters.trtllm.openengine.kv_events import KvSubscription, OnKvEvents
from engine_adapters.trtllm.openengine.translation import SCHEMA_REVISION, Served

CALL_SECONDS = 5.0
"""For an answer to a question, or a connection."""
BEAT_SECONDS = 1.0
"""Between two questions about health and load."""
SILENCE_SECONDS = 10.0
"""An engine that answers nothing for this long is taken for dead."""
WELL = (messages.HEALTH_STATE_READY, messages.HEALTH_STATE_DEGRADED)
SEEDS = 1 << 63
REMEDY = "TensorRT-LLM does with --grpc --grpc-protocol openengine, and without that it is a worker trtllm://"
Answer = TypeVar("Answer", bound=codec.Message)
log = logging.getLogger(__name__)


class OpenEngineClient(Generic[Key]):
    """An `Engine` behind OpenEngine at `address` ("host:port"). After EngineLost, make a new one.

    Several answers are as many requests, of which each has a seed of its own. What the engine does not implement is
    left alone after the first time, with one line in the log. `count_fault(kind)` is told of "malformed_frame" and
    "kv_gap"; `on_kv_events` is KvSubscription's.
    """

    def __init__(
        self,
        address: str,
        count_fault: Callable[[str], None],
        on_kv_events: "OnKvEvents | None" = None,
        tls: "WorkerTls | None" = None,
    ) -> None:
        self._address = address
        self._tls = tls
        self._count_fault = count_fault
        self._on_kv_events = on_kv_events
        self._connection: http2.Connection | None = None
        self._calls: Calls[Key] = Calls(messages.INFERENCE_GENERATE, self._stop, count_fault)
        self._kv_subscription: KvSubscription | None = None
        self._served = Served("")
        self._info: EngineInfo | None = None
        self._loras: frozenset[str] | None = None
        self._unimplemented: set[str] = set()
        self._load = Load()
        self._answered_at = time.monotonic()
        self._counted = (time.monotonic(), 0)

    @property
    def load(self) -> Load:
        return self._load

    @property
    def last_frame_at(self) -> float:
        return max(self._answered_at, self._calls.last_message_at)

    @property
    def unconfirmed_aborts(self) -> int:
        return self._calls.unconfirmed_aborts

    async def connect(self) -> EngineInfo:
        self._connection = self._calls.connection = await http2.reach(self._address, self._tls, CALL_SECONDS)
        try:
            return await self._learn()
        except CallFailed as error:
            if error.code == "UNIMPLEMENTED":
                raise EngineLost(f"{self._address} does not speak OpenEngine; {REMEDY}") from error
            raise EngineLost(f"{self._address} does not answer: {error}") from error

    async def run(self, deliver: Callable[[list[Delivery[Key]]], None]) -> None:
        self._calls.deliver = deliver
        work = [asyncio.ensure_future(self._beat())]
        if self._kv_subscription is not None:
            work.append(asyncio.ensure_future(self._kv_subscription.run()))
        try:
            await asyncio.gather(*work)
        finally:
            self._calls.close()
            for task in work:
                task.cancel()

    def submit(self, keys: Sequence[Key], submission: Submission) -> None:
        seed = submission.sampling.seed
        if seed is None and submission.n > 1:
            seed = random.randrange(SEEDS)  # so that no engine answers alike
        for index, key in enumerate(keys):
            copy = replace(submission, prompt_logprobs=None) if index else submission
            try:
                self._start(key, copy, None if seed is None else seed + index)
            except ValueError as error:
                self._calls.refuse([key], str(error))

    def abort(self, key: Key) -> None:
        self._calls.abort(key)

    async def check_health(self) -> str:
        began = time.monotonic()
        try:
            health = await self._ask_if_any(messages.CONTROL_HEALTH, messages.HealthRequest(), messages.HealthResponse)
        except CallFailed as error:
            return "" if error.code == "DEADLINE_EXCEEDED" and self.last_frame_at > began else str(error)
        if health is None or health.state in WELL:
            return ""
        complaints = [each.message for each in health.checks if each.state not in WELL]
        return f"it is not ready: {', '.join(complaints) or f'state {health.state}'}"

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    @property
    def _wire(self) -> http2.Connection:
        assert self._connection is not None, "connect comes first"
        return self._connection

    def _start(self, key: Key, submission: Submission, seed: "int | None") -> None:
        """Send one request; raises ValueError when the engine could not serve it."""
        self._check(submission)
        # A prefill's memory is taken until its decode has come: an answer of one token has none.
        is_prefill = submission.phase == "prefill" and submission.max_tokens > 1
        request_id = self._calls.new_request_id(submission.request_id)
        request = translation.request_message(request_id, submission, self._served, seed, is_prefill)
        reader = AnswerReader(submission, is_prefill)
        metadata = translation.metadata_of(submission, self._served) + time_limit(submission.ends_at)
        self._calls.start([key], request_id, codec.encode(request), reader, metadata)

    def _check(self, submission: Submission) -> None:
        assert self._info is not None, "connect comes first"
        length, limit = len(submission.token_ids) // 4, self._info.context_length
        if limit and length >= limit:
            raise ValueError(f"the prompt has {length} tokens, and the context of this engine is {limit} tokens")
        lora = submission.lora
        if lora is not None and self._loras is not None and lora.name not in self._loras:
            loaded = ", ".join(sorted(self._loras)) or "none"
            raise ValueError(f"the engine has not loaded the LoRA adapter {lora.name!r}; it has {loaded}")

    async def _learn(self) -> EngineInfo:
        if self._on_kv_events is not None:
            # Begun first, so that a refusal is here when the questions have been answered.
            self._kv_subscription = KvSubscription(self._wire, self._count_fault, self._on_kv_events)
        if problem := await self.check_health():
            raise EngineLost(f"{self._address} does not serve: {problem}")
        server = await self._ask(messages.CONTROL_GET_SERVER_INFO, messages.GetServerInfoRequest(), messages.ServerInfo)
        if server.minimum_client_revision > SCHEMA_REVISION:
            raise EngineLost(
                f"{self._address} speaks OpenEngine only to clients of revision {server.minimum_client_revision} and "
                f"above, this gateway has {SCHEMA_REVISION}; update the gateway"
            )
        question = messages.GetModelInfoRequest(next(iter(server.supported_models), ""))
        model = await self._ask(messages.CONTROL_GET_MODEL_INFO, question, messages.ModelInfo)
        if model.supports_token_ids_input is False:
            raise EngineLost(f"{self._address} takes prompts as text only, and a gateway sends token ids")
        generation = model.generation or messages.GenerationCapabilities()
        self._served = Served(
            translation.model_name(server, model),
            includes_stops=bool(generation.supports_stop_in_output),
            targets_ranks=translation.targets_ranks(server),
        )
        has_kv_events = self._kv_subscription is not None and not self._kv_subscription.is_refused
        self._info = translation.as_info(server, model, has_kv_events)
        await self._check_loras()
        return self._info

    async def _beat(self) -> None:
        """Ask again and again how the engine is; raises EngineLost."""
        while True:
            await is_set_within(self._calls.is_doubtful, BEAT_SECONDS)
            self._calls.is_doubtful.clear()
            await self._check_it_answers()
            await self._check_load()
            await self._check_loras()
            if time.monotonic() - self.last_frame_at > SILENCE_SECONDS:
                raise EngineLost(f"{self._address} has been silent for {SILENCE_SECONDS:g} s")

    async def _check_it_answers(self) -> None:
        """Whatever it says of its health: that is judged elsewhere."""
        try:
            await self._ask_if_any(messages.CONTROL_HEALTH, messages.HealthRequest(), messages.HealthResponse)
        except CallFailed as error:
            if error.code != "DEADLINE_EXCEEDED":  # silence has its own limit
                raise EngineLost(f"{self._address} does not answer: {error}") from error

    async def _check_load(self) -> None:
        question = messages.GetLoadRequest(include_per_rank=self._served.targets_ranks)
        speed = self._tokens_per_second()
        assert self._info is not None, "connect comes first"
        load = None
        with contextlib.suppress(CallFailed):  # it may have no sample just now
            load = await self._ask_if_any(messages.CONTROL_GET_LOAD, question, messages.LoadInfo)
        if load is None:
            self._load = Load(running=len(self._calls), tokens_per_second=speed)
        else:
            self._load = translation.as_load(load, self._info, speed)

    async def _check_loras(self) -> None:
        if self._info is None or "lora" not in self._info.features:
            return
        with contextlib.suppress(CallFailed):  # what was known stays
            question, answer = messages.ListLorasRequest(), messages.ListLorasResponse
            loras = await self._ask_if_any(messages.CONTROL_LIST_LORAS, question, answer)
            self._loras = None if loras is None else frozenset(each.lora_name for each in loras.adapters)

    def _tokens_per_second(self) -> float:
        now, tokens = time.monotonic(), self._calls.tokens
        before, self._counted = self._counted, (now, tokens)
        return (tokens - before[1]) / max(now - before[0], 0.001)

    async def _stop(self, request_id: str) -> bool:
        question = messages.AbortRequest(request_id)
        with contextlib.suppress(EngineLost):  # what was said makes no sense; the call is cancelled all the same
            aborted = await self._ask_if_any(messages.CONTROL_ABORT, question, messages.AbortResponse)
            return aborted is not None and aborted.status == messages.ABORT_STATUS_ABORTED
        return False

    async def _ask_if_any(self, method: str, question: codec.Message, answer: type[Answer]) -> "Answer | None":
        """`_ask`; None when the engine does not implement the method."""
        if method in self._unimplemented:
            return None
        try:
            return await self._ask(method, question, answer)
        except CallFailed as error:
            if error.code != "UNIMPLEMENTED":
                raise
            self._unimplemented.add(method)
            log.info("%s does without %s: %s", self._address, method.rpartition("/")[2], error.details)
            return None

    async def _ask(self, method: str, question: codec.Message, answer: type[Answer]) -> Answer:
        try:
            result = codec.decode(answer, await self._wire.ask(method, codec.encode(question), CALL_SECONDS))
        except codec.DecodeError as error:
            self._count_fault("malformed_frame")
            raise EngineLost(f"{self._address} answers what is not OpenEngine: {error}") from error
        self._answered_at = time.monotonic()
        return result
