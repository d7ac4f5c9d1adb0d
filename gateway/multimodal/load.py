"""From an image's bytes to RGB pixels, whatever it claims to be."""

import warnings
from dataclasses import dataclass
from io import BytesIO

import numpy as np

# Pillow finds these by name once they are imported; found on first use, they would be imported by many threads at once.
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    IcoImagePlugin,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)
from PIL import Image as images
from PIL.Image import Image
from PIL.ImageOps import exif_transpose

from gateway.multimodal.features import BadImage

PLUGINS = (
    AvifImagePlugin.AvifImageFile,
    BmpImagePlugin.BmpImageFile,
    GifImagePlugin.GifImageFile,
    IcoImagePlugin.IcoImageFile,
    Jpeg2KImagePlugin.Jpeg2KImageFile,
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    PpmImagePlugin.PpmImageFile,
    TiffImagePlugin.TiffImageFile,
    WebPImagePlugin.WebPImageFile,
)
FORMATS = tuple(plugin.format for plugin in PLUGINS)
"""No EPS, no WMF: what is a program is not run. (MPO is opened as JPEG.)"""
KNOWN_FORMATS = "AVIF, BMP, GIF, ICO, JPEG, JPEG 2000, PNG, PPM, TIFF or WebP"
WHITE = (255, 255, 255)

# Pillow warns of a client's file in a client's words, and the warnings module would remember each text for ever. (It
# also warns of large images: our own limit is checked right after the header, and Pillow's second limit raises.)
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Limits:
    max_pixels: int = 2**26
    """Width times height: 8192 x 8192."""


def load_image(data: bytes | bytearray | memoryview, limits: Limits = Limits()) -> Image:
    """The image as RGB: its first frame, turned as its EXIF orientation says, transparency on white, 16 bits a channel
    cut to 8. Raises BadImage."""
    try:
        image = images.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise BadImage(f"not an image that can be read: it must be {KNOWN_FORMATS}", reason="format") from error
    except images.DecompressionBombError as error:
        raise BadImage(f"image is too large: {limits.max_pixels} pixels are allowed", reason="too_large") from error
    except Exception as error:  # a broken file makes the formats' readers raise nearly anything
        raise BadImage(f"image is broken: {error}", reason="broken") from error
    width, height = image.size
    if width * height > limits.max_pixels:
        message = f"image of {width} x {height} pixels is too large: {limits.max_pixels} pixels are allowed"
        raise BadImage(message, reason="too_large")
    try:
        image.load()
        return as_rgb(turned(image))
    except Exception as error:  # the same
        raise BadImage(f"image is broken or incomplete: {error}", reason="broken") from error


def turned(image: Image) -> Image:
    """Upright by its EXIF orientation; as it lies if that cannot be read."""
    try:
        exif_transpose(image, in_place=True)
    except Exception:  # the orientation is an aid: many readers ignore it
        pass
    return image


def as_rgb(image: Image) -> Image:
    if image.mode.startswith("I"):
        return from_16_bits(image).convert("RGB")
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = images.new("RGB", image.size, WHITE)
        canvas.paste(image, mask=image.getchannel("A"))
        return canvas
    return image.convert("RGB")


def from_16_bits(image: Image) -> Image:
    """As Pillow reads 16-bit colour: the upper byte of each number. (Its own conversion makes all above 255 white.)"""
    numbers = np.clip(np.asarray(image), 0, 0xFFFF)
    return images.fromarray((numbers >> 8).astype(np.uint8))
