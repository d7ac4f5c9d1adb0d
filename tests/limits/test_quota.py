"""Quotas: buckets that refill, what is reserved and settled, and many threads at one of them."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import RateLimited
from gateway.limits.quota import Bucket, Limits, Quota


def test_a_bucket_holds_a_minutes_worth_and_refills() -> None:
    bucket = Bucket(60, now=0.0)

    assert bucket.take(60, 0.0) == 0.0
    assert bucket.take(1, 0.0) == pytest.approx(1.0)
    assert bucket.take(30, 10.0) == pytest.approx(20.0)
    assert bucket.take(10, 10.0) == 0.0
    assert bucket.take(60, 1000.0) == 0.0, "a full one has no more than a minute's worth"
    assert bucket.take(1, 1000.0) > 0


def test_what_was_used_beyond_the_reserve_must_be_made_good() -> None:
    bucket = Bucket(60, now=0.0)

    assert bucket.take(10, 0.0) == 0.0
    bucket.give(10 - 100)
    assert bucket.take(1, 0.0) == pytest.approx(41.0)
    bucket.give(1000)
    assert bucket.take(60, 0.0) == 0.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 80), st.integers(0, 120)), max_size=30), st.integers(1, 100))
def test_no_more_is_ever_used_than_the_minutes_and_the_last_overdraft_allow(
    steps: list[tuple[float, int, int]], per_minute: int
) -> None:
    bucket, now, used, overdraft = Bucket(per_minute, 0.0), 0.0, 0, 0
    for pause, asked, took in steps:
        now += pause
        reserved = min(asked, per_minute)
        if bucket.take(reserved, now) == 0.0:
            bucket.give(reserved - took)
            used += took
            overdraft = max(overdraft, took)

        assert used <= per_minute * (1 + now / 60) + overdraft + 1e-6


def test_requests_tokens_and_concurrency_are_limited_each() -> None:
    quota = Quota(Limits(requests_per_minute=3, tokens_per_minute=100, concurrency=2))
    quota.begin()
    quota.begin()
    with pytest.raises(RateLimited, match="2 requests at a time"):
        quota.begin()
    quota.end()
    quota.begin()
    quota.end()
    with pytest.raises(RateLimited, match="3 requests a minute") as caught:
        quota.begin()
    assert caught.value.retry_after in (19, 20)
    assert quota.reserve(5000) == 100, "no request is too large for ever"
    with pytest.raises(RateLimited, match="100 tokens a minute"):
        quota.reserve(10)
    quota.settle(100, 40)
    assert quota.reserve(50) == 50
    quota.end()
    assert quota.active == 0


def test_limits_may_change_while_they_count() -> None:
    quota = Quota(Limits(requests_per_minute=1))
    quota.begin()
    with pytest.raises(RateLimited):
        quota.begin()
    quota.set_limits(Limits())
    quota.begin()
    quota.set_limits(Limits(requests_per_minute=2))
    quota.begin()
    quota.begin()
    with pytest.raises(RateLimited):
        quota.begin()


def test_many_threads_get_what_there_is_and_no_more() -> None:
    quota, got = Quota(Limits(requests_per_minute=500, concurrency=5)), []

    def ask() -> None:
        for _ in range(400):
            try:
                quota.begin()
            except RateLimited:
                continue
            assert quota.active <= 5
            got.append(1)
            quota.end()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 490 <= len(got) <= 520
    assert quota.active == 0
