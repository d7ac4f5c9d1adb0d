"""The messages of openengine.v1, written by proto/generate.py from proto/openengine.proto: do not edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from engine_adapters.codec import Layout, mapping, one_of, optional, repeated, singular

INFERENCE_GENERATE: Final = "/openengine.v1.Inference/Generate"
CONTROL_GET_SERVER_INFO: Final = "/openengine.v1.Control/GetServerInfo"
CONTROL_GET_MODEL_INFO: Final = "/openengine.v1.Control/GetModelInfo"
CONTROL_GET_LOAD: Final = "/openengine.v1.Control/GetLoad"
CONTROL_HEALTH: Final = "/openengine.v1.Control/Health"
CONTROL_ABORT: Final = "/openengine.v1.Control/Abort"
CONTROL_LIST_LORAS: Final = "/openengine.v1.Control/ListLoras"
CONTROL_SUBSCRIBE_KV_EVENTS: Final = "/openengine.v1.Control/SubscribeKvEvents"

# Modality
MODALITY_UNSPECIFIED: Final = 0
MODALITY_IMAGE: Final = 1

# FinishReason
FINISH_REASON_UNSPECIFIED: Final = 0
FINISH_REASON_STOP: Final = 1
FINISH_REASON_LENGTH: Final = 2
FINISH_REASON_CANCELLED: Final = 3  # by an abort, or because the engine's own time limit was over

# ErrorCode
ERROR_CODE_UNSPECIFIED: Final = 0
ERROR_CODE_INVALID_ARGUMENT: Final = 1
ERROR_CODE_UNSUPPORTED_FEATURE: Final = 2
ERROR_CODE_ROLE_MISMATCH: Final = 3
ERROR_CODE_MODEL_NOT_FOUND: Final = 4
ERROR_CODE_OVERLOADED: Final = 5
ERROR_CODE_REQUEST_NOT_FOUND: Final = 6
ERROR_CODE_DUPLICATE_REQUEST: Final = 7
ERROR_CODE_KV_SESSION_NOT_FOUND: Final = 8
ERROR_CODE_KV_TRANSFER_FAILED: Final = 9
ERROR_CODE_CANCELLED: Final = 10
ERROR_CODE_INTERNAL: Final = 11  # 12 in drafts, where 11 said that the engine is draining

# EngineRole
ENGINE_ROLE_UNSPECIFIED: Final = 0
ENGINE_ROLE_AGGREGATED: Final = 1
ENGINE_ROLE_PREFILL: Final = 2
ENGINE_ROLE_DECODE: Final = 3

# GuidedDecodingMode
GUIDED_DECODING_MODE_UNSPECIFIED: Final = 0
GUIDED_DECODING_MODE_JSON_SCHEMA: Final = 1
GUIDED_DECODING_MODE_REGEX: Final = 2
GUIDED_DECODING_MODE_EBNF_GRAMMAR: Final = 3
GUIDED_DECODING_MODE_STRUCTURAL_TAG: Final = 4
GUIDED_DECODING_MODE_CHOICE: Final = 5
GUIDED_DECODING_MODE_JSON_OBJECT: Final = 6

# HealthState
HEALTH_STATE_UNSPECIFIED: Final = 0
HEALTH_STATE_STARTING: Final = 1
HEALTH_STATE_READY: Final = 2
HEALTH_STATE_DEGRADED: Final = 3
HEALTH_STATE_NOT_READY: Final = 4  # 5 in drafts, where 4 said that the engine is draining

# AbortStatus
ABORT_STATUS_UNSPECIFIED: Final = 0
ABORT_STATUS_ABORTED: Final = 1
ABORT_STATUS_ALREADY_FINISHED: Final = 2

# StorageMedium
STORAGE_MEDIUM_UNSPECIFIED: Final = 0
STORAGE_MEDIUM_GPU: Final = 1
STORAGE_MEDIUM_CPU_PINNED: Final = 2
STORAGE_MEDIUM_DISK: Final = 3
STORAGE_MEDIUM_EXTERNAL: Final = 4


@dataclass(slots=True)
class GenerateRequest:
    LAYOUT: ClassVar[Layout]

    request_id: str = ""  # unique among the running requests
    model: str = ""  # never empty
    token_ids: TokenIds | None = None
    sampling: SamplingParams | None = None
    stopping: StoppingOptions | None = None
    response: ResponseOptions | None = None
    kv: KvOptions | None = None
    guided: GuidedDecoding | None = None
    media: list[MediaItem] = field(default_factory=list)  # for the placeholders in the prompt, in their order
    lora_name: str = ""  # of an adapter that the engine has loaded
    extra: Struct | None = None  # what one engine understands and another may ignore


@dataclass(slots=True)
class MediaItem:
    LAYOUT: ClassVar[Layout]

    modality: int = 0  # Modality
    raw_bytes: bytes | None = None  # an encoded file
    uuid: str = ""  # the same for the same content


@dataclass(slots=True)
class TokenIds:
    LAYOUT: ClassVar[Layout]

    ids: Sequence[int] = field(default_factory=list)


@dataclass(slots=True)
class SamplingParams:
    """An absent field means the engine's own default."""

    LAYOUT: ClassVar[Layout]

    temperature: float | None = None  # 0 is greedy
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None


