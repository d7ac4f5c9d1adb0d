"""LLM, and the engine behind it: a thread that says each prompt once more, a token a step for all requests.

Threads: the engine's own; `_lock` guards what the event loop adds and aborts.
"""

import asyncio
import json
import os
import threading
import time
from dataclasses import asdict, dataclass, field, is_dataclass
from types import SimpleNamespace
from typing import Any

from tensorrt_llm.executor.result import AsyncQueue, GenerationResult, IterationResult, Logprob, Response
from tensorrt_llm.params import (
    IS_NEW,
    IS_OLD,
    DisaggregatedParams,
    KvCacheRetentionConfig,
    RequestError,
    SamplingParams,
)

STEP_SECONDS = float(os.environ.get("STANDIN_STEP_MS", "1")) / 1000
HAS_IMAGES = os.environ.get("STANDIN_IMAGES") == "1"
BLOCK = 4
KNOWN = {
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "max_batch_size": 256,
    "max_num_tokens": 4096,
    "max_seq_len": 4096,
    "guided_decoding_backend": None,
    "enable_iter_perf_stats": False,
    "enable_attention_dp": False,
    "enable_lora": False,
    "cache_transceiver_config": None,
    "kv_cache_config": {},
    "num_postprocess_workers": 0,
    "trust_remote_code": False,
}
CACHE = {"enable_block_reuse": True, "event_buffer_max_size": 0, "tokens_per_block": BLOCK}


@dataclass
class Running:
    """A request in the engine: what each sequence will say, and where it is."""

    result: GenerationResult
    params: SamplingParams
    says: list[int]
    streaming: bool
    salt: str
    phase: str
    said: int = 0
    pending: list[Response] = field(default_factory=list)
    is_aborted: bool = False


class Executor:
    """The engine's thread. Responses go into the results' queues, and the loop is told once a step."""

    def __init__(self, args: SimpleNamespace, loop_queues: "tuple[AsyncQueue, AsyncQueue]") -> None:
        self.args = args
        self.stats, self.kv_events = loop_queues
        self.loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Condition()
        self._running: dict[int, Running] = {}
        self._is_shut_down = False
        self._steps = 0
        self._cached: dict[tuple[int, ...], int] = {}
        self._told: list[AsyncQueue] = []
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def is_shutdown(self) -> bool:
        return self._is_shut_down

    def shutdown(self) -> None:
        with self._lock:
            self._is_shut_down = True
            self._lock.notify()

    def start(self, running: Running) -> None:
        self.loop = asyncio.get_running_loop()
        with self._lock:
            self._running[running.result.request_id] = running
            self._lock.notify()

    def abort_request(self, request_id: int) -> None:
        with self._lock:
            if request_id in self._running:
                self._running[request_id].is_aborted = True

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._running and not self._is_shut_down:
                    self._lock.wait()
                if self._is_shut_down:
                    return
                batch = [*self._running.items()]
            time.sleep(STEP_SECONDS)
            for request_id, running in batch:
                if self._step(running):
                    with self._lock:
                        del self._running[request_id]
            self._report()
            told, self._told = self._told, []
            assert self.loop is not None
            self.loop.call_soon_threadsafe(_notify, told)

    def _step(self, running: Running) -> bool:
        """Whether it is over."""
        order, _, count = running.salt.partition(":")
        if order == "die" and running.said >= int(count):
            self.shutdown()
        if running.is_aborted or self._is_shut_down:
            last = running.params.n - 1
            for index in range(running.params.n):
                self._put(running, Response(index, is_final=index == last, finish_reason="cancelled"))
            return True
        if order == "refuse" or (order == "fail" and running.said >= int(count)):
            self._put(running, Response(error="the engine failed on purpose", is_final=True))
            return True
        return self._speak(running)

    def _speak(self, running: Running) -> bool:
        """One token for each sequence; all say the same, those of a higher index end a token earlier."""
        params, place = running.params, running.said
        running.said += 1
        if not place:
            self._store(running.result.prompt_token_ids)
        cached = self._cached.get(tuple(running.result.prompt_token_ids), 1) - 1
        is_over = False
        for index in reversed(range(params.n)):
            token_id = running.says[min(place + index, len(running.says) - 1)]
            reason, stop = self._end(params, token_id, place + 1)
            if index and place and self._end(params, running.says[min(place + index - 1, len(running.says) - 1)], 0)[0]:
                continue  # it has ended
            is_over = is_over or (index == 0 and bool(reason))
            response = Response(index, [token_id], cached_tokens=cached, is_final=index == 0 and bool(reason))
            if params.logprobs:
                response.logprobs = [_logprobs(token_id, params.logprobs)]
            if response.is_final:
                response.finish_reason, response.stop_reason = reason, stop
                if params.prompt_logprobs:
                    response.prompt_logprobs = [
                        _logprobs(each, params.prompt_logprobs) for each in running.result.prompt_token_ids[1:]
                    ] + [_logprobs(token_id, params.prompt_logprobs)]
                if running.phase == "context_only":
                    response.disaggregated_params = _handoff(running, token_id)
                    response.finish_reason = "not_finished" if IS_NEW and reason == "length" else reason
            self._put(running, response)
        return is_over

    def _end(self, params: SamplingParams, token_id: int, count: int) -> "tuple[str, int | None]":
        """In the order of the real sampler: end id, length, stop words."""
        if token_id == params.end_id and not params.ignore_eos:
            return "stop", None
        if count >= params.max_tokens:
            return "length", None
        if token_id in (params.stop_token_ids or ()):
            return "stop", token_id
        return "", None

    def _put(self, running: Running, response: Response) -> None:
        if not running.streaming and not response.is_final and not response.error:
            running.pending.append(response)
            return
        for each in (*running.pending, response) if not running.streaming else (response,):
            running.result.aqueue.items.append(each)
        if not running.streaming:
            _make_one(running.result.aqueue, running.params.n)
        self._told.append(running.result.aqueue)

    def _store(self, prompt: list[int]) -> None:
        self._cached[tuple(prompt)] = 1 + (len(prompt) if tuple(prompt) in self._cached else 0)
        if not self.args.kv_cache_config.event_buffer_max_size:
            return
        blocks = [
            {
                "type": "stored_block",
                "block_hash": 1000 + start,
                "tokens": [{"type": "unique_token", "token_id": each, "token_extra_id": 0} for each in tokens],
                "cache_level": 0,
                "priority": 35,
            }
            for start in range(0, len(prompt), BLOCK)
            if (tokens := prompt[start : start + BLOCK])
        ]
        for data in (
            {"type": "created", "num_blocks_per_cache_level": [100, 0]},
            {"type": "stored", "parent_hash": None, "blocks": blocks},
            {"type": "removed", "block_hashes": [7]},
        ):
            self.kv_events.items.append({"event_id": len(self.kv_events.items), "data": data, "window_size": 4096})
        self._told.append(self.kv_events)

    def _report(self) -> None:
        self._steps += 1
        if self.args.enable_iter_perf_stats:
            batch = {"numContextRequests": 0, "numGenRequests": len(self._running), "numPausedRequests": 0}
            cache = {"usedNumBlocks": len(self._running), "maxNumBlocks": 100, "tokensPerBlock": BLOCK}
            stats = {"iter": self._steps, "numActiveRequests": len(self._running)}
            self.stats.items.append({**stats, "inflightBatchingStats": batch, "kvCacheStats": cache})
            self._told.append(self.stats)


