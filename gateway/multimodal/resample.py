"""Resizing as Pillow does it, to the bit: by resample.c where set-up could build it, by Pillow elsewhere.

A processor's time is mostly Pillow's resizing, which takes one number at a time: resample.c takes eight, and is 2 to 6
times as fast. It is built for x86-64 with AVX2; tests/multimodal/test_resample.py holds the two equal.

Threads: the library has no state, and is called without the GIL.
"""

import ctypes
import sys
from pathlib import Path

import numpy as np
from PIL.Image import Image, Resampling

PATH = Path(sys.prefix) / "lib" / "resample.so"
"""Where setup/environments.sh puts it."""
FILTERS = (Resampling.BILINEAR, Resampling.BICUBIC)
LEAST_WIDTH = 4
"""Of what the library writes."""


def open_library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(PATH))
    except OSError:
        return None  # not built: Pillow does it
    number = ctypes.c_int
    library.resize.argtypes = (ctypes.c_char_p, number, number, ctypes.c_void_p, number, number, number)
    return library if library.usable() else None


LIBRARY = open_library()


class Original:
    """An RGB image that may be resized more than once; a call's own, not for many threads."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.height, self.width = image.height, image.width
        self._pixels: bytes | None = None

    def resize(self, height: int, width: int, resampling: Resampling) -> np.ndarray:
        """The channels as uint8 [3, height, width], C-contiguous."""
        library = LIBRARY
        if (
            library is None
            or resampling not in FILTERS
            or width < LEAST_WIDTH
            or self.width < library.least_width(self.width, width, resampling)
        ):
            return planes_of(self.image.resize((width, height), resampling))
        if self._pixels is None:
            self._pixels = self.image.tobytes("raw", "RGBX")
        planes = np.empty((3, height, width), np.uint8)
        sizes = self.width, self.height, planes.ctypes.data, width, height
        if not library.resize(self._pixels, *sizes, resampling):
            raise MemoryError
        return planes


def planes_of(image: Image) -> np.ndarray:
    """Of the image as it is. Pillow takes the channels apart faster than numpy strides over them."""
    planes = np.empty((3, image.height, image.width), np.uint8)
    for channel, band in enumerate(image.split()):
        planes[channel] = np.asarray(band)
    return planes