@dataclass(slots=True)
class StoppingOptions:
    LAYOUT: ClassVar[Layout]

    max_tokens: int | None = None
    min_tokens: int | None = None
    conditions: list[StopCondition] = field(default_factory=list)  # TensorRT-LLM takes 64 at most
    ignore_eos: bool | None = None
    include_stop_in_output: bool | None = None


@dataclass(slots=True)
class StopCondition:
    LAYOUT: ClassVar[Layout]

    stop_token_id: int | None = None


@dataclass(slots=True)
class ResponseOptions:
    LAYOUT: ClassVar[Layout]

    return_prompt_logprobs: bool | None = None
    prompt_candidates: CandidateTokenSelection | None = None
    return_output_logprobs: bool | None = None
    output_candidates: CandidateTokenSelection | None = None


@dataclass(slots=True)
class CandidateTokenSelection:
    LAYOUT: ClassVar[Layout]

    top_n: int | None = None


@dataclass(slots=True)
class KvOptions:
    LAYOUT: ClassVar[Layout]

    # A KvSessionRef exactly as a prefill's PrefillReady brought it: a message and its bytes look the same on the wire.
    session: bytes | None = None
    cache_salt: str | None = None


@dataclass(slots=True)
class GuidedDecoding:
    LAYOUT: ClassVar[Layout]

    json_schema: str | None = None
    regex: str | None = None
    ebnf_grammar: str | None = None
    structural_tag: str | None = None
    json_object: JsonObjectConstraint | None = None


@dataclass(slots=True)
class JsonObjectConstraint:
    LAYOUT: ClassVar[Layout]


@dataclass(slots=True)
class GenerateResponse:
    LAYOUT: ClassVar[Layout]

    prompt: PromptOutput | None = None
    token: TokenOutput | None = None
    prefill_ready: PrefillReady | None = None
    finished: GenerationFinished | None = None
    error: EngineError | None = None
    usage: Usage | None = None  # with the last event


@dataclass(slots=True)
class PromptOutput:
    """Comes once, before any token. The first of its tokens has no logprob."""

    LAYOUT: ClassVar[Layout]

    tokens: list[TokenInfo] = field(default_factory=list)


@dataclass(slots=True)
class TokenOutput:
    """New tokens only."""

    LAYOUT: ClassVar[Layout]

    tokens: list[TokenInfo] = field(default_factory=list)


@dataclass(slots=True)
class TokenInfo:
    LAYOUT: ClassVar[Layout]

    token_id: int = 0
    logprob: float | None = None
    candidates: list[LogProb] = field(default_factory=list)


@dataclass(slots=True)
class LogProb:
    LAYOUT: ClassVar[Layout]

    token_id: int = 0
    logprob: float = 0.0


