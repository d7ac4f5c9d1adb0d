"""Every picture comes out of every processor as from the published one, to the bit."""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.multimodal import BadImage, Features, Processor, processor_named
from tests.multimodal.configs import CONFIGS
from tests.multimodal.pictures import SIZES, on_white, picture

FOLDER = Path(__file__).parent
LEVEL = 1 / 255 / 0.25
"""One of 255 levels, or a little more, in normalized pixels."""


@pytest.fixture(scope="module")
def processors() -> dict[str, Processor]:
    return {key: processor_named(name, config) for key, (name, config) in CONFIGS.items()}


def expectation(key: str) -> dict[str, Any]:
    expected: dict[str, Any] = json.loads((FOLDER / "expected" / f"{key}.json").read_text("utf-8"))
    return expected


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]


def check(key: str, features: Features, wanted: dict[str, Any]) -> None:
    tensors = dict(features.tensors)
    pixels = tensors.pop("pixel_values")
    assert (pixels.dtype, list(pixels.shape)) == (np.float32, wanted["shape"])
    if "sha256" in wanted:
        assert digest(pixels.tobytes()) == wanted["sha256"]
    else:
        samples = np.array(wanted["samples"])
        places = np.linspace(0, pixels.size - 1, len(samples)).astype(int)
        off = np.abs(pixels.reshape(-1)[places] - samples)
        assert off.max() < (2 * LEVEL if CONFIGS[key][0] == "llama4" else 2e-5)
        assert (off > LEVEL / 2).mean() < 0.05
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == wanted["fields"]
    assert all(tensor.dtype == np.int64 for tensor in tensors.values())
    text = "".join(token * count for token, count in features.expansion)
    assert digest(text.encode()) == wanted["expansion"]
    assert not any(tensor.flags.writeable for tensor in features.tensors.values())


@pytest.mark.parametrize("key", CONFIGS)
def test_every_picture_is_as_from_the_published_processor(processors: dict[str, Processor], key: str) -> None:
    expected = expectation(key)
    assert expected.keys() == SIZES.keys(), "run tests/multimodal/generate.py"
    for name, wanted in expected.items():
        if wanted is None:
            with pytest.raises(BadImage, match="pixels"):
                processors[key].preprocess(on_white(picture(name)))
        else:
            check(key, processors[key].preprocess(on_white(picture(name))), wanted)


@pytest.mark.skipif("GATEWAY_TRANSFORMERS_PYTHON" not in os.environ, reason="needs a Python that has transformers")
@pytest.mark.timeout(180)
def test_the_published_processors_still_say_so() -> None:
    command = [os.environ["GATEWAY_TRANSFORMERS_PYTHON"], str(FOLDER / "generate.py"), "--print"]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert printed == {key: expectation(key) for key in CONFIGS}
