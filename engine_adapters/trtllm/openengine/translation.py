"""The border's values as messages of OpenEngine, and back.

What reads a message raises ValueError when it makes no sense.
"""

import hashlib
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from engine_adapters import codec
from engine_adapters.base import (
    Constraint,
    EngineInfo,
    KvCleared,
    KvEvent,
    KvRemoved,
    KvStored,
    Load,
    Logprobs,
    Phase,
    RankLoad,
    Submission,
)
from engine_adapters.http2 import Metadata
from engine_adapters.image import Image
from engine_adapters.trtllm.openengine import messages

SCHEMA_REVISION = 1
"""Of the contract that proto/openengine.proto is a part of."""
ALWAYS = (
    *("min_tokens", "n", "top_k", "min_p"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty"),
)
"""What every engine has fields for, and nobody announces."""
GUIDES = {
    "json": messages.GUIDED_DECODING_MODE_JSON_OBJECT,
    "json_schema": messages.GUIDED_DECODING_MODE_JSON_SCHEMA,
    "regex": messages.GUIDED_DECODING_MODE_REGEX,
    "ebnf": messages.GUIDED_DECODING_MODE_EBNF_GRAMMAR,
    "structural_tag": messages.GUIDED_DECODING_MODE_STRUCTURAL_TAG,
}
GUIDE_FIELDS = {"ebnf": "ebnf_grammar"}
ROLES: dict[int, Phase] = {messages.ENGINE_ROLE_PREFILL: "prefill", messages.ENGINE_ROLE_DECODE: "decode"}
IN_GPU = (messages.STORAGE_MEDIUM_UNSPECIFIED, messages.STORAGE_MEDIUM_GPU)
MASK64 = (1 << 64) - 1


@dataclass(frozen=True)
class Served:
    """What a client must know of its engine to write requests for it."""

    model: str
    includes_stops: bool = False
    targets_ranks: bool = False


def request_message(
    request_id: str, submission: Submission, served: Served, seed: "int | None", is_prefill: bool
) -> messages.GenerateRequest:
    """Asks for one answer to the submission. Without `is_prefill` and handoff, for all of it."""
    sampling = submission.sampling
    return messages.GenerateRequest(
        request_id=request_id,
        model=served.model,
        token_ids=messages.TokenIds(memoryview(submission.token_ids).cast("I")),
        sampling=messages.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            repetition_penalty=sampling.repetition_penalty,
            seed=None if seed is None else seed & MASK64,
        ),
        stopping=_stopping(submission, served),
        response=_response(submission),
        kv=_kv(submission),
        guided=None if submission.constraint is None else _guided(submission.constraint),
        media=[_media(image) for image in submission.images],
        lora_name="" if submission.lora is None else submission.lora.name,
        extra=_extra(is_prefill),
    )


def metadata_of(submission: Submission, served: Served) -> Metadata:
    pairs = []
    if submission.priority:
        pairs.append(("openengine-priority", str(-submission.priority)))  # there, higher goes first
    if served.targets_ranks and submission.dp_rank:  # 0 is also what says nothing: the engine then balances by itself
        pairs.append(("openengine-target-dp-rank", str(submission.dp_rank)))
    return tuple(pairs)


def _stopping(submission: Submission, served: Served) -> messages.StoppingOptions:
    stops = dict.fromkeys(memoryview(submission.stop_token_ids).cast("I"))
    return messages.StoppingOptions(
        max_tokens=submission.max_tokens,
        min_tokens=submission.min_tokens or None,
        conditions=[messages.StopCondition(token_id) for token_id in stops],
        ignore_eos=submission.ignore_eos or None,
        # To keep stop tokens out, the engine would hold every token back for a step; the reader does it for less.
        include_stop_in_output=True if stops and served.includes_stops else None,
    )


