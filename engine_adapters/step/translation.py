"""The border's values as messages of the step stream, and back.

What reads a message raises ValueError, and TypeError where a column is not whole, when the message makes no sense.
"""

import time
from array import array
from collections.abc import Sequence
from itertools import chain

from engine_adapters.base import (
    Constraint,
    EngineInfo,
    Finish,
    FinishReason,
    KvCleared,
    KvEvent,
    KvRange,
    KvRemoved,
    KvRetention,
    KvStored,
    Load,
    Logprobs,
    Lora,
    Phase,
    RankLoad,
    Sampling,
    Submission,
)
from engine_adapters.image import Image
from engine_adapters.step import PROTOCOL_VERSION, messages

REASONS = {reason.value: reason for reason in FinishReason}
LONGEST_TIMEOUT_MS = (1 << 32) - 1
PHASES: tuple[Phase, ...] = ("", "prefill", "decode")
"""By their numbers on the wire."""


def submit_message(stream_id: int, submission: Submission) -> messages.Submit:
    """Without its images, whose payloads may have to go ahead."""
    return messages.Submit(
        stream_id=stream_id,
        request_id=submission.request_id,
        token_ids=submission.token_ids,
        sampling=_sampling_message(submission.sampling),
        max_tokens=submission.max_tokens,
        stop_token_ids=submission.stop_token_ids,
        ignore_eos=submission.ignore_eos,
        min_tokens=submission.min_tokens,
        n=0 if submission.n == 1 else submission.n,
        logprobs=submission.logprobs,
        prompt_logprobs=submission.prompt_logprobs,
        priority=submission.priority,
        cache_salt=submission.cache_salt,
        dp_rank=submission.dp_rank,
        lora=_lora_message(submission.lora),
        constraint=_constraint_message(submission.constraint),
        kv_retention=_retention_message(submission.kv_retention),
        in_one_piece=not submission.stream,
        phase=PHASES.index(submission.phase),
        handoff=submission.handoff,
        timeout_ms=_timeout_ms(submission.ends_at),
    )


def as_submission(message: messages.Submit, images: "tuple[Image, ...]" = ()) -> Submission:
    return Submission(
        request_id=message.request_id,
        token_ids=message.token_ids,
        max_tokens=message.max_tokens,
        sampling=_sampling(message.sampling or messages.Sampling()),
        stop_token_ids=message.stop_token_ids,
        ignore_eos=message.ignore_eos,
        min_tokens=message.min_tokens,
        n=message.n or 1,
        logprobs=message.logprobs,
        prompt_logprobs=message.prompt_logprobs,
        priority=message.priority,
        cache_salt=message.cache_salt,
        dp_rank=message.dp_rank,
        lora=None if message.lora is None else Lora(message.lora.name, message.lora.id, message.lora.path),
        constraint=_constraint(message.constraint),
        kv_retention=_retention(message.kv_retention),
        stream=not message.in_one_piece,
        phase=as_phase(message.phase),
        handoff=message.handoff,
        images=images,
        ends_at=time.monotonic() + message.timeout_ms / 1000 if message.timeout_ms else 0.0,
    )


def _timeout_ms(ends_at: float) -> int:
    return min(max(1, int(1000 * (ends_at - time.monotonic()))), LONGEST_TIMEOUT_MS) if ends_at else 0


def as_phase(number: int) -> Phase:
    if number >= len(PHASES):
        raise ValueError(f"phase {number} is not known here")
    return PHASES[number]


def _lora_message(lora: "Lora | None") -> "messages.Lora | None":
    return None if lora is None else messages.Lora(lora.name, lora.id, lora.path)


def _constraint_message(constraint: "Constraint | None") -> "messages.Constraint | None":
    if constraint is None:
        return None
    return messages.Constraint(constraint.kind, constraint.guide, constraint.begins_after)


def _constraint(message: "messages.Constraint | None") -> "Constraint | None":
    return None if message is None else Constraint(message.kind, message.guide, message.begins_after)


def _retention_message(retention: "KvRetention | None") -> "messages.KvRetention | None":
    if retention is None:
        return None
    ranges = [messages.KvRange(each.start, each.end, each.priority, each.duration_ms) for each in retention.ranges]
    return messages.KvRetention(ranges, retention.decode_priority, retention.decode_duration_ms)