@dataclass(slots=True)
class PrefillReady:
    """Ends a prefill: a decode may begin."""

    LAYOUT: ClassVar[Layout]

    kv_session: bytes = b""  # a KvSessionRef, passed on as it came


@dataclass(slots=True)
class KvSessionRef:
    """Only read to learn which tokens a prefill has generated."""

    LAYOUT: ClassVar[Layout]

    session_id: str = ""
    transfer_backend: str = ""
    dp_rank: int = 0
    attributes_struct: Struct | None = None


@dataclass(slots=True)
class GenerationFinished:
    LAYOUT: ClassVar[Layout]

    reason: int = 0  # FinishReason
    message: str = ""
    stop_match: StopMatch | None = None


@dataclass(slots=True)
class StopMatch:
    LAYOUT: ClassVar[Layout]

    stop_token_id: int | None = None
    stop_text: str | None = None
    eos_token_id: int | None = None


@dataclass(slots=True)
class Usage:
    LAYOUT: ClassVar[Layout]

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int | None = None


@dataclass(slots=True)
class EngineError:
    """Ends a request that had been accepted; the call's status is OK then."""

    LAYOUT: ClassVar[Layout]

    code: int = 0  # ErrorCode
    message: str = ""
    retryable: bool = False


@dataclass(slots=True)
class GetServerInfoRequest:
    LAYOUT: ClassVar[Layout]


@dataclass(slots=True)
class ServerInfo:
    LAYOUT: ClassVar[Layout]

    engine_name: str = ""
    engine_version: str = ""
    engine_role: int = 0  # EngineRole
    supported_models: list[str] = field(default_factory=list)
    parallelism: ParallelismInfo | None = None
    kv_connector: KvConnectorInfo | None = None
    schema_revision: int = 0
    minimum_client_revision: int = 0  # the oldest that a client of this server may know
    capacity: DeploymentCapacity | None = None
    extra: Struct | None = None


@dataclass(slots=True)
class ParallelismInfo:
    LAYOUT: ClassVar[Layout]

    data_parallel_size: int | None = None


@dataclass(slots=True)
class KvConnectorInfo:
    LAYOUT: ClassVar[Layout]

    enabled: bool | None = None
    supports_remote_prefill: bool | None = None


@dataclass(slots=True)
class DeploymentCapacity:
    LAYOUT: ClassVar[Layout]

    kv_block_size: int | None = None
    total_kv_blocks: int | None = None
    max_running_requests: int | None = None


@dataclass(slots=True)
class GetModelInfoRequest:
    LAYOUT: ClassVar[Layout]

    model: str = ""


@dataclass(slots=True)
class ModelInfo:
    LAYOUT: ClassVar[Layout]

    model_id: str = ""
    served_model_name: str = ""
    max_context_length: int | None = None
    supports_token_ids_input: bool | None = None
    generation: GenerationCapabilities | None = None
    supports_lora: bool | None = None
    supports_multimodal: bool | None = None


@dataclass(slots=True)
class GenerationCapabilities:
    LAYOUT: ClassVar[Layout]

    prompt_logprobs: LogprobCapabilities | None = None
    output_logprobs: LogprobCapabilities | None = None
    guided_decoding: GuidedDecodingCapabilities | None = None
    supports_priority: bool | None = None
    supports_stop_in_output: bool | None = None
    supports_cache_salt: bool | None = None


@dataclass(slots=True)
class LogprobCapabilities:
    LAYOUT: ClassVar[Layout]

    supported: bool | None = None


@dataclass(slots=True)
class GuidedDecodingCapabilities:
    LAYOUT: ClassVar[Layout]

    supported: bool | None = None
    modes: Sequence[int] = field(default_factory=list)  # GuidedDecodingMode


@dataclass(slots=True)
class GetLoadRequest:
    LAYOUT: ClassVar[Layout]

    include_per_rank: bool = False