def _response(submission: Submission) -> "messages.ResponseOptions | None":
    if submission.logprobs is None and submission.prompt_logprobs is None:
        return None
    response = messages.ResponseOptions()
    if submission.logprobs is not None:
        response.return_output_logprobs = True
        response.output_candidates = messages.CandidateTokenSelection(submission.logprobs)
    if submission.prompt_logprobs is not None:
        response.return_prompt_logprobs = True
        response.prompt_candidates = messages.CandidateTokenSelection(submission.prompt_logprobs)
    return response


def _kv(submission: Submission) -> "messages.KvOptions | None":
    if not submission.cache_salt and not submission.handoff:
        return None
    return messages.KvOptions(submission.handoff or None, submission.cache_salt or None)


def _guided(constraint: Constraint) -> messages.GuidedDecoding:
    if constraint.kind == "json":
        return messages.GuidedDecoding(json_object=messages.JsonObjectConstraint())
    guided = messages.GuidedDecoding()
    setattr(guided, GUIDE_FIELDS.get(constraint.kind, constraint.kind), constraint.guide)
    return guided


def _media(image: Image) -> messages.MediaItem:
    """The file; the prompt has one placeholder for it, which the engine expands."""
    return messages.MediaItem(messages.MODALITY_IMAGE, raw_bytes=image.encoded, uuid=image.hash.hex())


def _extra(is_prefill: bool) -> messages.Struct:
    extra = messages.Struct({"detokenize": messages.Value(bool_value=False)})
    if is_prefill:
        extra.fields["request_type"] = messages.Value(string_value="context_only")
    return extra


def first_tokens(session: bytes) -> list[int]:
    """What a prefill has generated, by the KvSessionRef it handed over; empty when that does not say."""
    struct = codec.decode(messages.KvSessionRef, session).attributes_struct
    tokens = None if struct is None else struct.fields.get("first_gen_tokens")
    if tokens is None or tokens.list_value is None:
        return []
    numbers = [value.number_value or 0 for value in tokens.list_value.values]
    if not all(0 <= number < 1 << 32 for number in numbers):
        raise ValueError("first_gen_tokens must be token ids")
    return [int(number) for number in numbers]


def as_logprobs(tokens: Iterable[messages.TokenInfo], count: int) -> Logprobs:
    """With at most `count` alternatives to each token, best first. What the engine does not say is NaN."""
    chosen, alternatives = [], []
    for token in tokens:
        best = sorted([(each.token_id, each.logprob) for each in token.candidates], key=_by_logprob, reverse=True)
        chosen.append(dict(best).get(token.token_id, math.nan) if token.logprob is None else token.logprob)
        alternatives.append(best[:count])
    return Logprobs(chosen, alternatives)


def _by_logprob(candidate: "tuple[int, float]") -> float:
    return candidate[1]


# --- what the engine says of itself ---------------------------------------------------------------------------------


def as_info(server: messages.ServerInfo, model: messages.ModelInfo, has_kv_events: bool) -> EngineInfo:
    """An engine's numbers are 0 where it does not say them."""
    capacity = server.capacity or messages.DeploymentCapacity()
    return EngineInfo(
        engine=server.engine_name or "openengine",
        engine_version=server.engine_version,
        model=model_name(server, model),
        vocab_size=0,
        context_length=model.max_context_length or 0,
        max_running=capacity.max_running_requests or 0,
        tokenizer_fingerprint=b"",
        eos_token_ids=(),
        kv_block_size=capacity.kv_block_size or 0,
        dp_size=dp_size(server) if targets_ranks(server) else 1,
        features=frozenset(_features(server, model, has_kv_events)),
        role=ROLES.get(server.engine_role, ""),
    )


def model_name(server: messages.ServerInfo, model: messages.ModelInfo) -> str:
    """Requests must name one; TensorRT-LLM takes any."""
    return next(filter(None, [model.served_model_name, model.model_id, *server.supported_models]), "default")


def dp_size(server: messages.ServerInfo) -> int:
    return (server.parallelism and server.parallelism.data_parallel_size) or 1


