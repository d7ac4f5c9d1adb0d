"""Admission: who gets a place, who waits, who is refused; and that no place is ever lost or given twice."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from gateway.errors import Overloaded, QueueTimeout
from gateway.limits import PRIORITIES, Admission


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


async def settle() -> None:
    """Have what is ready happen."""
    for _ in range(5):
        await asyncio.sleep(0)


class Crowd:
    """Requests of one test, which enter and wait in tasks of their own; `order` has those admitted."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.order: list[str] = []
        self.refused: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, who: str = "a", priority: str = "normal") -> None:
        self.tasks[name] = asyncio.create_task(self._enter(name, who, priority))
        await settle()

    async def _enter(self, name: str, who: str, priority: str) -> None:
        try:
            await self.admission.enter(who, priority)
        except (Overloaded, QueueTimeout):
            self.refused.append(name)
        else:
            self.order.append(name)

    async def leave(self, times: int = 1) -> None:
        for _ in range(times):
            self.admission.leave()
            await settle()

    def waiting(self) -> int:
        return sum(length for _, length in self.admission.waiting())


def test_places_are_given_at_once_and_then_in_order() -> None:
    async def scenario() -> None:
        crowd = Crowd(Admission(2, 10, 60))
        for name in "12345":
            await crowd.come(name)
        assert (crowd.order, crowd.waiting(), crowd.admission.active) == (["1", "2"], 3, 2)
        await crowd.leave(5)
        assert (crowd.order, crowd.waiting(), crowd.admission.active) == (list("12345"), 0, 0)

    run(scenario)


def test_keys_take_turns() -> None:
    async def scenario() -> None:
        crowd = Crowd(Admission(1, 100, 60))
        await crowd.come("first")
        for number in range(6):
            await crowd.come(f"flood{number}", "flood")
        for who in "bc":
            for number in range(2):
                await crowd.come(f"{who}{number}", who)
        await crowd.leave(11)
        assert crowd.order == [
            "first",
            "flood0",
            "b0",
            "c0",
            "flood1",
            "b1",
            "c1",
            "flood2",
            "flood3",
            "flood4",
            "flood5",
        ]

    run(scenario)


def test_classes_share_by_their_weights_and_none_starves() -> None:
    async def scenario() -> None:
        crowd = Crowd(Admission(1, 100, 60))
        await crowd.come("first")
        for number in range(42):
            for priority in PRIORITIES:
                await crowd.come(f"{priority} {number}", priority=priority)
        await crowd.leave(42)
        assert Counter(name.partition(" ")[0] for name in crowd.order[1:]) == {"high": 32, "normal": 8, "low": 2}

    run(scenario)


def test_a_class_that_was_away_has_saved_nothing_up() -> None:
    async def scenario() -> None:
        crowd = Crowd(Admission(1, 100, 60))
        await crowd.come("first")
        for number in range(20):
            await crowd.come(f"high {number}", priority="high")
        await crowd.leave(10)
        for number in range(20):
            await crowd.come(f"low {number}", priority="low")
        await crowd.leave(10)
        assert crowd.order[11:].count("low 0") == 1
        assert "low 1" not in crowd.order

    run(scenario)


def test_a_full_queue_refuses_whoever_filled_it() -> None:
    async def scenario() -> None:
        crowd = Crowd(Admission(1, 4, 60))
        await crowd.come("first")
        for number in range(6):
            await crowd.come(f"flood{number}", "flood")
        assert crowd.refused == ["flood4", "flood5"]
        await crowd.come("b0", "b")
        await crowd.come("b1", "b")
        assert crowd.refused == ["flood4", "flood5", "flood3", "flood2"]
        await crowd.come("b2", "b")
        await crowd.come("h", "flood", "high")
        assert crowd.refused[4:] == ["b2"], "each has its share of that class, and every class its own queue"
        await crowd.leave(10)
        assert crowd.order == ["first", "h", "flood0", "b0", "flood1", "b1"]

    run(scenario)


