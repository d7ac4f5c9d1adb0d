"""The messages of gateway.executor.v1, written by proto/generate.py from proto/executor.proto: do not edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from engine_adapters.codec import Layout, optional, repeated, singular

EXECUTOR_ATTACH: Final = "/gateway.executor.v1.Executor/Attach"
EXECUTOR_GET_INFO: Final = "/gateway.executor.v1.Executor/GetInfo"
EXECUTOR_HEALTH: Final = "/gateway.executor.v1.Executor/Health"
EXECUTOR_UPLOAD: Final = "/gateway.executor.v1.Executor/Upload"

# Prefill/decode disaggregation: which part of a request is wanted.
PHASE_WHOLE: Final = 0
# Read the prompt and end after the first token: with LENGTH and a handoff if the answer goes on, without one if not.
PHASE_PREFILL: Final = 1
# Write on behind the first token, which is not sent again, but counts in all limits and in completion_tokens.
PHASE_DECODE: Final = 2

# KvEventKind
KV_EVENT_KIND_UNSPECIFIED: Final = 0
KV_EVENT_KIND_STORED: Final = 1
KV_EVENT_KIND_REMOVED: Final = 2
KV_EVENT_KIND_CLEARED: Final = 3  # all blocks of the rank

# FinishReason
FINISH_REASON_UNSPECIFIED: Final = 0
FINISH_REASON_STOP: Final = 1  # an end-of-sequence or stop token
FINISH_REASON_LENGTH: Final = 2  # max_tokens or the context is used up
FINISH_REASON_ABORTED: Final = 3  # answers an abort; always sent, so that the gateway knows the slot is free
FINISH_REASON_REJECTED: Final = 4  # the request itself is at fault, `error` says why
FINISH_REASON_ERROR: Final = 5  # the engine is at fault, `error` says why
FINISH_REASON_DEADLINE: Final = 6  # timeout_ms is over, or the engine's own limit


@dataclass(slots=True)
class ClientFrame:
    """Gateway to executor. At most 1 MiB."""

    LAYOUT: ClassVar[Layout]

    protocol_version: int = 0  # set in the first frame of a stream, which carries nothing else but memory_probe
    submits: list[Submit] = field(default_factory=list)
    aborts: bytes = b""  # u32[]: stream ids; an unknown one is ignored, since it may just have finished
    memory_probe: MemoryFile | None = None  # in the first frame: try whether you can read this; it holds 32 bytes
    memory_probe_content: bytes = b""  # those


@dataclass(slots=True)
class Submit:
    LAYOUT: ClassVar[Layout]

    stream_id: int = 0  # chosen by the gateway, unique among the live streams of this Attach
    request_id: str = ""  # for logs only
    token_ids: bytes = b""  # u32[]: the whole prompt
    sampling: Sampling | None = None
    max_tokens: int = 0  # at least 1
    stop_token_ids: bytes = b""  # u32[]: end the stream; the matched id is not sent
    ignore_eos: bool = False  # do not end on the model's own end-of-sequence ids
    min_tokens: int = 0  # do not end on any stop or end-of-sequence id before this many tokens
    n: int = 0  # answers to the one prompt, at most 128, with ids from stream_id on, each a stream; 0 means 1
    logprobs: int | None = None  # send logprobs, each with this many alternatives
    prompt_logprobs: int | None = None  # the same of the prompt's tokens, with the end of the first answer
    priority: int = 0  # lower goes first
    cache_salt: str = ""  # prefix cache entries are shared only under equal salts
    dp_rank: int = 0  # which data-parallel rank of the executor, below Info.dp_size
    lora: Lora | None = None
    constraint: Constraint | None = None
    kv_retention: KvRetention | None = None
    in_one_piece: bool = False  # the client wants one reply: all tokens may come with the end
    phase: int = 0  # Phase
    handoff: bytes = b""  # PHASE_DECODE: what the prefill's Finished carried, untouched
    images: list[Image] = field(default_factory=list)  # in the order of their offsets
    timeout_ms: int = 0  # from now on; then the stream ends with DEADLINE, whatever it has. 0: no limit


@dataclass(slots=True)
class Image:
    """An image of the prompt, as tensors or, for an engine that preprocesses itself, as the file."""

    LAYOUT: ClassVar[Layout]

    hash: bytes = b""  # 32 bytes, the same for the same picture: part of what its tokens mean to a prefix cache
    offset: int = 0  # the first of its tokens in token_ids
    length: int = 0  # how many they are, markers between them included; with a file, 1: the placeholder
    placeholder: int = 0  # the token that stands for the image in a prompt that nobody has expanded
    tensors: list[Tensor] = field(default_factory=list)  # empty: the payload is the encoded file
    payload: bytes = b""  # if it is small: the tensors' bytes, each tensor's from a multiple of 64 on
    uploaded: bytes = b""  # else: the name it was uploaded under
    memory: MemoryFile | None = None  # or where it is, for an executor that could read memory_probe


@dataclass(slots=True)
class Tensor:
    LAYOUT: ClassVar[Layout]

    name: str = ""  # as the model's published processor calls it: pixel_values, image_grid_thw, …
    dtype: str = ""  # float32, float16, bfloat16, int64, …
    shape: Sequence[int] = field(default_factory=list)


@dataclass(slots=True)
class MemoryFile:
    """A memfd of the gateway's, opened through /proc/PID/fd/FD. It lives as long as the request, or who has it open."""

    LAYOUT: ClassVar[Layout]

    pid: int = 0
    fd: int = 0
    inode: int = 0  # what is found there must have this one, since numbers of files are used again
    size: int = 0


