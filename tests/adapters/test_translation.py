"""Tests that values cross the step stream unchanged, through our wire codec."""

from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapters import codec
from engine_adapters.base import (
    CONSTRAINT_KINDS,
    FEATURES,
    Constraint,
    EngineInfo,
    Finish,
    FinishReason,
    KvCleared,
    KvRange,
    KvRemoved,
    KvRetention,
    KvStored,
    Load,
    Logprobs,
    Lora,
    RankLoad,
    Sampling,
    Submission,
)
from engine_adapters.step import messages, translation
from tests.attach import f32, u32, u64

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
FLOATS = st.floats(width=32, allow_nan=False)
COLUMNS = st.lists(U32, max_size=5).map(lambda ids: array("I", ids).tobytes())
MAYBE_FLOATS = st.none() | FLOATS
TEXTS = st.text(max_size=9)
SAMPLINGS = st.builds(
    Sampling,
    temperature=MAYBE_FLOATS,
    top_p=MAYBE_FLOATS,
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    top_k=st.none() | st.integers(-(2**31), 2**31 - 1),
    min_p=MAYBE_FLOATS,
    frequency_penalty=MAYBE_FLOATS,
    presence_penalty=MAYBE_FLOATS,
    repetition_penalty=MAYBE_FLOATS,
    logit_bias=st.lists(st.tuples(U32, FLOATS), max_size=3).map(tuple),
    top_p_min=MAYBE_FLOATS,
    top_p_decay=MAYBE_FLOATS,
    top_p_reset_id=st.none() | U32,
    no_repeat_ngram_size=st.none() | U32,
    bad_token_ids=COLUMNS,
)
PHASES = st.sampled_from(translation.PHASES)
CONSTRAINTS = st.builds(Constraint, kind=st.sampled_from(CONSTRAINT_KINDS), guide=TEXTS, begins_after=COLUMNS)
MAYBE_U32, MAYBE_U64 = st.none() | U32, st.none() | U64
KV_RANGES = st.builds(KvRange, start=U32, end=MAYBE_U32, priority=U32, duration_ms=MAYBE_U64)
KV_RETENTIONS = st.builds(
    KvRetention,
    ranges=st.lists(KV_RANGES, max_size=3).map(tuple),
    decode_priority=MAYBE_U32,
    decode_duration_ms=MAYBE_U64,
)
SUBMISSIONS = st.builds(
    Submission,
    request_id=TEXTS,
    token_ids=COLUMNS,
    max_tokens=U32,
    sampling=SAMPLINGS,
    stop_token_ids=COLUMNS,
    ignore_eos=st.booleans(),
    min_tokens=U32,
    n=st.integers(1, 128),
    logprobs=st.none() | U32,
    prompt_logprobs=st.none() | U32,
    priority=st.integers(-(2**31), 2**31 - 1),
    cache_salt=TEXTS,
    dp_rank=U32,
    lora=st.none() | st.builds(Lora, name=TEXTS, id=U64, path=TEXTS),
    constraint=st.none() | CONSTRAINTS,
    kv_retention=st.none() | KV_RETENTIONS,
    stream=st.booleans(),
    phase=PHASES,
    handoff=st.binary(max_size=9),
)
ALTERNATIVES = st.lists(st.tuples(U32, FLOATS), max_size=3)
LOGPROBS = st.lists(st.tuples(FLOATS, ALTERNATIVES), max_size=4).map(
    lambda tokens: Logprobs([logprob for logprob, _ in tokens], [alternatives for _, alternatives in tokens])
)
FINISHES = st.builds(
    Finish,
    reason=st.sampled_from(FinishReason),
    matched_stop=st.none() | U32,
    prompt_tokens=U32,
    cached_tokens=U32,
    completion_tokens=U32,
    error=TEXTS,
    retryable=st.booleans(),
    prompt_logprobs=st.none() | LOGPROBS,
    handoff=st.binary(max_size=9),
)
RANK_LOADS = st.builds(RankLoad, running=U32, waiting=U32, kv_tokens_used=U64, kv_tokens_total=U64)
LOADS = st.builds(
    Load,
    running=U32,
    waiting=U32,
    kv_tokens_used=U64,
    kv_tokens_total=U64,
    tokens_per_second=FLOATS,
    ranks=st.lists(RANK_LOADS, max_size=3).map(tuple),
)
HASHES = st.lists(U64, min_size=1, max_size=4).map(tuple)
KV_EVENTS = (
    HASHES.flatmap(
        lambda hashes: st.builds(
            KvStored,
            parent_hash=U64,
            block_hashes=st.just(hashes),
            token_ids=st.just(u32(*range(3 * len(hashes)))),
            cache_salt=TEXTS,
            dp_rank=U32,
        )
    )
    | st.builds(KvRemoved, block_hashes=HASHES, dp_rank=U32)
    | st.builds(KvCleared, dp_rank=U32)
)
INFOS = st.builds(
    EngineInfo,
    engine=TEXTS,
    engine_version=TEXTS,
    model=TEXTS,
    vocab_size=U32,
    context_length=U32,
    max_running=U32,
    tokenizer_fingerprint=st.binary(max_size=4),
    eos_token_ids=st.lists(U32, max_size=3).map(tuple),
    kv_block_size=U32,
    dp_size=st.integers(1, 2**32 - 1),
    features=st.frozensets(st.sampled_from(sorted(FEATURES))),
    role=PHASES,
)