def _notify(queues: "list[AsyncQueue]") -> None:
    for queue in queues:
        queue.event.set()


def _make_one(queue: AsyncQueue, n: int) -> None:
    """Without streaming each sequence has one response, with all of it."""
    whole = [Response(index) for index in range(n)]
    while queue.items:
        part: Response = queue.items.popleft()
        if part.error:
            queue.items.append(part)
            return
        one = whole[part.index]
        part.token_ids, part.logprobs = one.token_ids + part.token_ids, one.logprobs + part.logprobs
        whole[part.index] = part
    queue.items.extend(sorted(whole, key=lambda each: each.is_final))


def _logprobs(token_id: int, count: int) -> dict[int, Logprob]:
    """The best first among others, in no order."""
    best = {token_id + 1 + each: Logprob(-2.0 - each, each + 2) for each in reversed(range(count))}
    return {**best, token_id: Logprob(-0.5, 1)}


def _handoff(running: Running, token_id: int) -> Any:
    extra = {"ctx_info_endpoint": "tcp://one:1", "schedule_style": 0} if IS_NEW else {}
    if IS_NEW and running.params.logprobs:
        extra["first_gen_log_probs"] = [[_logprobs(token_id, running.params.logprobs)]]
    return DisaggregatedParams(
        request_type="context_only",
        first_gen_tokens=[token_id],
        ctx_request_id=running.result.request_id,
        opaque_state=b"\x00\xffstate",
        **extra,
    )


class DefaultInputProcessor:
    """Of a model that takes only text."""

    def __call__(self, inputs: Any, sampling_params: SamplingParams) -> "tuple[list[int], Any]":
        raise NotImplementedError


class QwenInputProcessor(DefaultInputProcessor):
    """Of a model that takes images."""


