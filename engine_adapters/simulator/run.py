"""One answer in the engine: what it is going to say, how far it has got, and the KV blocks it holds."""

import itertools
from array import array
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from engine_adapters.base import Finish, FinishReason, Submission
from engine_adapters.image import Image
from engine_adapters.images import keyed
from engine_adapters.simulator import handoff
from engine_adapters.simulator.kv_cache import block_hashes, root_hash

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Plan:
    """Everything one stream is going to say if it is not cut short.

    `steps` holds the tokens of each engine step, `delays` by index the seconds to wait before a step. With `repeats`
    the steps begin again at the end; without, the stream ends with the last one, for `reason`.
    """

    steps: Sequence[tuple[int, ...]]
    delays: Mapping[int, float] = field(default_factory=dict)
    repeats: bool = False
    reason: FinishReason = FinishReason.STOP
    error: str = ""
    retryable: bool = False


@dataclass(frozen=True)
class Prompt:
    """What the answers to one request have in common. `block_hashes` are those of its whole blocks, behind `root`.
    `token_ids` are the prompt as the prefix cache has it, images by their hashes.

    Where the prompt's own logprobs are wanted, all of it must be read, cached or not.
    """

    token_ids: bytes
    tokens: int
    cache_salt: str
    root: int
    block_hashes: Sequence[int]
    must_be_read: bool
    images: "Sequence[Image]" = ()
    """Held as long as the request lives, as an engine may."""

    @classmethod
    def of(cls, submission: Submission, block_size: int) -> "Prompt":
        token_ids, root = keyed(submission.token_ids, submission.images), root_hash(submission.cache_salt)
        return cls(
            token_ids=token_ids,
            tokens=len(token_ids) // 4,
            cache_salt=submission.cache_salt,
            root=root,
            block_hashes=[*block_hashes(token_ids, block_size, root)],
            must_be_read=submission.prompt_logprobs is not None,
            images=submission.images,
        )


@dataclass(slots=True, eq=False)
class Run(Generic[Key]):
    """One answer. `order` says who goes first, the lowest.

    Of the answers to one prompt, the first reads it while the others wait as its `followers`; each then goes its own
    way. It holds the first `stored` of `block_hashes` and `blank` blocks, which have room for the prompt and `room`
    tokens more. `read` is how much of the prompt (or, after it lost its place, of all it has) is in them, `chunk` what
    the step under way adds. One that `hands_over` ends with its first tokens; the prompt of one that `is_handed_over`
    has been read elsewhere and is yet to come.
    """

    key: Key
    order: tuple[int, int, int]
    prompt: Prompt
    plan: Plan
    limit: int
    min_tokens: int
    stops: frozenset[int]
    followers: "list[Run[Key]]" = field(default_factory=list)
    steps: Sequence[tuple[int, ...]] = ()
    delays: Mapping[int, float] = field(default_factory=dict)
    index: int = 0
    said: list[int] = field(default_factory=list)
    ready_at: float = 0.0
    block_hashes: list[int] = field(default_factory=list)
    stored: int = 0
    blank: int = 0
    room: int = 0
    read: int = 0
    chunk: int = 0
    cached_tokens: int = 0
    is_new: bool = True
    is_prefilled: bool = False
    hands_over: bool = False
    is_handed_over: bool = False

    def __post_init__(self) -> None:
        self.steps, self.delays = self.plan.steps, self.plan.delays
        self.block_hashes = [*self.prompt.block_hashes]

    @property
    def tokens(self) -> int:
        return self.prompt.tokens + len(self.said)

    def note_cached(self, tokens: int) -> None:
        """The stream begins to read, behind what is cached. What counts for its usage is what it found at first."""
        self.read = tokens
        if self.is_new:
            self.is_new, self.cached_tokens = False, tokens

    def take_over(self) -> "Run[Key]":
        """The first follower, in the place of this run, which has just been aborted."""
        successor, *successor.followers = self.followers
        for name in ("read", "chunk", "cached_tokens", "stored", "blank", "room", "is_new"):
            setattr(successor, name, getattr(self, name))
        return successor

    def begin_to_speak(self, now: float) -> None:
        """All is read: the first token comes now, or after its delay."""
        self.is_prefilled = True
        if self.delays and not self.index and not self.ready_at:
            self.ready_at = now + self.delays.get(0, 0.0)

    def advance(self) -> "tuple[Sequence[int], Finish | None]":
        """The tokens of the next step, and the end if this is it."""
        steps = self.steps
        token_ids: Sequence[int] = steps[self.index % len(steps)] if steps else ()
        self.index += 1
        matched_stop = None
        if not self.stops.isdisjoint(token_ids):
            token_ids, matched_stop = self._until_stop(token_ids)
        said = self.said
        said += token_ids
        if len(said) >= self.limit:
            excess = len(said) - self.limit
            del said[self.limit :]
            return token_ids[: len(token_ids) - excess], self.finish(FinishReason.LENGTH)
        if matched_stop is not None:
            return token_ids, self.finish(FinishReason.STOP, matched_stop)
        if self.index >= len(steps) and self._ends_with_plan():
            return token_ids, self.finish(self.plan.reason)
        if self.hands_over and said:
            return token_ids, replace(self.finish(FinishReason.LENGTH), handoff=handoff.pack(said, self.index))
        return token_ids, None

    def receive(self, ready_at: float) -> None:
        """All that is not cached of the prompt comes from where it was read, by `ready_at`."""
        self.read, self.is_prefilled, self.is_handed_over = self.tokens, True, False
        self.ready_at = ready_at + self.delays.get(self.index, 0.0)

    def finish(self, reason: FinishReason, matched_stop: "int | None" = None) -> Finish:
        is_planned = reason is self.plan.reason
        return Finish(
            reason=reason,
            matched_stop=matched_stop,
            prompt_tokens=self.prompt.tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=len(self.said) + (matched_stop is not None),
            error=self.plan.error if is_planned else "",
            retryable=self.plan.retryable and is_planned,
        )

    def sequence(self) -> bytes:
        """The prompt and what was said, as little-endian u32."""
        return self.prompt.token_ids + array("I", self.said).tobytes()

    def _until_stop(self, token_ids: Sequence[int]) -> "tuple[Sequence[int], int | None]":
        """The tokens before a stop, and that. Before `min_tokens` an engine masks stops: something else comes."""
        kept: list[int] = []
        for token_id in token_ids:
            if token_id not in self.stops:
                kept.append(token_id)
            elif len(self.said) + len(kept) >= self.min_tokens:
                return kept, token_id
        return kept or [next(token_id for token_id in itertools.count() if token_id not in self.stops)], None

    def _ends_with_plan(self) -> bool:
        if not self.steps:
            return True
        says_more = self.plan.reason is FinishReason.STOP and len(self.said) < self.min_tokens
        return not (self.plan.repeats or says_more)