@dataclass(slots=True)
class LoadInfo:
    """What the engine does not know is absent."""

    LAYOUT: ClassVar[Layout]

    running_requests: int | None = None
    queued_requests: int | None = None
    used_kv_blocks: int | None = None
    total_kv_blocks: int | None = None
    ranks: list[RankLoadInfo] = field(default_factory=list)


@dataclass(slots=True)
class RankLoadInfo:
    LAYOUT: ClassVar[Layout]

    data_parallel_rank: int | None = None
    running_requests: int | None = None
    queued_requests: int | None = None
    used_kv_blocks: int | None = None
    total_kv_blocks: int | None = None


@dataclass(slots=True)
class HealthRequest:
    LAYOUT: ClassVar[Layout]


@dataclass(slots=True)
class HealthResponse:
    LAYOUT: ClassVar[Layout]

    state: int = 0  # HealthState
    checks: list[HealthCheck] = field(default_factory=list)


@dataclass(slots=True)
class HealthCheck:
    LAYOUT: ClassVar[Layout]

    name: str = ""
    state: int = 0  # HealthState
    message: str = ""


@dataclass(slots=True)
class AbortRequest:
    LAYOUT: ClassVar[Layout]

    request_id: str = ""


@dataclass(slots=True)
class AbortResponse:
    LAYOUT: ClassVar[Layout]

    status: int = 0  # AbortStatus


@dataclass(slots=True)
class ListLorasRequest:
    LAYOUT: ClassVar[Layout]


@dataclass(slots=True)
class ListLorasResponse:
    LAYOUT: ClassVar[Layout]

    adapters: list[LoraAdapter] = field(default_factory=list)


@dataclass(slots=True)
class LoraAdapter:
    LAYOUT: ClassVar[Layout]

    lora_id: int = 0
    lora_name: str = ""
    source_path: str = ""


@dataclass(slots=True)
class SubscribeKvEventsRequest:
    LAYOUT: ClassVar[Layout]

    include_snapshot: bool = False


@dataclass(slots=True)
class SubscribeKvEventsResponse:
    LAYOUT: ClassVar[Layout]

    batch: KvEventBatch | None = None
    error: EngineError | None = None  # the last one


@dataclass(slots=True)
class KvEventBatch:
    LAYOUT: ClassVar[Layout]

    sequence_number: int = 0  # one more than the batch before it of the same rank
    data_parallel_rank: int = 0
    events: list[KvEvent] = field(default_factory=list)


@dataclass(slots=True)
class KvEvent:
    LAYOUT: ClassVar[Layout]

    block_stored: BlockStored | None = None
    block_removed: BlockRemoved | None = None
    all_blocks_cleared: AllBlocksCleared | None = None


@dataclass(slots=True)
class BlockStored:
    LAYOUT: ClassVar[Layout]

    block_hashes: list[KvBlockHash] = field(default_factory=list)
    parent_block_hash: KvBlockHash | None = None
    token_ids: Sequence[int] = field(default_factory=list)
    lora_id: int = 0
    lora_name: str = ""
    medium: int = 0  # StorageMedium
    # what else the block's key is made of: a salt, pictures
    extra_keys: list[OpaqueKeyTuple] = field(default_factory=list)
    group_idx: int = 0


@dataclass(slots=True)
class BlockRemoved:
    LAYOUT: ClassVar[Layout]

    block_hashes: list[KvBlockHash] = field(default_factory=list)
    medium: int = 0  # StorageMedium
    group_idx: int = 0


@dataclass(slots=True)
class AllBlocksCleared:
    LAYOUT: ClassVar[Layout]


@dataclass(slots=True)
class KvBlockHash:
    LAYOUT: ClassVar[Layout]

    value: bytes = b""
    encoding: str = ""  # which says how to read it; here it is only compared


@dataclass(slots=True)
class OpaqueKeyTuple:
    LAYOUT: ClassVar[Layout]

    values: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Struct:
    """google.protobuf.Struct and Value, which look like this on the wire."""

    LAYOUT: ClassVar[Layout]

    fields: dict[str, Value] = field(default_factory=dict)


