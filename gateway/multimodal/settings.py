"""What a model's files say about its images: preprocessor_config.json, processor_config.json, config.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Resampling

from gateway.multimodal.levels import Levels

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
NEEDED = ("do_resize", "do_rescale", "do_normalize")
"""Steps that models are trained with, and that no published configuration leaves out."""


class ProcessorConfigError(Exception):
    """A model's files ask for what no processor here does; the message names the file or the field."""


@dataclass(frozen=True)
class ProcessorFiles:
    """The files' objects, empty where there is no such file. `image` is the image processor's part."""

    image: Mapping[str, Any]
    processor: Mapping[str, Any]
    model: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "ProcessorFiles":
        """Raises ProcessorConfigError."""
        processor = read_object(folder / "processor_config.json")
        image = read_object(folder / "preprocessor_config.json") or part_of(processor, "image_processor")
        return cls(image, processor, read_object(folder / "config.json"))

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "ProcessorFiles":
        """Of one object alone: a preprocessor_config.json, or a processor_config.json with an image processor in it."""
        return cls(part_of(config, "image_processor") or config, config, {})

    @property
    def vision(self) -> Mapping[str, Any]:
        """The vision tower's part of config.json."""
        return part_of(self.model, "vision_config")


class Settings:
    """An image processor's fields by name. What the file lacks is as in `defaults`, the published processor's class;
    without any file all are as in `published`, a model's that is well known."""

    def __init__(
        self, files: ProcessorFiles, defaults: Mapping[str, Any], published: Mapping[str, Any] | None = None
    ) -> None:
        self.files = files
        said = {key: value for key, value in files.image.items() if value is not None}
        self._fields = {**defaults, **(said or published or {})}
        for step in NEEDED:
            if self._fields.get(step, True) is not True:
                raise ProcessorConfigError(f"preprocessor_config.json: {step} must be true")

    def get(self, key: str) -> Any:
        """The field, or None."""
        return self._fields[key] if key in self._fields else None

    def integer(self, key: str) -> int:
        return whole(self.get(key), key)

    def side(self, key: str) -> int:
        """Of a square: a number, {"height", "width"}, or the one edge that is named."""
        value = self.get(key)
        if isinstance(value, Mapping):
            edges = {value[edge] for edge in ("height", "width", "shortest_edge", "longest_edge") if value.get(edge)}
            value = edges.pop() if len(edges) == 1 else None
        return whole(value, key)

    def resampling(self) -> Resampling:
        try:
            return Resampling(self.get("resample"))
        except ValueError as error:
            raise ProcessorConfigError(f"preprocessor_config.json: resample: {error}") from error

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...], float]:
        """Mean, standard deviation and the factor of rescaling."""
        mean, std, factor = self.get("image_mean"), self.get("image_std"), self.get("rescale_factor")
        return triple(mean, "image_mean"), triple(std, "image_std"), 1 / 255 if factor is None else float(factor)

    def levels(self) -> Levels:
        return Levels(*self.statistics())


def read_object(path: Path) -> Mapping[str, Any]:
    """The file's object, empty if there is none; raises ProcessorConfigError."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ProcessorConfigError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ProcessorConfigError(f"{path}: no JSON object")
    return value


def part_of(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = value.get(key)
    return part if isinstance(part, Mapping) else {}


def whole(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
        raise ProcessorConfigError(f"preprocessor_config.json: {key} must be a whole number from 1, not {value!r}")
    return int(value)


def triple(value: Any, key: str) -> tuple[float, ...]:
    if isinstance(value, int | float):
        value = (value,) * 3
    if not isinstance(value, Sequence) or len(value) != 3 or not all(isinstance(each, int | float) for each in value):
        raise ProcessorConfigError(f"preprocessor_config.json: {key} must be 3 numbers, not {value!r}")
    return tuple(value)