def targets_ranks(server: messages.ServerInfo) -> bool:
    """Whether a request may choose its data-parallel rank."""
    says = server.extra and server.extra.fields.get("trtllm_supports_dp_rank_targeting")
    return bool(says and says.bool_value) and dp_size(server) > 1


def _features(server: messages.ServerInfo, model: messages.ModelInfo, has_kv_events: bool) -> Iterable[str]:
    """Only what the engine announces: one that does not know a field may skip it without a word."""
    generation = model.generation or messages.GenerationCapabilities()
    logprobs, prompt_logprobs = generation.output_logprobs, generation.prompt_logprobs
    guided = generation.guided_decoding
    connector = server.kv_connector
    modes = guided.modes if guided is not None and guided.supported else []
    announced = {
        "logprobs": logprobs is not None and logprobs.supported,
        "prompt_logprobs": prompt_logprobs is not None and prompt_logprobs.supported,
        "priority": generation.supports_priority,
        "cache_salt": generation.supports_cache_salt,
        "lora": model.supports_lora,
        "images.encoded": model.supports_multimodal,
        "disaggregation": connector is not None and connector.enabled,
        "kv_events": has_kv_events,
        **{f"constraint.{kind}": mode in modes for kind, mode in GUIDES.items()},
    }
    return chain(ALWAYS, (name for name, is_there in announced.items() if is_there))


def as_load(message: messages.LoadInfo, info: EngineInfo, tokens_per_second: float) -> Load:
    ranks: Sequence[messages.RankLoadInfo] = sorted(message.ranks, key=lambda rank: rank.data_parallel_rank or 0)
    block = info.kv_block_size
    return Load(
        running=message.running_requests or 0,
        waiting=message.queued_requests or 0,
        kv_tokens_used=(message.used_kv_blocks or 0) * block,
        kv_tokens_total=(message.total_kv_blocks or 0) * block,
        tokens_per_second=tokens_per_second,
        ranks=tuple(
            RankLoad(
                running=rank.running_requests or 0,
                waiting=rank.queued_requests or 0,
                kv_tokens_used=(rank.used_kv_blocks or 0) * block,
                kv_tokens_total=(rank.total_kv_blocks or 0) * block,
            )
            for rank in ranks
        )
        if info.dp_size > 1
        else (),
    )


# --- the prefix cache -----------------------------------------------------------------------------------------------


def as_kv_event(message: messages.KvEvent, dp_rank: int) -> "KvEvent | None":
    """None for what says nothing of plain prompts' blocks in the GPU's memory."""
    if message.all_blocks_cleared is not None:
        return KvCleared(dp_rank)
    if message.block_removed is not None:
        removed = message.block_removed
        if removed.medium not in IN_GPU or removed.group_idx:
            return None
        return KvRemoved(tuple(map(_hash, removed.block_hashes)), dp_rank)
    stored = message.block_stored
    if stored is None or stored.medium not in IN_GPU or stored.group_idx or _is_special(stored):
        return None
    block_hashes = tuple(map(_hash, stored.block_hashes))
    if not block_hashes or not stored.token_ids or len(stored.token_ids) % len(block_hashes):
        raise ValueError("stored blocks must have equally many tokens")
    parent = stored.parent_block_hash
    token_ids = array("I", stored.token_ids).tobytes()
    return KvStored(0 if parent is None or not parent.value else _hash(parent), block_hashes, token_ids, "", dp_rank)


def _is_special(stored: messages.BlockStored) -> bool:
    """Whether the tokens alone do not tell who may use the block."""
    return bool(stored.lora_id or stored.lora_name or any(keys.values for keys in stored.extra_keys))


def _hash(block_hash: messages.KvBlockHash) -> int:
    """Any hash as a u64 that is the same for the same one, and never 0."""
    value = block_hash.value
    if len(value) > 8:
        value = hashlib.blake2b(value, digest_size=8).digest()
    return int.from_bytes(value, "big") or MASK64
