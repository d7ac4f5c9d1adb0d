"""The executor's translations that need no engine: options, handoffs, priorities, logprobs, guides, reports."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapters.base import CONSTRAINT_KINDS, Constraint, KvRemoved, KvStored, Load, Logprobs
from engine_adapters.trtllm.executor import api, handoff, options
from engine_adapters.trtllm.executor.reports import KvTranslator, as_load
from tests.attach import u32

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(min_size=1, max_size=6), VALUES, max_size=4))
def test_whatever_an_engine_hands_over_comes_through(fields: dict[str, Any]) -> None:
    expected = {name: value for name, value in fields.items() if value is not None}
    assert handoff.unpack(handoff.pack(fields), lambda *_: None) == expected


def test_logprobs_in_a_handoff_become_the_engines_own() -> None:
    packed = handoff.pack({"first_gen_log_probs": [[{5: SimpleNamespace(logprob=-0.5, rank=1)}]]})
    assert handoff.unpack(packed, lambda value, rank: (value, rank)) == {"first_gen_log_probs": [[{5: (-0.5, 1)}]]}


@given(st.binary(max_size=30) | st.sampled_from([b"[]", b"null", b'{"a": {"bytes": "?"}}', b'{"a": {}}', b"1"]))
def test_what_is_no_handoff_is_a_value_error(data: bytes) -> None:
    try:
        assert isinstance(handoff.unpack(data, lambda *_: None), dict)
    except ValueError as error:
        assert "handoff" in str(error)


def test_what_cannot_travel_is_named() -> None:
    with pytest.raises(TypeError, match="a object in a handoff"):
        handoff.pack({"multimodal": object()})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--tp_size", "2"], {"tensor_parallel_size": 2}),
        (["--max-batch-size=8", "--backend", "pytorch"], {"max_batch_size": 8, "backend": "pytorch"}),
        (["--enable_lora", "--trust_remote_code", "False"], {"enable_lora": True, "trust_remote_code": False}),
        (["--kv_cache_config.free_gpu_memory_fraction", "0.8"], {"kv_cache_config.free_gpu_memory_fraction": 0.8}),
        (["--kv_cache_config", '{"host_cache_size": 5}'], {"kv_cache_config.host_cache_size": 5}),
    ],
)
def test_any_option_of_the_engine_is_a_flag(words: list[str], expected: dict[str, Any]) -> None:
    llm = options.parse(["model", *words], json.loads).llm
    for name, value in expected.items():
        found: Any = llm
        for part in name.split("."):
            found = found[part]
        assert found == value
    assert llm["kv_cache_config"]["event_buffer_max_size"] > 0 and llm["enable_iter_perf_stats"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["stray"], "'stray' is not an option"),
        (["--num_postprocess_workers", "2"], "num_postprocess_workers must be 0"),
        (["--extra-llm-api-options", "/nowhere"], "cannot read /nowhere"),
    ],
)
def test_a_bad_command_line_is_an_error_that_names_it(words: list[str], problem: str) -> None:
    with pytest.raises(options.OptionError, match=problem):
        options.parse(["model", *words], json.loads)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=9))
def test_priorities_keep_their_order_turned_round(priorities: list[int]) -> None:
    turned = [api.as_priority(priority) for priority in sorted(priorities)]
    assert turned == sorted(turned, reverse=True)
    assert all(0 <= priority <= 1 for priority in turned) and api.as_priority(0) == 0.5


def test_logprobs_are_sorted_cut_and_never_taken_from_another_token() -> None:
    entries = [{7: SimpleNamespace(logprob=-3.0), 5: -1.0, 6: -2.0}, {5: -1.0}, -0.25]
    assert api.as_logprobs(entries, [7, 8, 9, 10], 2) == Logprobs(
        [-3.0, api.LEAST_LOGPROB, -0.25, api.LEAST_LOGPROB], [[(5, -1.0), (6, -2.0)], [(5, -1.0)], [(9, -0.25)], []]
    )


@pytest.mark.parametrize("kind", CONSTRAINT_KINDS)
def test_a_constraint_that_begins_late_is_a_structural_tag(kind: str) -> None:
    guide = json.dumps({"format": {"type": "any_text"}}) if kind == "structural_tag" else '{"type": "integer"}'
    tag = json.loads(api.behind("</think>", Constraint(kind, guide)))
    free, bound = tag["format"]["elements"]
    assert (tag["type"], tag["format"]["type"]) == ("structural_tag", "sequence")
    assert free == {"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": "</think>"}
    assert bound["type"] == {"json": "json_schema", "ebnf": "grammar", "structural_tag": "any_text"}.get(kind, kind)


def stored(hashes: list[int], sizes: list[int], window: int | None = None, **fields: Any) -> dict[str, Any]:
    blocks = [
        {"block_hash": block_hash, "tokens": [{"token_id": each} for each in range(size)]}
        for block_hash, size in zip(hashes, sizes, strict=True)
    ]
    return {"data": {"type": "stored", "parent_hash": 3, "blocks": blocks}, "window_size": window, **fields}


def test_kv_events_are_of_whole_blocks_of_the_largest_window() -> None:
    translator = KvTranslator(2)
    removed = {"data": {"type": "removed", "block_hashes": [-1, 5]}, "attention_dp_rank": 1}
    events = [
        {"data": {"type": "created"}, "window_size": 4096},
        stored([1, 2], [2, 1], 4096, attention_dp_rank=1),
        stored([9], [2], 512),
        stored([1], [1], 4096),
        {"data": {"type": "updated", "block_hash": 1}, "window_size": 4096},
        {"event_id": 4},
    ]
    assert translator.translate(events) == [KvStored(3, (1,), u32(0, 1), dp_rank=1)]
    assert KvTranslator(2).translate([removed]) == [KvRemoved((2**64 - 1, 5), 1)]


def test_load_is_what_the_last_statistics_say_and_never_more_than_there_is() -> None:
    stats = {
        "inflightBatchingStats": {"numContextRequests": 1, "numGenRequests": 3},
        "kvCacheStats": {"usedNumBlocks": 5, "maxNumBlocks": 10, "tokensPerBlock": 32},
    }
    assert as_load(stats, 6, 1.5) == Load(4, 2, 160, 320, 1.5)
    assert as_load(stats, 0, 0.0) == Load(0, 0, 160, 320)
    assert as_load({}, 2, 0.0) == Load(2, 0)