def _retention(message: "messages.KvRetention | None") -> "KvRetention | None":
    if message is None:
        return None
    ranges = [KvRange(each.start, each.end, each.priority, each.duration_ms) for each in message.ranges]
    return KvRetention(tuple(ranges), message.decode_priority, message.decode_duration_ms)


def _sampling_message(sampling: Sampling) -> messages.Sampling:
    message = messages.Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        repetition_penalty=sampling.repetition_penalty,
        top_p_min=sampling.top_p_min,
        top_p_decay=sampling.top_p_decay,
        top_p_reset_id=sampling.top_p_reset_id,
        no_repeat_ngram_size=sampling.no_repeat_ngram_size,
        bad_token_ids=sampling.bad_token_ids,
    )
    if sampling.logit_bias:
        token_ids, biases = zip(*sampling.logit_bias, strict=True)
        message.logit_bias_token_ids = array("I", token_ids).tobytes()
        message.logit_biases = array("f", biases).tobytes()
    return message


def _sampling(message: messages.Sampling) -> Sampling:
    token_ids = memoryview(message.logit_bias_token_ids).cast("I")
    biases = memoryview(message.logit_biases).cast("f")
    return Sampling(
        temperature=message.temperature,
        top_p=message.top_p,
        seed=message.seed,
        top_k=message.top_k,
        min_p=message.min_p,
        frequency_penalty=message.frequency_penalty,
        presence_penalty=message.presence_penalty,
        repetition_penalty=message.repetition_penalty,
        logit_bias=tuple(zip(token_ids, biases, strict=True)),
        top_p_min=message.top_p_min,
        top_p_decay=message.top_p_decay,
        top_p_reset_id=message.top_p_reset_id,
        no_repeat_ngram_size=message.no_repeat_ngram_size,
        bad_token_ids=message.bad_token_ids,
    )


def finished_message(stream_id: int, finish: Finish) -> messages.Finished:
    prompt_logprobs = finish.prompt_logprobs
    return messages.Finished(
        stream_id=stream_id,
        reason=finish.reason,
        matched_stop=finish.matched_stop,
        prompt_tokens=finish.prompt_tokens,
        cached_tokens=finish.cached_tokens,
        completion_tokens=finish.completion_tokens,
        error=finish.error,
        retryable=finish.retryable,
        prompt_logprobs=None if prompt_logprobs is None else logprobs_message(0, prompt_logprobs),
        handoff=finish.handoff,
    )


def as_finish(message: messages.Finished) -> Finish:
    return Finish(
        reason=REASONS.get(message.reason, FinishReason.ERROR),
        matched_stop=message.matched_stop,
        prompt_tokens=message.prompt_tokens,
        cached_tokens=message.cached_tokens,
        completion_tokens=message.completion_tokens,
        error=message.error or ("" if message.reason in REASONS else f"unknown finish reason {message.reason}"),
        retryable=message.retryable,
        prompt_logprobs=None if message.prompt_logprobs is None else as_logprobs(message.prompt_logprobs),
        handoff=message.handoff,
    )


def logprobs_message(stream_id: int, logprobs: Logprobs) -> messages.TokenLogprobs:
    alternatives = [*chain.from_iterable(logprobs.alternatives)]
    return messages.TokenLogprobs(
        stream_id=stream_id,
        logprobs=array("f", logprobs.logprobs).tobytes(),
        top_counts=array("I", map(len, logprobs.alternatives)).tobytes(),
        top_token_ids=array("I", [token_id for token_id, _ in alternatives]).tobytes(),
        top_logprobs=array("f", [logprob for _, logprob in alternatives]).tobytes(),
    )


def as_logprobs(message: messages.TokenLogprobs) -> Logprobs:
    chosen = memoryview(message.logprobs).cast("f").tolist()
    counts = memoryview(message.top_counts).cast("I").tolist()
    token_ids = memoryview(message.top_token_ids).cast("I").tolist()
    pairs = [*zip(token_ids, memoryview(message.top_logprobs).cast("f").tolist(), strict=True)]
    if len(counts) != len(chosen) or sum(counts) != len(pairs):
        raise ValueError("top_counts must tell how the alternatives are divided")
    alternatives: list[Sequence[tuple[int, float]]] = []
    start = 0
    for count in counts:
        alternatives.append(pairs[start : start + count])
        start += count
    return Logprobs(chosen, alternatives)