def test_hope_is_judged_as_entry_would_be() -> None:
    async def scenario() -> None:
        crowd = Crowd(Admission(1, 2, 60))
        crowd.admission.refuse_if_hopeless("a", "normal")
        for name in "123":
            await crowd.come(name)
        with pytest.raises(Overloaded) as caught:
            crowd.admission.refuse_if_hopeless("a", "normal")
        assert caught.value.headers() == [(b"retry-after", b"1")]
        crowd.admission.refuse_if_hopeless("b", "normal")
        crowd.admission.refuse_if_hopeless("a", "low")
        await crowd.leave(3)

    run(scenario)


def test_without_a_queue_what_finds_no_place_is_refused() -> None:
    async def scenario() -> None:
        crowd = Crowd(Admission(1, 0, 60))
        await crowd.come("1")
        await crowd.come("2")
        assert (crowd.order, crowd.refused) == (["1"], ["2"])
        await crowd.leave()
        assert crowd.admission.active == 0

    run(scenario)


def test_who_waits_too_long_is_told_and_who_leaves_is_forgotten() -> None:
    async def scenario() -> None:
        crowd = Crowd(Admission(1, 10, 0.01))
        for name in "123":
            await crowd.come(name)
        crowd.tasks["2"].cancel()
        await asyncio.wait([crowd.tasks["3"]])
        assert (crowd.refused, crowd.waiting()) == (["3"], 0)
        await crowd.leave()
        assert (crowd.order, crowd.admission.active) == (["1"], 0)

    run(scenario)


def test_a_place_given_to_one_who_leaves_is_the_next_ones() -> None:
    async def scenario() -> None:
        crowd = Crowd(Admission(1, 10, 60))
        for name in "123":
            await crowd.come(name)
        crowd.admission.leave()  # 2 has the place, and does not know yet
        crowd.tasks["2"].cancel()
        await settle()
        assert (crowd.order, crowd.admission.active) == (["1", "3"], 1)
        await crowd.leave()
        assert crowd.admission.active == 0

    run(scenario)


def test_a_loop_that_closed_gives_its_place_on() -> None:
    admission = Admission(1, 10, 60)

    async def take() -> None:
        await admission.enter("a", "normal")

    async def abandon() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        asyncio.ensure_future(admission.enter("a", "normal"))
        await settle()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(take())
    loop.run_until_complete(abandon())
    tasks = asyncio.all_tasks(loop)
    loop.close()
    admission.leave()
    assert (admission.active, sum(length for _, length in admission.waiting())) == (0, 0)
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_no_place_is_lost_or_given_twice_between_many_loops() -> None:
    limit, rounds = 3, 150
    admission = Admission(limit, 3, 5)
    lock, inside, most = threading.Lock(), 0, 0
    outcomes: Counter[str] = Counter()

    async def ask(seed: random.Random) -> None:
        nonlocal inside, most
        try:
            await admission.enter(seed.choice("abc"), seed.choice([*PRIORITIES]))
        except Overloaded:
            with lock:
                outcomes["refused"] += 1
            return
        try:
            with lock:
                inside += 1
                most = max(most, inside)
                outcomes["admitted"] += 1
            await asyncio.sleep(0)
        finally:
            with lock:
                inside -= 1
            admission.leave()

    async def crowd(number: int) -> None:
        seed = random.Random(number)
        for _ in range(rounds):
            tasks = [asyncio.create_task(ask(seed)) for _ in range(8)]
            await asyncio.sleep(0)
            for task in seed.sample(tasks, 3):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    threads = [threading.Thread(target=lambda number=number: asyncio.run(crowd(number))) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 0 < most <= limit
    assert outcomes["admitted"] > rounds and outcomes["refused"]
    assert (admission.active, sum(length for _, length in admission.waiting())) == (0, 0)
