"""The nouns that travel between the floors: what a client asks for, what a prompt became, what a model said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from engine_adapters.base import Constraint, KvRetention, Logprobs, Sampling
from engine_adapters.image import Image
from gateway.errors import GatewayError

COMPILING = 1_000_000
"""What a template of the client's own counts for in characters: it may have to be compiled first."""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image that a conversation refers to: its URL (`data:`, `https:`, `file:`), and the path of the field."""

    url: str
    path: str
    detail: str = "auto"


class ImageForm(NamedTuple):
    """What the engines of a model want of its images: tensors, their float32 ones as `dtype`, and the file itself."""

    tensors: bool = True
    dtype: str = ""
    encoded: bool = False


@dataclass(frozen=True, slots=True)
class ChatInput:
    """A conversation; messages, tools and documents stay dicts, since chat templates want dicts.

    `images` are those of the parts `{"type": "image"}` in the messages, in their order.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    continue_final_message: bool | str = False
    """The answer goes on where the last message stops, instead of beginning a new one; or the field to go on with."""
    thinking: bool | None = None
    """Whether the model is to reason first, under whatever name its template has for it."""
    reasoning_effort: str | None = None
    template: str | None = None
    """The name of one of the model's templates, or a template of the client's own."""
    add_special_tokens: bool = False
    """Around the rendered text; templates write their own."""
    images: tuple[ImageSource, ...] = ()

    @property
    def characters(self) -> int:
        """Roughly how long the rendered text will be, as a measure of the work."""
        size = COMPILING if self.template is not None else 0
        for message in self.messages:
            content = message["content"] if "content" in message else ()
            for part in [content] if isinstance(content, str) else content or ():
                text = part if isinstance(part, str) else part["text"] if "text" in part else None
                size += len(text) if isinstance(text, str) else 0
            if "tool_calls" in message:
                size += json_characters(message["tool_calls"])
        return size + json_characters(self.tools) + json_characters(self.documents)

    @property
    def renders_fast(self) -> bool:
        """Whether the model's own template has little more to do than to copy, however long the messages are."""
        is_plain = self.tools is None and self.documents is None and self.template is None
        return is_plain and len(self.messages) <= FEW_MESSAGES


FEW_MESSAGES = 16
ENOUGH_CHARACTERS = 2500
"""More than what is prepared on an event loop (pools.INLINE_CHARACTERS); counting on would cost time there."""


def json_characters(value: Any) -> int:
    """Roughly how long a JSON value is as text, or ENOUGH_CHARACTERS and more."""
    size, left = 0, [value]
    while left and size < ENOUGH_CHARACTERS:
        each = left.pop()
        if isinstance(each, str):
            size += len(each)
        elif isinstance(each, dict):
            size += sum(map(len, each))
            left += each.values()
        elif isinstance(each, list):
            left += each
    return size


@dataclass(frozen=True, slots=True)
class TextInput:
    """A prompt as text; special tokens in it are recognised."""

    text: str
    add_special_tokens: bool = True
    """Those that the tokenizer puts around any text, such as a BOS."""

    renders_fast: ClassVar[bool] = True

    @property
    def characters(self) -> int:
        return len(self.text)


@dataclass(frozen=True, slots=True)
class TokensInput:
    """A prompt as little-endian u32 token ids."""

    token_ids: bytes

    @property
    def characters(self) -> int:
        return 0


Input = ChatInput | TextInput | TokensInput


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What becomes of the tokens here: which of them are text, and where the text ends."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class Reading:
    """What is to be found in an answer's text besides text.

    `tools` are the tools that may be called, their parameters' schemas by name; None reads no calls. `first_call` is
    how many calls the conversation has had. `is_forced`: the answer is a list of calls and has no markers, because a
    constraint makes it so.
    """

    tools: Mapping[str, Any] | None = None
    most_calls: int | None = None
    first_call: int = 0
    is_forced: bool = False
    separates_reasoning: bool = True
    streams_reasoning: bool = True