def load_message(load: Load) -> messages.Load:
    return messages.Load(
        running=load.running,
        waiting=load.waiting,
        kv_tokens_used=load.kv_tokens_used,
        kv_tokens_total=load.kv_tokens_total,
        tokens_per_second=load.tokens_per_second,
        ranks=[
            messages.RankLoad(rank.running, rank.waiting, rank.kv_tokens_used, rank.kv_tokens_total)
            for rank in load.ranks
        ],
    )


def as_load(message: messages.Load) -> Load:
    return Load(
        message.running,
        message.waiting,
        message.kv_tokens_used,
        message.kv_tokens_total,
        message.tokens_per_second,
        tuple(RankLoad(rank.running, rank.waiting, rank.kv_tokens_used, rank.kv_tokens_total) for rank in message.ranks)
        if message.ranks
        else (),
    )


def kv_event_message(event: KvEvent) -> messages.KvEvent:
    if isinstance(event, KvStored):
        return messages.KvEvent(
            kind=messages.KV_EVENT_KIND_STORED,
            dp_rank=event.dp_rank,
            parent_hash=event.parent_hash,
            block_hashes=array("Q", event.block_hashes).tobytes(),
            token_ids=event.token_ids,
            cache_salt=event.cache_salt,
            lora_id=event.lora_id,
        )
    if isinstance(event, KvRemoved):
        block_hashes = array("Q", event.block_hashes).tobytes()
        return messages.KvEvent(messages.KV_EVENT_KIND_REMOVED, event.dp_rank, block_hashes=block_hashes)
    return messages.KvEvent(messages.KV_EVENT_KIND_CLEARED, event.dp_rank)


def as_kv_event(message: messages.KvEvent) -> "KvEvent | None":
    """None for a kind that is not known here."""
    block_hashes = tuple(memoryview(message.block_hashes).cast("Q"))
    if message.kind == messages.KV_EVENT_KIND_STORED:
        if not block_hashes or not message.token_ids or len(message.token_ids) % (4 * len(block_hashes)):
            raise ValueError("stored blocks must have equally many tokens")
        return KvStored(
            message.parent_hash,
            block_hashes,
            message.token_ids,
            message.cache_salt,
            message.dp_rank,
            message.lora_id,
        )
    if message.kind == messages.KV_EVENT_KIND_REMOVED:
        return KvRemoved(block_hashes, message.dp_rank)
    if message.kind == messages.KV_EVENT_KIND_CLEARED:
        return KvCleared(message.dp_rank)
    return None


def info_message(info: EngineInfo) -> messages.Info:
    return messages.Info(
        protocol_version=PROTOCOL_VERSION,
        engine=info.engine,
        engine_version=info.engine_version,
        model=info.model,
        vocab_size=info.vocab_size,
        context_length=info.context_length,
        max_running=info.max_running,
        tokenizer_fingerprint=info.tokenizer_fingerprint,
        eos_token_ids=array("I", info.eos_token_ids).tobytes(),
        kv_block_size=info.kv_block_size,
        dp_size=info.dp_size,
        features=sorted(info.features),
        role=PHASES.index(info.role),
        image_dtype=info.image_dtype,
    )


def as_info(message: messages.Info) -> EngineInfo:
    return EngineInfo(
        engine=message.engine,
        engine_version=message.engine_version,
        model=message.model,
        vocab_size=message.vocab_size,
        context_length=message.context_length,
        max_running=message.max_running,
        tokenizer_fingerprint=message.tokenizer_fingerprint,
        eos_token_ids=tuple(memoryview(message.eos_token_ids).cast("I")),
        kv_block_size=message.kv_block_size,
        dp_size=message.dp_size or 1,
        features=frozenset(message.features),
        role=as_phase(message.role),
        image_dtype=message.image_dtype,
    )
