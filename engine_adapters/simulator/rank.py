"""One data-parallel rank: its queue, its batch and its KV blocks, a step at a time."""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias

from engine_adapters.base import Finish, RankLoad
from engine_adapters.simulator.kv_cache import KvCache, block_hashes
from engine_adapters.simulator.run import Key, Run

Output: TypeAlias = tuple[Key, Sequence[int], "Finish | None"]
"""(the stream, its new token ids, the end if this is it)"""


@dataclass(frozen=True)
class Capacity:
    """What each rank has room for, and over how many ranks requests are spread.

    A step reads at most `prefill_chunk` tokens of prompts beside the streams that decode.
    """

    max_running: int = 256
    context_length: int = 32768
    kv_tokens: int = 524288
    block_size: int = 16
    prefill_chunk: int = 2048
    dp_size: int = 1


class Rank(Generic[Key]):
    """Serves its queue in order: by priority, then as they came. Nobody passes one who waits for blocks.

    A prompt that is admitted gets the blocks it needs at once, and those who decode one more at a time. When there is
    none, the last in order who runs goes back to the queue, and reads what it had, as far as it is not cached, again.
    """

    def __init__(
        self, capacity: Capacity, number: int, transfer: "Callable[[int], float]" = lambda tokens: 0.0
    ) -> None:
        """`transfer(tokens)` is how many seconds it takes to get so many from a prefill."""
        self._transfer = transfer
        self.cache = KvCache(capacity.kv_tokens // capacity.block_size, number)
        self._capacity = capacity
        self._answers = 0
        self._waiting: list[Run[Key]] = []
        self._reading: dict[Key, Run[Key]] = {}
        self._decoding: dict[Key, Run[Key]] = {}
        self._working: list[Run[Key]] = []

    @property
    def load(self) -> RankLoad:
        size, running = self._capacity.block_size, self._running
        return RankLoad(running, self._answers - running, self.cache.used * size, self.cache.blocks * size)

    @property
    def is_idle(self) -> bool:
        """Whether nobody, or nobody any more, is in the step under way."""
        return not self._working

    def next_ready_at(self) -> float:
        """When the first of the delayed streams goes on, infinity when none ever does."""
        return min((run.ready_at for run in self._decoding.values()), default=math.inf)

    def add(self, run: "Run[Key]") -> None:
        """Queue a stream, with its followers."""
        self._answers += 1 + len(run.followers)
        self._enqueue(run)

    def remove(self, run: "Run[Key]") -> None:
        """Take an aborted stream out, wherever it is; the first of its followers takes over from it."""
        self._answers -= 1
        if run.followers:
            self._hand_over(run)
        elif run.key in self._reading or run.key in self._decoding:
            self._leave(run)
            self._working = [each for each in self._working if each is not run]
        elif not self._has_left_queue(run):
            leader = next(each for each in (*self._reading.values(), *self._waiting) if run in each.followers)
            leader.followers.remove(run)

    def begin_step(self, now: float) -> "tuple[int, int]":
        """Admit, and find blocks; returns (prompt tokens to read, streams to decode)."""
        decoding = [run for run in self._decoding.values() if run.ready_at <= now]
        short = [run for run in decoding if len(run.said) > run.room]
        if short and self._find_blocks(short):
            decoding = [run for run in decoding if run.key in self._decoding]
        reading = self._read_on(now)
        self._working = decoding + reading
        return sum([run.chunk for run in reading]), len(decoding)

    def end_step(self, ended_at: float) -> "list[Output[Key]]":
        """What the step brought, in the order of admission."""
        working, self._working = self._working, []
        outputs: list[Output[Key]] = []
        for run in working:
            if not run.is_prefilled:
                working += self._note_read(run, ended_at)
                continue
            token_ids, finish = run.advance()
            outputs.append((run.key, token_ids, finish))
            if finish is not None:
                self._answers -= 1
                self._leave(run)
            elif run.delays:
                run.ready_at = ended_at + run.delays.get(run.index, 0.0)
        return outputs

    @property
    def _running(self) -> int:
        return len(self._reading) + len(self._decoding)

    # --- the queue --------------------------------------------------------------------------------------------------

    def _enqueue(self, run: "Run[Key]") -> None:
        bisect.insort(self._waiting, run, key=_order)

    def _has_left_queue(self, run: "Run[Key]") -> bool:
        """Take a stream out of the queue, if it is there."""
        place = bisect.bisect_left(self._waiting, run.order, key=_order)
        is_there = place < len(self._waiting) and self._waiting[place] is run
        if is_there:
            del self._waiting[place]
        return is_there

    def _hand_over(self, run: "Run[Key]") -> None:
        successor = run.take_over()
        if run.key in self._reading:
            order = [successor if each is run else each for each in self._reading.values()]
            self._reading = {each.key: each for each in order}
            self._working = [successor if each is run else each for each in self._working]
        else:
            self._has_left_queue(run)
            self._enqueue(successor)

    def _send_back(self, run: "Run[Key]") -> None:
        self._leave(run)
        run.is_prefilled = False
        self._enqueue(run)

    # --- prompts ----------------------------------------------------------------------------------------------------

    def _read_on(self, now: float) -> "list[Run[Key]]":
        """Share the step's chunk among those who read, in order, and admit others for what is left of it."""
        left = self._capacity.prefill_chunk
        for run in self._reading.values():
            run.chunk = min(left, run.tokens - run.read)
            left -= run.chunk
        while left and self._waiting and self._can_admit(self._waiting[0]):
            run = self._waiting.pop(0)
            if run.is_handed_over:
                self._receive(run, now)
                continue
            run.chunk = min(left, run.tokens - run.read)
            left -= run.chunk
        return [run for run in self._reading.values() if run.chunk]

    def _can_admit(self, run: "Run[Key]") -> bool:
        """Give a stream its place and the blocks for all its tokens, if there are enough."""
        places_taken = self._running + sum([len(each.followers) for each in self._reading.values()])
        if places_taken >= self._capacity.max_running:
            return False
        size = self._capacity.block_size
        # The last token must be read: the next one follows from it.
        cached = 0 if run.prompt.must_be_read else self.cache.match(run.block_hashes[: (run.tokens - 1) // size])
        hashes = run.block_hashes[:cached]
        needed = -(-run.tokens // size) - cached
        # A block more for each of the others, or the newcomer would be sent back at once.
        if self.cache.room_beside(hashes) < needed + places_taken:
            return False
        self.cache.hold(hashes)
        self.cache.take(needed)
        run.stored, run.blank, run.room = cached, needed, (cached + needed) * size - run.prompt.tokens
        run.note_cached(cached * size)
        self._reading[run.key] = run
        return True

    def _receive(self, run: "Run[Key]", now: float) -> None:
        """A prompt that was read elsewhere comes over, which keeps nobody here from working."""
        run.receive(now + self._transfer(run.prompt.tokens - run.read))
        self._decoding[run.key] = self._reading.pop(run.key)
        self._store(run, run.prompt.tokens)

    def _note_read(self, run: "Run[Key]", ended_at: float) -> "list[Run[Key]]":
        """The chunk has been read. After the last one the followers branch off; returns who says something now."""
        run.read += run.chunk
        self._store(run, run.read)
        if run.read < run.tokens:
            return []
        del self._reading[run.key]
        self._decoding[run.key] = run
        followers, run.followers = run.followers, []
        speakers = [run] + [follower for follower in followers if self._has_branched_off(run, follower)]
        for each in speakers:
            each.begin_to_speak(ended_at)
        return [each for each in speakers if each.ready_at <= ended_at]

    def _has_branched_off(self, leader: "Run[Key]", run: "Run[Key]") -> bool:
        """Let a follower share its leader's blocks, the last one copied; or else wait for a place of its own."""
        run.note_cached(leader.cached_tokens)
        if self._running >= self._capacity.max_running or not self.cache.take(leader.blank):
            self._enqueue(run)
            return False
        run.stored, run.blank, run.room = leader.stored, leader.blank, leader.room
        self.cache.hold(run.block_hashes[: run.stored])
        self._decoding[run.key] = run
        return True

    # --- blocks -----------------------------------------------------------------------------------------------------

    def _find_blocks(self, short: "list[Run[Key]]") -> bool:
        """A block more for each, first come first served; whether somebody lost its place for it."""
        size, before = self._capacity.block_size, self._running
        for run in short:
            while run.is_prefilled and len(run.said) > run.room:
                needed = -(-(len(run.said) - run.room) // size)
                if self.cache.take(needed):
                    run.blank += needed
                    run.room += needed * size
                else:
                    self._send_back(max((*self._decoding.values(), *self._reading.values()), key=_order))
        return self._running < before

    def _leave(self, run: "Run[Key]") -> None:
        """Give the place and the blocks back; whole blocks stay cached while there is room."""
        # The last token said has not been read, so it has no keys and values yet.
        self._store(run, max(run.tokens - 1, run.prompt.tokens) if run.is_prefilled else run.read)
        self.cache.release(run.block_hashes[: run.stored], run.blank)
        run.stored = run.blank = 0
        del (self._decoding if run.is_prefilled else self._reading)[run.key]

    def _store(self, run: "Run[Key]", tokens: int) -> None:
        """Put the whole blocks of the first `tokens` tokens into the prefix cache."""
        size = self._capacity.block_size
        whole = min(tokens // size, run.stored + run.blank)
        if whole <= run.stored:
            return
        known = len(run.block_hashes)
        sequence = run.sequence() if whole > len(run.prompt.block_hashes) else run.prompt.token_ids
        if whole > known:
            previous = run.block_hashes[-1] if known else run.prompt.root
            run.block_hashes += block_hashes(sequence[4 * size * known : 4 * size * whole], size, previous)
        parent_hash = run.block_hashes[run.stored - 1] if run.stored else 0
        token_ids = sequence[4 * size * run.stored : 4 * size * whole]
        self.cache.store(parent_hash, run.block_hashes[run.stored : whole], token_ids, run.prompt.cache_salt)
        run.blank -= whole - run.stored
        run.stored = whole


def _order(run: "Run[Key]") -> tuple[int, int, int]:
    return run.order
