"""The nouns that travel between the floors: what a client asks for, what a prompt became, what a model said."""

from dataclasses import dataclass
from typing import Any

from engine_adapters.base import Sampling
from gateway.errors import GatewayError


@dataclass(frozen=True, slots=True)
class ChatInput:
    """A conversation; the messages stay dicts, since chat templates want dicts."""

    messages: list[dict[str, Any]]

    @property
    def characters(self) -> int:
        """Roughly how long the rendered text will be."""
        return sum(len(content) for message in self.messages if isinstance(content := message.get("content"), str))


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """What every endpoint lowers its body to."""

    request_id: str
    model: str
    input: ChatInput
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    """None: as many as the context has room for."""
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered and tokenized input. `token_ids` is little-endian u32, ready for the wire."""

    token_ids: bytes

    @property
    def length(self) -> int:
        return len(self.token_ids) // 4


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(slots=True)
class Text:
    """More of the answer; never empty."""

    text: str


@dataclass(slots=True)
class Done:
    """The end of the answer: `finish_reason` is "stop" or "length"."""

    finish_reason: str
    usage: Usage
    matched_stop: str | int | None = None


Event = Text | Done


@dataclass(slots=True)
class RequestRecord:
    """What is known of a request when it is over. Filled in as it goes, by the request's own task alone.

    Moments are `time.monotonic()`; 0.0 is "not reached".
    """

    request_id: str
    received: float
    prepared: float = 0.0
    first_token: float = 0.0
    model: str = ""
    worker: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    status: int = 0
    """0 until the response has begun."""
    is_streaming: bool = False
    error: GatewayError | None = None
