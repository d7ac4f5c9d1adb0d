"""One served model: what its folder says, loaded and checked before the gateway is ready."""

import hashlib
import importlib
from array import array
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine_adapters.base import Lora, Sampling
from engine_adapters.tokenizer_file import (
    TokenizerFileError,
    read_context_length,
    read_eos_token_ids,
    read_json_if_there,
    read_vocab_size,
)
from gateway.config import ConfigError
from gateway.generation_config import read_sampling_defaults
from gateway.parsers.detect import AUTO, Choice, Signs, UnknownParser, choose_calls, choose_reasoning
from gateway.parsers.output import Formats
from gateway.tokenizer import ChatTemplates, RequestTemplates, Tokenizer, load_chat_templates
from gateway.tokenizer.template_files import find_sources

if TYPE_CHECKING:  # numpy and Pillow are imported only where a model has images
    from gateway.multimodal.processor import Processor

DEMO_FOLDER = Path(__file__).parent.parent / "engine_adapters" / "simulator" / "model"
DEMO_NAME = "demo"
TOKEN = 4
"""Bytes of an id."""


@dataclass(frozen=True, slots=True)
class ParserNames:
    """What `--tool-parser` and `--reasoning-parser` say: `[MODEL=]PARSER`, the last one that fits a model."""

    calls: tuple[str, ...] = ()
    reasoning: tuple[str, ...] = ()

    def check(self, models: Collection[str]) -> None:
        """Raises UnknownParser for a model that is not there."""
        for argument in (*self.calls, *self.reasoning):
            name, separator, _ = argument.partition("=")
            if separator and name not in models:
                raise UnknownParser(f"{argument}: no model is named {name!r}; there is {', '.join(models)}")


def name_for(model: str, arguments: tuple[str, ...]) -> str:
    """The parser of a model."""
    chosen = AUTO
    for argument in arguments:
        name, separator, parser = argument.partition("=")
        if not separator or name == model:
            chosen = parser if separator else name
    return chosen


@dataclass(frozen=True, slots=True)
class Model:
    """`context_length` bounds prompt and completion together; `eos_token_ids` is little-endian u32.

    `sampling` is for what a request leaves open. A model with a `lora` is an adapter of another one, its `parent`,
    whose workers serve it. `system_fingerprint` changes with whatever may change an answer on this side. `warnings`
    tell what is odd about the folder but need not be wrong.
    """

    name: str
    folder: Path
    tokenizer: Tokenizer
    templates: ChatTemplates
    context_length: int
    eos_token_ids: bytes
    system_fingerprint: str
    warnings: tuple[str, ...] = ()
    formats: Formats = Formats(Choice(None, ""), Choice(None, ""))
    """How it writes reasoning and calls."""
    reasoning_end: bytes = b""
    """The ids that end its reasoning, little-endian u32."""
    may_reason: bool = False
    """Also where its prompt does not open the reasoning: then it writes the start itself."""
    sampling: Sampling = Sampling()
    processor: "Processor | None" = None
    """Of its images; None for a model that takes only text."""
    lora: Lora | None = None
    parent: str = ""

    @property
    def served_by(self) -> str:
        """The model that its workers say they serve."""
        return self.parent or self.name

    @property
    def reasoning_end_ids(self) -> frozenset[int]:
        """The one token that ends it, if it is one."""
        return frozenset(memoryview(self.reasoning_end).cast("I")) if len(self.reasoning_end) == TOKEN else frozenset()

    @classmethod
    def load(
        cls,
        name: str,
        folder: Path,
        chat_template: Path | None = None,
        requests: RequestTemplates | None = None,
        parsers: ParserNames = ParserNames(),
    ) -> "Model":
        """Raises TokenizerFileError, which names the file and what is wrong with it, and UnknownParser."""
        if not folder.is_dir():
            raise TokenizerFileError(f"{folder} is not a folder")
        context_length = read_context_length(folder)
        if context_length is None:
            raise TokenizerFileError(
                f"{folder / 'config.json'} does not say how long a context may be; put max_position_embeddings into it"
            )
        tokenizer = Tokenizer.load(folder)
        templates = load_chat_templates(folder, tokenizer.specials.names, requests or RequestTemplates(), chat_template)
        signs = signs_of(folder, tokenizer, [template.source for template in templates.named.values()])
        formats = Formats(
            choose_reasoning(name_for(name, parsers.reasoning), signs),
            choose_calls(name_for(name, parsers.calls), signs),
        )
        tokenizer.show_markers(formats.tags)
        is_named = name_for(name, parsers.reasoning) != AUTO
        return cls(
            name=name,
            folder=folder,
            formats=formats,
            may_reason=is_named or any(start in signs.templates for start in formats.reasoning_starts),
            reasoning_end=tokenizer.encode(formats.reasoning_ends[0]) if formats.reasoning_ends else b"",
            tokenizer=tokenizer,
            templates=templates,
            context_length=context_length,
            sampling=read_sampling_defaults(folder),
            eos_token_ids=array("I", checked_ends(folder, tokenizer)).tobytes(),
            system_fingerprint=fingerprint(tokenizer, templates),
            warnings=tuple(oddities(folder, tokenizer, templates)),
            processor=load_processor(folder),
        )


def load_processor(folder: Path) -> "Processor | None":
    """What makes a model's input of images, if it takes any and they are known here. Raises TokenizerFileError."""
    if not any((folder / f"{name}_config.json").is_file() for name in ("preprocessor", "processor")):
        return None
    multimodal = importlib.import_module("gateway.multimodal")
    try:
        processor: Processor | None = multimodal.processor_of(folder)
    except multimodal.ProcessorConfigError as error:
        raise TokenizerFileError(f"{folder}: {error}") from error
    return processor


