"""The types that cross the border between the gateway and an engine, and what the gateway asks of any engine."""

import enum
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, TypeVar

from engine_adapters.image import Image

if sys.byteorder != "little":
    raise ImportError("token ids travel as little-endian u32 columns that are read in place: a big-endian host cannot")


class FinishReason(enum.IntEnum):
    """Why a stream ended; the numbers are those of the step stream."""

    STOP = 1
    LENGTH = 2
    ABORTED = 3
    REJECTED = 4
    ERROR = 5
    DEADLINE = 6


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose the next token; None leaves it to the engine's default.

    `top_p` may shrink by the factor `top_p_decay` with each token, down to `top_p_min` and anew behind the token
    `top_p_reset_id`. No n-gram of `no_repeat_ngram_size` tokens comes twice, and none of `bad_token_ids` (little-endian
    u32) ever.
    """

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_p_min: float | None = None
    top_p_decay: float | None = None
    top_p_reset_id: int | None = None
    no_repeat_ngram_size: int | None = None
    bad_token_ids: bytes = b""


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA adapter of the model. `id` is at least 1 and one adapter's alone; `path` is where the engine finds it,
    empty for an adapter that it has loaded already."""

    name: str
    id: int
    path: str = ""


CONSTRAINT_KINDS = ("json", "json_schema", "regex", "ebnf", "structural_tag")


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must look like. `kind` is one of CONSTRAINT_KINDS, and `guide` says it in that kind's language: a
    JSON Schema, a regular expression, a grammar, a structural tag (JSON); empty for "json", which is any JSON object.

    It binds from the first token on, or only behind the ids `begins_after` (little-endian u32), as a model writes them
    where its reasoning ends: an answer without them is free.
    """

    kind: str
    guide: str = ""
    begins_after: bytes = b""


@dataclass(frozen=True, slots=True)
class KvRange:
    """How long the prefix cache keeps the prompt's tokens from `start` to before `end` (None: to its end).

    `priority` is 0 to 100, and what has the lowest is evicted first; it holds for `duration_ms` (None: for good).
    """

    start: int
    end: int | None
    priority: int
    duration_ms: int | None = None


@dataclass(frozen=True, slots=True)
class KvRetention:
    """What the prefix cache is to keep of a request; `decode_priority` is the answer's, None the engine's default."""

    ranges: tuple[KvRange, ...] = ()
    decode_priority: int | None = None
    decode_duration_ms: int | None = None


Phase: TypeAlias = Literal["", "prefill", "decode"]
"""Which part of a submission is wanted of an engine: all of it, its prompt read, or its answer written on."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One prompt for an engine, to be answered `n` times. `token_ids` and `stop_token_ids` are little-endian u32.

    Before `min_tokens` no stop id and no end of sequence ends an answer. `logprobs` and `prompt_logprobs` ask for that
    many alternatives to each token, None for no logprobs at all. A lower `priority` goes first. Prompts share the
    engine's prefix cache only under equal `cache_salt`s and on the same `dp_rank`. Without `stream` the client wants
    one reply, and all tokens may come with the end. At `ends_at`, by this process's `time.monotonic()`, nobody wants
    the answer any more; 0.0 is never.

    A `phase` "prefill" reads the prompt and ends after the first token: with LENGTH and a `Finish.handoff` if the
    answer goes on, without one if it is complete. A `phase` "decode" gets that as `handoff`, which nobody else looks
    into, with the same prompt and limits, and writes on behind the first token. It does not deliver that token again,
    but counts it in `max_tokens`, `min_tokens` and `completion_tokens`. With a phase, `n` is 1.

    `images` are in the order of their offsets, and do not overlap.
    """

    request_id: str
    token_ids: bytes
    max_tokens: int
    sampling: Sampling = Sampling()
    stop_token_ids: bytes = b""
    ignore_eos: bool = False
    min_tokens: int = 0
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    priority: int = 0
    cache_salt: str = ""
    dp_rank: int = 0
    lora: Lora | None = None
    constraint: Constraint | None = None
    kv_retention: KvRetention | None = None
    stream: bool = True
    phase: Phase = ""
    handoff: bytes = b""
    images: tuple[Image, ...] = ()
    ends_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Logprobs:
    """How likely each of some tokens was, and what else might have come: (token id, logprob), best first.

    The token itself is among its `alternatives` only when it is one of the best.
    """

    logprobs: Sequence[float]
    alternatives: Sequence[Sequence[tuple[int, float]]]


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of one stream. `completion_tokens` counts a matched stop token, which itself is not delivered.

    `prompt_logprobs`, for a submission that asked, come with the end of its first answer; a prompt's first token has
    the logprob 0 and no alternatives. `handoff` ends a phase "prefill" whose answer goes on.
    """

    reason: FinishReason
    matched_stop: int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    retryable: bool = False
    prompt_logprobs: Logprobs | None = None
    handoff: bytes = b""


