"""Tests of the simulator's batching, in simulated time."""

from array import array
from collections.abc import Sequence
from typing import Any

import pytest

from engine_adapters.base import Finish, FinishReason, RankLoad, Submission
from engine_adapters.simulator.rank import Capacity
from engine_adapters.simulator.run import Plan
from engine_adapters.simulator.scheduler import Costs, Scheduler

COSTS = Costs(prefill_tokens_per_second=1000, decode_base=0.5, decode_per_request=0.25)
EOS = 9
ENDLESS = Plan([(1,)], repeats=True)


def submission(prompt: Sequence[int], max_tokens: int = 1000, stops: Sequence[int] = (), **more: Any) -> Submission:
    return Submission(
        request_id="r",
        token_ids=array("I", prompt).tobytes(),
        max_tokens=max_tokens,
        stop_token_ids=array("I", stops).tobytes(),
        **more,
    )


class Engine:
    """A scheduler and the time it is."""

    def __init__(self, plan: Plan = ENDLESS, **capacity: int) -> None:
        self.plan = plan
        limits = {"context_length": 100_000, "prefill_chunk": 100_000} | capacity
        self.scheduler: Scheduler[str] = Scheduler(
            lambda _submission, _index: self.plan, COSTS, Capacity(**limits), frozenset([EOS])
        )
        self.now = 0.0

    @property
    def load(self) -> RankLoad:
        (rank,) = self.scheduler.ranks
        return rank.load

    @property
    def busy(self) -> tuple[int, int]:
        return self.load.running, self.load.waiting

    def submit(self, keys: str, prompt_tokens: int = 1, prompt: Sequence[int] = (), **request: Any) -> Finish | None:
        """Each letter of the keys is an answer. Without a given `prompt` no two have a token in common."""
        prompt = prompt or range(1000 * ord(keys[0]), 1000 * ord(keys[0]) + prompt_tokens)
        return self.scheduler.submit(keys, submission(prompt, n=len(keys), **request))

    def step(self) -> list[tuple[str, Sequence[int], Finish | None]]:
        """Do one step and move the time on to its end."""
        end = self.scheduler.begin_step(self.now)
        assert end is not None, "nobody can go on"
        self.now = end
        return self.scheduler.end_step()

    def speakers(self) -> list[str]:
        return [key for key, token_ids, _ in self.step() if token_ids]

    def finish_of(self, key: str) -> tuple[list[int], Finish]:
        """Step until a stream ends; its tokens and its end."""
        said: list[int] = []
        while True:
            for speaker, token_ids, finish in self.step():
                if speaker == key:
                    said += token_ids
                    if finish is not None:
                        return said, finish

    def cached_tokens_of(self, key: str) -> int:
        return self.finish_of(key)[1].cached_tokens


def test_the_first_token_comes_when_the_prompt_has_been_read() -> None:
    engine = Engine()
    engine.submit("a", prompt_tokens=2000)
    assert engine.speakers() == ["a"]
    assert engine.now == 2.0


def test_a_decode_step_costs_a_fixed_part_and_one_for_each_stream() -> None:
    engine = Engine()
    for key in "ab":
        engine.submit(key, prompt_tokens=500)
    engine.step()
    assert engine.now == 1.0
    engine.step()
    assert engine.now == 1.0 + 0.5 + 2 * 0.25


def test_a_newcomers_prompt_delays_those_who_decode_and_is_not_charged_as_decoding() -> None:
    engine = Engine()
    engine.submit("a", prompt_tokens=1000)
    engine.step()
    engine.submit("b", prompt_tokens=3000)
    assert engine.speakers() == ["a", "b"]
    assert engine.now == 1.0 + 3.0 + 0.5 + 0.25


def test_a_step_that_is_under_way_admits_nobody() -> None:
    engine = Engine()
    engine.submit("a")
    engine.now = engine.scheduler.begin_step(0.0) or 0.0
    engine.submit("b")
    assert [key for key, _, _ in engine.scheduler.end_step()] == ["a"]
    assert engine.speakers() == ["a", "b"]


def test_those_who_wait_are_admitted_in_order_as_places_become_free() -> None:
    engine = Engine(max_running=2)
    for key, max_tokens in [("a", 1), ("b", 3), ("c", 2), ("d", 1)]:
        engine.submit(key, max_tokens=max_tokens)
    assert engine.busy == (0, 4)
    assert engine.speakers() == ["a", "b"]
    assert engine.busy == (1, 2)
    assert [engine.speakers() for _ in range(3)] == [["b", "c"], ["b", "c"], ["d"]]
    assert engine.busy == (0, 0)


