"""Every line of the executor that touches TensorRT-LLM: its LLM API of 1.2 and since, checked at the start.

Threads: none of its own; all but `TensorRt()` is called on the executor's event loop, where results also arrive.
"""

import asyncio
import contextlib
import dataclasses
import datetime
import importlib
import inspect
import json
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine_adapters.base import Constraint, KvRetention, Logprobs, Submission
from engine_adapters.tokenizer_file import TokenizerFile
from engine_adapters.trtllm.executor import handoff, images

PLACES: "Mapping[str, Sequence[str]]" = {
    "LLM": ("tensorrt_llm",),
    "SamplingParams": ("tensorrt_llm",),
    "GuidedDecodingParams": ("tensorrt_llm.llmapi", "tensorrt_llm.sampling_params"),
    "KvCacheRetentionConfig": ("tensorrt_llm.llmapi", "tensorrt_llm.bindings.executor"),
    "DisaggregatedParams": ("tensorrt_llm", "tensorrt_llm.llmapi", "tensorrt_llm.disaggregated_params"),
    "SchedulingParams": ("tensorrt_llm.llmapi", "tensorrt_llm.scheduling_params"),
    "LoRARequest": ("tensorrt_llm.llmapi", "tensorrt_llm.executor", "tensorrt_llm.executor.request"),
    "RequestError": ("tensorrt_llm.llmapi", "tensorrt_llm.executor", "tensorrt_llm.executor.utils"),
    "Logprob": ("tensorrt_llm.executor.result",),
}
"""The names that are used, and where they have been, the best place first."""
REQUIRED: "Mapping[str, str]" = {
    "LLM.generate_async": "inputs sampling_params lora_request streaming kv_cache_retention_config "
    "disaggregated_params scheduling_params cache_salt",
    "LLM.get_stats_async": "timeout",
    "LLM.get_kv_cache_events_async": "timeout",
    "LLM.shutdown": "",
    "SamplingParams": "end_id pad_id max_tokens n temperature top_p top_k min_p seed min_tokens frequency_penalty "
    "presence_penalty repetition_penalty stop_token_ids ignore_eos logprobs prompt_logprobs embedding_bias "
    "guided_decoding detokenize exclude_input_from_output top_p_min top_p_decay top_p_reset_ids no_repeat_ngram_size "
    "bad_token_ids",
    "GuidedDecodingParams": "json regex grammar json_object structural_tag",
    "DisaggregatedParams": "request_type",
    "SchedulingParams": "attention_dp_rank attention_dp_relax",
}
"""What is called, and the parameters that are given."""
SAME_NAMES = (
    *("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"),
    *("top_p_min", "top_p_decay", "no_repeat_ngram_size"),
)
"""Sampling fields that have the same name there."""
DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}
"""OpenAI's, for what a request leaves open; TensorRT-LLM's own would be greedy."""
CLIENTS_FAULT = ("should not exceed", "max_seq_len", "max_num_tokens", "max_tokens")
"""What a RequestError says that is about the length of a request."""
LEAST_LOGPROB = -9999.0
REPORT_SECONDS = 2.0


class ApiError(Exception):
    """TensorRT-LLM cannot be used as it is; the message says what is missing or what it said."""


class RequestFault(Exception):
    """A request is over, or was never taken. `is_clients`: it is the request that is at fault; otherwise another
    executor may do better if it `is_retryable`."""

    def __init__(self, message: str, is_clients: bool, is_retryable: bool) -> None:
        super().__init__(message)
        self.is_clients = is_clients
        self.is_retryable = is_retryable


def load_yaml(text: str) -> Any:
    """PyYAML comes with tensorrt_llm. Raises ValueError."""
    yaml = importlib.import_module("yaml")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


