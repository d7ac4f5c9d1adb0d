"""The messages of trtllm, written by proto/generate.py from proto/trtllm_service.proto: do not edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from engine_adapters.codec import Layout, one_of, optional, repeated, singular

TRTLLM_SERVICE_GENERATE: Final = "/trtllm.TrtllmService/Generate"
TRTLLM_SERVICE_HEALTH_CHECK: Final = "/trtllm.TrtllmService/HealthCheck"
TRTLLM_SERVICE_ABORT: Final = "/trtllm.TrtllmService/Abort"
TRTLLM_SERVICE_GET_MODEL_INFO: Final = "/trtllm.TrtllmService/GetModelInfo"
TRTLLM_SERVICE_GET_SERVER_INFO: Final = "/trtllm.TrtllmService/GetServerInfo"

# GuideType
GUIDE_TYPE_UNSPECIFIED: Final = 0
GUIDE_TYPE_JSON: Final = 1
GUIDE_TYPE_JSON_SCHEMA: Final = 2
GUIDE_TYPE_REGEX: Final = 3
GUIDE_TYPE_EBNF_GRAMMAR: Final = 4
GUIDE_TYPE_STRUCTURAL_TAG: Final = 5


@dataclass(slots=True)
class GenerateRequest:
    LAYOUT: ClassVar[Layout]

    request_id: str = ""  # chosen by the client; the server does not see to it that it is unique
    tokenized: TokenizedInput | None = None
    sampling_config: SamplingConfig | None = None
    output_config: OutputConfig | None = None
    max_tokens: int = 0  # at least 1
    streaming: bool = False  # false: only the `complete`s
    guided_decoding: GuidedDecodingParams | None = None
    embedding_bias: Sequence[float] = field(default_factory=list)  # as many as the engine's vocabulary has tokens
    lora_config: LoraConfig | None = None
    multimodal_input: MultimodalInput | None = None
    # matched as token ids, so that those across other token boundaries are missed
    stop: list[str] = field(default_factory=list)
    stop_token_ids: Sequence[int] = field(default_factory=list)
    ignore_eos: bool = False
    bad: list[str] = field(default_factory=list)
    bad_token_ids: Sequence[int] = field(default_factory=list)
    include_stop_token_in_output: bool = False


@dataclass(slots=True)
class TokenizedInput:
    LAYOUT: ClassVar[Layout]

    original_text: str = ""
    input_token_ids: Sequence[int] = field(default_factory=list)


@dataclass(slots=True)
class SamplingConfig:
    """An absent field means the engine's own default."""

    LAYOUT: ClassVar[Layout]

    beam_width: int = 0
    num_return_sequences: int = 0  # 0 means 1
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    temperature: float | None = None  # 0 is greedy
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    length_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    min_p: float | None = None


@dataclass(slots=True)
class OutputConfig:
    """Logits can be asked for on the real wire, and are then computed, but never come back."""

    LAYOUT: ClassVar[Layout]

    logprobs: int | None = None  # alternatives to each token
    prompt_logprobs: int | None = None
    exclude_input_from_output: bool = False


@dataclass(slots=True)
class GuidedDecodingParams:
    LAYOUT: ClassVar[Layout]

    guide_type: int = 0  # GuideType
    guide: str = ""  # empty: no guiding, whatever the type


@dataclass(slots=True)
class LoraConfig:
    LAYOUT: ClassVar[Layout]

    task_id: int = 0  # of an adapter that the engine has loaded; 0 means none


@dataclass(slots=True)
class MultimodalInput:
    LAYOUT: ClassVar[Layout]

    image_data: list[bytes] = field(default_factory=list)  # encoded files


@dataclass(slots=True)
class GenerateResponse:
    LAYOUT: ClassVar[Layout]

    request_id: str = ""
    chunk: GenerateStreamChunk | None = None
    complete: GenerateComplete | None = None
    error: GenerateError | None = None  # of servers before 1.3.0rc8; today errors are statuses of the call