def test_with_nobody_there_no_step_begins() -> None:
    engine = Engine()
    assert engine.scheduler.begin_step(5.0) is None
    engine.submit("a", max_tokens=1)
    engine.step()
    assert engine.scheduler.begin_step(engine.now) is None
    assert engine.scheduler.step == 1


def test_a_stream_ends_at_its_limit() -> None:
    engine = Engine()
    engine.submit("a", prompt_tokens=3, max_tokens=4)
    assert engine.finish_of("a") == ([1] * 4, Finish(FinishReason.LENGTH, prompt_tokens=3, completion_tokens=4))


def test_a_stream_ends_where_the_context_does() -> None:
    engine = Engine(context_length=10)
    engine.submit("a", prompt_tokens=8, max_tokens=1000)
    assert engine.finish_of("a") == ([1, 1], Finish(FinishReason.LENGTH, prompt_tokens=8, completion_tokens=2))


@pytest.mark.parametrize("prompt_tokens", [10, 11])
def test_a_prompt_that_fills_the_context_is_rejected_with_the_numbers(prompt_tokens: int) -> None:
    finish = Engine(context_length=10).submit("a", prompt_tokens=prompt_tokens)
    assert finish is not None and finish.reason is FinishReason.REJECTED
    assert str(prompt_tokens) in finish.error and "10" in finish.error


def test_the_end_of_sequence_is_counted_but_not_said() -> None:
    engine = Engine(Plan([(1,), (2,), (EOS,), (3,)]))
    engine.submit("a", prompt_tokens=2)
    end = Finish(FinishReason.STOP, matched_stop=EOS, prompt_tokens=2, completion_tokens=3)
    assert engine.finish_of("a") == ([1, 2], end)


def test_an_ignored_end_of_sequence_is_a_token_like_any_other() -> None:
    engine = Engine(Plan([(1,), (EOS,)], repeats=True))
    engine.submit("a", max_tokens=5, ignore_eos=True)
    assert engine.finish_of("a")[0] == [1, EOS, 1, EOS, 1]


def test_a_stop_token_ends_a_stream_even_when_the_end_of_sequence_is_ignored() -> None:
    engine = Engine(Plan([(1,), (EOS,), (2,), (7,)]))
    engine.submit("a", stops=[7], ignore_eos=True)
    said, finish = engine.finish_of("a")
    assert (said, finish.reason, finish.matched_stop) == ([1, EOS, 2], FinishReason.STOP, 7)


@pytest.mark.parametrize(
    ("max_tokens", "said", "reason", "completion_tokens"),
    [
        (2, [1, 2], FinishReason.LENGTH, 2),
        (3, [1, 2, 3], FinishReason.LENGTH, 3),
        (4, [1, 2, 3], FinishReason.STOP, 4),
        (5, [1, 2, 3], FinishReason.STOP, 4),
    ],
)
def test_a_step_of_several_tokens_is_cut_at_the_stop_or_the_limit_whichever_is_first(
    max_tokens: int, said: list[int], reason: FinishReason, completion_tokens: int
) -> None:
    engine = Engine(Plan([(1,), (2, 3, EOS, 4)]))
    engine.submit("a", max_tokens=max_tokens)
    tokens, finish = engine.finish_of("a")
    assert (tokens, finish.reason, finish.completion_tokens) == (said, reason, completion_tokens)


def test_a_plan_without_an_end_of_sequence_ends_with_its_last_step_for_its_reason() -> None:
    engine = Engine(Plan([(1, 2)], reason=FinishReason.ERROR, error="lost", retryable=True))
    engine.submit("a")
    end = Finish(FinishReason.ERROR, prompt_tokens=1, completion_tokens=2, error="lost", retryable=True)
    assert engine.finish_of("a") == ([1, 2], end)


def test_a_delayed_stream_keeps_its_place_while_others_go_on() -> None:
    engine = Engine(Plan([(1,), (2,)] * 10, delays={1: 2.0}), max_running=2)
    engine.submit("s")
    engine.step()
    engine.plan = ENDLESS
    engine.submit("t")
    engine.submit("w")
    resumes = engine.now + 2.0
    while engine.now < resumes:
        assert engine.speakers() == ["t"]
    assert engine.speakers() == ["s", "t"]
    assert engine.load.waiting == 1


