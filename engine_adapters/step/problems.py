"""Why an engine could not serve what a gateway submits."""

from collections.abc import Sequence

from engine_adapters.base import EngineInfo
from engine_adapters.image import Image
from engine_adapters.images import problem_of
from engine_adapters.step import ANSWERS_LIMIT, STREAM_ID_LIMIT, messages, translation


def find_problem(submit: messages.Submit, info: EngineInfo) -> str:
    """Why the engine could not serve this; empty when it could."""
    for name in ("token_ids", "stop_token_ids"):
        if len(getattr(submit, name)) % 4:
            return f"{name} has {len(getattr(submit, name))} bytes and is no column of u32"
    if not submit.token_ids:
        return "the prompt is empty"
    if submit.max_tokens < 1:
        return "max_tokens must be at least 1"
    if submit.n > ANSWERS_LIMIT:
        return f"n is {submit.n}, but at most {ANSWERS_LIMIT} answers are given to one prompt"
    if submit.stream_id + max(submit.n, 1) > STREAM_ID_LIMIT:
        return "stream ids must be below 2**32"
    if submit.dp_rank >= info.dp_size:
        return f"dp_rank is {submit.dp_rank}, but there are {info.dp_size} ranks"
    largest = max(memoryview(submit.token_ids).cast("I"))
    if largest >= info.vocab_size:
        return f"token id {largest} is not in this model's vocabulary of {info.vocab_size}"
    sampling = submit.sampling or messages.Sampling()
    if len(sampling.bad_token_ids) % 4:
        return "bad_token_ids is no column of u32"
    return _bias_problem(sampling, info) or _constraint_problem(submit.constraint, info) or _phase_problem(submit, info)


def _bias_problem(sampling: messages.Sampling, info: EngineInfo) -> str:
    token_ids, biases = sampling.logit_bias_token_ids, sampling.logit_biases
    if len(token_ids) % 4 or len(token_ids) != len(biases):
        return "logit_bias must have a bias for each token id"
    largest = max(memoryview(token_ids).cast("I"), default=0)
    return "" if largest < info.vocab_size else f"logit_bias names token id {largest} of {info.vocab_size}"


def _constraint_problem(constraint: "messages.Constraint | None", info: EngineInfo) -> str:
    if constraint is None:
        return ""
    if f"constraint.{constraint.kind}" not in info.features:
        return f"this engine has no constraint of the kind {constraint.kind!r}"
    if constraint.begins_after and "constraint.begins_after" not in info.features:
        return "this engine cannot begin a constraint in the middle of an answer"
    return "constraint.begins_after is no column of u32" if len(constraint.begins_after) % 4 else ""


def _phase_problem(submit: messages.Submit, info: EngineInfo) -> str:
    try:
        phase = translation.as_phase(submit.phase)
    except ValueError as error:
        return str(error)
    if phase and "disaggregation" not in info.features:
        return "this engine serves whole requests only"
    if info.role not in ("", phase):
        return f"this engine serves the phase {info.role!r} only, not {phase or 'whole requests'!r}"
    if phase and submit.n > 1:
        return f"n is {submit.n}, but a phase is of one answer"
    return "the phase 'decode' needs the handoff of a prefill" if phase == "decode" and not submit.handoff else ""


def find_image_problem(images: "Sequence[Image]", submit: messages.Submit, info: EngineInfo) -> str:
    """Why the engine could not have these; empty when it could."""
    if any(image.tensors for image in images) and "images.tensors" not in info.features:
        return "this engine takes no images as tensors"
    if not all(image.tensors for image in images) and "images.encoded" not in info.features:
        return "this engine takes no images as files"
    return problem_of(images, len(submit.token_ids) // 4)