def read_signs(folder: Path) -> Signs:
    """What to recognise a model folder by; raises TokenizerFileError."""
    if not folder.is_dir():
        raise TokenizerFileError(f"{folder} is not a folder")
    return signs_of(folder, Tokenizer.load(folder), [source for _, source in find_sources(folder).values()])


def signs_of(folder: Path, tokenizer: Tokenizer, templates: list[str]) -> Signs:
    model_type = str(read_json_if_there(folder / "config.json").get("model_type", ""))
    return Signs(model_type, "\n".join(templates), tokenizer.added_tokens)


def fingerprint(tokenizer: Tokenizer, templates: ChatTemplates) -> str:
    sources = "\0".join(f"{name}\0{template.source}" for name, template in sorted(templates.named.items()))
    return f"fp_{hashlib.sha256(tokenizer.fingerprint + sources.encode()).hexdigest()[:10]}"


def checked_ends(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end a stream; raises TokenizerFileError for none, and for one that no token has."""
    ends = read_eos_token_ids(folder, tokenizer.id_of)
    if not ends:
        raise TokenizerFileError(f"{folder} names no end-of-sequence token; put eos_token_id into config.json")
    for token_id in ends:
        if token_id >= max(tokenizer.vocab_size, read_vocab_size(folder) or 0):
            raise TokenizerFileError(
                f"{folder} names {token_id} as end of sequence (generation_config.json, config.json), which is no id "
                f"of its tokenizer (0 to {tokenizer.vocab_size - 1}): the files are not of one model"
            )
    return ends


def oddities(folder: Path, tokenizer: Tokenizer, templates: ChatTemplates) -> Iterator[str]:
    """What may be wrong; raises TokenizerFileError for what must be."""
    size = read_vocab_size(folder)
    if size is not None and tokenizer.base_size > size:
        raise TokenizerFileError(
            f"the tokenizer of {folder} has {tokenizer.base_size} tokens, but config.json gives the model a vocab_size "
            f"of {size}: the files are not of one model"
        )
    if size is not None and tokenizer.vocab_size > size:
        yield (
            f"added tokens have ids up to {tokenizer.vocab_size - 1}, beyond config.json's vocab_size of {size}: "
            "prompts that hold them may fail in the engine"
        )
    if not templates.named:
        yield "there is no chat template, so only texts are completed; give one with --chat-template"
    for token in ("bos_token", "eos_token"):
        text = tokenizer.specials.names.get(token)
        if text is not None and tokenizer.id_of(text) is None:
            yield f"{token} is {text!r} (tokenizer_config.json), which the tokenizer does not have"
    for name, template in templates.named.items():
        bos = tokenizer.specials.names.get("bos_token")
        if bos and tokenizer.specials.prefix and not template.facts.writes_bos:
            yield f"the chat template {name!r} writes no {bos}, which the tokenizer puts before other texts"


def load_models(
    paths: tuple[str, ...],
    chat_templates: tuple[str, ...] = (),
    requests: RequestTemplates | None = None,
    parsers: ParserNames = ParserNames(),
) -> dict[str, Model]:
    """The models of `[NAME=]DIR` arguments by name, the demo model if there are none.

    Raises TokenizerFileError, and UnknownParser.

    `chat_templates` are `[NAME=]FILE` arguments.
    """
    folders: dict[str, Path] = {}
    for path in paths or (f"{DEMO_NAME}={DEMO_FOLDER}",):
        name, separator, folder = path.partition("=")
        if not separator:
            name, folder = Path(path).resolve().name, path
        if name in folders:
            raise TokenizerFileError(f"two model folders are named {name!r}; give one another name with NAME=DIR")
        folders[name] = Path(folder)
    files = templates_by_model(chat_templates, [*folders])
    requests = requests or RequestTemplates()
    parsers.check(folders)
    return {name: Model.load(name, folder, files.get(name), requests, parsers) for name, folder in folders.items()}


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


def read_aliases(texts: tuple[str, ...], models: Mapping[str, Model]) -> dict[str, Model]:
    """The models of `NAME=MODEL` arguments by their other names; raises ConfigError."""
    aliases: dict[str, Model] = {}
    for text in texts:
        alias, separator, name = text.partition("=")
        if not alias or not separator:
            raise ConfigError(f"alias {text!r}: expected NAME=MODEL")
        if name not in models:
            raise ConfigError(f"alias {text!r}: no model {name!r} is served; there is {', '.join(models)}")
        if alias in models or alias in aliases:
            raise ConfigError(f"alias {text!r}: there is a model {alias!r} already; choose another name")
        aliases[alias] = models[name]
    return aliases


def _id_of(adapter: Model) -> int:
    return adapter.lora.id if adapter.lora else 0


def templates_by_model(arguments: tuple[str, ...], names: list[str]) -> dict[str, Path]:
    """The files of `[NAME=]FILE` arguments; raises TokenizerFileError for a name that is unknown, missing or double."""
    files: dict[str, Path] = {}
    for argument in arguments:
        name, separator, file = argument.partition("=")
        if not separator or (name not in names and Path(argument).is_file()):
            name, file = names[0], argument
            if len(names) > 1:
                raise TokenizerFileError(f"--chat-template {argument}: say which model it is for, as NAME=FILE")
        if name not in names:
            raise TokenizerFileError(
                f"--chat-template {argument}: no model is named {name!r}; there is {', '.join(names)}"
            )
        if name in files:
            raise TokenizerFileError(f"--chat-template {argument}: model {name!r} has one already")
        files[name] = Path(file)
    return files