@dataclass(frozen=True, slots=True)
class RankLoad:
    """What one data-parallel rank of an engine says of itself at one moment."""

    running: int = 0
    waiting: int = 0
    kv_tokens_used: int = 0
    kv_tokens_total: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine says of itself at one moment; `ranks` is empty when it has only one."""

    running: int = 0
    waiting: int = 0
    kv_tokens_used: int = 0
    kv_tokens_total: int = 0
    tokens_per_second: float = 0.0
    ranks: tuple[RankLoad, ...] = ()


@dataclass(frozen=True, slots=True)
class KvStored:
    """Blocks that entered a rank's prefix cache, each behind the one before it and the first behind `parent_hash`.

    That is 0 at the start of a prompt. `token_ids` is little-endian u32, equally many for each block, the tokens of
    images as `images.keyed` has them. `lora_id` is that of the LoRA they were computed with, 0 for none.
    """

    parent_hash: int
    block_hashes: tuple[int, ...]
    token_ids: bytes
    cache_salt: str = ""
    dp_rank: int = 0
    lora_id: int = 0


@dataclass(frozen=True, slots=True)
class KvRemoved:
    """Blocks that left a rank's prefix cache."""

    block_hashes: tuple[int, ...]
    dp_rank: int = 0


@dataclass(frozen=True, slots=True)
class KvCleared:
    """A rank's prefix cache is empty."""

    dp_rank: int = 0


KvEvent: TypeAlias = KvStored | KvRemoved | KvCleared

FEATURES = frozenset(
    {
        "min_tokens",
        "n",
        "logprobs",
        "prompt_logprobs",
        "priority",
        "cache_salt",
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "logit_bias",
        "top_p_min",
        "top_p_decay",
        "top_p_reset_id",
        "no_repeat_ngram_size",
        "bad_token_ids",
        "kv_events",
        "lora",
        "kv_retention",
        "disaggregation",
        "constraint.begins_after",
        "images.tensors",
        "images.encoded",
        *(f"constraint.{kind}" for kind in CONSTRAINT_KINDS),
    }
)
"""What an engine may or may not be able to do: fields of Submission and Sampling (of `constraint`, each kind and a late
beginning; "disaggregation" is `phase`), and telling of its prefix cache."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine serves. `tokenizer_fingerprint` is empty, and a number 0, when the engine does not tell it.

    `features` are those of FEATURES it has; a submission must not use the others. An engine with a `role` serves only
    that phase. `image_dtype` is what it wants images' float32 tensors converted to, if anything.
    """

    engine: str
    engine_version: str
    model: str
    vocab_size: int
    context_length: int
    max_running: int
    tokenizer_fingerprint: bytes
    eos_token_ids: tuple[int, ...]
    kv_block_size: int = 0
    dp_size: int = 1
    features: frozenset[str] = frozenset()
    role: Phase = ""
    image_dtype: str = ""


class EngineLost(Exception):
    """The engine cannot be reached, or the connection to it broke; the message says how."""


Key = TypeVar("Key")
Delivery = tuple[Key, Sequence[int], Finish | None, Logprobs | None]
"""(the key given to `submit`, new token ids, the end if this is it, the logprobs of these tokens if it asked)"""


class Engine(Protocol[Key]):
    """One executor as the gateway's engine thread sees it: every method is called on that thread's event loop."""

    async def connect(self) -> EngineInfo:
        """Reach the executor and learn what it serves; raises EngineLost."""

    async def run(self, deliver: Callable[[list[Delivery[Key]]], None]) -> None:
        """Serve submissions until the connection breaks, then raise EngineLost.

        `deliver` is called at most once per frame, with everything that frame brought. When this raises, the streams
        that had no Finish yet are dead: the caller ends them.
        """

    def submit(self, keys: Sequence[Key], submission: Submission) -> None:
        """Start a stream for each of the `submission.n` answers; their deliveries carry the `keys`, one each."""

    def abort(self, key: Key) -> None:
        """Stop a stream: nothing of it is delivered any more. Unknown keys are ignored."""

    async def check_health(self) -> str:
        """Ask the executor how it is: what is wrong with it, empty when nothing is.

        One that does not answer in time is not well, unless it has said something else in the meantime. May raise
        EngineLost, as `run` will.
        """

    @property
    def load(self) -> Load:
        """The executor's latest report."""

    @property
    def last_frame_at(self) -> float:
        """`time.monotonic()` when the executor last said anything."""

    @property
    def unconfirmed_aborts(self) -> int:
        """Aborts sent whose end the executor has not confirmed."""

    async def close(self) -> None:
        """Release the connection."""
