"""One served model: what its folder says, loaded and checked before the gateway is ready."""

from array import array
from dataclasses import dataclass, replace
from pathlib import Path

from engine_adapters.base import Lora, Sampling
from engine_adapters.tokenizer_file import TokenizerFileError, read_context_length, read_eos_token_ids
from gateway.config import ConfigError
from gateway.generation_config import read_sampling_defaults
from gateway.tokenizer import ChatTemplate, Tokenizer
from gateway.tokenizer.huggingface import load_chat_template

DEMO_FOLDER = Path(__file__).parent.parent / "engine_adapters" / "simulator" / "model"
DEMO_NAME = "demo"


@dataclass(frozen=True, slots=True)
class Model:
    """`context_length` bounds prompt and completion together; `eos_token_ids` is little-endian u32.

    `sampling` is for what a request leaves open.
    A model with a `lora` is an adapter of another one, its `parent`, whose workers serve it.
    """

    name: str
    folder: Path
    tokenizer: Tokenizer
    template: ChatTemplate
    context_length: int
    eos_token_ids: bytes
    sampling: Sampling = Sampling()
    lora: Lora | None = None
    parent: str = ""

    @property
    def served_by(self) -> str:
        """The model that its workers say they serve."""
        return self.parent or self.name

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


def load_adapters(texts: tuple[str, ...], models: dict[str, Model]) -> dict[str, Model]:
    """LoRA adapters of `NAME=[MODEL:]ID[@PATH]` arguments as models by name; raises ConfigError."""
    adapters: dict[str, Model] = {}
    for text in texts:
        adapter = _adapter(text, models)
        if adapter.name in models or adapter.name in adapters:
            raise ConfigError(f"lora {text!r}: there is a model {adapter.name!r} already; choose another name")
        for other in adapters.values():
            if (other.parent, _id_of(other)) == (adapter.parent, _id_of(adapter)):
                raise ConfigError(f"lora {text!r}: {other.name!r} has this ID already; an ID is one adapter's alone")
        adapters[adapter.name] = adapter
    return adapters


def _adapter(text: str, models: dict[str, Model]) -> Model:
    name, _, rest = text.partition("=")
    place, has_path, path = rest.partition("@")
    parent, _, number = place.rpartition(":")
    if not name or not number.isascii() or not number.isdecimal() or not 1 <= int(number) < 1 << 31:
        raise ConfigError(f"lora {text!r}: expected NAME=[MODEL:]ID[@PATH], the ID being a number from 1 on")
    if has_path and not path:
        raise ConfigError(f"lora {text!r}: the PATH behind @ is empty; it is where the engine finds the adapter")
    parents = [parent] if parent else [*models]
    if len(parents) != 1 or parents[0] not in models:
        raise ConfigError(f"lora {text!r}: say whose adapter it is with NAME=MODEL:ID; there is {', '.join(models)}")
    return replace(models[parents[0]], name=name, lora=Lora(name, int(number), path), parent=parents[0])


def _id_of(adapter: Model) -> int:
    return adapter.lora.id if adapter.lora else 0