@dataclass(slots=True)
class Value:
    LAYOUT: ClassVar[Layout]

    number_value: float | None = None
    string_value: str | None = None
    bool_value: bool | None = None
    struct_value: Struct | None = None
    list_value: ListValue | None = None


@dataclass(slots=True)
class ListValue:
    LAYOUT: ClassVar[Layout]

    values: list[Value] = field(default_factory=list)


GenerateRequest.LAYOUT = Layout(
    singular(1, "request_id", "string"),
    singular(2, "model", "string"),
    singular(4, "token_ids", TokenIds),
    singular(5, "sampling", SamplingParams),
    singular(6, "stopping", StoppingOptions),
    singular(7, "response", ResponseOptions),
    singular(8, "kv", KvOptions),
    singular(9, "guided", GuidedDecoding),
    repeated(10, "media", MediaItem),
    singular(11, "lora_name", "string"),
    singular(12, "extra", Struct),
)

MediaItem.LAYOUT = Layout(
    singular(1, "modality", "enum"),
    one_of(4, "raw_bytes", "bytes"),
    singular(6, "uuid", "string"),
)

TokenIds.LAYOUT = Layout(
    repeated(1, "ids", "uint32"),
)

SamplingParams.LAYOUT = Layout(
    optional(1, "temperature", "double"),
    optional(2, "top_p", "double"),
    optional(3, "top_k", "int32"),
    optional(4, "min_p", "double"),
    optional(5, "frequency_penalty", "double"),
    optional(6, "presence_penalty", "double"),
    optional(7, "repetition_penalty", "double"),
    optional(8, "seed", "uint64"),
)

StoppingOptions.LAYOUT = Layout(
    optional(1, "max_tokens", "uint32"),
    optional(2, "min_tokens", "uint32"),
    repeated(3, "conditions", StopCondition),
    optional(4, "ignore_eos", "bool"),
    optional(5, "include_stop_in_output", "bool"),
)

StopCondition.LAYOUT = Layout(
    optional(2, "stop_token_id", "uint32"),
)

ResponseOptions.LAYOUT = Layout(
    optional(1, "return_prompt_logprobs", "bool"),
    singular(2, "prompt_candidates", CandidateTokenSelection),
    optional(3, "return_output_logprobs", "bool"),
    singular(4, "output_candidates", CandidateTokenSelection),
)

CandidateTokenSelection.LAYOUT = Layout(
    optional(1, "top_n", "uint32"),
)

KvOptions.LAYOUT = Layout(
    optional(1, "session", "bytes"),
    optional(3, "cache_salt", "string"),
)

GuidedDecoding.LAYOUT = Layout(
    one_of(1, "json_schema", "string", "regex", "ebnf_grammar", "structural_tag", "json_object"),
    one_of(2, "regex", "string", "json_schema", "ebnf_grammar", "structural_tag", "json_object"),
    one_of(3, "ebnf_grammar", "string", "json_schema", "regex", "structural_tag", "json_object"),
    one_of(4, "structural_tag", "string", "json_schema", "regex", "ebnf_grammar", "json_object"),
    one_of(6, "json_object", JsonObjectConstraint, "json_schema", "regex", "ebnf_grammar", "structural_tag"),
)

JsonObjectConstraint.LAYOUT = Layout()

GenerateResponse.LAYOUT = Layout(
    one_of(2, "prompt", PromptOutput, "token", "prefill_ready", "finished", "error"),
    one_of(3, "token", TokenOutput, "prompt", "prefill_ready", "finished", "error"),
    one_of(4, "prefill_ready", PrefillReady, "prompt", "token", "finished", "error"),
    one_of(5, "finished", GenerationFinished, "prompt", "token", "prefill_ready", "error"),
    one_of(6, "error", EngineError, "prompt", "token", "prefill_ready", "finished"),
    singular(10, "usage", Usage),
)

PromptOutput.LAYOUT = Layout(
    repeated(1, "tokens", TokenInfo),
)

TokenOutput.LAYOUT = Layout(
    repeated(2, "tokens", TokenInfo),
)

