"""`python3.13t -m gateway preprocess`: images in, a file of tensors out."""

import json
from pathlib import Path

import numpy as np
import pytest

from gateway import command
from gateway.multimodal import FAMILIES
from tests.multimodal.pictures import picture


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{name}.png" for name in ("tiny", "glass")]
    for path in paths:
        picture(path.stem).save(path)
    return list(map(str, paths))


def test_tensors_tokens_and_expansion(tmp_path: Path, images: list[str]) -> None:
    out = tmp_path / "out.bin"
    config = json.dumps({"size": {"longest_edge": 128}, "patch_size": {"height": 16, "width": 16}})

    assert command.main(["preprocess", "--processor", "pixtral", "--config", config, *images, "--out", str(out)]) == 0
    with np.load(out) as content:
        assert content["pixel_values"].shape == (2, 3, 96, 128) and content["pixel_values"].dtype == np.float32
        assert content["image_sizes"].tolist() == [[32, 32], [96, 128]]
        assert content["num_image_tokens"].tolist() == [4, 48]
        assert content["num_prompt_tokens"].tolist() == [6, 54]
        assert content["expansion"][0] == "[IMG][IMG][IMG_BREAK][IMG][IMG][IMG_END]"
        assert content["expansion_tokens_0"].tolist() == ["[IMG]", "[IMG_BREAK]", "[IMG]", "[IMG_END]"]
        assert content["expansion_counts_0"].tolist() == [2, 1, 2, 1]
        assert content["placeholder"] == "[IMG]"


def test_a_model_folder(tmp_path: Path, images: list[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    fields = {"image_processor_type": "Qwen2VLImageProcessor", "max_pixels": 28 * 28 * 6}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    out = str(tmp_path / "out.npz")

    assert command.main(["preprocess", "--model-path", str(tmp_path), *images, "--out", out]) == 0
    with np.load(out) as content:
        grids = content["image_grid_thw"]
        assert grids.shape == (2, 3) and content["pixel_values"].shape == (grids.prod(1).sum(), 1176)
        assert (content["num_image_tokens"] <= 6).all()


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["preprocess", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert [line.split()[0] for line in lines] == [family.name for family in FAMILIES]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        ([], 2, "needs"),
        (["--processor", "pixtral"], 2, "needs"),
        (["--processor", "nobody"], 2, "there is no image processor 'nobody'"),
        (["--processor", "pixtral", "--config", "{"], 2, "--config"),
        (["--processor", "pixtral", "--config", '{"size": 0}'], 2, "size"),
        (["--model-path", "."], 2, "no image processor"),
        (["--processor", "pixtral", __file__], 1, "test_preprocess_command.py: not an image"),
        (["--processor", "pixtral", "nowhere.png"], 2, "nowhere.png"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, images: list[str], capsys: pytest.CaptureFixture[str],
    arguments: list[str], code: int, complaint: str,
) -> None:  # fmt: skip
    out = tmp_path / "out.npz"
    more = [*images, "--out", str(out)] if arguments[:1] else []

    assert command.main(["preprocess", *arguments, *(more if complaint != "needs" else [])]) == code
    assert complaint in capsys.readouterr().err
    assert not out.exists()