CHARACTERS_PER_TOKEN = 4
UNLIMITED_ANSWER = 1024
"""Tokens of an answer that may take what the context has room for, as a guess."""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """What every endpoint lowers its body to. Ids are little-endian u32."""

    request_id: str
    model: str
    input: Input
    sampling: Sampling = Sampling()
    output: OutputOptions = OutputOptions()
    reading: Reading | None = None
    """None: the answer is nothing but text."""
    max_tokens: int | None = None
    """None: as many as the context has room for."""
    min_tokens: int = 0
    n: int = 1
    stop_token_ids: bytes = b""
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    priority: int = 0
    cache_salt: str = ""
    constraint: Constraint | None = None
    constraint_is_wish: bool = False
    """An engine that cannot have it does without."""
    kv_retention: KvRetention | None = None
    stream: bool = True
    """False: the client wants one reply."""
    truncate_prompt_tokens: int | None = None
    """Keep only this many tokens of the prompt, its last ones."""

    def most_tokens(self) -> int:
        """A guess at how many tokens it takes, made before the prompt is tokenized."""
        source = self.input
        tokens = len(source.token_ids) // 4 if isinstance(source, TokensInput) else 0
        return tokens + source.characters // CHARACTERS_PER_TOKEN + self.n * (self.max_tokens or UNLIMITED_ANSWER)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text's token ids, as little-endian u32, and how they came about.

    `outcome` is "hit" (the token cache knew the whole text), "part" (some of its segments), "miss", or "off".
    `known_tokens` came from the cache. Segments are not counted where the whole text was known.
    """

    token_ids: bytes
    outcome: str
    known_tokens: int
    segment_hits: int
    segment_misses: int
    lookup_seconds: float
    encode_seconds: float


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered and tokenized input. `token_ids` is little-endian u32, ready for the wire."""

    token_ids: bytes
    render_seconds: float = 0.0
    tokenize_seconds: float = 0.0
    opens_reasoning: str | None = None
    """The marker, such as `<think>`, of a reasoning block that the prompt opens and leaves to the model to close."""
    encoded: Encoded | None = None
    """None for a prompt that came as tokens."""
    images: tuple[Image, ...] = ()

    @property
    def length(self) -> int:
        return len(self.token_ids) // 4


@dataclass(slots=True)
class Content:
    """What the model says to the client."""

    text: str


@dataclass(slots=True)
class Reasoning:
    """What it thinks before that."""

    text: str


@dataclass(slots=True)
class CallDelta:
    """More of tool call `number` of an answer: first its id and name, then the JSON of its arguments in parts, then
    that it `is_complete`, or is `broken`: then that is all of its markup, arguments already told included."""

    number: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    is_complete: bool = False
    broken: str = ""


Piece = Content | Reasoning | CallDelta


@dataclass(slots=True)
class Text:
    """More of the answer number `index`. `token_ids` and `logprobs` belong to it if logprobs were asked for; the text
    may be empty then, while a stop string or a character is incomplete. What is not only content is in `pieces`, and
    `text` is empty."""

    index: int
    text: str
    token_ids: Sequence[int] = ()
    logprobs: Logprobs | None = None
    pieces: Sequence[Piece] = ()


@dataclass(slots=True)
class Finished:
    """The end of answer number `index`: `finish_reason` is "stop", "length" or "tool_calls"."""

    index: int
    finish_reason: str
    matched_stop: str | int | None = None


@dataclass(slots=True)
class Waiting:
    """Nothing has come for a while, and the request lives."""


@dataclass(slots=True)
class Usage:
    """The last event: what the request took altogether."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    prompt_logprobs: Logprobs | None = None
    reasoning_tokens: int = 0
    """Of the completion's."""


Event = Text | Finished | Waiting | Usage


@dataclass(frozen=True, slots=True)
class Shape:
    """How the client wants its answer."""

    stream: bool
    include_usage: bool
    continuous_usage: bool


@dataclass(slots=True)
class RequestRecord:
    """What is known of a request when it is over. Filled in as it goes, by the request's own task alone.

    Moments are `time.monotonic()`, 0.0 is "not reached"; durations are seconds.
    """

    request_id: str
    received: float
    render_seconds: float = 0.0
    tokenize_seconds: float = 0.0
    queue_seconds: float = 0.0
    image_seconds: float = 0.0
    """For fetching and preprocessing the images, which go on side by side."""
    prepared: float = 0.0
    routed: float = 0.0
    first_token: float = 0.0
    handoff_seconds: float = 0.0
    """From the end of the prefill to the first token of the decode, where two workers share a request."""
    last_token: float = 0.0
    admission_seconds: float = 0.0
    """Before the other stages: for a place among those that are answered."""
    model: str = ""
    worker: str = ""
    key: str = ""
    """The name of the client's API key."""
    change: str = ""
    """What an admin asks to be changed, as JSON."""
    body_bytes: int = 0
    priority: str | None = None
    """The client's x-priority."""
    routing_key: str = ""
    """The client's x-routing-key."""
    asked_seconds: str = ""
    """The client's x-request-timeout, as it came."""
    ends_at: float = 0.0
    limited_by: str = ""
    """What set `ends_at`."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    token_cache: str = ""
    """What `Encoded.outcome` said of the prompt."""
    reasoning_tokens: int = 0
    status: int = 0
    """0 until the response has begun."""
    is_streaming: bool = False
    wants_timing: bool = False
    """At the end of its stream, too."""
    error: GatewayError | None = None