@dataclass(slots=True)
class UploadRequest:
    """A payload in pieces, in order, before the Submit that names it. The first has no data: the reply may say that all
    is here already. It stays for at least 30 s after the last piece, question or Submit.
    """

    LAYOUT: ClassVar[Layout]

    name: bytes = b""
    size: int = 0  # of the whole
    offset: int = 0
    data: bytes = b""  # at most 1 MiB


@dataclass(slots=True)
class UploadReply:
    LAYOUT: ClassVar[Layout]

    received: int = 0  # bytes that are here, from the beginning


@dataclass(slots=True)
class Lora:
    LAYOUT: ClassVar[Layout]

    name: str = ""
    id: int = 0  # at least 1, and one adapter's alone
    path: str = ""  # where the executor finds it; empty for one that it has loaded


@dataclass(slots=True)
class Constraint:
    """What the answer must look like."""

    LAYOUT: ClassVar[Layout]

    kind: str = ""  # Info.features has constraint.KIND: json, json_schema, regex, ebnf, structural_tag
    guide: str = ""  # in the language of that kind; empty for json
    begins_after: bytes = b""  # u32[]: it binds only behind these ids, where a model's reasoning ends; empty: at once


@dataclass(slots=True)
class KvRetention:
    """How long the prefix cache keeps what it has of a request. Priorities are 0 to 100, the lowest goes first."""

    LAYOUT: ClassVar[Layout]

    ranges: list[KvRange] = field(default_factory=list)
    decode_priority: int | None = None  # of the answer's tokens
    decode_duration_ms: int | None = None


@dataclass(slots=True)
class KvRange:
    LAYOUT: ClassVar[Layout]

    start: int = 0
    end: int | None = None  # absent: to the prompt's end
    priority: int = 0
    duration_ms: int | None = None  # absent: for good


@dataclass(slots=True)
class Sampling:
    """An absent field means the engine's own default."""

    LAYOUT: ClassVar[Layout]

    temperature: float | None = None  # 0 is greedy
    top_p: float | None = None
    seed: int | None = None
    top_k: int | None = None  # 0 and below: no limit
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias_token_ids: bytes = b""  # u32[]
    logit_biases: bytes = b""  # f32[], parallel to logit_bias_token_ids
    top_p_min: float | None = None
    top_p_decay: float | None = None  # top_p shrinks by this factor with each token, down to top_p_min
    top_p_reset_id: int | None = None  # behind this token it begins anew
    no_repeat_ngram_size: int | None = None  # no n-gram of this many tokens comes twice
    bad_token_ids: bytes = b""  # u32[]: none of them ever comes


