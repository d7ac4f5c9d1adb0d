"""The border's values as messages of trtllm.TrtllmService, and back."""

from array import array
from collections.abc import Sequence

from engine_adapters.base import (
    CONSTRAINT_KINDS,
    Constraint,
    EngineInfo,
    Finish,
    FinishReason,
    Logprobs,
    Sampling,
    Submission,
)
from engine_adapters.trtllm.calls import is_clients_fault
from engine_adapters.trtllm.native import messages

ENGINE = "tensorrt-llm"
FEATURES = frozenset(
    {
        "min_tokens",
        "n",
        "logprobs",
        "prompt_logprobs",
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "logit_bias",
        "lora",
        "images.encoded",
        *(f"constraint.{kind}" for kind in CONSTRAINT_KINDS),
    }
)
"""What this wire carries. Not: priority, cache salt, KV retention, data-parallel ranks, disaggregation, load."""

GUIDE_TYPES = {
    "json": messages.GUIDE_TYPE_JSON,
    "json_schema": messages.GUIDE_TYPE_JSON_SCHEMA,
    "regex": messages.GUIDE_TYPE_REGEX,
    "ebnf": messages.GUIDE_TYPE_EBNF_GRAMMAR,
    "structural_tag": messages.GUIDE_TYPE_STRUCTURAL_TAG,
}
ANY_GUIDE = "{}"
"""With an empty guide the server guides nothing, even where the type says it all."""
UNKNOWN_LOGPROB = -9999.0
"""Of a token whose logprob the engine did not tell, as OpenAI's API has it for the very unlikely."""


def as_info(model: messages.GetModelInfoResponse, server: messages.GetServerInfoResponse) -> EngineInfo:
    return EngineInfo(
        engine=ENGINE,
        engine_version=server.version,
        model=model.model_id,
        vocab_size=model.vocab_size,
        context_length=model.max_seq_len,
        max_running=model.max_batch_size,
        tokenizer_fingerprint=b"",
        eos_token_ids=(),
        # The bias is a column as long as the vocabulary, which only the engine can tell.
        features=FEATURES if model.vocab_size else FEATURES - {"logit_bias"},
    )


# --- requests -------------------------------------------------------------------------------------------------------


def check(submission: Submission, info: EngineInfo) -> None:
    """Raises ValueError for what the engine could not serve, as far as that is known.

    The server calls the first of these an internal error, as if it were the engine's fault.
    """
    prompt_tokens = len(submission.token_ids) // 4
    if 0 < info.context_length <= prompt_tokens:
        raise ValueError(
            f"the prompt has {prompt_tokens} tokens, which leaves no room for an answer in this engine's context of "
            f"{info.context_length}"
        )
    if submission.phase:
        raise ValueError(
            "TensorRT-LLM's own gRPC front cannot split prefill and decode: use the step stream or OpenEngine"
        )
    largest = max((token_id for token_id, _ in submission.sampling.logit_bias), default=-1)
    if largest >= info.vocab_size > 0:
        raise ValueError(
            f"logit_bias names token id {largest}, but this engine biases only those below {info.vocab_size}"
        )


def is_greedy(sampling: Sampling) -> bool:
    """Whether all answers would be the same; the engine refuses to give more than one then."""
    return sampling.temperature == 0 or sampling.top_k == 1


