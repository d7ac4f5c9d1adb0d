"""Candidates' loads and the tournament among them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from engine_adapters.base import RankLoad
from gateway.routing.candidate import REQUEST_TOKENS, Board, Candidate
from gateway.routing.policies import load_of
from tests.routing.workers import Worker, WorkerAddress


def candidate(slot: int = 0, weight: float = 1.0) -> Candidate:
    return Candidate(Worker(f"w{slot}", WorkerAddress("step", "w", 1, weight=weight), None), 0, slot)


def board_of(weights: list[float]) -> tuple[Board, list[Candidate]]:
    candidates = [candidate(slot, weight) for slot, weight in enumerate(weights)]
    board = Board(tuple(candidates))
    for place, each in enumerate(candidates):
        each.enter(board, place)
    return board, candidates


WEIGHTS = st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=9)
CHANGES = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3), st.integers(0, 500)), max_size=60)


@given(WEIGHTS, CHANGES)
@settings(max_examples=100, deadline=None)
def test_the_board_shows_who_has_the_least_load_whatever_happens(
    weights: list[float], changes: list[tuple[int, int, int]]
) -> None:
    board, candidates = board_of(weights)
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
            if not has_begun:
                one.begin(tokens)
            if kind == 2 and not has_begun:
                running.append((one, tokens, True))
            else:
                one.give_back(1)
        assert load_of(board.least) == min(map(load_of, candidates))
        assert board.in_flight == sum(each.in_flight for each in candidates) == len(running)

    for one, tokens, has_begun in running:
        if not has_begun:
            one.begin(tokens)
        one.give_back(1)
    for one in candidates:
        one.note(RankLoad())
        assert (one.in_flight, one.answers, one.reading, one.load) == (0, 0, 0, 0)


def test_idle_candidates_take_turns() -> None:
    board, candidates = board_of([1.0] * 5)
    chosen = []
    for turn in range(1, 11):
        least = board.least
        least.take(10, 1, turn)
        least.begin(10)
        least.give_back(1)
        chosen.append(least.slot)

    assert sorted(chosen[:5]) == [0, 1, 2, 3, 4]
    assert chosen[:5] == chosen[5:]


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
