"""Resizing into tiles, and cutting them out."""

from collections.abc import Sequence

import numpy as np
from PIL.Image import Image, Resampling

from gateway.multimodal.features import BadImage
from gateway.multimodal.levels import Levels

MAX_PIXELS = 2**26
"""That an image may have on its way to a model: a line of pixels can be small to send and huge once its short side is
that of a tile. 256 MiB at 4 bytes each."""


def resized(image: Image, height: int, width: int, resampling: Resampling) -> np.ndarray:
    """Its channels, uint8 [3, height, width]; raises BadImage where nothing, or far too much, would be left of it."""
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise too_elongated(image)
    return planes_of(image.resize((width, height), resampling))


def planes_of(image: Image) -> np.ndarray:
    """Of the image as it is. Pillow takes the channels apart faster than numpy strides over them."""
    planes = np.empty((3, image.height, image.width), np.uint8)
    for channel, band in enumerate(image.split()):
        planes[channel] = np.asarray(band)
    return planes


def too_elongated(image: Image) -> BadImage:
    return BadImage(f"image of {image.width} x {image.height} pixels is too elongated for this model", reason="shape")


def padded(
    planes: np.ndarray, height: int, width: int, top: int, left: int, color: Sequence[int] = (0, 0, 0)
) -> np.ndarray:
    """On a canvas of that size."""
    _, rows, columns = planes.shape
    if (rows, columns) == (height, width):
        return planes
    canvas = np.empty((3, height, width), np.uint8)
    canvas[:] = np.array(color, np.uint8)[:, None, None]
    canvas[:, top : top + rows, left : left + columns] = planes
    return canvas


def cut(planes: np.ndarray, levels: Levels, out: np.ndarray) -> None:
    """Normalizes the tiles of an image, row by row, into float32 [tiles, 3, height, width]."""
    (_, rows, columns), (_, _, height, width) = planes.shape, out.shape
    corners = ((top, left) for top in range(0, rows, height) for left in range(0, columns, width))
    for tile, (top, left) in zip(out, corners, strict=True):
        levels.normalize(planes[:, top : top + height, left : left + width], tile)