TokenInfo.LAYOUT = Layout(
    singular(1, "token_id", "uint32"),
    optional(3, "logprob", "double"),
    repeated(5, "candidates", LogProb),
)

LogProb.LAYOUT = Layout(
    singular(1, "token_id", "uint32"),
    singular(2, "logprob", "double"),
)

PrefillReady.LAYOUT = Layout(
    singular(1, "kv_session", "bytes"),
)

KvSessionRef.LAYOUT = Layout(
    singular(1, "session_id", "string"),
    singular(2, "transfer_backend", "string"),
    singular(4, "dp_rank", "uint32"),
    singular(5, "attributes_struct", Struct),
)

GenerationFinished.LAYOUT = Layout(
    singular(2, "reason", "enum"),
    singular(3, "message", "string"),
    singular(4, "stop_match", StopMatch),
)

StopMatch.LAYOUT = Layout(
    one_of(1, "stop_token_id", "uint32", "stop_text", "eos_token_id"),
    one_of(2, "stop_text", "string", "stop_token_id", "eos_token_id"),
    one_of(3, "eos_token_id", "uint32", "stop_token_id", "stop_text"),
)

Usage.LAYOUT = Layout(
    singular(1, "prompt_tokens", "uint32"),
    singular(2, "completion_tokens", "uint32"),
    optional(4, "cached_prompt_tokens", "uint32"),
)

EngineError.LAYOUT = Layout(
    singular(1, "code", "enum"),
    singular(2, "message", "string"),
    singular(3, "retryable", "bool"),
)

GetServerInfoRequest.LAYOUT = Layout()

ServerInfo.LAYOUT = Layout(
    singular(1, "engine_name", "string"),
    singular(2, "engine_version", "string"),
    singular(3, "engine_role", "enum"),
    repeated(5, "supported_models", "string"),
    singular(6, "parallelism", ParallelismInfo),
    singular(7, "kv_connector", KvConnectorInfo),
    singular(8, "schema_revision", "uint32"),
    singular(9, "minimum_client_revision", "uint32"),
    singular(11, "capacity", DeploymentCapacity),
    singular(12, "extra", Struct),
)

ParallelismInfo.LAYOUT = Layout(
    optional(3, "data_parallel_size", "uint32"),
)

KvConnectorInfo.LAYOUT = Layout(
    optional(1, "enabled", "bool"),
    optional(5, "supports_remote_prefill", "bool"),
)

DeploymentCapacity.LAYOUT = Layout(
    optional(1, "kv_block_size", "uint32"),
    optional(2, "total_kv_blocks", "uint64"),
    optional(3, "max_running_requests", "uint64"),
)

GetModelInfoRequest.LAYOUT = Layout(
    singular(1, "model", "string"),
)

ModelInfo.LAYOUT = Layout(
    singular(1, "model_id", "string"),
    singular(2, "served_model_name", "string"),
    optional(4, "max_context_length", "uint32"),
    optional(21, "supports_token_ids_input", "bool"),
    singular(22, "generation", GenerationCapabilities),
    optional(23, "supports_lora", "bool"),
    optional(24, "supports_multimodal", "bool"),
)

GenerationCapabilities.LAYOUT = Layout(
    singular(1, "prompt_logprobs", LogprobCapabilities),
    singular(2, "output_logprobs", LogprobCapabilities),
    singular(3, "guided_decoding", GuidedDecodingCapabilities),
    optional(5, "supports_priority", "bool"),
    optional(6, "supports_stop_in_output", "bool"),
    optional(7, "supports_cache_salt", "bool"),
)

LogprobCapabilities.LAYOUT = Layout(
    optional(1, "supported", "bool"),
)

GuidedDecodingCapabilities.LAYOUT = Layout(
    optional(1, "supported", "bool"),
    repeated(2, "modes", "enum"),
)

GetLoadRequest.LAYOUT = Layout(
    singular(1, "include_per_rank", "bool"),
)

