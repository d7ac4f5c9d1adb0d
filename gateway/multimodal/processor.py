"""What every image processor offers."""

from typing import Protocol

from PIL.Image import Image

from gateway.multimodal.features import Features


class Processor(Protocol):
    """Makes a model's input of an image. Holds no state but its sizes: any number of threads may call it."""

    @property
    def name(self) -> str:
        """The family's."""

    @property
    def placeholder(self) -> str:
        """The special token that stands for one image in the rendered prompt, e.g. `<|image_pad|>`."""

    def preprocess(self, image: Image, detail: str = "auto") -> Features:
        """Of an RGB image, as `load_image` gives it. `detail` is OpenAI's: `low` asks for few tokens where the
        family has a way to give few. Raises BadImage."""