class Names:
    """What `PLACES` names, of the installed tensorrt_llm. Raises ApiError."""

    def __init__(self) -> None:
        try:
            self.version: str = importlib.import_module("tensorrt_llm").__version__
        except ImportError as error:
            raise ApiError(
                f"tensorrt_llm cannot be imported ({error}): run this in TensorRT-LLM's own Python, for example in its "
                "container"
            ) from error
        self._found = {name: self._find(name, places) for name, places in PLACES.items()}
        missing = [f"{name}({parameter}=)" for name in REQUIRED for parameter in self._lacking(name)]
        if missing:
            raise self._too_old(", ".join(missing))

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_found"][name]
        except KeyError:
            raise AttributeError(name) from None

    def takes(self, name: str, parameter: str) -> bool:
        """Whether a function or class has such a parameter."""
        thing = self
        for part in name.split("."):
            thing = getattr(thing, part)
        parameters = inspect.signature(thing).parameters  # type: ignore[arg-type]
        return parameter in parameters

    def _find(self, name: str, places: "Sequence[str]") -> Any:
        for place in places:
            with contextlib.suppress(ImportError, AttributeError):
                return getattr(importlib.import_module(place), name)
        raise self._too_old(f"{places[0]}.{name}")

    def _lacking(self, name: str) -> "list[str]":
        try:
            return [each for each in REQUIRED[name].split() if not self.takes(name, each)]
        except AttributeError:
            raise self._too_old(name) from None

    def _too_old(self, what: str) -> ApiError:
        return ApiError(
            f"tensorrt_llm {self.version} has no {what}, which this executor uses: it needs 1.2 or newer, and a newer "
            "executor if TensorRT-LLM has moved on"
        )


