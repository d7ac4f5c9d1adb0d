"""What a routing decision costs: each policy before 8 to 2048 workers, on one thread and on two; and the block index.

A decision is a lease, its first token and its return: the policy, the counts and the circuit breaker together. Half of
each prompt is cached by a handful of workers. `µs` is CPU time on one thread and, next to it, on each of two; `gain` is
how much more two decide than one, which needs two idle cores.
"""

import argparse
import gc
import os
import random
import sys
import threading
import time
from array import array
from collections.abc import Callable, Sequence

from engine_adapters.base import EngineInfo, KvRemoved, KvStored, Load
from gateway.routing import POLICIES, BreakerRules, Policies, Query, Router, Worker, WorkerAddress, WorkerState
from gateway.routing.blocks import BlockIndex, CachedBlocks, block_keys, seed_for
from perf.machine import resident_mb
from perf.report import table

FLEETS = (8, 64, 240, 2048)
PROMPTS = 64
HOLDERS = 4
BLOCK_SIZE = 32


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    rows = []
    for name in options.policies.split(",") if options.policies else POLICIES:
        cells = [name]
        for workers in FLEETS:
            router, queries = a_fleet(name, workers, options.tokens)
            alone, cpu = decisions(router, queries, 1, options.seconds)
            both, cpu_of_two = decisions(router, queries, 2, options.seconds)
            cells += [f"{1e6 * cpu:.1f}", f"{1e6 * cpu_of_two:.1f}", f"{both / alone:.2f}"]
        rows.append(cells)
        sys.stderr.write(f"{name}\n")
    header = [column for workers in FLEETS for column in (f"{workers}: µs", "of two", "gain")]
    sys.stdout.write(table(("policy", *header), rows))
    sys.stdout.write("\n" + table(("block index", "figure"), index_rows(options.tokens, options.blocks)))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3.13t -m perf decisions", description=__doc__)
    parser.add_argument("--policies", default="", metavar="NAME,NAME", help="which ones (default: all)")
    parser.add_argument("--tokens", type=int, default=2048, metavar="N", help="length of a prompt (default: 2048)")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="N", help="for each figure (default: 0.5)")
    parser.add_argument("--blocks", type=int, default=1_000_000, metavar="N", help="in the index (default: 1000000)")
    return parser.parse_args(arguments)


def random_tokens(dice: random.Random, count: int) -> bytes:
    return array("I", dice.choices(range(100_000), k=count)).tobytes()


def a_fleet(policy: str, workers: int, tokens: int) -> tuple[Router, list[bytes]]:
    """A router before so many workers, some of them with the first half of each prompt."""
    dice = random.Random(1)
    router = Router(Policies([policy]), rules=BreakerRules())
    features = frozenset({"kv_events"})
    info = EngineInfo("perf", "1", "m", 100_000, 1 << 20, 256, b"", (), BLOCK_SIZE, 1, features)
    fleet = []
    for number in range(workers):
        worker = Worker(f"w{number}", WorkerAddress("step", f"w{number}", 1), None)
        router.add(worker)
        router.publish(worker, WorkerState("ready", model="m", info=info))
        router.report(
            worker, Load(running=dice.randrange(20), kv_tokens_used=dice.randrange(900), kv_tokens_total=1000)
        )
        fleet.append(worker)
    prompts = [random_tokens(dice, tokens) for _ in range(PROMPTS)]
    for number, prompt in enumerate(prompts):
        blocks = tokens // BLOCK_SIZE // 2
        hashes = tuple(range(1 + number * blocks, 1 + (number + 1) * blocks))
        event = KvStored(0, hashes, prompt[: 4 * BLOCK_SIZE * blocks])
        for worker in dice.sample(fleet, HOLDERS):
            router.note_kv_events(worker, [event], is_first=False)
    router.lease(
        "m", set(), Query(prompts[0], routing_key="first")
    ).release()  # which works out what is worked out once
    return router, prompts