def test_when_all_are_delayed_the_first_to_go_on_is_known() -> None:
    engine = Engine(Plan([(1,), (2,)], delays={0: 4.0, 1: 1.5}))
    engine.submit("a", prompt_tokens=1000)
    assert engine.step() == []
    assert engine.scheduler.begin_step(engine.now) is None
    assert engine.scheduler.next_ready_at() == 1.0 + 4.0
    engine.now = 5.0
    assert engine.speakers() == ["a"]
    assert engine.now == 5.75
    assert engine.scheduler.next_ready_at() == 5.75 + 1.5


def test_an_abort_while_waiting_takes_the_stream_out_of_the_queue() -> None:
    engine = Engine(max_running=1)
    for key in "abc":
        engine.submit(key, prompt_tokens=2, max_tokens=2)
    engine.step()
    assert engine.scheduler.abort("b") == Finish(FinishReason.ABORTED, prompt_tokens=2)
    assert engine.load.waiting == 1
    assert [engine.speakers() for _ in range(3)] == [["a"], ["c"], ["c"]]


def test_an_abort_while_its_prompt_is_read_frees_the_place_at_once() -> None:
    engine = Engine(max_running=1)
    engine.submit("a", prompt_tokens=5000)
    engine.submit("b")
    engine.scheduler.begin_step(0.0)
    assert engine.scheduler.abort("a") == Finish(FinishReason.ABORTED, prompt_tokens=5000)
    assert engine.scheduler.is_step_deserted
    assert engine.busy == (0, 1)
    assert engine.scheduler.end_step() == []
    assert engine.speakers() == ["b"]


def test_an_abort_while_decoding_says_how_much_was_generated() -> None:
    engine = Engine()
    for key in "ab":
        engine.submit(key)
    engine.step()
    engine.step()
    engine.scheduler.begin_step(engine.now)
    assert engine.scheduler.abort("a") == Finish(FinishReason.ABORTED, prompt_tokens=1, completion_tokens=2)
    assert not engine.scheduler.is_step_deserted
    assert [key for key, _, _ in engine.scheduler.end_step()] == ["b"]


def test_an_abort_of_a_stream_that_is_gone_changes_nothing() -> None:
    engine = Engine()
    engine.submit("a", max_tokens=1)
    engine.step()
    assert engine.scheduler.abort("a") is None
    assert engine.scheduler.abort("never there") is None


def test_streams_hold_the_blocks_for_what_they_have_read_and_said() -> None:
    engine = Engine(max_running=2)
    engine.submit("a", prompt_tokens=100)
    engine.submit("b", prompt_tokens=50, max_tokens=2)
    engine.submit("c", prompt_tokens=7)
    assert engine.load.kv_tokens_used == 0
    engine.step()
    assert engine.load.kv_tokens_used == 112 + 64
    engine.step()
    assert engine.load.kv_tokens_used == 112
    engine.step()
    assert engine.load.kv_tokens_used == 112 + 16
    for _ in range(9):
        engine.step()
    assert engine.load.kv_tokens_used == 112 + 16  # there are keys and values of 100 + 11 tokens and of 7 + 9
    engine.step()
    assert engine.load.kv_tokens_used == 112 + 32
    engine.step()
    assert engine.load.kv_tokens_used == 128 + 32
    engine.scheduler.abort("a")
    engine.scheduler.abort("c")
    assert engine.load.kv_tokens_used == 0
    assert engine.scheduler.tokens_generated == 2 + 14 + 12


# --- chunks ---------------------------------------------------------------------------------------------------------


def test_a_long_prompt_is_read_in_pieces_beside_those_who_decode() -> None:
    engine = Engine(prefill_chunk=1000)
    engine.submit("a")
    engine.step()
    began = engine.now
    engine.submit("b", prompt_tokens=2500)
    assert [engine.speakers() for _ in range(4)] == [["a"], ["a"], ["a", "b"], ["a", "b"]]
    assert engine.now == pytest.approx(began + 2.5 + 3 * (0.5 + 0.25) + 0.5 + 2 * 0.25)


