"""Model folders: what they must have, and what a broken one is told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from engine_adapters.tokenizer_file import TokenizerFileError
from gateway.model import DEMO_NAME, Model, load_models
from gateway.types import ChatInput
from tests.demo_model import CONTEXT_LENGTH, END_OF_TEXT, END_OF_TURN, FOLDER, VOCAB_SIZE, ids_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the demo model, to be broken."""
    return Path(shutil.copytree(FOLDER, tmp_path / "copy"))


def change(folder: Path, name: str, **fields: object) -> None:
    """Set fields of a JSON file; None removes one."""
    path = folder / name
    content = json.loads(path.read_text("utf-8")) | fields
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), "utf-8")


def rendered(folder: Path, **fields: Any) -> str:
    """One message, in the folder's template."""
    source = ChatInput([{"role": "user", "content": "Hi"}], **fields)
    return Model.load("x", folder).templates.render(source)[0]


def test_the_demo_model_is_served_when_none_is_named() -> None:
    (model,) = load_models(()).values()

    assert model.name == DEMO_NAME
    assert model.context_length == CONTEXT_LENGTH
    assert model.tokenizer.vocab_size == VOCAB_SIZE
    assert set(memoryview(model.eos_token_ids).cast("I")) == {END_OF_TURN, END_OF_TEXT}


def test_a_model_is_named_after_its_folder_or_as_it_is_told(folder: Path) -> None:
    assert [*load_models((str(folder),))] == ["copy"]
    assert [*load_models((f"mine={folder}", f"yours={folder}", f"a/b={folder}"))] == ["mine", "yours", "a/b"]


def test_two_models_of_one_name_are_refused(folder: Path) -> None:
    with pytest.raises(TokenizerFileError, match="two model folders are named 'copy'"):
        load_models((str(folder), f"copy={FOLDER}"))


def test_text_is_encoded_with_its_markers_and_nothing_added() -> None:
    tokenizer = Model.load("demo", FOLDER).tokenizer
    for text in ("", "Hello", "<|im_start|>user\nÜber 🦊<|im_end|>", "\x00\ufeff"):
        assert [*memoryview(tokenizer.encode(text)).cast("I")] == ids_of(text)


def test_truncation_and_padding_of_the_file_are_not_for_us(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(folder / "tokenizer.json"))

    text = "word " * 20
    assert [*memoryview(Model.load("x", folder).tokenizer.encode(text)).cast("I")] == ids_of(text)


def test_a_template_in_its_own_file_wins(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("own: {{ messages[0].content }}")

    assert rendered(folder) == "own: Hi"


def test_of_several_templates_the_default_is_taken(folder: Path) -> None:
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}]
    change(folder, "tokenizer_config.json", chat_template=templates)

    assert rendered(folder) == "default"


def test_special_tokens_may_be_objects(folder: Path) -> None:
    change(
        folder, "tokenizer_config.json", bos_token={"content": "<s>"}, chat_template="{{ bos_token }}{{ eos_token }}"
    )

    assert rendered(folder) == "<s><|im_end|>"


def without_end_of_sequence(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    change(folder, "config.json", eos_token_id=None)
    change(folder, "tokenizer_config.json", eos_token=None)


def without_context_length(folder: Path) -> None:
    (folder / "config.json").unlink()
    change(folder, "tokenizer_config.json", model_max_length=int(1e30))


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
    "a broken tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text('{"model": 1}'),
        "tokenizer.json",
    ),
    "no context length": (without_context_length, "does not say how long a context may be; put max_position_embed"),
    "a broken config": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "a broken template": (
        lambda folder: change(folder, "tokenizer_config.json", chat_template="{% if %}"),
        "does not compile",
    ),
    "no end of sequence": (without_end_of_sequence, "names no end-of-sequence token"),
    "nothing at all": (lambda folder: shutil.rmtree(folder), "is not a folder"),
}


@pytest.mark.parametrize(("break_it", "message"), BREAKS.values(), ids=BREAKS)
def test_a_broken_folder_is_told_what_it_lacks(folder: Path, break_it: Callable[[Path], object], message: str) -> None:
    break_it(folder)

    with pytest.raises(TokenizerFileError) as caught:
        Model.load("x", folder)

    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
