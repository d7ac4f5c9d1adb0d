"""Of any size of image: tensors, tokens and expansion fit each other, and the model's limits hold."""

import math
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gateway.multimodal import Features, processor_named
from gateway.multimodal.llama4 import best_canvas, canvases_of
from gateway.multimodal.qwen import Qwen

SIDES = st.integers(1, 900)
NARROW = settings(max_examples=15, deadline=None)
CHEAP = settings(max_examples=60, deadline=None)
QWEN = processor_named("qwen2_vl", {"min_pixels": 3136, "max_pixels": 60_000})
PIXTRAL = processor_named("pixtral", {"size": {"longest_edge": 128}})
MISTRAL = processor_named("mistral3", {"size": {"longest_edge": 280}})
LLAMA = processor_named("llama4", {"size": {"height": 56, "width": 56}, "max_patches": 9})
INTERN = processor_named("internvl", {"size": {"height": 56, "width": 56}, "max_patches": 7})
NEXT = processor_named(
    "llava_next", {"size": 56, "crop_size": 56, "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112], [168, 56]]}
)
PHI = processor_named("phi3v", {"num_crops": 4})


def count(features: Features, *tokens: str) -> int:
    return sum(number for text, number in features.expansion if not tokens or text in tokens)


def picture(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (200, 100, 50))


def shape(features: Features, name: str = "pixel_values") -> Sequence[int]:
    return features.tensors[name].shape


@NARROW
@given(st.integers(10, 900), st.integers(10, 900))
def test_qwen(width: int, height: int) -> None:
    features = QWEN.preprocess(picture(width, height))
    ((frames, rows, columns),) = features.tensors["image_grid_thw"].tolist()

    assert frames == 1 and rows % 2 == columns % 2 == 0
    assert shape(features) == (rows * columns, 3 * 2 * 14 * 14)
    assert features.num_tokens == rows * columns // 4 == count(features)
    assert rows * columns * 14 * 14 <= 60_000 or min(rows, columns) == 2


@CHEAP
@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_qwen_keeps_within_its_pixels_and_near_the_shape(width: int, height: int) -> None:
    assert isinstance(QWEN, Qwen)
    if max(width, height) > 200 * min(width, height):
        return
    new_height, new_width = QWEN.fit(height, width)

    assert new_height % 28 == new_width % 28 == 0
    assert 3136 <= new_height * new_width <= 60_000 or min(new_height, new_width) == 28


@NARROW
@given(SIDES, SIDES)
def test_pixtral(width: int, height: int) -> None:
    if max(width, height) > 100 * min(width, height):
        return
    for processor, unit, longest in ((PIXTRAL, 16, 128), (MISTRAL, 28, 280)):
        features = processor.preprocess(picture(width, height))
        _, _, pixel_rows, pixel_columns = shape(features)

        assert features.tensors["image_sizes"].tolist() == [[pixel_rows, pixel_columns]]
        assert max(pixel_rows, pixel_columns) <= math.ceil(longest / unit) * unit
        assert features.num_tokens == pixel_rows // unit * (pixel_columns // unit) == count(features, "[IMG]")
        assert count(features, "[IMG_BREAK]") == pixel_rows // unit - 1
        assert features.expansion[-1] == ("[IMG_END]", 1) and count(features, "[IMG_END]") == 1


@NARROW
@given(SIDES, SIDES)
def test_llama4(width: int, height: int) -> None:
    features = LLAMA.preprocess(picture(width, height))
    ((rows, columns),) = features.tensors["aspect_ratios"].tolist()
    cells = rows * columns
    tiles = cells + (cells > 1)

    assert 1 <= cells <= 9 and shape(features) == (tiles, 3, 56, 56)
    assert features.num_tokens == tiles * 4 == count(features, "<|patch|>")
    assert count(features, "<|tile_y_separator|>") == (rows if cells > 1 else 0)
    assert count(features, "<|tile_x_separator|>") == rows * (columns - 1)
    assert count(features, "<|image|>", "<|image_start|>", "<|image_end|>") == 3


@CHEAP
@given(st.integers(1, 9000), st.integers(1, 9000))
def test_llama4_shrinks_no_more_than_it_must(width: int, height: int) -> None:
    grids = canvases_of(16)
    rows, columns = best_canvas(height, width, 336, grids)
    scale = min(rows * 336 / height, columns * 336 / width)

    assert all(
        min(other[0] * 336 / height, other[1] * 336 / width) <= scale * (1 + 1e-6) or scale >= 1 - 1e-6
        for other in grids.tolist()
    )


@NARROW
@given(SIDES, SIDES)
def test_internvl(width: int, height: int) -> None:
    features = INTERN.preprocess(picture(width, height))
    tiles = shape(features)[0]

    assert tiles == 1 or 3 <= tiles <= 8
    assert features.tensors["num_patches"].tolist() == [tiles]
    assert features.expansion == (("<img>", 1), ("<IMG_CONTEXT>", 4 * tiles), ("</img>", 1))
    assert features.num_tokens == 4 * tiles


@NARROW
@given(SIDES, SIDES)
def test_llava_next(width: int, height: int) -> None:
    if max(width, height) > 50 * min(width, height):
        return
    features = NEXT.preprocess(picture(width, height))
    tiles = shape(features)[1]

    assert features.tensors["image_sizes"].tolist() == [[height, width]]
    assert tiles in (3, 4, 5)
    # The whole, and of each tile's 16 at most all, with one more for each of at most 12 lines.
    assert 16 <= features.num_tokens == count(features) <= 16 * tiles + 12


@settings(max_examples=4, deadline=None)
@given(SIDES, SIDES)
def test_phi3(width: int, height: int) -> None:
    if max(width, height) > 300 * min(width, height):
        return
    features = PHI.preprocess(picture(width, height))
    ((pixel_rows, pixel_columns),) = features.tensors["image_sizes"].tolist()
    rows, columns = pixel_rows // 336, pixel_columns // 336

    assert rows * columns <= 4 and shape(features) == (1, 5, 3, 336, 336)
    assert features.num_tokens == (rows * columns + 1) * 144 + 1 + (rows + 1) * 12 == count(features)
    assert features.tensors["num_img_tokens"].tolist() == [features.num_tokens]
    assert not features.tensors["pixel_values"][0, 1 + rows * columns :].any()
