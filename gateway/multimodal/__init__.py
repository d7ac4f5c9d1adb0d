"""Images for a model: loaded, preprocessed as the published processor does it, and counted in tokens."""

from gateway.multimodal.features import BadImage, Features
from gateway.multimodal.processor import Processor

__all__ = ["BadImage", "Features", "Processor"]