def test_what_is_left_of_a_chunk_goes_to_the_next_in_order() -> None:
    engine = Engine(prefill_chunk=1000)
    engine.submit("a", prompt_tokens=1600)
    engine.submit("b", prompt_tokens=900)
    engine.submit("c", prompt_tokens=100)
    assert engine.speakers() == [] and engine.busy == (1, 2)
    assert engine.now == 1.0
    assert engine.speakers() == ["a"] and engine.busy == (2, 1)
    assert engine.now == 2.0
    assert engine.speakers() == ["a", "b", "c"]


def test_an_abort_in_the_middle_of_a_prompt_keeps_what_was_read_cached() -> None:
    engine = Engine(prefill_chunk=1000)
    engine.submit("a", prompt=range(3000))
    engine.step()
    engine.scheduler.begin_step(engine.now)
    assert engine.scheduler.abort("a") is not None and engine.load.kv_tokens_used == 0
    engine.submit("b", prompt=range(3000), max_tokens=1)
    assert engine.cached_tokens_of("b") == 992


# --- capacity -------------------------------------------------------------------------------------------------------


def test_who_waits_for_blocks_is_passed_by_nobody() -> None:
    engine = Engine(kv_tokens=160)
    engine.submit("a", prompt_tokens=100, max_tokens=5)
    engine.step()
    engine.submit("b", prompt_tokens=100, max_tokens=1)
    engine.submit("c", prompt_tokens=1, max_tokens=1)
    for _ in range(4):
        assert engine.speakers() == ["a"]
    assert engine.speakers() == ["b", "c"]


def test_when_blocks_run_out_the_last_in_order_goes_back_and_later_continues_where_it_was() -> None:
    engine = Engine(Plan([(token_id,) for token_id in range(100, 200)]), kv_tokens=64)
    engine.submit("a", prompt_tokens=20, max_tokens=30)
    engine.submit("b", prompt_tokens=8, max_tokens=30)
    said: dict[str, list[int]] = {"a": [], "b": []}
    loads: list[tuple[int, int]] = []
    ends: dict[str, Finish] = {}
    while len(ends) < 2:
        for key, token_ids, finish in engine.step():
            said[key] += token_ids
            if finish is not None:
                ends[key] = finish
        loads.append(engine.busy)
    assert said == dict.fromkeys("ab", [*range(100, 130)])
    assert list(ends) == ["a", "b"] and {end.completion_tokens for end in ends.values()} == {30}
    assert (1, 1) in loads


def test_a_stream_that_lost_its_place_reads_only_what_is_no_longer_cached() -> None:
    engine = Engine(kv_tokens=64)
    engine.submit("a", prompt_tokens=16)
    engine.submit("b", prompt_tokens=30)
    while engine.busy == (2, 0) or engine.scheduler.step == 0:
        engine.step()
    lost_at = engine.now
    engine.scheduler.abort("a")
    assert engine.speakers() == ["b"]
    # It had read 32 tokens, two blocks, and said one more in the last step; a took none of them since.
    assert engine.now - lost_at == pytest.approx(0.001 * (30 + 3 - 32))
    assert engine.finish_of("b")[1].cached_tokens == 0


def test_who_still_reads_makes_room_for_those_before_it() -> None:
    engine = Engine(kv_tokens=160, prefill_chunk=4)
    engine.submit("a", prompt_tokens=15)
    while not engine.speakers():
        pass
    engine.submit("b", prompt_tokens=128)
    before = [engine.speakers() for _ in range(17)]
    assert before == [["a"]] * 17 and engine.busy == (2, 0)
    assert engine.speakers() == ["a"] and engine.busy == (1, 1)


def test_the_first_in_order_never_loses_its_place_and_all_come_to_an_end() -> None:
    engine = Engine(Plan([(token_id,) for token_id in range(50)]), kv_tokens=160, max_running=8)
    keys = "abcdefghijklmnop"
    for key in keys:
        engine.submit(key, prompt_tokens=25, max_tokens=40)
    ends: list[str] = []
    while len(ends) < len(keys):
        ends += [key for key, _, finish in engine.step() if finish is not None]
    assert ends[0] == "a" and sorted(ends) == [*keys]
    assert engine.busy == (0, 0) and engine.load.kv_tokens_used == 0


def test_a_prompt_that_no_memory_is_large_enough_for_is_rejected_with_the_numbers() -> None:
    finish = Engine(kv_tokens=64).submit("a", prompt_tokens=65)
    assert finish is not None and finish.reason is FinishReason.REJECTED
    assert "65" in finish.error and "64" in finish.error


