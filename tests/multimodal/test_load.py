"""Images of every kind become RGB, and what is no good image is told apart."""

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from gateway.errors import BadRequest
from gateway.multimodal import BadImage, Limits, load_image, processor_named
from tests.multimodal.pictures import SIZES, on_white, picture

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")  # as load.py asks for; pytest's own filters come first
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF")


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> object:
    assert image.mode == "RGB"
    return image.getpixel((x, y))


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.mode == second.mode == "RGB" and first.size == second.size and first.tobytes() == second.tobytes()


@pytest.mark.parametrize("form", FORMATS)
def test_formats(form: str) -> None:
    image = load_image(saved(Image.new("RGB", (32, 32), (200, 20, 60)), form))

    assert image.size == (32, 32)
    assert np.abs(np.array(pixel(image, 9, 9)) - (200, 20, 60)).max() < 6


@pytest.mark.parametrize("name", SIZES)
def test_modes(name: str) -> None:
    original = picture(name)
    form = "TIFF" if original.mode == "CMYK" else "PNG"

    assert same(load_image(saved(original, form)), on_white(original))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes(kind: type) -> None:
    assert load_image(kind(saved(picture("tiny")))).size == picture("tiny").size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_it(orientation: int) -> None:
    stored = Image.new("RGB", (20, 10), "blue")
    stored.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(saved(stored, exif=exif))
    corners = [(0, 0), (-1, 0), (-1, -1), (0, -1), (0, 0), (-1, 0), (-1, -1), (0, -1)]
    column, row = corners[orientation - 1]

    assert image.size == ((20, 10) if orientation < 5 else (10, 20))
    assert pixel(image, column % image.width, row % image.height) == (255, 0, 0)


def test_an_orientation_that_is_nonsense_turns_nothing() -> None:
    data = saved(Image.new("RGB", (20, 10)), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01garbage")

    assert load_image(data).size == (20, 10)


def test_transparency_lies_on_white() -> None:
    glass = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("LA", (4, 4), (0, 128))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])

    assert pixel(load_image(saved(glass))) == (255, 255, 255)
    assert pixel(load_image(saved(half))) == (127, 127, 127)
    assert pixel(load_image(saved(palette))) == (10, 20, 30)
    assert pixel(load_image(saved(palette, transparency=1))) == (255, 255, 255)
    assert pixel(load_image(saved(Image.new("RGB", (4, 4), (9, 8, 7)), transparency=(9, 8, 7)))) == (255, 255, 255)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_keeps_its_upper_bits(form: str) -> None:
    levels = np.array([[0, 255, 256, 0x8000, 0xFFFF]], np.uint16)
    image = load_image(saved(Image.fromarray(levels), form))

    assert [pixel(image, column) for column in range(5)] == [(level,) * 3 for level in (0, 0, 1, 128, 255)]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_of_an_animation(form: str) -> None:
    frames = [Image.new("RGB", (30, 30), color) for color in ("red", "blue", "green")]
    options = {"lossless": True} if form == "WEBP" else {}

    assert pixel(load_image(saved(frames[0], form, save_all=True, append_images=frames[1:], **options))) == (255, 0, 0)


def test_bombs_are_not_decoded() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side in (9_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        with pytest.raises(BadImage, match="too large") as error:
            load_image(bomb)
        assert error.value.reason == "too_large"
    with pytest.raises(BadImage, match="30 x 20 pixels is too large: 500 pixels are allowed"):
        load_image(saved(Image.new("RGB", (30, 20))), Limits(max_pixels=500))


@pytest.mark.parametrize("form", [form for form in FORMATS if form not in ("ICO", "JPEG2000", "WEBP")])
def test_what_is_cut_off_is_no_image(form: str) -> None:
    data = saved(picture("faint").convert("RGB"), form)
    for length in (len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(BadImage) as error:
            load_image(data[:length])
        assert error.value.reason == "broken" or form == "AVIF"


def test_what_is_no_image() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    for data in (b"", b"GIF89a", b"<svg xmlns='http://www.w3.org/2000/svg'/>", postscript, bytes(1000)):
        with pytest.raises(BadImage) as error:
            load_image(data)
        assert error.value.reason in ("format", "broken")
        assert isinstance(error.value, BadRequest) and error.value.code == "invalid_image"


def test_damage_anywhere_is_an_error_or_a_picture() -> None:
    random = np.random.default_rng(5)
    for form in FORMATS:
        data = saved(picture("tiny"), form)
        for _ in range(20):
            damaged = bytearray(data)
            for place in random.integers(0, len(data), 3):
                damaged[place] = random.integers(256)
            try:
                assert load_image(damaged).mode == "RGB"
            except BadImage:
                pass  # as it should


def test_threads_share_all_of_it() -> None:
    names = ("tiny", "glass", "palette", "faint", "bits")
    processors = [processor_named(name, {}) for name in ("qwen2_vl", "pixtral", "llava15")]
    sources = {name: saved(picture(name)) for name in names}

    def work(name: str) -> list[bytes]:
        image = load_image(sources[name])
        return [processor.preprocess(image).tensors["pixel_values"].tobytes() for processor in processors]

    alone = {name: work(name) for name in names}
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, names * 6)) == [alone[name] for name in names * 6]
