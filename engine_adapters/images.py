"""Images in a prompt: what their tokens are to a prefix cache, how a prompt has them unexpanded, what is wrong."""

from array import array
from collections.abc import Sequence
from dataclasses import replace

from engine_adapters.base import Submission
from engine_adapters.image import DTYPE_BYTES, Image

HASH_BYTES = 32
TOKEN = 4
"""Bytes of an id."""


def keyed(token_ids: bytes, images: "Sequence[Image]") -> bytes:
    """The prompt as prefix caches tell it from others, since placeholders are the same for all images: in place of each
    image's tokens the eight words of its hash, over and over."""
    if not images:
        return token_ids
    parts, end = [], 0
    for image in images:
        start = TOKEN * image.offset
        parts.append(token_ids[end:start])
        size = TOKEN * image.length
        parts.append((image.hash * (size // HASH_BYTES + 1))[:size])
        end = start + size
    return b"".join([*parts, token_ids[end:]])


def unexpanded(submission: Submission) -> Submission:
    """With one placeholder for each image, for an engine that preprocesses the files itself."""
    parts, images, end, offset = [], [], 0, 0
    for image in submission.images:
        between = submission.token_ids[end : TOKEN * image.offset]
        parts += [between, array("I", [image.placeholder]).tobytes()]
        offset += len(between) // TOKEN
        images.append(replace(image, offset=offset, length=1, tensors=(), payload=b"", memory=None))
        offset += 1
        end = TOKEN * (image.offset + image.length)
    parts.append(submission.token_ids[end:])
    return replace(submission, token_ids=b"".join(parts), images=tuple(images))


def problem_of(images: "Sequence[Image]", prompt_tokens: int) -> str:
    """Why these cannot be the images of a prompt; empty when they can."""
    end = 0
    for number, image in enumerate(images):
        name = f"images[{number}]"
        if len(image.hash) != HASH_BYTES:
            return f"{name} has a hash of {len(image.hash)} bytes, not {HASH_BYTES}"
        if image.offset < end or not image.length or image.offset + image.length > prompt_tokens:
            return f"{name} has no {image.length} tokens for itself at {image.offset} of {prompt_tokens}"
        end = image.offset + image.length
        if not image.tensors and not image.encoded:
            return f"{name} has neither tensors nor a file"
        if problem := _tensors_problem(image):
            return f"{name}: {problem}"
    return ""


def _tensors_problem(image: Image) -> str:
    for tensor in image.tensors:
        if tensor.dtype not in DTYPE_BYTES:
            return f"{tensor.name} is of the type {tensor.dtype!r}, which is none of {', '.join(DTYPE_BYTES)}"
    try:
        image.views()
    except ValueError as error:
        return str(error)
    return ""
