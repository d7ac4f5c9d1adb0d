"""Pictures of many sizes, shapes and modes, the same wherever they are made; needs nothing of the gateway."""

import numpy as np
from PIL import Image

SIZES = {
    "speck": ("RGB", 1, 1),
    "sliver": ("RGB", 3, 2),
    "tiny": ("RGB", 17, 31),
    "tile": ("RGB", 336, 336),
    "exact": ("RGB", 448, 448),
    "odd": ("RGB", 501, 333),
    "tall": ("RGB", 201, 643),
    "photo": ("RGB", 823, 669),
    "wide": ("RGB", 1200, 40),
    "pole": ("RGB", 7, 500),
    "thread": ("RGB", 404, 2),
    "grey": ("L", 300, 200),
    "glass": ("RGBA", 350, 260),
    "faint": ("LA", 130, 90),
    "palette": ("P", 160, 120),
    "ink": ("CMYK", 250, 410),
    "bits": ("1", 123, 77),
}
"""Mode, width, height."""
BATCH = ("tiny", "wide", "glass")
"""Pictures that are also given to a processor as one list."""
CHANNELS = {"RGB": 3, "L": 1, "RGBA": 4, "LA": 2, "CMYK": 4}


def picture(name: str) -> Image.Image:
    """Slopes with noise on them."""
    mode, width, height = SIZES[name]
    made = mode if mode in CHANNELS else "L" if mode == "1" else "RGB"
    levels = numbers(width, height, CHANNELS[made])
    return Image.frombytes(made, (width, height), levels.tobytes()).convert(mode)


def numbers(width: int, height: int, channels: int) -> np.ndarray:
    """uint8 [height, width, channels]."""
    rows, columns, planes = np.ogrid[:height, :width, :channels]
    slope = rows * 255 // height * (planes + 1) + columns * 255 // width * (3 - planes) + planes * 40
    noise = np.random.default_rng(width * height).integers(0, 48, (height, width, channels))
    return ((slope // 2 + noise) % 256).astype(np.uint8)


def on_white(image: Image.Image) -> Image.Image:
    """As RGB, with what is transparent on white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, (255, 255, 255))
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas
