"""Mailboxes and the supervisor of threads."""

import asyncio
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

from gateway.threads import Mailbox, Outbox, Supervisor
from tests.processes import PATIENCE, eventually


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own; stopped and closed at the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_every_item_is_handled_once_and_each_senders_in_order() -> None:
    senders, count = 4, 5000
    handled: list[tuple[int, int]] = []
    with running_loop() as loop:
        mailbox: Mailbox[tuple[int, int]] = Mailbox(loop, handled.append)
        start = threading.Barrier(senders)

        def send(sender: int) -> None:
            start.wait()
            for number in range(count):
                assert mailbox.post((sender, number))

        threads = [threading.Thread(target=send, args=(sender,)) for sender in range(senders)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        eventually(lambda: len(handled) >= senders * count)

    for sender in range(senders):
        assert [number for each, number in handled if each == sender] == list(range(count))
    assert len(handled) == senders * count


def test_items_are_handled_on_the_loops_own_thread() -> None:
    where: list[threading.Thread] = []
    with running_loop() as loop:
        mailbox: Mailbox[int] = Mailbox(loop, lambda number: where.append(threading.current_thread()))
        mailbox.post(1)
        eventually(lambda: where)

    assert where != [threading.current_thread()]


def test_items_posted_together_cost_one_wake_up() -> None:
    handled: list[int] = []
    with running_loop() as loop:
        wake_ups = 0
        wake = loop.call_soon_threadsafe

        def count_wake_ups(*arguments: object) -> asyncio.Handle:
            nonlocal wake_ups
            wake_ups += 1
            return wake(*arguments)  # type: ignore[arg-type]

        loop.call_soon_threadsafe = count_wake_ups  # type: ignore[method-assign,assignment]
        mailbox: Mailbox[int] = Mailbox(loop, handled.append)
        is_held, may_go_on = threading.Event(), threading.Event()

        def hold() -> None:
            is_held.set()
            may_go_on.wait(PATIENCE)

        wake(hold)
        is_held.wait(PATIENCE)
        for number in range(100):
            mailbox.post(number)
        may_go_on.set()
        eventually(lambda: len(handled) == 100)
        loop.call_soon_threadsafe = wake  # type: ignore[method-assign]

    assert wake_ups == 1


def test_an_item_may_post_another() -> None:
    handled: list[int] = []
    with running_loop() as loop:

        def handle(number: int) -> None:
            handled.append(number)
            if number:
                mailbox.post(number - 1)

        mailbox = Mailbox(loop, handle)
        mailbox.post(3)
        eventually(lambda: len(handled) == 4)

    assert handled == [3, 2, 1, 0]


def test_what_a_turn_of_a_loop_posts_goes_together_and_in_order() -> None:
    handled: list[int] = []
    with running_loop() as loop:
        mailbox: Mailbox[int] = Mailbox(loop, handled.append)
        posted: list[list[int]] = []

        def note(items: Iterable[int]) -> bool:
            posted.append(list(items))
            return Mailbox.post_all(mailbox, posted[-1])

        mailbox.post_all = note  # type: ignore[method-assign]

        async def story() -> None:
            outbox = Outbox(mailbox)
            for number in range(3):
                outbox.post(number)
            await asyncio.sleep(0)
            outbox.post(3)
            await asyncio.sleep(0)

        asyncio.run(story())
        eventually(lambda: len(handled) == 4)

    assert posted == [[0, 1, 2], [3]]
    assert handled == [0, 1, 2, 3]


def test_a_closed_loop_takes_no_items() -> None:
    with running_loop() as loop:
        mailbox: Mailbox[int] = Mailbox(loop, lambda number: None)
        assert mailbox.post(1)

    assert not mailbox.post(2)
    assert not mailbox.post(3)


@pytest.fixture
def failures() -> list[str]:
    return []


@pytest.fixture
def supervisor(failures: list[str]) -> Supervisor:
    return Supervisor(failures.append)


def run(supervisor: Supervisor, name: str, body: BaseException | None, may_return: bool = False) -> None:
    """A supervised thread that raises, or returns; waited for."""

    def work() -> None:
        if body is not None:
            raise body

    supervisor.spawn(name, work, may_return=may_return).join(PATIENCE)


@pytest.mark.parametrize("error", [ValueError("oh"), SystemExit(), KeyboardInterrupt(), asyncio.CancelledError()])
def test_whatever_ends_a_thread_is_a_failure(supervisor: Supervisor, failures: list[str], error: BaseException) -> None:
    run(supervisor, "worker", error)

    assert supervisor.failure is not None
    assert supervisor.failure.startswith(f"thread worker died: {type(error).__name__}")
    assert failures == [supervisor.failure]


def test_a_thread_that_returns_is_a_failure_unless_it_may(supervisor: Supervisor) -> None:
    run(supervisor, "allowed", None, may_return=True)
    assert supervisor.failure is None

    run(supervisor, "other", None)
    assert supervisor.failure == "thread other ended"


def test_at_the_end_of_the_process_threads_may_return(supervisor: Supervisor, failures: list[str]) -> None:
    supervisor.ending = True
    run(supervisor, "worker", None)

    assert failures == []


def test_only_the_first_failure_counts(supervisor: Supervisor, failures: list[str]) -> None:
    start = threading.Barrier(8)

    def fail(number: int) -> None:
        start.wait()
        supervisor.fail(f"failure {number}")

    threads = [threading.Thread(target=fail, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(failures) == 1
    assert supervisor.failure == failures[0]


def test_a_thread_has_its_name_and_holds_no_process_up(supervisor: Supervisor) -> None:
    seen: list[threading.Thread] = []
    supervisor.spawn("the name", lambda: seen.append(threading.current_thread()), may_return=True).join(PATIENCE)

    assert seen[0].name == "the name"
    assert seen[0].daemon


def test_threads_that_are_held_begin_together() -> None:
    supervisor, ran = Supervisor(holds=True), []
    first, second = (supervisor.spawn(name, lambda: ran.append(1), may_return=True) for name in "ab")
    assert not first.is_alive() and not second.is_alive() and not ran
    supervisor.begin()
    late = supervisor.spawn("late", lambda: ran.append(1), may_return=True)
    for thread in (first, second, late):
        thread.join(PATIENCE)
    assert len(ran) == 3
