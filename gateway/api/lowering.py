"""Body fields that the generating endpoints share, lowered to a GenerateRequest."""

import itertools
from array import array
from dataclasses import dataclass
from typing import Any

from engine_adapters.base import Constraint, KvRange, KvRetention, Sampling
from gateway.api.body import Fields
from gateway.errors import BadRequest
from gateway.generation_config import RANGES
from gateway.model import Model
from gateway.types import GenerateRequest, Input, OutputOptions, Reading, Shape

STREAM_OPTIONS = ("stream_options",)
MAX_ANSWERS = 128
MAX_LOGPROBS = 20
MAX_STOPS = 4096
MAX_STOP_CHARACTERS = 65_536
MAX_TOKENS = (1 << 31) - 1
MAX_SEED = 1 << 63
MAX_PRIORITY = (1 << 31) - 1
MAX_BIAS = 100.0
MAX_KV_PRIORITY = 100
MAX_DURATION_MS = 1000 * 60 * 60 * 24 * 365
MAX_DIGITS = 10
"""Of a token id."""
SAMPLING = (
    *RANGES,
    *("seed", "top_k", "logit_bias", "top_p_reset_id", "no_repeat_ngram_size", "bad_token_ids"),
)
OUTPUT = ("stop", "include_stop_str_in_output", "skip_special_tokens")
RARE = (
    *("min_tokens", "n", "stop_token_ids", "ignore_eos", "priority", "cache_salt", "kv_retention"),
    "truncate_prompt_tokens",
)
ACCEPTED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
"""Fields of OpenAI's that ask nothing of a gateway."""


def read_shape(fields: Fields) -> Shape:
    stream = fields.boolean("stream")
    if fields.lacks(STREAM_OPTIONS):
        return Shape(stream, include_usage=False, continuous_usage=False)
    options = fields.object("stream_options")
    if options.values and not stream:
        fields.refuse("stream_options", "is only for stream: true")
    continuous_usage = options.boolean("continuous_usage_stats")
    shape = Shape(stream, options.boolean("include_usage") or continuous_usage, continuous_usage)
    options.log_unread(())
    return shape


@dataclass(frozen=True, slots=True)
class Logging:
    """Which logprobs are wanted, as numbers of alternatives; None: none."""

    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be found in the answer's text, and what that must look like."""

    reading: Reading | None = None
    constraint: Constraint | None = None
    is_wish: bool = False


ANYTHING = Wanted()


def read_request(
    fields: Fields,
    request_id: str,
    model: Model,
    source: Input,
    logging: Logging,
    default_max_tokens: int | None,
    wanted: Wanted = ANYTHING,
) -> GenerateRequest:
    """Raises BadRequest with the path of what is wrong."""
    older_name = fields.integer("max_tokens", 1, MAX_TOKENS)
    max_tokens = fields.integer("max_completion_tokens", 1, MAX_TOKENS) or older_name or default_max_tokens
    rare = {} if fields.lacks(RARE) else read_rare(fields, model, max_tokens)
    return GenerateRequest(
        request_id=request_id,
        model=model.name,
        input=source,
        sampling=read_sampling(fields, model),
        output=read_output(fields),
        max_tokens=max_tokens,
        logprobs=logging.logprobs,
        prompt_logprobs=logging.prompt_logprobs,
        constraint=wanted.constraint,
        constraint_is_wish=wanted.is_wish,
        reading=wanted.reading,
        stream=fields.boolean("stream"),
        **rare,
    )


def read_rare(fields: Fields, model: Model, max_tokens: int | None) -> dict[str, Any]:
    """Those fields of a GenerateRequest that few bodies have, RARE."""
    min_tokens = fields.integer("min_tokens", 0, MAX_TOKENS) or 0
    if max_tokens is not None and min_tokens > max_tokens:
        fields.refuse("min_tokens", f"must not be above max_tokens ({max_tokens})")
    return {
        "min_tokens": min_tokens,
        "n": fields.integer("n", 1, MAX_ANSWERS) or 1,
        "stop_token_ids": read_token_ids(fields, "stop_token_ids", model),
        "ignore_eos": fields.boolean("ignore_eos"),
        "priority": fields.integer("priority", -MAX_PRIORITY, MAX_PRIORITY) or 0,
        "cache_salt": fields.text("cache_salt") if fields.has("cache_salt") else "",
        "kv_retention": read_kv_retention(fields),
        "truncate_prompt_tokens": fields.integer("truncate_prompt_tokens", 1, MAX_TOKENS),
    }


