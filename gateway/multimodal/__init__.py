"""Images for a model: loaded, preprocessed as the published processor does it, and counted in tokens."""

from gateway.multimodal.batch import batched
from gateway.multimodal.features import BadImage, Features
from gateway.multimodal.load import Limits, load_image
from gateway.multimodal.processor import FAMILIES, Processor, processor_named, processor_of
from gateway.multimodal.settings import ProcessorConfigError

__all__ = [
    "FAMILIES",
    "BadImage",
    "Features",
    "Limits",
    "Processor",
    "ProcessorConfigError",
    "batched",
    "load_image",
    "processor_named",
    "processor_of",
]
