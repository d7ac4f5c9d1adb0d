"""One served model: what its folder says, loaded and checked before the gateway is ready."""

from array import array
from dataclasses import dataclass
from pathlib import Path

from engine_adapters.base import Sampling
from engine_adapters.tokenizer_file import TokenizerFileError, read_context_length, read_eos_token_ids
from gateway.generation_config import read_sampling_defaults
from gateway.tokenizer import ChatTemplate, Tokenizer
from gateway.tokenizer.huggingface import load_chat_template

DEMO_FOLDER = Path(__file__).parent.parent / "engine_adapters" / "simulator" / "model"
DEMO_NAME = "demo"


@dataclass(frozen=True, slots=True)
class Model:
    """`context_length` bounds prompt and completion together; `eos_token_ids` is little-endian u32.

    `sampling` is for what a request leaves open.
    """

    name: str
    folder: Path
    tokenizer: Tokenizer
    template: ChatTemplate
    context_length: int
    eos_token_ids: bytes
    sampling: Sampling = Sampling()

    @property
    def system_fingerprint(self) -> str:
        """Changes with whatever may change an answer on this side."""
        return f"fp_{self.tokenizer.fingerprint.hex()[:10]}"

    @classmethod
    def load(cls, name: str, folder: Path) -> "Model":
        """Raises TokenizerFileError, which names the file and what is wrong with it."""
        if not folder.is_dir():
            raise TokenizerFileError(f"{folder} is not a folder")
        context_length = read_context_length(folder)
        if context_length is None:
            raise TokenizerFileError(f"{folder / 'config.json'} does not say how long a context may be")
        eos_token_ids = read_eos_token_ids(folder)
        if not eos_token_ids:
            raise TokenizerFileError(f"{folder} names no end-of-sequence token; put eos_token_id into config.json")
        return cls(
            name=name,
            folder=folder,
            tokenizer=Tokenizer.load(folder),
            template=load_chat_template(folder),
            context_length=context_length,
            eos_token_ids=array("I", eos_token_ids).tobytes(),
            sampling=read_sampling_defaults(folder),
        )


def load_models(paths: tuple[str, ...]) -> dict[str, Model]:
    """The models of `[NAME=]DIR` arguments by name, the demo model if there are none; raises TokenizerFileError."""
    models: dict[str, Model] = {}
    for path in paths or (f"{DEMO_NAME}={DEMO_FOLDER}",):
        name, separator, folder = path.partition("=")
        if not separator:
            name, folder = Path(path).resolve().name, path
        if name in models:
            raise TokenizerFileError(f"two model folders are named {name!r}; give one another name with NAME=DIR")
        models[name] = Model.load(name, Path(folder))
    return models
