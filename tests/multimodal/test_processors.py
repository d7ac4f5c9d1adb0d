"""Every picture comes out of every processor as from the published one, to the bit."""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.multimodal import BadImage, Processor, ProcessorConfigError, batched, processor_named, processor_of
from gateway.multimodal.levels import Levels
from tests.multimodal.configs import CLIP, CONFIGS, HALF, PINPOINTS, QWEN
from tests.multimodal.pictures import BATCH, SIZES, on_white, picture

FOLDER = Path(__file__).parent
LEVEL = 1 / 255 / 0.25
"""One of 255 levels, or a little more, in normalized pixels."""
LLAVA_NEXT = {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": [[224, 448]]}
PIXTRAL = {"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 512}}


@pytest.fixture(scope="module")
def processors() -> dict[str, Processor]:
    return {key: processor_named(name, config) for key, (name, config) in CONFIGS.items()}


def expectation(key: str) -> dict[str, Any]:
    expected: dict[str, Any] = json.loads((FOLDER / "expected" / f"{key}.json").read_text("utf-8"))
    return expected


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]


def check(name: str, tensors: Mapping[str, np.ndarray], wanted: dict[str, Any]) -> None:
    pixels = tensors["pixel_values"]
    assert (pixels.dtype, list(pixels.shape)) == (np.float32, wanted["shape"])
    if "sha256" in wanted:
        assert digest(pixels.tobytes()) == wanted["sha256"]
    else:
        samples = np.array(wanted["samples"])
        places = np.linspace(0, pixels.size - 1, len(samples)).astype(int)
        off = np.abs(pixels.reshape(-1)[places] - samples)
        assert off.max() < (2 * LEVEL if name == "llama4" else 2e-5)
        assert (off > LEVEL / 2).mean() < 0.05
    fields = {field: tensor for field, tensor in tensors.items() if field != "pixel_values"}
    assert {field: tensor.tolist() for field, tensor in fields.items()} == wanted["fields"]
    assert all(tensor.dtype == np.int64 for tensor in fields.values())


@pytest.mark.parametrize("key", CONFIGS)
def test_every_picture_is_as_from_the_published_processor(processors: dict[str, Processor], key: str) -> None:
    expected = expectation(key)
    assert expected.keys() - {"batch"} == SIZES.keys(), "run tests/multimodal/generate.py"
    made = {}
    for name in SIZES:
        wanted = expected[name]
        if wanted is None:
            with pytest.raises(BadImage, match="pixels"):
                processors[key].preprocess(on_white(picture(name)))
            continue
        features = processors[key].preprocess(on_white(picture(name)))
        check(CONFIGS[key][0], features.tensors, wanted)
        assert digest("".join(text * count for text, count in features.expansion).encode()) == wanted["expansion"]
        assert not any(tensor.flags.writeable for tensor in features.tensors.values())
        assert features.nbytes == sum(tensor.nbytes for tensor in features.tensors.values())
        if name in BATCH:
            made[name] = features
    if "batch" in expected:
        check(CONFIGS[key][0], batched([made[name] for name in BATCH]), expected["batch"])


@pytest.mark.skipif("GATEWAY_TRANSFORMERS_PYTHON" not in os.environ, reason="needs a Python that has transformers")
@pytest.mark.timeout(180)
def test_the_published_processors_still_say_so() -> None:
    command = [os.environ["GATEWAY_TRANSFORMERS_PYTHON"], str(FOLDER / "generate.py"), "--print"]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert printed == {key: expectation(key) for key in CONFIGS}


@pytest.mark.parametrize("name", [key for key, (name, _) in CONFIGS.items() if key == name])
def test_without_a_configuration_it_is_the_well_known_models(processors: dict[str, Processor], name: str) -> None:
    image = on_white(picture("faint"))
    ours, published = processor_named(name, {}).preprocess(image), processors[name].preprocess(image)

    assert ours.expansion == published.expansion
    assert all(np.array_equal(ours.tensors[each], published.tensors[each]) for each in published.tensors)


@pytest.mark.parametrize("key", ["qwen2_vl", "qwen3_vl", "llama4", "pixtral", "mistral3", "internvl", "phi3v"])
def test_low_detail_is_few_tokens(processors: dict[str, Processor], key: str) -> None:
    image = on_white(picture("photo"))
    tokens = [processors[key].preprocess(image, detail).num_tokens for detail in ("low", "auto", "high")]

    assert tokens[0] <= 1024 and tokens[0] < tokens[1] == tokens[2]


@pytest.mark.parametrize("factor", [1 / 255, 1 / 127.5, 1 / 256, 0.01])
def test_levels_are_as_float64_makes_them(factor: float) -> None:
    mean, std = np.array(CLIP["image_mean"], np.float32), np.array(CLIP["image_std"], np.float32)
    planes = np.random.default_rng(0).integers(0, 256, (3, 40, 700), np.uint8)
    rescaled = (planes.astype(np.float64) * factor).astype(np.float32)
    out = np.empty(planes.shape, np.float32)
    Levels(CLIP["image_mean"], CLIP["image_std"], factor).normalize(planes, out)

    assert np.array_equal(out, (rescaled - mean[:, None, None]) / std[:, None, None])


@pytest.mark.parametrize(
    ("model", "image", "name"),
    [
        ({"model_type": "qwen2_5_vl"}, CLIP | QWEN | {"image_processor_type": "Qwen2VLImageProcessorFast"}, "qwen2_vl"),
        ({"model_type": "qwen3_vl"}, HALF | QWEN | {"image_processor_type": "Qwen2VLImageProcessor"}, "qwen3_vl"),
        ({"model_type": "llama4"}, {"image_processor_type": "Llama4ImageProcessorFast"}, "llama4"),
        ({"model_type": "llava"}, {"image_processor_type": "CLIPImageProcessor"}, "llava15"),
        ({"model_type": "llava"}, {"image_processor_type": "LlavaImageProcessor", "do_pad": True}, "llava15_pad"),
        ({"model_type": "llava"}, PIXTRAL, "pixtral"),
        ({"model_type": "mistral3"}, PIXTRAL, "mistral3"),
        ({"model_type": "llava_next"}, LLAVA_NEXT, "llava_next"),
        ({"model_type": "internvl_chat"}, {"image_processor_type": "CLIPImageProcessor"}, "internvl"),
        ({"model_type": "phi3_v"}, {"image_processor_type": "Phi3VImageProcessor", "num_crops": 4}, "phi3v"),
        ({}, {"image_processor_type": "GotOcr2ImageProcessorFast"}, "internvl"),
        ({"model_type": "llama"}, {}, None),
        ({"model_type": "idefics3"}, {"image_processor_type": "Idefics3ImageProcessor"}, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_a_model_folder_tells_its_processor(
    tmp_path: Path, model: dict[str, Any], image: dict[str, Any], name: str | None, file: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(model))
    if image:
        (tmp_path / file).write_text(json.dumps(image if file.startswith("pre") else {"image_processor": image}))
    processor = processor_of(tmp_path)

    assert (processor.name if processor else None) == name


def test_the_other_files_count_too(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor"}))
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"patch_size": 16, "vision_feature_select_strategy": "full", "num_additional_image_tokens": 1})
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    processor = processor_of(tmp_path)

    assert processor and processor.preprocess(on_white(picture("tiny"))).num_tokens == (224 // 16) ** 2 + 1


@pytest.mark.parametrize(
    ("name", "config", "complaint"),
    [
        ("qwen2_vl", {"patch_size": "14"}, "patch_size"),
        ("qwen2_vl", {"image_mean": [0.5]}, "image_mean"),
        ("qwen2_vl", {"resample": 17}, "resample"),
        ("qwen2_vl", {"do_normalize": False}, "do_normalize"),
        ("llava15", {"size": {"height": 3, "width": 4}}, "size"),
        ("llava15", {"do_center_crop": False}, "do_center_crop"),
        ("llava_next", {"size": 336, "crop_size": 336, "image_grid_pinpoints": [*PINPOINTS, [300, 336]]}, "pinpoints"),
        ("llama4", {"resize_to_max_canvas": True}, "resize_to_max_canvas"),
        ("qwen9_vl", {}, "qwen3_vl"),
    ],
)
def test_a_configuration_that_no_processor_follows_is_refused(
    name: str, config: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ProcessorConfigError, match=complaint):
        processor_named(name, config)