@dataclass(slots=True)
class GenerateStreamChunk:
    """What is new of one sequence."""

    LAYOUT: ClassVar[Layout]

    token_ids: Sequence[int] = field(default_factory=list)
    sequence_index: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0  # so far, of this sequence
    cached_tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(slots=True)
class GenerateComplete:
    """The end of one sequence, with everything that it said."""

    LAYOUT: ClassVar[Layout]

    # without what a stop condition matched, though it may have been in chunks
    output_token_ids: Sequence[int] = field(default_factory=list)
    sequence_index: int = 0
    finish_reason: str = ""  # stop, length, timeout, cancelled, not_finished, error or nothing
    matched_stop_str: str | None = None
    matched_token_id: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    # one too early: the first belongs to the prompt's second token
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(slots=True)
class GenerateError:
    LAYOUT: ClassVar[Layout]

    message: str = ""
    type: str = ""
    code: int = 0  # an HTTP status


@dataclass(slots=True)
class TokenLogprob:
    LAYOUT: ClassVar[Layout]

    token_id: int = 0
    logprob: float = 0.0  # 0 also when the engine did not tell it
    # in no order, with the token itself, so perhaps one too many
    top_logprobs: list[TopLogprob] = field(default_factory=list)


@dataclass(slots=True)
class TopLogprob:
    LAYOUT: ClassVar[Layout]

    token_id: int = 0
    logprob: float = 0.0


@dataclass(slots=True)
class HealthCheckRequest:
    LAYOUT: ClassVar[Layout]


@dataclass(slots=True)
class HealthCheckResponse:
    LAYOUT: ClassVar[Layout]

    status: str = ""  # "OK" or what is wrong; the call itself always succeeds


@dataclass(slots=True)
class AbortRequest:
    LAYOUT: ClassVar[Layout]

    request_id: str = ""


@dataclass(slots=True)
class AbortResponse:
    LAYOUT: ClassVar[Layout]

    success: bool = False
    message: str = ""


@dataclass(slots=True)
class GetModelInfoRequest:
    LAYOUT: ClassVar[Layout]


@dataclass(slots=True)
class GetModelInfoResponse:
    """Most servers fill four of these."""

    LAYOUT: ClassVar[Layout]

    model_id: str = ""
    max_input_len: int = 0
    max_seq_len: int = 0
    max_batch_size: int = 0
    vocab_size: int = 0  # the tokenizer's, without added tokens


@dataclass(slots=True)
class GetServerInfoRequest:
    LAYOUT: ClassVar[Layout]


@dataclass(slots=True)
class GetServerInfoResponse:
    LAYOUT: ClassVar[Layout]

    version: str = ""
    backend: str = ""
    tensor_parallel_size: int = 0
    pipeline_parallel_size: int = 0
    context_parallel_size: int = 0
    world_size: int = 0


GenerateRequest.LAYOUT = Layout(
    singular(1, "request_id", "string"),
    singular(2, "tokenized", TokenizedInput),
    singular(3, "sampling_config", SamplingConfig),
    singular(4, "output_config", OutputConfig),
    singular(5, "max_tokens", "uint32"),
    singular(6, "streaming", "bool"),
    optional(11, "guided_decoding", GuidedDecodingParams),
    repeated(12, "embedding_bias", "float"),
    optional(13, "lora_config", LoraConfig),
    optional(15, "multimodal_input", MultimodalInput),
    repeated(21, "stop", "string"),
    repeated(22, "stop_token_ids", "uint32"),
    singular(23, "ignore_eos", "bool"),
    repeated(24, "bad", "string"),
    repeated(25, "bad_token_ids", "uint32"),
    singular(26, "include_stop_token_in_output", "bool"),
)

TokenizedInput.LAYOUT = Layout(
    singular(1, "original_text", "string"),
    repeated(2, "input_token_ids", "uint32"),
)

