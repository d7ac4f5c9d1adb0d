"""A model's own sampling settings, from its generation_config.json: what a request that is silent on them gets.

These are the fields that vLLM takes from there; engines get them explicitly, since not all of them read the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine_adapters.base import Sampling
from engine_adapters.tokenizer_file import TokenizerFileError, read_json_if_there

FILE = "generation_config.json"
RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "repetition_penalty": (0.01, 100),
    "top_p_min": (0, 1),
    "top_p_decay": (0.01, 1),
}
"""Of the settings that are numbers, here and in a request."""
NO_EFFECT = {"top_k": (0, -1), "min_p": (0,), "repetition_penalty": (1,)}


def read_sampling_defaults(folder: Path) -> Sampling:
    """Raises TokenizerFileError for a value that no request could have."""
    content = read_json_if_there(folder / FILE)
    path = folder / FILE
    return Sampling(
        temperature=number(content, "temperature", path),
        top_p=number(content, "top_p", path),
        top_k=top_k(content, path),
        min_p=number(content, "min_p", path),
        repetition_penalty=number(content, "repetition_penalty", path),
    )


def number(content: dict[str, Any], name: str, path: Path) -> float | None:
    value = content.get(name)
    if value is None or value in NO_EFFECT.get(name, ()):
        return None
    low, high = RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise TokenizerFileError(f"{path}: {name} must be a number from {low:g} to {high:g}, not {value!r}")
    return float(value)


def top_k(content: dict[str, Any], path: Path) -> int | None:
    value = content.get("top_k")
    if value is None or value in NO_EFFECT["top_k"]:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TokenizerFileError(f"{path}: top_k must be a whole number, not {value!r}")
    return value