class BaseLLM:
    def __init__(self, model: str, tokenizer: Any = None, **kwargs: Any) -> None:
        unknown = kwargs.keys() - KNOWN.keys()
        if unknown:
            raise ValueError(f"TorchLlmArgs got invalid argument: {', '.join(sorted(unknown))}")
        cache = SimpleNamespace(**{**CACHE, **kwargs.pop("kv_cache_config", {})})
        self.args = SimpleNamespace(**{**KNOWN, **kwargs, "kv_cache_config": cache, "model": model})
        self._queues = (AsyncQueue(), AsyncQueue())
        self._executor = Executor(self.args, self._queues)
        self._ids = 0
        self.input_processor = QwenInputProcessor() if HAS_IMAGES else DefaultInputProcessor()

    def get_stats_async(self, timeout: float = 2) -> IterationResult:
        return IterationResult(self._queues[0], timeout)

    def get_kv_cache_events_async(self, timeout: float = 2) -> IterationResult:
        return IterationResult(self._queues[1], timeout)

    def shutdown(self) -> None:
        self._executor.shutdown()

    def _check_health(self) -> bool:
        return not self._executor.is_shutdown()

    def _generate(
        self, inputs: Any, sampling_params: SamplingParams, streaming: bool, **others: Any
    ) -> GenerationResult:
        if self._executor.is_shutdown():
            raise RuntimeError("LLM is shutting down")
        if "prompt_token_ids" in inputs:
            prompt = inputs["prompt_token_ids"]
        else:
            prompt, inputs = self.input_processor(inputs, sampling_params)
        _record(inputs, sampling_params, streaming, others)
        self._check(prompt, sampling_params)
        self._ids += 1
        disaggregated = others.get("disaggregated_params")
        phase = disaggregated.request_type if disaggregated else ""
        if phase == "context_only":
            sampling_params.max_tokens = 1
        result = GenerationResult(self._ids, sampling_params, prompt, self._executor)
        salt = others.get("cache_salt") or ""
        said = [each for each in prompt if each != sampling_params.end_id]
        running = Running(result, sampling_params, [*said, sampling_params.end_id or 0], streaming, salt, phase)
        if phase == "generation_only":
            result.disaggregated_params = disaggregated
            assert disaggregated.opaque_state == b"\x00\xffstate" and disaggregated.first_gen_tokens == said[:1]
        self._executor.start(running)
        return result

    def _check(self, prompt: list[int], params: SamplingParams) -> None:
        if len(prompt) > self.args.max_num_tokens:
            kind = RequestError if IS_NEW else ValueError
            raise kind(
                f"The sum of prompt length ({len(prompt)}), query length (0) should not exceed max_num_tokens "
                f"({self.args.max_num_tokens})"
            )
        if params.guided_decoding and not self.args.guided_decoding_backend:
            raise RequestError("Guided decoding is not enabled")
        if params.logprobs == 0:
            raise AssertionError("some versions take this for none at all")


def _record(inputs: Any, params: SamplingParams, streaming: bool, others: dict[str, Any]) -> None:
    path = os.environ.get("STANDIN_CALLS")
    if path:
        with open(path, "a") as file:
            call = {"inputs": inputs, "sampling_params": params, "streaming": streaming, **others}
            file.write(json.dumps(call, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, KvCacheRetentionConfig):
        return vars(value)
    return repr(value)


class Llm12(BaseLLM):
    def generate_async(
        self,
        inputs: Any,
        sampling_params: SamplingParams,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
        kv_cache_retention_config: Any = None,
        disaggregated_params: Any = None,
        _postproc_params: Any = None,
        scheduling_params: Any = None,
        cache_salt: str | None = None,
    ) -> GenerationResult:
        return self._generate(
            inputs,
            sampling_params,
            streaming,
            lora_request=lora_request,
            kv_cache_retention_config=kv_cache_retention_config,
            disaggregated_params=disaggregated_params,
            scheduling_params=scheduling_params,
            cache_salt=cache_salt,
        )


class Llm14(BaseLLM):
    def generate_async(
        self,
        inputs: Any,
        sampling_params: SamplingParams,
        lora_request: Any = None,
        streaming: bool = False,
        kv_cache_retention_config: Any = None,
        disaggregated_params: Any = None,
        trace_headers: Any = None,
        _postproc_params: Any = None,
        scheduling_params: Any = None,
        conversation_params: Any = None,
        cache_salt: str | None = None,
        priority: float = 0.5,
    ) -> GenerationResult:
        if not 0 <= priority <= 1:
            raise ValueError("priority must be between 0 and 1")
        return self._generate(
            inputs,
            sampling_params,
            streaming,
            lora_request=lora_request,
            kv_cache_retention_config=kv_cache_retention_config,
            disaggregated_params=disaggregated_params,
            scheduling_params=scheduling_params,
            cache_salt=cache_salt,
            priority=priority,
        )


class Llm020(BaseLLM):
    def generate_async(self, inputs: Any, sampling_params: SamplingParams, streaming: bool = False) -> GenerationResult:
        return self._generate(inputs, sampling_params, streaming)


LLM: Any = Llm14 if IS_NEW else Llm020 if IS_OLD else Llm12