def decisions(router: Router, prompts: Sequence[bytes], threads: int, seconds: float) -> tuple[float, float]:
    """Decisions a second of all threads together, and CPU seconds for each."""
    counts, cpu = [0] * threads, [0.0] * threads
    start = threading.Barrier(threads)

    def decide(number: int) -> None:
        mine = [bytes(bytearray(prompt)) for prompt in prompts]  # their reference counts are this thread's
        start.wait()
        began = time.thread_time()
        end = time.perf_counter() + seconds
        count = 0
        while time.perf_counter() < end:
            for prompt in mine:
                lease = router.lease("m", set(), Query(prompt, routing_key=str(count % 1000)))
                lease.begin()
                lease.release()
                count += 1
        counts[number], cpu[number] = count, time.thread_time() - began

    running = [threading.Thread(target=decide, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(counts) / seconds, sum(cpu) / sum(counts)


def index_rows(tokens: int, blocks: int) -> list[list[str]]:
    prompt = random_tokens(random.Random(1), tokens)
    hashing = seconds_for(lambda: block_keys(prompt, BLOCK_SIZE, 0), 500)
    guesses, bytes_predicted = predicted(blocks // 4, tokens)
    index, cache, event_seconds, bytes_each, removal = filled(blocks, tokens)
    assert guesses, "freed memory would be taken for the next index"
    keys = block_keys(prompt, BLOCK_SIZE, seed_for())
    looking = seconds_for(lambda: [*index.matches(keys, cache.bit)], 2000)
    return [
        ["µs to hash a prompt", f"{1e6 * hashing:.1f}"],
        ["µs to match a prompt", f"{1e6 * looking:.1f}"],
        [f"inserts/s, up to {blocks} blocks", f"{blocks / event_seconds:,.0f}"],
        ["removals/s", f"{blocks / removal:,.0f}"],
        ["bytes per block, as it grows", f"{min(bytes_each):.0f} to {max(bytes_each):.0f}"],
        ["bytes per predicted block", f"{min(bytes_predicted):.0f} to {max(bytes_predicted):.0f}"],
    ]


def filled(blocks: int, tokens: int) -> tuple[BlockIndex, CachedBlocks, float, list[float], float]:
    """An index told of so many blocks on one candidate by events of `tokens` each: seconds, bytes a block from a fifth
    of the blocks on, seconds."""
    dice = random.Random(2)
    each = tokens // BLOCK_SIZE
    events = []
    for _ in range(blocks // each):
        hashes = tuple(dice.getrandbits(64) for _ in range(each))
        events.append(hashes)
    pool = random_tokens(dice, tokens + len(events))
    index, cache = BlockIndex(BLOCK_SIZE), CachedBlocks(1, blocks)
    gc.collect()
    before = resident_mb(os.getpid())
    spent, bytes_each = 0.0, []
    for number, hashes in enumerate(events):
        # The engine's hashes arrive as new objects, decoded from a frame.
        event = KvStored(0, tuple(array("Q", hashes)), pool[4 * number : 4 * (number + tokens)])
        began = time.perf_counter()
        index.apply(cache, event, number)
        spent += time.perf_counter() - began
        if len(index) > blocks / 5 and number % 256 == 0:
            bytes_each.append((resident_mb(os.getpid()) - before) * 1e6 / len(index))
    began = time.perf_counter()
    for hashes in events[: len(events) // 2]:
        index.apply(cache, KvRemoved(hashes))
    removal = 2 * (time.perf_counter() - began)
    return index, cache, spent, bytes_each, removal


def predicted(blocks: int, tokens: int) -> tuple[object, list[float]]:
    """What so many blocks, sent to an engine that tells nothing, take up, and bytes a block from a fifth of them on."""
    dice = random.Random(3)
    prompts = blocks // (tokens // BLOCK_SIZE)
    pool = random_tokens(dice, tokens + prompts)
    index, cache = BlockIndex(BLOCK_SIZE), CachedBlocks(1, blocks)
    gc.collect()
    before = resident_mb(os.getpid())
    bytes_each = []
    for number in range(prompts):
        index.predict(cache, block_keys(pool[4 * number : 4 * (number + tokens)], BLOCK_SIZE, number), float(number))
        if len(index) > blocks / 5 and number % 64 == 0:
            bytes_each.append((resident_mb(os.getpid()) - before) * 1e6 / len(index))
    return (index, cache), bytes_each


def seconds_for(call: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count