def sent[M: codec.Message](message: M) -> M:
    return codec.decode(type(message), codec.encode(message))


@given(SUBMISSIONS, U32)
def test_a_submission_crosses_whole(submission: Submission, stream_id: int) -> None:
    message = sent(translation.submit_message(stream_id, submission))
    assert (message.stream_id, translation.as_submission(message)) == (stream_id, submission)


@given(FINISHES, U32)
def test_an_end_crosses_whole(finish: Finish, stream_id: int) -> None:
    message = sent(translation.finished_message(stream_id, finish))
    assert (message.stream_id, translation.as_finish(message)) == (stream_id, finish)


@given(LOGPROBS)
def test_logprobs_cross_whole(logprobs: Logprobs) -> None:
    assert translation.as_logprobs(sent(translation.logprobs_message(1, logprobs))) == logprobs


@given(LOADS)
def test_a_load_crosses_whole(load: Load) -> None:
    assert translation.as_load(sent(translation.load_message(load))) == load


@given(KV_EVENTS)
def test_a_kv_event_crosses_whole(event: KvStored | KvRemoved | KvCleared) -> None:
    assert translation.as_kv_event(sent(translation.kv_event_message(event))) == event


@given(INFOS)
def test_an_info_crosses_whole(info: EngineInfo) -> None:
    assert translation.as_info(sent(translation.info_message(info))) == info


def test_what_an_older_executor_leaves_out_has_its_old_meaning() -> None:
    info = translation.as_info(messages.Info(engine="old"))
    assert (info.kv_block_size, info.dp_size, info.features) == (0, 1, frozenset())
    assert translation.as_submission(messages.Submit(token_ids=u32(1), max_tokens=1)) == Submission("", u32(1), 1)


def test_reasons_and_events_that_are_not_known_yet_are_no_fault() -> None:
    finish = translation.as_finish(messages.Finished(reason=77))
    assert (finish.reason, finish.error) == (FinishReason.ERROR, "unknown finish reason 77")
    assert translation.as_kv_event(messages.KvEvent(kind=77)) is None


@pytest.mark.parametrize(
    "columns",
    [
        {"logprobs": f32(1, 2), "top_counts": u32(1), "top_token_ids": u32(5), "top_logprobs": f32(1)},
        {"logprobs": f32(1), "top_counts": u32(2), "top_token_ids": u32(5), "top_logprobs": f32(1)},
        {"logprobs": f32(1), "top_counts": u32(1), "top_token_ids": u32(5, 6), "top_logprobs": f32(1)},
        {"logprobs": b"123"},
    ],
)
def test_logprobs_whose_columns_do_not_fit_are_refused(columns: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        translation.as_logprobs(messages.TokenLogprobs(**columns))


@pytest.mark.parametrize(
    "fields",
    [
        {"token_ids": u32(1, 2)},
        {"block_hashes": u64(1, 2), "token_ids": u32(1, 2, 3)},
        {"block_hashes": u64(1)},
        {"block_hashes": b"1234567", "token_ids": u32(1)},
    ],
)
def test_stored_blocks_that_do_not_fit_their_tokens_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        translation.as_kv_event(messages.KvEvent(kind=messages.KV_EVENT_KIND_STORED, **fields))