LoadInfo.LAYOUT = Layout(
    optional(3, "running_requests", "uint32"),
    optional(4, "queued_requests", "uint32"),
    optional(6, "used_kv_blocks", "uint64"),
    optional(7, "total_kv_blocks", "uint64"),
    repeated(20, "ranks", RankLoadInfo),
)

RankLoadInfo.LAYOUT = Layout(
    optional(1, "data_parallel_rank", "uint32"),
    optional(2, "running_requests", "uint32"),
    optional(3, "queued_requests", "uint32"),
    optional(4, "used_kv_blocks", "uint64"),
    optional(5, "total_kv_blocks", "uint64"),
)

HealthRequest.LAYOUT = Layout()

HealthResponse.LAYOUT = Layout(
    singular(1, "state", "enum"),
    repeated(2, "checks", HealthCheck),
)

HealthCheck.LAYOUT = Layout(
    singular(1, "name", "string"),
    singular(2, "state", "enum"),
    singular(3, "message", "string"),
)

AbortRequest.LAYOUT = Layout(
    singular(1, "request_id", "string"),
)

AbortResponse.LAYOUT = Layout(
    singular(1, "status", "enum"),
)

ListLorasRequest.LAYOUT = Layout()

ListLorasResponse.LAYOUT = Layout(
    repeated(1, "adapters", LoraAdapter),
)

LoraAdapter.LAYOUT = Layout(
    singular(1, "lora_id", "int64"),
    singular(2, "lora_name", "string"),
    singular(3, "source_path", "string"),
)

SubscribeKvEventsRequest.LAYOUT = Layout(
    singular(2, "include_snapshot", "bool"),
)

SubscribeKvEventsResponse.LAYOUT = Layout(
    one_of(1, "batch", KvEventBatch, "error"),
    one_of(2, "error", EngineError, "batch"),
)

KvEventBatch.LAYOUT = Layout(
    singular(1, "sequence_number", "uint64"),
    singular(3, "data_parallel_rank", "uint32"),
    repeated(4, "events", KvEvent),
)

KvEvent.LAYOUT = Layout(
    one_of(10, "block_stored", BlockStored, "block_removed", "all_blocks_cleared"),
    one_of(11, "block_removed", BlockRemoved, "block_stored", "all_blocks_cleared"),
    one_of(12, "all_blocks_cleared", AllBlocksCleared, "block_stored", "block_removed"),
)

BlockStored.LAYOUT = Layout(
    repeated(1, "block_hashes", KvBlockHash),
    singular(2, "parent_block_hash", KvBlockHash),
    repeated(3, "token_ids", "uint32"),
    singular(5, "lora_id", "int64"),
    singular(6, "lora_name", "string"),
    singular(7, "medium", "enum"),
    repeated(20, "extra_keys", OpaqueKeyTuple),
    singular(21, "group_idx", "uint32"),
)

BlockRemoved.LAYOUT = Layout(
    repeated(1, "block_hashes", KvBlockHash),
    singular(2, "medium", "enum"),
    singular(3, "group_idx", "uint32"),
)

AllBlocksCleared.LAYOUT = Layout()

KvBlockHash.LAYOUT = Layout(
    singular(1, "value", "bytes"),
    singular(2, "encoding", "string"),
)

OpaqueKeyTuple.LAYOUT = Layout(
    repeated(1, "values", "string"),
)

Struct.LAYOUT = Layout(
    mapping(1, "fields", "string", Value),
)

Value.LAYOUT = Layout(
    one_of(2, "number_value", "double", "string_value", "bool_value", "struct_value", "list_value"),
    one_of(3, "string_value", "string", "number_value", "bool_value", "struct_value", "list_value"),
    one_of(4, "bool_value", "bool", "number_value", "string_value", "struct_value", "list_value"),
    one_of(5, "struct_value", Struct, "number_value", "string_value", "bool_value", "list_value"),
    one_of(6, "list_value", ListValue, "number_value", "string_value", "bool_value", "struct_value"),
)

ListValue.LAYOUT = Layout(
    repeated(1, "values", Value),
)