@dataclass(slots=True)
class StepFrame:
    """Executor to gateway. One per engine step, and one at least every second when nothing moves."""

    LAYOUT: ClassVar[Layout]

    step: int = 0  # counts engine steps since the executor started
    stream_ids: bytes = b""  # u32[]: the streams that got tokens in this frame
    counts: bytes = b""  # u32[]: tokens per stream, parallel to stream_ids; absent when each got exactly one
    token_ids: bytes = b""  # u32[]: the tokens, stream after stream
    finished: list[Finished] = field(default_factory=list)  # after the tokens of the same frame
    load: Load | None = None
    protocol_version: int = 0  # set in the first frame of a stream
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of this frame's tokens, for streams that asked
    kv_events: list[KvEvent] = field(default_factory=list)  # what changed in the prefix cache
    kv_event_number: int = 0  # of the last of kv_events
    reads_memory: bool = False  # in the first frame: memory_probe could be read


@dataclass(slots=True)
class TokenLogprobs:
    """Of the tokens that one stream got in one frame, in their order: as many as the frame has for it."""

    LAYOUT: ClassVar[Layout]

    stream_id: int = 0
    logprobs: bytes = b""  # f32[]: of the tokens themselves
    top_counts: bytes = b""  # u32[]: alternatives of each token
    top_token_ids: bytes = b""  # u32[]: token after token, best first
    top_logprobs: bytes = b""  # f32[], parallel to top_token_ids


@dataclass(slots=True)
class KvEvent:
    """A change of the prefix cache. To a gateway that attaches it is empty: the first events tell what is cached.
    Each Attach numbers its events from 1 on, in the order of sending. A receiver that misses one attaches again.
    """

    LAYOUT: ClassVar[Layout]

    kind: int = 0  # KvEventKind
    dp_rank: int = 0
    parent_hash: int = 0  # STORED: the block before the first of these; 0 at the start of a prompt
    block_hashes: bytes = b""  # u64[]: STORED, REMOVED: the blocks, in order; none is 0
    token_ids: bytes = b""  # u32[]: STORED: equally many for each block; an image's are the words of its hash, repeated
    cache_salt: str = ""  # STORED
    lora_id: int = 0  # STORED: of the LoRA they were computed with; 0 for none


@dataclass(slots=True)
class Finished:
    LAYOUT: ClassVar[Layout]

    stream_id: int = 0
    reason: int = 0  # FinishReason
    matched_stop: int | None = None  # the stop token id, when the reason is STOP
    prompt_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens that came from the engine's prefix cache
    completion_tokens: int = 0  # tokens generated, those sent and a matched stop token
    error: str = ""
    retryable: bool = False  # another executor may do better
    # the first token of a prompt has none: its logprob is 0, without alternatives
    prompt_logprobs: TokenLogprobs | None = None
    handoff: bytes = b""  # ends PHASE_PREFILL: what PHASE_DECODE needs of it; only engines look inside


@dataclass(slots=True)
class Load:
    LAYOUT: ClassVar[Layout]

    running: int = 0
    waiting: int = 0
    kv_tokens_used: int = 0
    kv_tokens_total: int = 0
    tokens_per_second: float = 0.0  # generated, over the last second or so
    ranks: list[RankLoad] = field(default_factory=list)  # by data-parallel rank, when there is more than one


@dataclass(slots=True)
class RankLoad:
    LAYOUT: ClassVar[Layout]

    running: int = 0
    waiting: int = 0
    kv_tokens_used: int = 0
    kv_tokens_total: int = 0


@dataclass(slots=True)
class InfoRequest:
    LAYOUT: ClassVar[Layout]