def read_sampling(fields: Fields, model: Model) -> Sampling:
    """What the request says, else what the model's folder says, else None: the engine's default."""
    defaults = model.sampling
    if fields.lacks(SAMPLING):
        return defaults
    top_k = given(fields.integer("top_k", -1, MAX_TOKENS), defaults.top_k)
    repetition_penalty = given(setting(fields, "repetition_penalty"), defaults.repetition_penalty)
    return Sampling(
        temperature=given(setting(fields, "temperature"), defaults.temperature),
        top_p=given(setting(fields, "top_p"), defaults.top_p),
        seed=fields.integer("seed", -MAX_SEED, MAX_SEED - 1),
        top_k=None if top_k in (0, -1) else top_k,
        min_p=given(setting(fields, "min_p"), defaults.min_p) or None,
        frequency_penalty=setting(fields, "frequency_penalty") or None,
        presence_penalty=setting(fields, "presence_penalty") or None,
        repetition_penalty=None if repetition_penalty == 1 else repetition_penalty,
        logit_bias=read_logit_bias(fields, model),
        top_p_min=setting(fields, "top_p_min") or None,
        top_p_decay=setting(fields, "top_p_decay"),
        top_p_reset_id=fields.integer("top_p_reset_id", 0, model.tokenizer.vocab_size - 1),
        no_repeat_ngram_size=fields.integer("no_repeat_ngram_size", 1, MAX_TOKENS),
        bad_token_ids=read_token_ids(fields, "bad_token_ids", model),
    )


def setting(fields: Fields, name: str) -> float | None:
    return fields.number(name, *RANGES[name])


def given[Number](value: Number | None, default: Number | None) -> Number | None:
    return default if value is None else value


PLAIN_OUTPUT = OutputOptions()


def read_output(fields: Fields) -> OutputOptions:
    if fields.lacks(OUTPUT):
        return PLAIN_OUTPUT
    stop = fields.texts("stop", MAX_STOPS)
    if sum(map(len, stop)) > MAX_STOP_CHARACTERS:
        fields.refuse("stop", f"must not have more than {MAX_STOP_CHARACTERS} characters in all")
    return OutputOptions(
        stop=stop,
        include_stop=fields.boolean("include_stop_str_in_output"),
        skip_special_tokens=fields.boolean("skip_special_tokens", default=True),
    )


def read_token_ids(fields: Fields, name: str, model: Model) -> bytes:
    """A list of token ids of the model, as little-endian u32; empty when it is absent."""
    value = fields.value(name)
    if value is None:
        return b""
    if not isinstance(value, list):
        fields.refuse(name, "must be a list of token ids")
    return column(value, fields.path(name), model)


def column(token_ids: list[Any], path: str, model: Model) -> bytes:
    """Checks ids without a loop of Python's own where all is well: prompts of 100,000 ids come this way."""
    try:
        result = array("I", token_ids)
    except (TypeError, OverflowError):
        result = None
    if result is None or (result and max(result) >= model.tokenizer.vocab_size) or bool in set(map(type, token_ids)):
        refuse_token_ids(token_ids, path, model)
    return result.tobytes() if result is not None else b""


def refuse_token_ids(token_ids: list[Any], path: str, model: Model) -> None:
    size = model.tokenizer.vocab_size
    for index, token_id in enumerate(token_ids):
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < size:
            place = f"{path}[{index}]"
            raise BadRequest(f"{place} must be a token id, which are integers from 0 to {size - 1}", param=place)


def read_logit_bias(fields: Fields, model: Model) -> tuple[tuple[int, float], ...]:
    biases = fields.object("logit_bias")
    result = []
    for name in biases.values:
        is_number = name.isascii() and name.isdecimal() and len(name) <= MAX_DIGITS
        if not is_number or int(name) >= model.tokenizer.vocab_size:
            biases.refuse(name, f"must be a token id, which are integers from 0 to {model.tokenizer.vocab_size - 1}")
        bias = biases.number(name, -MAX_BIAS, MAX_BIAS)
        if bias is None:
            biases.refuse(name, "must be a number")
        result.append((int(name), bias))
    return tuple(result)


def read_kv_retention(fields: Fields) -> KvRetention | None:
    """How long the engine shall keep which tokens of the prompt, as it reaches the engine, and of the answer."""
    if not fields.has("kv_retention"):
        return None
    retention = fields.object("kv_retention")
    ranges = retention.each("ranges", read_kv_range) if retention.has("ranges") else []
    ends = sorted((each.start, each.end or MAX_TOKENS, index) for index, each in enumerate(ranges))
    for (_, end, _), (start, _, index) in itertools.pairwise(ends):
        if start < end:
            retention.refuse(f"ranges[{index}]", "begins before another range has ended")
    return KvRetention(
        ranges=tuple(ranges),
        decode_priority=retention.integer("decode_priority", 0, MAX_KV_PRIORITY),
        decode_duration_ms=retention.integer("decode_duration_ms", 1, MAX_DURATION_MS),
    )


def read_kv_range(fields: Fields) -> KvRange:
    start = fields.integer("start", 0, MAX_TOKENS) or 0
    end = fields.integer("end", 1, MAX_TOKENS)
    if end is not None and end <= start:
        fields.refuse("end", f"must be above start ({start})")
    priority = fields.integer("priority", 0, MAX_KV_PRIORITY)
    if priority is None:
        fields.refuse("priority", "is required")
    return KvRange(start, end, priority, fields.integer("duration_ms", 1, MAX_DURATION_MS))


def refuse_unfit(fields: Fields, names: tuple[str, ...], why: str) -> None:
    """Refuse fields that would change the answer and that we would otherwise ignore; empty ones ask for nothing."""
    if fields.lacks(names):
        return
    for name in names:
        if fields.value(name) not in (None, [], {}, "", "none", False):
            fields.refuse(name, why)
