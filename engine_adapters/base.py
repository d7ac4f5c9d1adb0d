"""The types that cross the border between the gateway and an engine, and what the gateway asks of any engine."""

import enum
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

if sys.byteorder != "little":
    raise ImportError("token ids travel as little-endian u32 columns that are read in place: a big-endian host cannot")


class FinishReason(enum.IntEnum):
    """Why a stream ended; the numbers are those of the step stream."""

    STOP = 1
    LENGTH = 2
    ABORTED = 3
    REJECTED = 4
    ERROR = 5


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose the next token; None leaves it to the engine's default."""

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """One prompt for an engine. `token_ids` and `stop_token_ids` are little-endian u32."""

    request_id: str
    token_ids: bytes
    max_tokens: int
    sampling: Sampling = Sampling()
    stop_token_ids: bytes = b""
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of one stream. `completion_tokens` counts a matched stop token, which itself is not delivered."""

    reason: FinishReason
    matched_stop: int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine says of itself at one moment."""

    running: int = 0
    waiting: int = 0
    kv_tokens_used: int = 0
    kv_tokens_total: int = 0
    tokens_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine serves. `tokenizer_fingerprint` is empty when the engine does not know it."""

    engine: str
    engine_version: str
    model: str
    vocab_size: int
    context_length: int
    max_running: int
    tokenizer_fingerprint: bytes
    eos_token_ids: tuple[int, ...]


class EngineLost(Exception):
    """The engine cannot be reached, or the connection to it broke; the message says how."""


Key = TypeVar("Key")
Delivery = tuple[Key, Sequence[int], Finish | None]
"""(the key given to `submit`, new token ids, the end if this is it)"""


class Engine(Protocol[Key]):
    """One executor as the gateway's engine thread sees it: every method is called on that thread's event loop."""

    async def connect(self) -> EngineInfo:
        """Reach the executor and learn what it serves; raises EngineLost."""

    async def run(self, deliver: Callable[[list[Delivery[Key]]], None]) -> None:
        """Serve submissions until the connection breaks, then raise EngineLost.

        `deliver` is called at most once per frame, with everything that frame brought. When this raises, the streams
        that had no Finish yet are dead: the caller ends them.
        """

    def submit(self, key: Key, submission: Submission) -> None:
        """Start a stream whose deliveries carry `key`."""

    def abort(self, key: Key) -> None:
        """Stop a stream: nothing of it is delivered any more. Unknown keys are ignored."""

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