class TensorRt:
    """One `tensorrt_llm.LLM`, loaded."""

    def __init__(
        self,
        model: str,
        options: "Mapping[str, Any]",
        eos_token_id: int,
        tokenizer: TokenizerFile,
        takes_tensors: bool = False,
    ) -> None:
        """Takes minutes. Raises ApiError."""
        os.environ.setdefault("TLLM_ALLOW_N_GREEDY_DECODING", "1")
        self.names = Names()
        self._tokenizer = tokenizer
        self._eos_token_id = eos_token_id
        try:
            self._llm: Any = self.names.LLM(model=model, **options)
        except Exception as error:  # whatever it raises, it is why we cannot start
            raise ApiError(f"tensorrt_llm {self.names.version} cannot load {model}: {error}") from error
        self.takes_images = images.takes_images(self._llm)
        self.takes_tensors = self.takes_images and takes_tensors
        if self.takes_tensors:
            self._llm.input_processor = images.TensorProcessor(self._llm.input_processor)
        self.has_priority = self.names.takes("LLM.generate_async", "priority")

    def argument(self, name: str) -> Any:
        """What the engine made of an option, None where it has none such."""
        value: Any = getattr(self._llm, "args", None)
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
        return value

    def problem(self) -> str:
        """Why the engine cannot go on; empty when it can."""
        check = getattr(self._llm, "_check_health", None)
        return "" if check is None or check() else "TensorRT-LLM's executor has shut down"

    def shutdown(self) -> None:
        self._llm.shutdown()

    def generate(self, submission: Submission, vocab_size: int) -> "Generation":
        """Start; raises RequestFault."""
        try:
            result = self._llm.generate_async(
                images.inputs_of(submission),
                **self._arguments(submission, vocab_size),
            )
        except Exception as error:  # the request must end, whatever an engine makes of it
            raise self.fault(error) from error
        return Generation(result, submission)

    def fault(self, error: Exception) -> RequestFault:
        """What an exception of the engine's means."""
        is_requests = isinstance(error, self.names.RequestError)
        is_clients = isinstance(error, ValueError) or (
            is_requests and any(word in str(error) for word in CLIENTS_FAULT)
        )
        return RequestFault(str(error) or repr(error), is_clients, not is_requests)

    async def report(self, kind: str, note: "Callable[[list[Any]], None]") -> None:
        """Have `note` told of all that comes of "stats" or "kv_cache_events", whose queues have room for one reader."""
        ask = getattr(self._llm, f"get_{kind}_async")
        while True:
            came = False
            async for report in ask(timeout=REPORT_SECONDS):
                came = True
                note(report if isinstance(report, list) else [report])
            # Before its first request an engine has no queue, and says so in its log each time it is asked.
            await asyncio.sleep(0.1 if came else 1.0)

    # --- a submission in its words ----------------------------------------------------------------------------------

    def _arguments(self, submission: Submission, vocab_size: int) -> "dict[str, Any]":
        names = self.names
        arguments: dict[str, Any] = {
            "sampling_params": names.SamplingParams(**self._sampling(submission, vocab_size)),
            # One answer in one piece spares the engine's process a message for each token.
            "streaming": submission.stream,
        }
        if submission.lora is not None:
            lora = submission.lora
            arguments["lora_request"] = names.LoRARequest(lora.name, lora.id, lora.path)
        if submission.kv_retention is not None:
            arguments["kv_cache_retention_config"] = self._retention(submission.kv_retention)
        if submission.phase == "decode" or is_split(submission):
            arguments["disaggregated_params"] = self._disaggregated(submission)
        if submission.dp_rank:
            arguments["scheduling_params"] = names.SchedulingParams(
                attention_dp_rank=submission.dp_rank, attention_dp_relax=False
            )
        if submission.cache_salt:
            arguments["cache_salt"] = submission.cache_salt
        if submission.priority:
            arguments["priority"] = as_priority(submission.priority)
        return arguments

    def _sampling(self, submission: Submission, vocab_size: int) -> "dict[str, Any]":
        asked = submission.sampling
        stops = array("I", submission.stop_token_ids).tolist()
        if not submission.ignore_eos:
            stops = [token_id for token_id in stops if token_id != self._eos_token_id]
        fields: dict[str, Any] = {
            "end_id": self._eos_token_id,
            "pad_id": self._eos_token_id,
            "max_tokens": submission.max_tokens,
            "n": submission.n,
            "seed": None if asked.seed is None else asked.seed & 0xFFFFFFFFFFFFFFFF,
            "min_tokens": submission.min_tokens or None,
            "stop_token_ids": stops or None,
            "ignore_eos": submission.ignore_eos,
            # 0 is not "none but the token's own" in every version.
            "logprobs": None if submission.logprobs is None else max(1, submission.logprobs),
            "prompt_logprobs": None if submission.prompt_logprobs is None else max(1, submission.prompt_logprobs),
            "detokenize": False,
            "exclude_input_from_output": True,
        }
        for name in SAME_NAMES:
            given = getattr(asked, name)
            fields[name] = DEFAULTS.get(name) if given is None else given
        fields["top_p_reset_ids"] = asked.top_p_reset_id
        fields["bad_token_ids"] = array("I", asked.bad_token_ids).tolist() or None
        if asked.logit_bias:
            fields["embedding_bias"] = _bias(asked.logit_bias, vocab_size)
        if submission.constraint is not None:
            fields["guided_decoding"] = self.names.GuidedDecodingParams(**self._guide(submission.constraint))
        return fields

    def _guide(self, constraint: Constraint) -> "dict[str, Any]":
        if constraint.begins_after:
            marker = self._tokenizer.text_of(memoryview(constraint.begins_after).cast("I"))
            return {"structural_tag": behind(marker, constraint)}
        if constraint.kind == "json":
            return {"json_object": True}
        return {GUIDES[constraint.kind]: constraint.guide}

    def _retention(self, retention: KvRetention) -> Any:
        config = self.names.KvCacheRetentionConfig
        ranges = [
            config.TokenRangeRetentionConfig(each.start, each.end, each.priority, _duration(each.duration_ms))
            for each in retention.ranges
        ]
        others: dict[str, Any] = {"decode_duration_ms": _duration(retention.decode_duration_ms)}
        if retention.decode_priority is not None:
            others["decode_retention_priority"] = retention.decode_priority
        return config(token_range_retention_configs=ranges, **others)

    def _disaggregated(self, submission: Submission) -> Any:
        names = self.names
        if submission.phase == "prefill":
            return names.DisaggregatedParams(request_type="context_only")
        fields = handoff.unpack(submission.handoff, names.Logprob)
        unknown = [name for name in fields if not names.takes("DisaggregatedParams", name)]
        if unknown:
            raise ValueError(f"the prefill's TensorRT-LLM is newer than {names.version}: it hands over {unknown}")
        return names.DisaggregatedParams(**{**fields, "request_type": "generation_only"})


def is_split(submission: Submission) -> bool:
    """Whether a decode may follow: the engine keeps what it has read until one comes, so not for a single token."""
    return submission.phase == "prefill" and submission.max_tokens > 1