def test_an_answer_ends_where_the_memory_does() -> None:
    engine = Engine(kv_tokens=64)
    engine.submit("a", prompt_tokens=60)
    said, finish = engine.finish_of("a")
    assert (len(said), finish.reason) == (5, FinishReason.LENGTH)


def test_a_lower_priority_number_goes_first_and_loses_its_place_last() -> None:
    engine = Engine(max_running=1)
    engine.submit("a", max_tokens=1)
    engine.submit("b", max_tokens=1, priority=5)
    engine.submit("c", max_tokens=1)
    engine.submit("d", max_tokens=1, priority=-1)
    assert [engine.speakers() for _ in range(4)] == [["d"], ["a"], ["c"], ["b"]]
    engine = Engine(kv_tokens=64)
    engine.submit("a", prompt_tokens=16, priority=1)
    engine.submit("b", prompt_tokens=16)
    while engine.busy == (2, 0) or engine.scheduler.step == 0:
        engine.step()
    assert engine.speakers() == ["b"]


# --- the prefix cache -----------------------------------------------------------------------------------------------


def test_a_prompt_that_was_read_before_costs_only_its_last_block() -> None:
    engine = Engine()
    engine.submit("a", prompt=range(1600), max_tokens=1)
    engine.step()
    assert engine.now == 1.6
    engine.submit("b", prompt=range(1600), max_tokens=1)
    (output,) = engine.step()
    assert output == ("b", (1,), Finish(FinishReason.LENGTH, None, 1600, 1584, 1))
    assert engine.now == pytest.approx(1.616)


@pytest.mark.parametrize(
    ("prompt", "cached"),
    [
        ([*range(100)], 96),
        ([*range(96)], 80),
        ([*range(97)], 96),
        ([*range(200)], 96),
        ([*range(50), 7, *range(51, 100)], 48),
        ([7, *range(1, 100)], 0),
        ([*range(16, 100)], 0),
        ([*range(15)], 0),
    ],
)
def test_whole_blocks_from_the_beginning_are_found_except_the_one_with_the_last_token(
    prompt: list[int], cached: int
) -> None:
    engine = Engine()
    engine.submit("a", prompt=range(100), max_tokens=1)
    engine.step()
    engine.submit("b", prompt=prompt, max_tokens=1)
    assert engine.cached_tokens_of("b") == cached


def test_an_answer_is_cached_too_so_that_the_next_turn_finds_it() -> None:
    engine = Engine(Plan([(token_id,) for token_id in range(500, 600)]))
    engine.submit("a", prompt=range(40), max_tokens=60)
    engine.finish_of("a")
    engine.submit("b", prompt=[*range(40), *range(500, 560), 8, 8], max_tokens=1)
    assert engine.cached_tokens_of("b") == 96


def test_prompts_under_different_salts_have_nothing_in_common() -> None:
    engine = Engine()
    engine.submit("a", prompt=range(100), max_tokens=1, cache_salt="mine")
    for key, salt, cached in [("b", "", 0), ("c", "yours", 0), ("d", "mine", 96)]:
        engine.submit(key, prompt=range(100), max_tokens=1, cache_salt=salt)
        assert engine.cached_tokens_of(key) == cached


@pytest.mark.parametrize(("start", "cached"), [(0, 64), (1000, 32), (2000, 64)])
def test_what_was_unused_for_longest_makes_room(start: int, cached: int) -> None:
    engine = Engine(kv_tokens=160)
    for key, first in [("a", 0), ("b", 1000), ("c", 0), ("d", 2000)]:
        engine.submit(key, prompt=range(first, first + 64), max_tokens=1)
        engine.step()
    # d needed four blocks and two were blank: the last two of b's went.
    engine.submit("e", prompt=range(start, start + 65), max_tokens=1)
    assert engine.cached_tokens_of("e") == cached


def test_a_prompt_whose_logprobs_are_wanted_is_read_whole() -> None:
    engine = Engine()
    for key in "ab":
        engine.submit(key, prompt=range(100), max_tokens=1, prompt_logprobs=0)
        assert engine.cached_tokens_of(key) == 0
    assert engine.now == 0.2


