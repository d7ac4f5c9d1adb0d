"""Resizing into tiles, and cutting them out."""

from collections.abc import Sequence

import numpy as np
from PIL import Image as images
from PIL.Image import Image, Resampling

from gateway.multimodal.features import BadImage
from gateway.multimodal.levels import Levels, planes_of

MAX_PIXELS = 2**26
"""That an image may have on its way to a model: a line of pixels can be small to send and huge once its short side is
that of a tile. 256 MiB in Pillow."""


def resized(image: Image, height: int, width: int, resampling: Resampling) -> Image:
    """Raises BadImage where nothing, or far too much, would be left of it."""
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise too_elongated(image)
    return image.resize((width, height), resampling)


def too_elongated(image: Image) -> BadImage:
    return BadImage(f"image of {image.width} x {image.height} pixels is too elongated for this model", reason="shape")


def padded(image: Image, height: int, width: int, top: int, left: int, color: Sequence[int] = (0, 0, 0)) -> Image:
    """The image on a canvas of that size."""
    if image.size == (width, height):
        return image
    canvas = images.new("RGB", (width, height), tuple(color))
    canvas.paste(image, (left, top))
    return canvas


def cut(image: Image, levels: Levels, out: np.ndarray) -> None:
    """Normalizes the image's tiles, row by row, into float32 [tiles, 3, height, width]."""
    _, _, height, width = out.shape
    planes = planes_of(image)
    corners = ((top, left) for top in range(0, image.height, height) for left in range(0, image.width, width))
    for tile, (top, left) in zip(out, corners, strict=True):
        levels.normalize(planes[:, top : top + height, left : left + width], tile)
