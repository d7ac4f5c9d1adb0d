"""Where a model folder keeps its chat templates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine_adapters.tokenizer_file import TokenizerFileError, read_json_if_there
from gateway.tokenizer.chat_template import ChatTemplate
from gateway.tokenizer.template_set import DEFAULT, ChatTemplates, RequestTemplates

FOLDERS = ("additional_chat_templates", "chat_templates")


def load_chat_templates(
    folder: Path, special_tokens: Mapping[str, str], requests: RequestTemplates, given: Path | None = None
) -> ChatTemplates:
    """The folder's templates, compiled; `given` is a file that stands in for the default one.

    None at all is fine: such a model completes texts. Raises TokenizerFileError for a file that cannot be used.
    """
    sources = find_sources(folder)
    if given is not None:
        sources[DEFAULT] = (given, read_text(given))
    named = {name: compiled(path, source, special_tokens) for name, (path, source) in sources.items()}
    return ChatTemplates(named, special_tokens, requests)


def find_sources(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name to (file, template); later places win: the configs, then files that hold one template each."""
    sources: dict[str, tuple[Path, str]] = {}
    for name in ("tokenizer_config.json", "chat_template.json"):
        path = folder / name
        for key, source in in_config(path, read_json_if_there(path).get("chat_template")).items():
            sources[key] = (path, source)
    path = folder / "chat_template.jinja"
    if path.is_file():
        sources[DEFAULT] = (path, read_text(path))
    for name in FOLDERS:
        for path in sorted((folder / name).glob("*.jinja")):
            sources[path.stem] = (path, read_text(path))
    return sources


def in_config(path: Path, value: Any) -> dict[str, str]:
    """A template, a list of named ones, or an object of them."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    try:
        named = value.items() if isinstance(value, dict) else [(each["name"], each["template"]) for each in value]
        templates = {name: template for name, template in named}
    except (KeyError, TypeError, ValueError) as error:
        raise TokenizerFileError(
            f"{path}: chat_template is neither text nor a list of named ones: {error!r}"
        ) from error
    for name, template in templates.items():
        if not isinstance(name, str) or not isinstance(template, str):
            raise TokenizerFileError(f"{path}: the chat template {name!r} is no text")
    return templates


def read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerFileError(f"the chat template {path} cannot be read: {error}") from error


def compiled(path: Path, source: str, special_tokens: Mapping[str, str]) -> ChatTemplate:
    try:
        return ChatTemplate(source, special_tokens)
    except Exception as error:  # jinja2 raises its own and, for odd sources, Python's compile errors
        raise TokenizerFileError(f"the chat template in {path} does not compile: {error}") from error