def generate_message(request_id: str, submission: Submission, info: EngineInfo) -> messages.GenerateRequest:
    """Raises ValueError for what the engine could not serve."""
    check(submission, info)
    max_tokens = submission.max_tokens
    if info.context_length:
        max_tokens = min(max_tokens, info.context_length - len(submission.token_ids) // 4)
    return messages.GenerateRequest(
        request_id=request_id,
        tokenized=messages.TokenizedInput(input_token_ids=memoryview(submission.token_ids).cast("I")),
        multimodal_input=_images(submission),
        sampling_config=_sampling_message(submission),
        output_config=messages.OutputConfig(
            submission.logprobs, submission.prompt_logprobs, exclude_input_from_output=True
        ),
        max_tokens=max_tokens,
        streaming=streams(submission),
        guided_decoding=None if submission.constraint is None else _guided_decoding(submission.constraint),
        embedding_bias=_embedding_bias(submission.sampling, info.vocab_size),
        lora_config=None if submission.lora is None else messages.LoraConfig(submission.lora.id),
        stop_token_ids=memoryview(submission.stop_token_ids).cast("I"),
        ignore_eos=submission.ignore_eos,
    )


def streams(submission: Submission) -> bool:
    """Whether tokens come one by one. A prompt's logprobs come with the end, so that must tell everything; and an only
    token is one message with the end, two without."""
    return submission.stream and submission.prompt_logprobs is None and submission.max_tokens > 1


def _sampling_message(submission: Submission) -> messages.SamplingConfig:
    """With everything said that engines have changing defaults for."""
    sampling = submission.sampling
    return messages.SamplingConfig(
        beam_width=1,
        num_return_sequences=1 if is_greedy(sampling) else submission.n,
        top_k=sampling.top_k,
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
        seed=None if sampling.seed is None else sampling.seed % (1 << 64),
        temperature=1.0 if sampling.temperature is None else sampling.temperature,
        min_tokens=submission.min_tokens or None,
        repetition_penalty=1.0 if sampling.repetition_penalty is None else sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        min_p=sampling.min_p,
    )


def _images(submission: Submission) -> "messages.MultimodalInput | None":
    """The files; the prompt has one placeholder for each, which the engine expands."""
    if not submission.images:
        return None
    return messages.MultimodalInput([image.encoded for image in submission.images])


def _guided_decoding(constraint: Constraint) -> messages.GuidedDecodingParams:
    return messages.GuidedDecodingParams(GUIDE_TYPES[constraint.kind], constraint.guide or ANY_GUIDE)


def _embedding_bias(sampling: Sampling, vocab_size: int) -> Sequence[float]:
    if not sampling.logit_bias:
        return ()
    biases = array("f", [0.0]) * vocab_size
    for token_id, bias in sampling.logit_bias:
        biases[token_id] = bias
    return memoryview(biases)


# --- logprobs -------------------------------------------------------------------------------------------------------


def as_logprobs(entries: Sequence[messages.TokenLogprob], token_ids: Sequence[int], count: int) -> Logprobs:
    """The logprobs of these tokens, with at most `count` alternatives each."""
    logprobs, alternatives = [], []
    for place, token_id in enumerate(token_ids):
        entry = entries[place] if place < len(entries) else messages.TokenLogprob(logprob=UNKNOWN_LOGPROB)
        logprobs.append(_logprob_of(token_id, entry))
        alternatives.append(_best(entry, count))
    return Logprobs(logprobs, alternatives)


def as_prompt_logprobs(entries: Sequence[messages.TokenLogprob], token_ids: Sequence[int], count: int) -> Logprobs:
    """What each entry says of its token is worth nothing: its alternatives are those of the next one."""
    logprobs = [0.0]
    alternatives: list[Sequence[tuple[int, float]]] = [()]
    for place, token_id in enumerate(token_ids[1:]):
        entry = entries[place] if place < len(entries) else messages.TokenLogprob()
        known = {each.token_id: each.logprob for each in entry.top_logprobs}
        logprobs.append(known.get(token_id, UNKNOWN_LOGPROB))
        alternatives.append(_best(entry, count))
    return Logprobs(logprobs, alternatives)


def _logprob_of(token_id: int, entry: messages.TokenLogprob) -> float:
    for alternative in entry.top_logprobs:
        if alternative.token_id == token_id:
            return alternative.logprob
    # The engine's alternatives lack the token itself, and the server then says 0: as if it were certain.
    return UNKNOWN_LOGPROB if entry.top_logprobs and entry.logprob == 0 else entry.logprob


def _best(entry: messages.TokenLogprob, count: int) -> "tuple[tuple[int, float], ...]":
    pairs = [(each.token_id, each.logprob) for each in entry.top_logprobs]
    return tuple(sorted(pairs, key=lambda pair: -pair[1])[:count])


# --- ends -----------------------------------------------------------------------------------------------------------


def finish_of_error(error: messages.GenerateError) -> Finish:
    """The end that servers before 1.3.0rc8 send as a message of its own."""
    if 400 <= error.code < 500 or is_clients_fault(error.message):
        return Finish(FinishReason.REJECTED, error=error.message)
    return Finish(FinishReason.ERROR, error=f"{error.type or 'error'}: {error.message}", retryable=True)
