"""`python3.13t -m gateway preprocess`: makes of images what a model would get, and writes it to a file."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gateway.multimodal import (
    FAMILIES,
    BadImage,
    Features,
    Limits,
    Processor,
    ProcessorConfigError,
    batched,
    load_image,
    processor_named,
    processor_of,
)

DESCRIPTION = """\
Preprocesses images as the gateway does for a model, and writes a .npz file with
  every tensor under the field name of the model's published processor (pixel_values, image_grid_thw, ...),
  batched as that processor batches a list of the same images (bfloat16 as float32)
  num_image_tokens   int64 [images]: tokens whose embeddings come from the image
  num_prompt_tokens  int64 [images]: those and the markers between them
  expansion          text [images]: what replaces the image's one placeholder in the prompt
  expansion_tokens_N, expansion_counts_N   the same of the image N, from 0, as runs of special tokens
  placeholder        text: what it replaces"""
USAGE_ERROR = 2


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 1 if an image was bad, and then nothing is written."""
    options = parser().parse_args(arguments)
    if options.list:
        sys.stdout.write("".join(f"{family.name:<14}{family.models}\n" for family in FAMILIES))
        return 0
    try:
        processor = chosen(options)
        images = [read(Path(path), processor, options.detail) for path in options.images]
        with open(options.out, "wb") as file:  # np.savez would add a suffix to a path
            np.savez(file, allow_pickle=False, **content_of(processor, images))
    except (ProcessorConfigError, OSError) as error:
        sys.stderr.write(f"gateway preprocess: {error}\n")
        return USAGE_ERROR
    except BadImage as error:
        sys.stderr.write(f"gateway preprocess: {error.message}\n")
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python3.13t -m gateway preprocess",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    which = result.add_mutually_exclusive_group()
    which.add_argument("--model-path", metavar="DIR", help="a model folder: its own processor")
    which.add_argument("--processor", metavar="NAME", help="a processor by its name; see --list")
    result.add_argument(
        "--config",
        metavar="JSON",
        help="for --processor: a preprocessor_config.json, or its text; default: as published",
    )
    result.add_argument("--detail", choices=("auto", "low", "high"), default="auto", help="as of an image_url")
    result.add_argument("--out", metavar="FILE.npz", help="the file to write")
    result.add_argument("--list", action="store_true", help="print every processor and its models")
    result.add_argument("images", metavar="IMAGE", nargs="*", help="image files")
    return result


def chosen(options: argparse.Namespace) -> Processor:
    """Raises ProcessorConfigError."""
    if not options.images or not options.out or not (options.model_path or options.processor):
        raise ProcessorConfigError("needs --model-path or --processor, --out, and images")
    if options.processor:
        return processor_named(options.processor, read_config(options.config) if options.config else {})
    processor = processor_of(Path(options.model_path))
    if processor is None:
        raise ProcessorConfigError(f"{options.model_path}: no image processor that is known here; see --list")
    return processor


def read_config(source: str) -> dict[str, Any]:
    """Of a file, or of the JSON itself; raises ProcessorConfigError or OSError."""
    try:
        value = json.loads(source if source.lstrip().startswith("{") else Path(source).read_text("utf-8"))
    except ValueError as error:
        raise ProcessorConfigError(f"--config: {error}") from error
    if not isinstance(value, dict):
        raise ProcessorConfigError("--config: no JSON object")
    return value


def read(path: Path, processor: Processor, detail: str) -> Features:
    """Raises BadImage, which names the file, or OSError."""
    try:
        return processor.preprocess(load_image(path.read_bytes(), Limits()), detail)
    except BadImage as error:
        raise BadImage(f"{path}: {error.message}", reason=error.reason) from error


def content_of(processor: Processor, images: Sequence[Features]) -> dict[str, np.ndarray]:
    """The arrays of the file by their names."""
    content = batched(images)
    content["num_image_tokens"] = np.array([image.num_tokens for image in images], np.int64)
    content["num_prompt_tokens"] = np.array([sum(count for _, count in image.expansion) for image in images], np.int64)
    content["expansion"] = np.array(["".join(text * count for text, count in image.expansion) for image in images])
    content["placeholder"] = np.array(processor.placeholder)
    for number, image in enumerate(images):
        content[f"expansion_tokens_{number}"] = np.array([text for text, _ in image.expansion])
        content[f"expansion_counts_{number}"] = np.array([count for _, count in image.expansion], np.int64)
    return content
