"""Model folders: what they must have, and what a broken one is told."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from engine_adapters.base import Sampling
from engine_adapters.tokenizer_file import TokenizerFileError
from gateway.errors import BadRequest
from gateway.model import DEMO_NAME, Model, load_models
from gateway.prepare import encode, render
from gateway.tokenizer import Encoder, Structure
from gateway.types import ChatInput, Prompt, TextInput
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


HI = ChatInput([{"role": "user", "content": "Hi"}])


def rendered(folder: Path, **fields: Any) -> str:
    """One message, in the folder's template."""
    return Model.load("x", folder).templates.render(replace(HI, **fields))[0]


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


def test_templates_are_found_in_all_their_places(folder: Path) -> None:
    (folder / "chat_template.json").write_text('{"chat_template": "from the json"}')
    assert rendered(folder) == "from the json"

    (folder / "chat_template.jinja").write_text("from the jinja")
    for place in ("additional_chat_templates", "chat_templates"):
        (folder / place).mkdir()
        (folder / place / f"{place}.jinja").write_text(place)
    (folder / "chat_templates" / "tool_use.jinja").write_text("for tools")
    assert rendered(folder) == "from the jinja"
    assert rendered(folder, template="chat_templates") == "chat_templates"
    assert rendered(folder, template="additional_chat_templates") == "additional_chat_templates"
    assert rendered(folder, tools=[{"type": "function"}]) == "for tools"

    change(folder, "tokenizer_config.json", chat_template={"default": "from the config", "rag": "for documents"})
    assert rendered(folder, template="rag") == "for documents"


