"""What an engine is asked for: a request and its prompt lowered to a submission, if the engine can do it."""

from dataclasses import replace

from engine_adapters.base import Constraint, EngineInfo, Submission
from engine_adapters.images import unexpanded
from gateway.errors import BadRequest, Unavailable
from gateway.model import Model
from gateway.types import ChatInput, GenerateRequest, Prompt


def refuse_oversized(model: Model, request: GenerateRequest, prompt: Prompt) -> int:
    """How many tokens the answer may have; raises BadRequest when prompt and completion do not fit the context."""
    param = "messages" if isinstance(request.input, ChatInput) else "prompt"
    if prompt.length == 0:
        raise BadRequest("the prompt has no tokens", param=param)
    room = model.context_length - prompt.length
    max_tokens = room if request.max_tokens is None else request.max_tokens
    if room < 1 or max_tokens > room:
        asked = "" if request.max_tokens is None else f" and max_tokens asks for {request.max_tokens} more"
        raise BadRequest(
            f"the context of model {model.name!r} is {model.context_length} tokens, "
            f"but the prompt has {prompt.length}{asked}",
            param=param,
            code="context_length_exceeded",
        )
    return max_tokens


def submission_for(
    model: Model, request: GenerateRequest, prompt: Prompt, constraint: Constraint | None, ends_at: float = 0.0
) -> Submission:
    """Raises BadRequest when prompt and completion do not fit the context."""
    max_tokens = refuse_oversized(model, request, prompt)
    return Submission(
        request_id=request.request_id,
        token_ids=prompt.token_ids,
        max_tokens=max_tokens,
        sampling=request.sampling,
        # Engines differ in which of the model's ends they know.
        stop_token_ids=request.stop_token_ids + (b"" if request.ignore_eos else model.eos_token_ids),
        ignore_eos=request.ignore_eos,
        min_tokens=request.min_tokens,
        n=request.n,
        logprobs=request.logprobs,
        prompt_logprobs=request.prompt_logprobs,
        priority=request.priority,
        cache_salt=request.cache_salt,
        lora=model.lora,
        constraint=constraint,
        kv_retention=request.kv_retention,
        # Where the engine must be stopped from here, its tokens have to come as they are made.
        stream=request.stream or bool(request.output.stop),
        images=prompt.images,
        ends_at=ends_at,
    )


def constraint_for(
    model: Model, request: GenerateRequest, prompt: Prompt, infos: list[EngineInfo]
) -> Constraint | None:
    """The request's, such that it leaves the reasoning alone where the model is going to reason."""
    constraint = request.constraint
    if constraint is not None and request.constraint_is_wish:
        if not all(f"constraint.{constraint.kind}" in info.features for info in infos):
            return None
    if constraint is None or constraint.kind == "structural_tag" or not will_reason(model, prompt):
        return constraint
    return replace(constraint, begins_after=model.reasoning_end)


def will_reason(model: Model, prompt: Prompt) -> bool:
    """Whether an answer is going to begin with reasoning that has an end to wait for."""
    if not model.reasoning_end or prompt.opens_reasoning is not None:
        return bool(model.reasoning_end)
    tail = prompt.token_ids[-CLOSED_TAIL:]
    was_closed = any(tail.startswith(model.reasoning_end, start) for start in range(0, len(tail), 4))
    return model.may_reason and not was_closed


CLOSED_TAIL = 4 * 8
"""Bytes of a prompt's last tokens, in which a template closes the reasoning that is not wanted."""


PLAIN = Submission("", b"", 0)
OPTIONAL_FIELDS = ("min_tokens", "n", "logprobs", "prompt_logprobs", "priority", "cache_salt", "lora", "kv_retention")
BODY_FIELDS = {"lora": "model"}
"""How clients ask for what is called otherwise inside."""
OPTIONAL_SAMPLING = (
    *("top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias"),
    *("top_p_min", "top_p_decay", "top_p_reset_id", "no_repeat_ngram_size", "bad_token_ids"),
)


def refuse_unsupported(submission: Submission, info: EngineInfo | None) -> None:
    """Raises BadRequest for the first field that was set and that the engine does not honour."""
    if info is None:
        return
    used = [name for name in OPTIONAL_FIELDS if getattr(submission, name) != getattr(PLAIN, name)]
    used += [name for name in OPTIONAL_SAMPLING if getattr(submission.sampling, name) not in (None, (), b"")]
    if submission.constraint is not None:
        used.append(f"constraint.{submission.constraint.kind}")
        used += ["constraint.begins_after"] if submission.constraint.begins_after else []
    for name in used:
        if name not in info.features:
            field = BODY_FIELDS.get(name, name)
            raise BadRequest(f"{name} is not supported by the engine of this model ({info.engine})", param=field)


def fitted(submission: Submission, info: EngineInfo | None) -> Submission:
    """With its images as the engine takes them. Raises BadRequest when it takes none, and Unavailable when it came, and
    takes files, after they had become tensors."""
    features = info.features if info is not None else frozenset({"images.tensors"})
    if "images.tensors" in features and all(image.tensors for image in submission.images):
        return submission
    if "images.encoded" not in features:
        engine = info.engine if info is not None else ""
        raise BadRequest(f"messages: images are not supported by the engine of this model ({engine})", param="messages")
    if not all(image.encoded for image in submission.images):
        raise Unavailable("the engines of this model have just changed, and take images in another way; retry")
    return unexpanded(submission)