class Generation:
    """A request that the engine works on. `outputs` are its answers: the same objects from beginning to end, since
    nothing else replaces them than postprocess workers, which `options` refuses. `token_ids` of each is all so far."""

    __slots__ = ("_result", "first_tokens", "outputs")

    def __init__(self, result: Any, submission: Submission) -> None:
        self._result = result
        self.first_tokens: list[int] = []
        if submission.phase == "decode":
            self.first_tokens = [*(handoff.unpack(submission.handoff, lambda *_: None).get("first_gen_tokens") or ())]
        self.outputs: Sequence[Any] = result.outputs

    async def follow(self, note: "Callable[[], None]") -> None:
        """Call `note()` after each step until the end; raises what the engine raises, of which `fault` makes sense."""
        async for _ in self._result:
            note()
        error = getattr(self._result, "error", None)
        if error:
            raise error if isinstance(error, Exception) else RuntimeError(str(error))

    def abort(self) -> None:
        self._result.abort()

    @property
    def cached_tokens(self) -> int:
        return getattr(self._result, "cached_tokens", 0) or 0

    def handoff(self) -> bytes:
        """What a decode needs of this prefill; empty if the engine has nothing to hand over."""
        params = self.outputs[0].disaggregated_params
        if params is None:
            return b""
        return handoff.pack({field.name: getattr(params, field.name) for field in dataclasses.fields(params)})

    def logprobs(self, index: int, start: int, token_ids: "Sequence[int]", count: int) -> Logprobs:
        """Of `token_ids`, which are those from `start` on of an answer."""
        entries = self.outputs[index].logprobs[start : start + len(token_ids)]
        return as_logprobs(entries, token_ids, count)

    def prompt_logprobs(self, token_ids: "Sequence[int]", count: int) -> Logprobs:
        """The engine's entry for each token is about the next one."""
        judged = as_logprobs(self.outputs[0].prompt_logprobs or (), token_ids[1:], count)
        return Logprobs([0.0, *judged.logprobs], [(), *judged.alternatives])


GUIDES = {"json_schema": "json", "regex": "regex", "ebnf": "grammar", "structural_tag": "structural_tag"}


def behind(marker: str, constraint: Constraint) -> str:
    """A structural tag of xgrammar's: any text up to the marker, and then what the constraint asks."""
    guide = constraint.guide
    formats: Mapping[str, Callable[[], Any]] = {
        "json": lambda: {"type": "json_schema", "json_schema": {"type": "object"}},
        "json_schema": lambda: {"type": "json_schema", "json_schema": json.loads(guide)},
        "regex": lambda: {"type": "regex", "pattern": guide},
        "ebnf": lambda: {"type": "grammar", "grammar": guide},
        "structural_tag": lambda: json.loads(guide).get("format"),
    }
    free = {"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": marker}
    elements = [free, formats[constraint.kind]()]
    return json.dumps({"type": "structural_tag", "format": {"type": "sequence", "elements": elements}})


def as_priority(priority: int) -> float:
    """The engine's are between 0 and 1, 0.5 unless given, and higher goes first."""
    return 0.5 - priority / (2.0 * (1 + abs(priority)))


def as_logprobs(entries: "Sequence[Any]", token_ids: "Sequence[int]", count: int) -> Logprobs:
    """An entry maps the best tokens and the one that came, in no order, to logprobs; or it is that one's alone."""
    chosen: list[float] = []
    alternatives: list[list[tuple[int, float]]] = []
    for index, token_id in enumerate(token_ids):
        entry: Any = entries[index] if index < len(entries) else {}
        pairs: Any = entry.items() if isinstance(entry, Mapping) else [(token_id, entry)]
        scores: dict[int, float] = {each: getattr(score, "logprob", score) for each, score in pairs}
        chosen.append(scores.get(token_id, LEAST_LOGPROB))
        alternatives.append(sorted(scores.items(), key=lambda item: -item[1])[:count])
    return Logprobs(chosen, alternatives)


def _bias(logit_bias: "Sequence[tuple[int, float]]", vocab_size: int) -> Any:
    bias = importlib.import_module("torch").zeros(vocab_size)
    for token_id, value in logit_bias:
        bias[token_id] = value
    return bias


def _duration(milliseconds: "int | None") -> "datetime.timedelta | None":
    return None if milliseconds is None else datetime.timedelta(milliseconds=milliseconds)