@dataclass(slots=True)
class Info:
    LAYOUT: ClassVar[Layout]

    protocol_version: int = 0
    engine: str = ""  # "simulator", "tensorrt-llm"
    engine_version: str = ""
    model: str = ""
    vocab_size: int = 0  # every id sent is below it
    context_length: int = 0  # prompt and completion together
    max_running: int = 0
    tokenizer_fingerprint: bytes = b""  # SHA-256, engine_adapters/tokenizer_file.py says over what; empty if unknown
    eos_token_ids: bytes = b""  # u32[]
    kv_block_size: int = 0  # tokens; 0 when unknown
    dp_size: int = 0  # data-parallel ranks; 0 means 1
    # what it can beyond the first release: engine_adapters/base.py has the names
    features: list[str] = field(default_factory=list)
    role: int = 0  # Phase; the only phase it serves; PHASE_WHOLE: all of them that its features allow
    image_dtype: str = ""  # what it wants images' float32 tensors converted to: float16, bfloat16; empty: nothing


@dataclass(slots=True)
class HealthRequest:
    LAYOUT: ClassVar[Layout]


@dataclass(slots=True)
class HealthReply:
    LAYOUT: ClassVar[Layout]

    healthy: bool = False
    message: str = ""


ClientFrame.LAYOUT = Layout(
    singular(1, "protocol_version", "uint32"),
    repeated(2, "submits", Submit),
    singular(3, "aborts", "bytes"),
    singular(4, "memory_probe", MemoryFile),
    singular(5, "memory_probe_content", "bytes"),
)

Submit.LAYOUT = Layout(
    singular(1, "stream_id", "uint32"),
    singular(2, "request_id", "string"),
    singular(3, "token_ids", "bytes"),
    singular(4, "sampling", Sampling),
    singular(5, "max_tokens", "uint32"),
    singular(6, "stop_token_ids", "bytes"),
    singular(7, "ignore_eos", "bool"),
    singular(8, "min_tokens", "uint32"),
    singular(9, "n", "uint32"),
    optional(10, "logprobs", "uint32"),
    optional(11, "prompt_logprobs", "uint32"),
    singular(12, "priority", "int32"),
    singular(13, "cache_salt", "string"),
    singular(14, "dp_rank", "uint32"),
    singular(15, "lora", Lora),
    singular(16, "constraint", Constraint),
    singular(17, "kv_retention", KvRetention),
    singular(18, "in_one_piece", "bool"),
    singular(19, "phase", "enum"),
    singular(20, "handoff", "bytes"),
    repeated(21, "images", Image),
    singular(24, "timeout_ms", "uint32"),
)

Image.LAYOUT = Layout(
    singular(1, "hash", "bytes"),
    singular(2, "offset", "uint32"),
    singular(3, "length", "uint32"),
    singular(4, "placeholder", "uint32"),
    repeated(5, "tensors", Tensor),
    singular(6, "payload", "bytes"),
    singular(7, "uploaded", "bytes"),
    singular(8, "memory", MemoryFile),
)

Tensor.LAYOUT = Layout(
    singular(1, "name", "string"),
    singular(2, "dtype", "string"),
    repeated(3, "shape", "uint64"),
)

MemoryFile.LAYOUT = Layout(
    singular(1, "pid", "uint64"),
    singular(2, "fd", "uint32"),
    singular(3, "inode", "uint64"),
    singular(4, "size", "uint64"),
)

UploadRequest.LAYOUT = Layout(
    singular(1, "name", "bytes"),
    singular(2, "size", "uint64"),
    singular(3, "offset", "uint64"),
    singular(4, "data", "bytes"),
)

UploadReply.LAYOUT = Layout(
    singular(1, "received", "uint64"),
)

Lora.LAYOUT = Layout(
    singular(1, "name", "string"),
    singular(2, "id", "uint64"),
    singular(3, "path", "string"),
)

Constraint.LAYOUT = Layout(
    singular(1, "kind", "string"),
    singular(2, "guide", "string"),
    singular(3, "begins_after", "bytes"),
)

KvRetention.LAYOUT = Layout(
    repeated(1, "ranges", KvRange),
    optional(2, "decode_priority", "uint32"),
    optional(3, "decode_duration_ms", "uint64"),
)

KvRange.LAYOUT = Layout(
    singular(1, "start", "uint32"),
    optional(2, "end", "uint32"),
    singular(3, "priority", "uint32"),
    optional(4, "duration_ms", "uint64"),
)

