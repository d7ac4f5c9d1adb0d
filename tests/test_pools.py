"""Pools of threads for CPU work: bounded, resized while they work, within one budget of cores."""

import asyncio
import os
import sys
import threading
from collections.abc import Iterator

import pytest

from engine_adapters.priority import NICENESS, give_way
from gateway.errors import Overloaded
from gateway.pools import Pool
from gateway.threads import Supervisor
from tests.processes import PATIENCE, eventually


class Gate:
    """Jobs wait at it until it is opened; tells how many are there, and how many were there at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = threading.Event()
        self.inside = 0
        self.most = 0
        self.passed: list[int] = []

    def job(self, number: int = 0) -> int:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self._open.wait(PATIENCE)
        with self._lock:
            self.inside -= 1
            self.passed.append(number)
        return number

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def make(supervisor: Supervisor, threads: int, queue_limit: int = 100, cores: int = 64) -> Pool:
    return Pool("test", threads, supervisor, threading.Semaphore(cores), queue_limit)


def close(pool: Pool) -> None:
    """End its threads."""
    pool.resize(0)
    eventually(lambda: count_threads(pool) == 0)


def count_threads(pool: Pool) -> int:
    return len([thread for thread in threading.enumerate() if thread.name.startswith(f"{pool.name}-")])


def in_loop(work: object) -> None:
    asyncio.run(work)  # type: ignore[arg-type]


async def until(check: object) -> None:
    """`eventually`, without holding the loop up."""
    await asyncio.to_thread(eventually, check)  # type: ignore[arg-type]


def test_a_job_returns_its_result_or_raises_its_error(supervisor: Supervisor) -> None:
    pool = make(supervisor, 2)

    async def story() -> None:
        assert await pool.run(divmod, 17, 5) == (3, 2)
        with pytest.raises(ZeroDivisionError):
            await pool.run(divmod, 1, 0)
        assert await pool.run(threading.current_thread) is not threading.current_thread()

    in_loop(story())
    close(pool)
    assert supervisor.failure is None


def test_the_queue_is_bounded(supervisor: Supervisor, gate: Gate) -> None:
    pool = make(supervisor, 1, queue_limit=3)

    async def story() -> None:
        first = asyncio.create_task(pool.run(gate.job))
        await until(lambda: gate.inside == 1)
        waiting = [asyncio.create_task(pool.run(gate.job)) for _ in range(3)]
        await until(lambda: pool.depth == 3)

        with pytest.raises(Overloaded, match="the test queue is full"):
            await pool.run(gate.job)

        gate.open()
        await asyncio.gather(first, *waiting)
        assert await pool.run(gate.job, 5) == 5

    in_loop(story())
    close(pool)


def test_a_job_whose_caller_is_gone_is_skipped(supervisor: Supervisor, gate: Gate) -> None:
    pool = make(supervisor, 1)

    async def story() -> None:
        tasks = [asyncio.create_task(pool.run(gate.job, number)) for number in range(4)]
        await until(lambda: pool.depth == 3)
        tasks[1].cancel()
        tasks[2].cancel()
        await asyncio.gather(tasks[1], tasks[2], return_exceptions=True)
        gate.open()
        assert [await tasks[0], await tasks[3]] == [0, 3]

    in_loop(story())
    assert gate.passed == [0, 3]
    close(pool)


def test_a_caller_that_leaves_during_its_job_disturbs_nobody(supervisor: Supervisor, gate: Gate) -> None:
    pool = make(supervisor, 1)

    async def leave() -> None:
        task = asyncio.create_task(pool.run(gate.job))
        await until(lambda: gate.inside == 1)
        task.cancel()

    in_loop(leave())  # and its loop is closed before the job is done
    gate.open()
    in_loop(stay(pool))
    assert supervisor.failure is None
    close(pool)


async def stay(pool: Pool) -> None:
    assert await pool.run(abs, -1) == 1


def test_it_grows_and_shrinks_while_it_works(supervisor: Supervisor, gate: Gate) -> None:
    pool = make(supervisor, 1)

    async def story() -> None:
        jobs = [asyncio.create_task(pool.run(gate.job, number)) for number in range(20)]
        await until(lambda: gate.inside == 1)
        pool.resize(5)
        await until(lambda: gate.inside == 5)
        pool.resize(2)
        gate.open()
        assert await asyncio.gather(*jobs) == list(range(20))

    in_loop(story())
    eventually(lambda: count_threads(pool) == 2)
    assert supervisor.failure is None
    close(pool)


def test_resizing_all_the_time_loses_no_job(supervisor: Supervisor) -> None:
    pool = make(supervisor, 2, queue_limit=10_000)
    is_over = threading.Event()

    def resize() -> None:
        threads = 0
        while not is_over.is_set():
            threads = threads % 4 + 1
            pool.resize(threads)

    async def story() -> None:
        assert await asyncio.gather(*(pool.run(abs, -number) for number in range(3000))) == list(range(3000))

    restless = threading.Thread(target=resize)
    restless.start()
    try:
        in_loop(story())
    finally:
        is_over.set()
        restless.join()
    assert supervisor.failure is None
    close(pool)


def test_pools_share_one_budget_of_running_jobs(supervisor: Supervisor, gate: Gate) -> None:
    cores = threading.Semaphore(2)
    pools = [Pool(name, 3, supervisor, cores) for name in ("one", "two")]

    async def story() -> None:
        jobs = [asyncio.create_task(pool.run(gate.job)) for pool in pools for _ in range(3)]
        await until(lambda: gate.inside == 2 and all(pool.depth == 0 for pool in pools))
        gate.open()
        await asyncio.gather(*jobs)

    in_loop(story())
    assert gate.most == 2
    for pool in pools:
        close(pool)


def test_a_job_shares_its_work_with_idle_threads(supervisor: Supervisor, gate: Gate) -> None:
    pool = make(supervisor, 3)
    eventually(lambda: pool.idle_threads == 3)

    async def story() -> None:
        task = asyncio.create_task(pool.run(pool.share, gate.job, range(5)))
        await until(lambda: gate.inside == 3)
        gate.open()
        assert await task == list(range(5))

    in_loop(story())
    close(pool)


def test_a_job_that_shares_in_a_busy_pool_does_all_of_it_itself(supervisor: Supervisor, gate: Gate) -> None:
    # The other thread never comes free, and there is no core for it either.
    pool = make(supervisor, 2, cores=1)
    threads: set[int] = set()

    def work(number: int) -> int:
        threads.add(threading.get_ident())
        return -number

    async def story() -> None:
        assert await pool.run(pool.share, work, range(100)) == [-number for number in range(100)]

    in_loop(story())
    assert len(threads) == 1
    in_loop(stay(pool))
    close(pool)


def test_many_jobs_that_share_at_once_all_end(supervisor: Supervisor) -> None:
    pool = make(supervisor, 3, cores=2)

    def work(number: int) -> list[int]:
        return pool.share(abs, [-number] * 20)

    async def story() -> None:
        found = await asyncio.gather(*(pool.run(work, number) for number in range(60)))
        assert found == [[number] * 20 for number in range(60)]

    in_loop(story())
    assert supervisor.failure is None
    close(pool)


def test_an_error_in_shared_work_is_the_sharers(supervisor: Supervisor) -> None:
    pool = make(supervisor, 2)

    async def story() -> None:
        with pytest.raises(ZeroDivisionError):
            await pool.run(pool.share, (1).__floordiv__, [1, 0, 1])

    in_loop(story())
    assert supervisor.failure is None
    close(pool)


def test_a_job_that_ends_its_thread_is_a_failure(supervisor: Supervisor) -> None:
    pool = make(supervisor, 1)

    def leave() -> None:
        raise SystemExit

    async def story() -> None:
        task = asyncio.create_task(pool.run(leave))
        await until(lambda: supervisor.failure)
        task.cancel()

    in_loop(story())
    assert supervisor.failure is not None
    assert supervisor.failure.startswith("thread test-0 died: SystemExit")


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_a_pool_may_give_way_to_all_other_threads(supervisor: Supervisor) -> None:
    polite = Pool("polite", 1, supervisor, threading.Semaphore(1), gives_way=True)
    plain = make(supervisor, 1)

    async def story() -> None:
        assert await plain.run(niceness) == niceness()
        assert await polite.run(niceness) == niceness() + NICENESS
        # What such a thread starts is as polite, not more so.
        assert await polite.run(niceness_of_a_thread) == niceness() + NICENESS

    in_loop(story())
    close(polite)
    close(plain)


def niceness() -> int:
    """Of this thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def niceness_of_a_thread() -> int:
    """Of one that this thread starts, and that gives way."""
    found = []

    def run() -> None:
        give_way()
        found.append(niceness())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_many_loops_may_use_one_pool(supervisor: Supervisor) -> None:
    pool = make(supervisor, 3, queue_limit=1500)

    async def story() -> None:
        assert await asyncio.gather(*(pool.run(abs, -number) for number in range(500))) == list(range(500))

    threads = [threading.Thread(target=in_loop, args=(story(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "test: 3 threads, 0 jobs waiting" in repr(pool)
    assert supervisor.failure is None
    close(pool)