def test_a_cleared_cache_keeps_only_what_streams_hold() -> None:
    engine = Engine()
    engine.submit("a", prompt=range(100), max_tokens=1)
    engine.step()
    engine.submit("b", prompt=range(64), max_tokens=100)
    engine.step()
    engine.scheduler.clear_cache()
    engine.submit("c", prompt=range(100), max_tokens=1)
    assert engine.cached_tokens_of("c") == 64
    engine.scheduler.abort("b")
    engine.scheduler.clear_cache()
    engine.submit("d", prompt=range(100), max_tokens=1)
    assert engine.cached_tokens_of("d") == 0


# --- ranks ----------------------------------------------------------------------------------------------------------


def test_ranks_have_their_own_batch_blocks_and_cache_and_step_together() -> None:
    engine = Engine(dp_size=2, max_running=1, kv_tokens=160)
    engine.submit("a", prompt=range(100))
    engine.submit("b", prompt=range(100), dp_rank=1)
    engine.submit("c", prompt=range(100), max_tokens=1, dp_rank=1)
    assert engine.speakers() == ["a", "b"]
    assert engine.now == 0.1  # at the same time, and neither found the other's blocks
    first, second = (rank.load for rank in engine.scheduler.ranks)
    assert (first.running, first.waiting, first.kv_tokens_used, first.kv_tokens_total) == (1, 0, 112, 160)
    assert (second.running, second.waiting) == (1, 1)
    engine.scheduler.abort("b")
    assert engine.cached_tokens_of("c") == 96
    engine.scheduler.abort("a")
    assert {event.dp_rank for event in engine.scheduler.take_kv_events()} == {0, 1}


# --- several answers ------------------------------------------------------------------------------------------------


def test_a_prompt_is_read_once_for_all_its_answers_which_share_its_blocks() -> None:
    engine = Engine()
    engine.submit("abc", prompt_tokens=1000)
    assert engine.busy == (0, 3)
    engine.scheduler.begin_step(0.0)
    assert engine.busy == (1, 2)
    engine.scheduler.end_step()
    engine.now = 1.0
    assert engine.busy == (3, 0)
    assert engine.load.kv_tokens_used == 992 + 3 * 16
    assert engine.speakers() == ["a", "b", "c"]
    assert engine.now == 1.0 + 0.5 + 3 * 0.25


def test_answers_for_which_there_is_no_place_wait_and_find_the_prompt_cached() -> None:
    engine = Engine(max_running=2)
    engine.submit("abc", prompt_tokens=1000, max_tokens=2)
    engine.submit("d", max_tokens=1)
    assert engine.speakers() == ["a", "b"]
    assert engine.speakers() == ["a", "b"]
    assert engine.speakers() == ["c", "d"]
    assert engine.now == pytest.approx(1.0 + 1.0 + 0.008 + 0.001)
    assert engine.finish_of("c")[1].cached_tokens == 0


@pytest.mark.parametrize("moment", ["waiting", "reading", "in a step"])
def test_when_the_answer_that_reads_is_aborted_the_next_one_takes_over(moment: str) -> None:
    engine = Engine(prefill_chunk=600)
    engine.submit("abc", prompt_tokens=1000, max_tokens=1)
    if moment != "waiting":
        engine.step()
    if moment == "in a step":
        engine.now = engine.scheduler.begin_step(engine.now) or 0.0
    assert engine.scheduler.abort("a") is not None
    assert engine.scheduler.abort("c") is not None
    assert sum(engine.busy) == 1
    if moment == "in a step":
        ((key, _, _),) = engine.scheduler.end_step()
        assert key == "b"
    else:
        engine.finish_of("b")
    assert engine.now == 1.0 and engine.busy == (0, 0) and engine.load.kv_tokens_used == 0


# --- min_tokens -----------------------------------------------------------------------------------------------------


def test_before_min_tokens_no_stop_comes() -> None:
    engine = Engine(Plan([(1,), (EOS,), (7,), (2,), (EOS,)]))
    engine.submit("a", stops=[7], min_tokens=3)
    said, finish = engine.finish_of("a")
    assert (said, finish.reason, finish.completion_tokens) == ([1, 0, 0, 2], FinishReason.STOP, 5)


def test_a_text_shorter_than_min_tokens_begins_again() -> None:
    engine = Engine(Plan([(1,), (2,), (EOS,)]))
    engine.submit("a", min_tokens=5)
    assert engine.finish_of("a")[0] == [1, 2, 0, 1, 2]