Sampling.LAYOUT = Layout(
    optional(1, "temperature", "float"),
    optional(2, "top_p", "float"),
    optional(3, "seed", "int64"),
    optional(4, "top_k", "int32"),
    optional(5, "min_p", "float"),
    optional(6, "frequency_penalty", "float"),
    optional(7, "presence_penalty", "float"),
    optional(8, "repetition_penalty", "float"),
    singular(9, "logit_bias_token_ids", "bytes"),
    singular(10, "logit_biases", "bytes"),
    optional(11, "top_p_min", "float"),
    optional(12, "top_p_decay", "float"),
    optional(13, "top_p_reset_id", "uint32"),
    optional(14, "no_repeat_ngram_size", "uint32"),
    singular(15, "bad_token_ids", "bytes"),
)

StepFrame.LAYOUT = Layout(
    singular(1, "step", "uint64"),
    singular(2, "stream_ids", "bytes"),
    singular(3, "counts", "bytes"),
    singular(4, "token_ids", "bytes"),
    repeated(5, "finished", Finished),
    singular(6, "load", Load),
    singular(7, "protocol_version", "uint32"),
    repeated(8, "logprobs", TokenLogprobs),
    repeated(9, "kv_events", KvEvent),
    singular(10, "kv_event_number", "uint64"),
    singular(11, "reads_memory", "bool"),
)

TokenLogprobs.LAYOUT = Layout(
    singular(1, "stream_id", "uint32"),
    singular(2, "logprobs", "bytes"),
    singular(3, "top_counts", "bytes"),
    singular(4, "top_token_ids", "bytes"),
    singular(5, "top_logprobs", "bytes"),
)

KvEvent.LAYOUT = Layout(
    singular(1, "kind", "enum"),
    singular(2, "dp_rank", "uint32"),
    singular(3, "parent_hash", "fixed64"),
    singular(4, "block_hashes", "bytes"),
    singular(5, "token_ids", "bytes"),
    singular(6, "cache_salt", "string"),
    singular(7, "lora_id", "uint64"),
)

Finished.LAYOUT = Layout(
    singular(1, "stream_id", "uint32"),
    singular(2, "reason", "enum"),
    optional(3, "matched_stop", "uint32"),
    singular(4, "prompt_tokens", "uint32"),
    singular(5, "cached_tokens", "uint32"),
    singular(6, "completion_tokens", "uint32"),
    singular(7, "error", "string"),
    singular(8, "retryable", "bool"),
    singular(9, "prompt_logprobs", TokenLogprobs),
    singular(10, "handoff", "bytes"),
)

Load.LAYOUT = Layout(
    singular(1, "running", "uint32"),
    singular(2, "waiting", "uint32"),
    singular(3, "kv_tokens_used", "uint64"),
    singular(4, "kv_tokens_total", "uint64"),
    singular(5, "tokens_per_second", "float"),
    repeated(6, "ranks", RankLoad),
)

RankLoad.LAYOUT = Layout(
    singular(1, "running", "uint32"),
    singular(2, "waiting", "uint32"),
    singular(3, "kv_tokens_used", "uint64"),
    singular(4, "kv_tokens_total", "uint64"),
)

InfoRequest.LAYOUT = Layout()

Info.LAYOUT = Layout(
    singular(1, "protocol_version", "uint32"),
    singular(2, "engine", "string"),
    singular(3, "engine_version", "string"),
    singular(4, "model", "string"),
    singular(5, "vocab_size", "uint32"),
    singular(6, "context_length", "uint32"),
    singular(7, "max_running", "uint32"),
    singular(8, "tokenizer_fingerprint", "bytes"),
    singular(9, "eos_token_ids", "bytes"),
    singular(10, "kv_block_size", "uint32"),
    singular(11, "dp_size", "uint32"),
    repeated(12, "features", "string"),
    singular(13, "role", "enum"),
    singular(14, "image_dtype", "string"),
)

HealthRequest.LAYOUT = Layout()

HealthReply.LAYOUT = Layout(
    singular(1, "healthy", "bool"),
    singular(2, "message", "string"),
)
