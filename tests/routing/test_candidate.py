"""Candidates' loads, and who has the least."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_adapters.base import RankLoad
from gateway.routing.candidate import REQUEST_TOKENS, Candidate
from gateway.routing.fleet import LEAST_OF, Fleet, Memory
from gateway.routing.policies import load_of
from gateway.routing.ring import Ring
from tests.routing.workers import Worker, WorkerAddress


def candidate(slot: int = 0, weight: float = 1.0) -> Candidate:
    return Candidate(Worker(f"w{slot}", WorkerAddress("step", "w", 1), None), 0, slot, weight, MEMORY.tally)


MEMORY = Memory()


def fleet_of(weights: list[float]) -> Fleet:
    candidates = tuple(candidate(slot, weight) for slot, weight in enumerate(weights))
    return Fleet.of(candidates, Ring(candidates), (), MEMORY)


WEIGHTS = st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=9)
CHANGES = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3), st.integers(0, 500)), max_size=60)


@given(WEIGHTS, CHANGES)
@settings(max_examples=100)
def test_it_is_known_who_has_the_least_load_whatever_happens(
    weights: list[float], changes: list[tuple[int, int, int]]
) -> None:
    fleet = fleet_of(weights)
    candidates = fleet.candidates
    running: list[tuple[Candidate, int, bool]] = []
    for turn, (number, kind, tokens) in enumerate(changes, 1):
        one = candidates[number % len(candidates)]
        if kind == 0 or not running:
            one.take(tokens, 1, turn)
            running.append((one, tokens, False))
        elif kind == 1:
            one.note(RankLoad(number, tokens % 5, tokens, 500))
        else:
            one, tokens, has_begun = running.pop(number % len(running))
            if kind == 2 and not has_begun:
                one.begin(tokens)
                running.append((one, tokens, True))
            else:
                one.give_back(1, None if has_begun else tokens)
        assert load_of(fleet.least()) == min(map(load_of, candidates))
        assert MEMORY.tally.in_flight == sum(each.in_flight for each in candidates) == len(running)

    for one, tokens, has_begun in running:
        one.give_back(1, None if has_begun else tokens)
    for one in candidates:
        one.note(RankLoad())
        assert (one.in_flight, one.answers, one.reading, one.load) == (0, 0, 0, 0)


def test_idle_candidates_take_turns() -> None:
    fleet = fleet_of([1.0] * 5)
    chosen = []
    for turn in range(1, 11):
        least = fleet.least()
        least.take(10, 1, turn)
        least.begin(10)
        least.give_back(1)
        chosen.append(least.slot)

    assert sorted(chosen[:5]) == [0, 1, 2, 3, 4]
    assert chosen[:5] == chosen[5:]


@pytest.mark.parametrize("count", [LEAST_OF, 2 * LEAST_OF - 1, 100, 2048])
def test_in_a_large_fleet_the_least_of_some_is_found_and_everybody_has_a_chance(count: int) -> None:
    fleet = fleet_of([1.0] * count)
    for number, each in enumerate(fleet.candidates):
        each.note(RankLoad(running=number))

    found = {fleet.least().slot for _ in range(1000)}

    stride = count // LEAST_OF
    assert found == set(range(stride)), "the best of each group"
    assert stride > 1 or found == {0}


def test_load_counts_what_waits_to_be_read_and_what_runs_for_the_weight() -> None:
    light, heavy = candidate(), candidate(weight=4.0)
    for one in (light, heavy):
        one.take(1000, 2, 1)

    assert light.load == 1000 + 2 * REQUEST_TOKENS == 4 * heavy.load
    light.begin(1000)
    assert light.load == 2 * REQUEST_TOKENS


def test_reports_add_what_others_have_there_and_ours_is_not_counted_twice() -> None:
    one = candidate()
    one.take(100, 1, 1)
    before = one.load

    one.note(RankLoad(running=0, waiting=1))
    assert one.load == before, "the one that waits is ours"
    one.note(RankLoad(running=3, waiting=1))
    assert one.load == before + 3 * REQUEST_TOKENS
    one.note(RankLoad(running=0, waiting=3))
    assert one.load > before + 2 * REQUEST_TOKENS + 2 * 100, "others' prompts wait, of about the usual length"


def test_a_full_cache_is_a_load_that_grows_ever_faster() -> None:
    one = candidate()
    loads = []
    for used in (0, 500, 900, 990, 1000):
        one.note(RankLoad(kv_tokens_used=used, kv_tokens_total=1000))
        loads.append(one.load)

    assert loads[0] == 0
    assert all(later > 4 * earlier for earlier, later in zip(loads[1:-1], loads[2:-1], strict=False))
    one.note(RankLoad(kv_tokens_used=500, kv_tokens_total=1000))
    before = one.load
    one.take(400, 1, 1)
    assert one.load - before > 4 * before, "what was sent since the report counts"
