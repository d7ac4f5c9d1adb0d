"""Tests of the simulator's made-up logprobs."""

import math

from hypothesis import given
from hypothesis import strategies as st

from engine_adapters.simulator.logprobs import Oracle

CANDIDATES = [*range(0, 3000, 3)]
TEXTS = st.lists(st.integers(0, 5000), min_size=1, max_size=20)


def oracle(count: int, is_greedy: bool = False) -> Oracle:
    return Oracle(CANDIDATES, count, is_greedy, previous=7, position=3)


@given(TEXTS, st.integers(0, 30), st.booleans())
def test_alternatives_come_best_first_without_doubles_and_are_as_likely_as_a_distribution_allows(
    token_ids: list[int], count: int, is_greedy: bool
) -> None:
    scores = oracle(count, is_greedy).judge(token_ids)
    assert len(scores.logprobs) == len(scores.alternatives) == len(token_ids)
    for token_id, logprob, alternatives in zip(token_ids, scores.logprobs, scores.alternatives, strict=True):
        assert len({other for other, _ in alternatives}) == len(alternatives) == count
        likely = [each for _, each in alternatives]
        assert likely == sorted(likely, reverse=True)
        assert sum(map(math.exp, likely)) <= 1 + 1e-9 and logprob < 0
        if token_id in dict(alternatives):
            assert dict(alternatives)[token_id] == logprob
        else:
            assert all(logprob < each for each in likely)


@given(TEXTS, st.integers(1, 20))
def test_a_greedy_text_says_the_best_token(token_ids: list[int], count: int) -> None:
    scores = oracle(count, is_greedy=True).judge(token_ids)
    assert [alternatives[0] for alternatives in scores.alternatives] == [*zip(token_ids, scores.logprobs, strict=True)]


@given(TEXTS, st.integers(0, 20), st.integers(0, 20))
def test_logprobs_are_the_same_however_the_text_comes(token_ids: list[int], count: int, cut: int) -> None:
    whole = oracle(count).judge(token_ids)
    pieces = oracle(count)
    first, second = pieces.judge(token_ids[:cut]), pieces.judge(token_ids[cut:])
    assert [*first.logprobs, *second.logprobs] == whole.logprobs
    assert [*first.alternatives, *second.alternatives] == whole.alternatives


def test_a_sampled_token_is_now_and_then_not_among_the_best() -> None:
    scores = oracle(5).judge(range(1000))
    is_best = [alternatives[0][0] == token_id for token_id, alternatives in enumerate(scores.alternatives)]
    is_named = [token_id in dict(alternatives) for token_id, alternatives in enumerate(scores.alternatives)]
    assert 600 < sum(is_best) < 800 and 850 < sum(is_named) < 950


def test_there_are_no_more_alternatives_than_tokens() -> None:
    assert len(Oracle([5, 6, 7], 20, True, 0, 0).judge([6]).alternatives[0]) == 3