def test_a_template_may_be_given_for_a_model(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a=b.jinja"
    file.write_text("given")
    both = (f"one={folder}", f"two={folder}")

    assert load_models((f"one={folder}",), (str(file),))["one"].templates.render(HI)[0] == "given"
    models = load_models(both, (f"two={file}",))
    assert models["two"].templates.render(HI)[0] == "given" != models["one"].templates.render(HI)[0]
    assert models["one"].system_fingerprint != models["two"].system_fingerprint
    for arguments, message in [
        ((str(file),), "say which model it is for"),
        ((f"three={file}",), "no model is named 'three'; there is one, two"),
        ((f"one={file}", f"one={file}"), "'one' has one already"),
        (("one=nowhere",), "chat template nowhere cannot be read"),
    ]:
        with pytest.raises(TokenizerFileError, match=message):
            load_models(both, arguments)


def test_without_a_template_a_model_still_completes_texts(folder: Path) -> None:
    change(folder, "tokenizer_config.json", chat_template=None)
    model = Model.load("x", folder)

    assert any("no chat template" in warning for warning in model.warnings)
    with pytest.raises(BadRequest, match="this model has no chat template"):
        model.templates.render(HI)


def test_a_folder_without_a_tokenizer_config_has_no_names_for_its_tokens(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").write_text("[{{ bos_token }}]")
    assert rendered(folder) == "[]"

    (folder / "special_tokens_map.json").write_text('{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}')
    assert rendered(folder) == "[<s>]"


def with_bos(folder: Path, **config: Any) -> Path:
    """The demo model with a tokenizer that puts a BOS before every text, and a template that writes one."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", END_OF_TEXT)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    change(folder, "tokenizer_config.json", bos_token="<|endoftext|>", **config)
    return folder


def prompt_of(model: Model, source: ChatInput | TextInput) -> Prompt:
    library = model.tokenizer.library
    return encode(model, Encoder(library, Structure(library)), source, render(model, source), may_wait=False)


@pytest.mark.parametrize(
    ("post_processor", "config", "prefix"),
    [
        (True, {}, [END_OF_TEXT]),
        (True, {"add_bos_token": False, "add_eos_token": True}, [END_OF_TEXT]),
        (False, {"add_bos_token": True}, [END_OF_TEXT]),
        (False, {"add_bos_token": False}, []),
        (False, {}, []),
    ],
    ids=str,
)
def test_a_text_gets_the_bos_that_its_folder_wants(
    folder: Path, post_processor: bool, config: dict[str, Any], prefix: list[int]
) -> None:
    change(folder, "tokenizer_config.json", bos_token="<|endoftext|>", **config)
    model = Model.load("x", with_bos(folder, **config) if post_processor else folder)

    prompt = prompt_of(model, TextInput("Hello"))
    assert [*memoryview(prompt.token_ids).cast("I")] == [*prefix, *ids_of("Hello")]
    bare = prompt_of(model, TextInput("Hello", add_special_tokens=False))
    assert [*memoryview(bare.token_ids).cast("I")] == ids_of("Hello")


def test_what_a_post_processor_puts_behind_a_text_goes_there(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="$A <|im_end|>", special_tokens=[("<|im_end|>", END_OF_TURN)])
    tokenizer.save(str(folder / "tokenizer.json"))

    prompt = prompt_of(Model.load("x", folder), TextInput("Hello"))

    assert [*memoryview(prompt.token_ids).cast("I")] == [*ids_of("Hello"), END_OF_TURN]


def test_a_bos_is_never_doubled_and_never_lost(folder: Path) -> None:
    model = Model.load("x", with_bos(folder))
    once = [END_OF_TEXT, *ids_of("Hi")]
    for source in (HI, replace(HI, add_special_tokens=True), TextInput("Hi"), TextInput("<|endoftext|>Hi")):
        assert [*memoryview(prompt_of(model, source).token_ids).cast("I")] == once
    assert not model.warnings

    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    model = Model.load("x", folder)
    assert [*memoryview(prompt_of(model, HI).token_ids).cast("I")] == ids_of("Hi"), "as transformers"
    assert any("writes no <|endoftext|>" in warning for warning in model.warnings)


def test_tokens_beyond_the_models_embeddings_are_told(folder: Path) -> None:
    change(folder, "config.json", vocab_size=VOCAB_SIZE - 1)
    (warning,) = Model.load("x", folder).warnings
    assert f"ids up to {VOCAB_SIZE - 1}, beyond config.json's vocab_size of {VOCAB_SIZE - 1}" in warning

    change(folder, "config.json", vocab_size=None, text_config={"vocab_size": VOCAB_SIZE})
    assert not Model.load("x", folder).warnings

    change(folder, "tokenizer_config.json", bos_token="<s>")
    (warning,) = Model.load("x", folder).warnings
    assert "bos_token is '<s>'" in warning


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


def with_other_sizes(folder: Path) -> None:
    change(folder, "config.json", vocab_size=1000)


def with_an_unknown_end(folder: Path) -> None:
    change(folder, "generation_config.json", eos_token_id=[END_OF_TURN, 9999])


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
    "an end that is no token": (with_an_unknown_end, "9999 as end of sequence"),
    "a vocabulary of another model": (with_other_sizes, "vocab_size of 1000: the files are not of one model"),
    "templates that are none": (
        lambda folder: change(folder, "tokenizer_config.json", chat_template=[{"name": "default"}]),
        "neither text nor a list of named ones",
    ),
    "a template that is no text": (
        lambda folder: change(folder, "tokenizer_config.json", chat_template={"default": 5}),
        "'default' is no text",
    ),
    "nothing at all": (lambda folder: shutil.rmtree(folder), "is not a folder"),
}


@pytest.mark.parametrize(("break_it", "message"), BREAKS.values(), ids=BREAKS)
def test_a_broken_folder_is_told_what_it_lacks(folder: Path, break_it: Callable[[Path], object], message: str) -> None:
    break_it(folder)

    with pytest.raises(TokenizerFileError) as caught:
        Model.load("x", folder)

    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Sampling()),
        ({"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1}, Sampling(0.6, 0.95, top_k=20, min_p=0.1)),
        ({"repetition_penalty": 1.05, "do_sample": True}, Sampling(repetition_penalty=1.05)),
        ({"temperature": 0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}, Sampling(temperature=0.0)),
        ({"top_k": -1, "top_p": None}, Sampling()),
    ],
)
def test_a_models_own_sampling_settings_are_read(folder: Path, fields: dict[str, object], expected: Sampling) -> None:
    change(folder, "generation_config.json", **fields)
    assert Model.load("demo", folder).sampling == expected


@pytest.mark.parametrize(
    "fields", [{"temperature": "hot"}, {"top_p": 1.5}, {"top_k": 2.5}, {"top_k": -3}, {"repetition_penalty": 0}]
)
def test_a_setting_that_no_request_could_have_names_its_file(folder: Path, fields: dict[str, object]) -> None:
    change(folder, "generation_config.json", **fields)
    with pytest.raises(
        TokenizerFileError, match=r"generation_config\.json: (temperature|top_p|top_k|repetition_penalty)"
    ):
        Model.load("demo", folder)
