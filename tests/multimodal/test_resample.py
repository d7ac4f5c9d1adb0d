"""resample.c resizes as Pillow does, to the bit; without it Pillow does."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.Image import Resampling

from gateway.multimodal import processor_named, resample
from gateway.multimodal.resample import FILTERS, Original
from tests.multimodal.pictures import SIZES, on_white, picture

SIDES = st.one_of(st.integers(1, 40), st.integers(1, 400))
needs_library = pytest.mark.skipif(resample.LIBRARY is None, reason="resample.c is not built here")


def noise(width: int, height: int) -> Image.Image:
    """With the extremes in it, so that sums overshoot."""
    levels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(np.where(levels < 80, 0, np.where(levels > 170, 255, levels)).astype(np.uint8))


def by_pillow(image: Image.Image, height: int, width: int, resampling: Resampling) -> np.ndarray:
    return np.asarray(image.resize((width, height), resampling)).transpose(2, 0, 1)


@needs_library
@settings(max_examples=80, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(FILTERS))
def test_any_size(width: int, height: int, new_width: int, new_height: int, resampling: Resampling) -> None:
    image = noise(width, height)

    planes = Original(image).resize(new_height, new_width, resampling)
    assert np.array_equal(planes, by_pillow(image, new_height, new_width, resampling))


@needs_library
@pytest.mark.parametrize(
    ("size", "new_size"),
    [
        ((1500, 900), (336, 200)),
        ((64, 64), (700, 500)),
        ((300, 5), (300, 90)),
        ((31, 900), (448, 900)),
        ((8, 6), (8, 6)),
    ],
)
def test_the_library_itself(size: tuple[int, int], new_size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    image, (width, height) = noise(*size), new_size
    wanted = by_pillow(image, height, width, Resampling.BICUBIC)
    monkeypatch.setattr(Image.Image, "resize", None)

    assert np.array_equal(Original(image).resize(height, width, Resampling.BICUBIC), wanted)


@needs_library
def test_threads_share_it() -> None:
    images = [noise(200 + 10 * number, 150) for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        made = pool.map(lambda image: Original(image).resize(90, 130, Resampling.BICUBIC), images * 4)

    for image, planes in zip(images * 4, made, strict=True):
        assert np.array_equal(planes, by_pillow(image, 90, 130, Resampling.BICUBIC))


@needs_library
@pytest.mark.parametrize("name", ["qwen2_vl", "llama4", "llava15_pad", "llava_next", "phi3v"])
def test_without_the_library_all_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = processor_named(name, {})
    images = [on_white(picture(each)) for each in SIZES if each in ("tiny", "odd", "glass")]
    made = [processor.preprocess(image).tensors["pixel_values"] for image in images]
    monkeypatch.setattr(resample, "LIBRARY", None)

    for image, pixels in zip(images, made, strict=True):
        assert np.array_equal(processor.preprocess(image).tensors["pixel_values"], pixels)
