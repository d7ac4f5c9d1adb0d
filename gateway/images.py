"""A prompt's images: fetched and preprocessed, and put into the prompt in place of their placeholders.

Threads: everything here runs on the request's HTTP loop, which touches no pixels: that is the vision pool's.
"""

import time
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from engine_adapters.base import EngineInfo
from engine_adapters.image import Image
from gateway.errors import BadImage, BadRequest
from gateway.fetch import Fetcher, Limits
from gateway.gateway import Gateway
from gateway.http_loop import HttpLoop
from gateway.metrics import IMAGE_BYTES, IMAGE_SECONDS, IMAGES, IMAGES_REJECTED
from gateway.model import Model
from gateway.tasks import together
from gateway.types import ImageForm, ImageSource, Prompt

if TYPE_CHECKING:  # numpy and Pillow are imported only where a model has images
    from gateway.multimodal.vision import Processed, Vision

TOKEN = 4
"""Bytes of an id."""
WAYS = frozenset({"images.tensors", "images.encoded"})
"""The features of engines that take images."""


def check_images(gateway: Gateway, model: Model, sources: Sequence[ImageSource]) -> ImageForm:
    """What is to be made of the images; raises BadRequest when the model or its engines cannot have them."""
    param, limit = sources[0].path, gateway.config.image_limit
    if model.served_by not in gateway.visions:
        raise BadRequest(f"{param}: the model {model.name!r} takes only text", param=param)
    if len(sources) > limit:
        path = sources[limit].path
        raise BadRequest(f"{path} is one image too many: a request may have {limit} (--image-limit)", param=path)
    infos = gateway.infos(model)
    if infos and not any(WAYS & info.features for info in infos):
        engine = infos[0].engine
        raise BadRequest(f"{param}: images are not supported by the engine of this model ({engine})", param=param)
    return form_for(infos)


def form_for(infos: Sequence[EngineInfo]) -> ImageForm:
    """What engines like these want; where none is known, what the step stream carries."""
    takers = [info for info in infos if "images.tensors" in info.features]
    dtypes = {info.image_dtype for info in takers}
    wants_files = any("images.encoded" in info.features for info in infos if info not in takers)
    return ImageForm(bool(takers) or not wants_files, dtypes.pop() if len(dtypes) == 1 else "", wants_files)


async def with_images(
    gateway: Gateway, loop: HttpLoop, model: Model, sources: Sequence[ImageSource], prompt: Prompt, form: ImageForm
) -> Prompt:
    """The prompt with its images in place of their placeholders. Raises BadImage, and BadRequest when these do not
    match."""
    vision = gateway.visions[model.served_by]
    places = find_placeholders(prompt.token_ids, vision, sources)
    if len(sources) == 1:
        found = [await process(gateway, loop, model, vision, sources[0], form)]
    else:
        found = await together([process(gateway, loop, model, vision, source, form) for source in sources])
    return expanded(prompt, places, vision.placeholder, found)


def find_placeholders(token_ids: bytes, vision: "Vision", sources: Sequence[ImageSource]) -> list[int]:
    """Where the images belong, as indexes of tokens."""
    ids = array("I", token_ids)
    places: list[int] = []
    while len(places) <= len(sources):
        try:
            places.append(ids.index(vision.placeholder, places[-1] + 1 if places else 0))
        except ValueError:
            break
    if len(places) != len(sources):
        raise BadRequest(
            f"the chat template makes {ids.count(vision.placeholder)} places for {len(sources)} images: no text may "
            f"hold {vision.processor.placeholder!r}, and no message an image that the template has no place for",
            param=sources[0].path,
        )
    return places


async def process(
    gateway: Gateway, loop: HttpLoop, model: Model, vision: "Vision", source: ImageSource, form: ImageForm
) -> "Processed":
    """One image, fetched on this loop if it is elsewhere, and then a job of the vision pool. Raises BadImage."""
    try:
        fetched = None
        if source.url[:5].lower() not in ("data:", "file:"):
            started = time.monotonic()
            fetched = await fetcher_of(gateway, loop).fetch(source.url, source.path)
            loop.cells.observe(IMAGE_SECONDS, (model.name, "fetch"), time.monotonic() - started)
        result = await gateway.vision.run(vision.process, source, fetched, form)
    except BadImage as error:
        loop.cells.add(IMAGES_REJECTED, (model.name, error.reason))
        raise
    loop.cells.add(IMAGES, (model.name, result.outcome))
    loop.cells.add(IMAGE_BYTES, (model.name,), result.size)
    for step, seconds in result.seconds.items():
        loop.cells.observe(IMAGE_SECONDS, (model.name, step), seconds)
    return result


def fetcher_of(gateway: Gateway, loop: HttpLoop) -> Fetcher:
    if loop.fetcher is None:
        loop.fetcher = Fetcher(Limits.of(gateway.config))
    return loop.fetcher


def expanded(prompt: Prompt, places: Sequence[int], placeholder: int, found: "Sequence[Processed]") -> Prompt:
    """In place of each placeholder the image's tokens; where no engine wants tensors, the placeholder itself."""
    parts: list[bytes] = []
    images: list[Image] = []
    end = offset = 0
    one = array("I", [placeholder]).tobytes()
    for place, each in zip(places, found, strict=True):
        between = prompt.token_ids[end : TOKEN * place]
        offset += len(between) // TOKEN
        packed = each.packed
        token_ids = one if packed is None else packed.token_ids
        image = Image(each.hash, offset, len(token_ids) // TOKEN, placeholder, encoded=each.encoded)
        if packed is not None:
            image = replace(image, tensors=packed.tensors, payload=packed.payload, memory=packed.memory)
        images.append(image)
        parts += [between, token_ids]
        offset += image.length
        end = TOKEN * (place + 1)
    parts.append(prompt.token_ids[end:])
    return replace(prompt, token_ids=b"".join(parts), images=tuple(images))