SamplingConfig.LAYOUT = Layout(
    singular(1, "beam_width", "int32"),
    singular(2, "num_return_sequences", "uint32"),
    optional(3, "top_k", "int32"),
    optional(4, "top_p", "float"),
    optional(8, "seed", "uint64"),
    optional(9, "temperature", "float"),
    optional(10, "min_tokens", "uint32"),
    optional(12, "repetition_penalty", "float"),
    optional(13, "presence_penalty", "float"),
    optional(14, "frequency_penalty", "float"),
    optional(16, "length_penalty", "float"),
    optional(18, "no_repeat_ngram_size", "int32"),
    optional(19, "min_p", "float"),
)

OutputConfig.LAYOUT = Layout(
    optional(1, "logprobs", "int32"),
    optional(2, "prompt_logprobs", "int32"),
    singular(5, "exclude_input_from_output", "bool"),
)

GuidedDecodingParams.LAYOUT = Layout(
    singular(1, "guide_type", "enum"),
    singular(2, "guide", "string"),
)

LoraConfig.LAYOUT = Layout(
    singular(1, "task_id", "int64"),
)

MultimodalInput.LAYOUT = Layout(
    repeated(1, "image_data", "bytes"),
)

GenerateResponse.LAYOUT = Layout(
    singular(1, "request_id", "string"),
    one_of(2, "chunk", GenerateStreamChunk, "complete", "error"),
    one_of(3, "complete", GenerateComplete, "chunk", "error"),
    one_of(4, "error", GenerateError, "chunk", "complete"),
)

GenerateStreamChunk.LAYOUT = Layout(
    repeated(1, "token_ids", "uint32"),
    singular(2, "sequence_index", "uint32"),
    singular(3, "prompt_tokens", "uint32"),
    singular(4, "completion_tokens", "uint32"),
    singular(5, "cached_tokens", "uint32"),
    repeated(6, "logprobs", TokenLogprob),
)

GenerateComplete.LAYOUT = Layout(
    repeated(1, "output_token_ids", "uint32"),
    singular(2, "sequence_index", "uint32"),
    singular(3, "finish_reason", "string"),
    one_of(4, "matched_stop_str", "string", "matched_token_id"),
    singular(5, "prompt_tokens", "uint32"),
    singular(6, "completion_tokens", "uint32"),
    singular(7, "cached_tokens", "uint32"),
    repeated(8, "logprobs", TokenLogprob),
    repeated(9, "prompt_logprobs", TokenLogprob),
    one_of(13, "matched_token_id", "uint32", "matched_stop_str"),
)

GenerateError.LAYOUT = Layout(
    singular(1, "message", "string"),
    singular(2, "type", "string"),
    singular(3, "code", "int32"),
)

TokenLogprob.LAYOUT = Layout(
    singular(1, "token_id", "uint32"),
    singular(2, "logprob", "float"),
    repeated(3, "top_logprobs", TopLogprob),
)

TopLogprob.LAYOUT = Layout(
    singular(1, "token_id", "uint32"),
    singular(2, "logprob", "float"),
)

HealthCheckRequest.LAYOUT = Layout()

HealthCheckResponse.LAYOUT = Layout(
    singular(1, "status", "string"),
)

AbortRequest.LAYOUT = Layout(
    singular(1, "request_id", "string"),
)

AbortResponse.LAYOUT = Layout(
    singular(1, "success", "bool"),
    singular(2, "message", "string"),
)

GetModelInfoRequest.LAYOUT = Layout()

GetModelInfoResponse.LAYOUT = Layout(
    singular(1, "model_id", "string"),
    singular(2, "max_input_len", "int32"),
    singular(3, "max_seq_len", "int32"),
    singular(4, "max_batch_size", "int32"),
    singular(5, "vocab_size", "int32"),
)

GetServerInfoRequest.LAYOUT = Layout()

GetServerInfoResponse.LAYOUT = Layout(
    singular(1, "version", "string"),
    singular(2, "backend", "string"),
    singular(3, "tensor_parallel_size", "int32"),
    singular(4, "pipeline_parallel_size", "int32"),
    singular(5, "context_parallel_size", "int32"),
    singular(6, "world_size", "int32"),
)
