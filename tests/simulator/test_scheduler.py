"""Tests of the simulator's batching, in simulated time."""

from array import array
from collections.abc import Sequence

import pytest

from engine_adapters.base import Finish, FinishReason, Submission
from engine_adapters.simulator.scheduler import Costs, Plan, Scheduler

COSTS = Costs(prefill_tokens_per_second=1000, decode_base=0.5, decode_per_request=0.25)
EOS = 9
ENDLESS = Plan([(1,)], repeats=True)


def submission(prompt_tokens: int = 1, max_tokens: int = 1000, stops: Sequence[int] = (), **more: bool) -> Submission:
    return Submission(
        request_id="r",
        token_ids=array("I", range(prompt_tokens)).tobytes(),
        max_tokens=max_tokens,
        stop_token_ids=array("I", stops).tobytes(),
        **more,
    )


class Engine:
    """A scheduler and the time it is."""

    def __init__(self, plan: Plan = ENDLESS, max_running: int = 100, context_length: int = 100_000) -> None:
        self.plan = plan
        self.scheduler: Scheduler[str] = Scheduler(
            lambda _: self.plan, COSTS, max_running, context_length, frozenset([EOS])
        )
        self.now = 0.0

    def submit(self, key: str, **request: int | Sequence[int] | bool) -> Finish | None:
        return self.scheduler.submit(key, submission(**request))  # type: ignore[arg-type]

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
    assert (engine.scheduler.running, engine.scheduler.waiting) == (0, 4)
    assert engine.speakers() == ["a", "b"]
    assert (engine.scheduler.running, engine.scheduler.waiting) == (1, 2)
    assert [engine.speakers() for _ in range(3)] == [["b", "c"], ["b", "c"], ["d"]]
    assert (engine.scheduler.running, engine.scheduler.waiting) == (0, 0)


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
    engine.submit("slow")
    engine.step()
    engine.plan = ENDLESS
    engine.submit("steady")
    engine.submit("waits")
    resumes = engine.now + 2.0
    while engine.now < resumes:
        assert engine.speakers() == ["steady"]
    assert engine.speakers() == ["slow", "steady"]
    assert engine.scheduler.waiting == 1


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
    assert engine.scheduler.waiting == 1
    assert [engine.speakers() for _ in range(3)] == [["a"], ["c"], ["c"]]


def test_an_abort_while_its_prompt_is_read_frees_the_place_at_once() -> None:
    engine = Engine(max_running=1)
    engine.submit("a", prompt_tokens=5000)
    engine.submit("b")
    engine.scheduler.begin_step(0.0)
    assert engine.scheduler.abort("a") == Finish(FinishReason.ABORTED, prompt_tokens=5000)
    assert engine.scheduler.is_step_deserted
    assert (engine.scheduler.running, engine.scheduler.waiting) == (0, 1)
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


def test_the_cache_holds_what_the_running_streams_have_read_and_said() -> None:
    engine = Engine(max_running=2)
    engine.submit("a", prompt_tokens=100)
    engine.submit("b", prompt_tokens=50, max_tokens=2)
    engine.submit("c", prompt_tokens=7)
    assert engine.scheduler.kv_tokens_used == 0
    engine.step()
    assert engine.scheduler.kv_tokens_used == 152
    engine.step()
    assert engine.scheduler.kv_tokens_used == 102
    engine.step()
    assert engine.scheduler.kv_tokens_used == 103 + 8
    engine.scheduler.abort("a")
    engine.scheduler.abort("c")
    assert engine.scheduler.kv_tokens_used == 0
    assert engine.scheduler.tokens_generated == 6
