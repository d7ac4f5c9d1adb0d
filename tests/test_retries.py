"""How often a request is sent again, and what a few health checks add up to."""

from gateway import retries
from gateway.health import Health
from gateway.retries import RetryBudget, pause_before


def spent(budget: RetryBudget) -> int:
    """How many retries it has left."""
    return next(count for count in range(10_000) if not budget.spend())


def test_a_budget_is_a_share_of_the_requests_and_a_few_a_second() -> None:
    now = [0.0]
    budget = RetryBudget(0.2, lambda: now[0])
    assert spent(budget) == retries.FLOOR
    for _ in range(100):
        budget.earn()
    assert spent(budget) in (19, 20)
    now[0] += 2.0
    assert spent(budget) == 2 * retries.FLOOR_PER_SECOND
    now[0] += 3600.0
    assert spent(budget) == retries.FLOOR
    for _ in range(100_000):
        budget.earn()
    assert spent(budget) == retries.MOST


def test_pauses_grow_and_differ() -> None:
    for retry in range(1, 12):
        most = min(retries.LONGEST_PAUSE, retries.FIRST_PAUSE * 2 ** (retry - 1))
        pauses = [pause_before(retry) for _ in range(20)]
        assert all(most / 2 <= pause <= most for pause in pauses) and len(set(pauses)) > 1


def test_one_failed_check_changes_nothing_and_neither_does_one_good_one() -> None:
    health = Health()
    found = []
    for problem in ("a", "", "b", "c", "", "d", "e", "f", "", "g", "", "", "h"):
        health.note(problem)
        found.append(health.problem)
    assert found == ["", "", "", "", "", "", "", "f", "f", "f", "f", "", ""]
