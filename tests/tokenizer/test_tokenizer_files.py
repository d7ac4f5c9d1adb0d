"""Tokenizers in other files than tokenizer.json: the ids of the libraries that own the formats, and clear refusals."""

import base64
import json
import shutil
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers

from engine_adapters.tokenizer_file import TokenizerFileError
from gateway.tokenizer import Tokenizer
from gateway.tokenizer.sentencepiece_model import SentencePieceModel
from gateway.tokenizer.tokenizer_files import load_tokenizer
from tests.tokenizer.vocabularies.texts import TEKKEN, TEXTS, tekken_content

HERE = Path(__file__).parent / "vocabularies"
EXPECTED: dict[str, list[list[int]]] = json.loads((HERE / "ids.json").read_text())


def put(folder: Path, name: str, **config: Any) -> Path:
    """The vocabulary `name` as a model folder has it."""
    if name == "tekken":
        lines = (line.split() for line in (HERE / "byte_pairs.tiktoken").read_text().splitlines())
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        (folder / "tekken.json").write_text(json.dumps(tekken_content(ranks, TEKKEN)))
    elif name in CLASSES:
        shutil.copy(HERE / "byte_pairs.tiktoken", folder / "vocabulary.tiktoken")
        config = {"tokenizer_class": CLASSES[name]} | config
    else:
        shutil.copy(HERE / f"{name}.model", folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


CLASSES = {"kimi": "TikTokenTokenizer", "qwen": "QWenTokenizer"}


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return array("I", tokenizer.encode(text)).tolist()


@pytest.mark.parametrize("name", EXPECTED)
def test_ids_are_those_of_the_formats_own_library(name: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(put(tmp_path, name))

    for text, expected in zip(TEXTS, EXPECTED[name], strict=True):
        assert ids_of(tokenizer, text) == expected, repr(text)


@pytest.mark.parametrize("name", ["llama", "gemma", "kimi", "qwen", "tekken"])
def test_texts_come_back(name: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(put(tmp_path, name))

    for text in ("Hello, world!", "Größe  and\n\nspaces 网关 🦊", "x"):
        assert tokenizer.decode(ids_of(tokenizer, text), skip_special_tokens=True) == text


def test_special_tokens_are_recognised_in_a_text(tmp_path: Path) -> None:
    sentencepiece = Tokenizer.load(put(tmp_path, "llama"))
    assert ids_of(sentencepiece, "<s>a</s>")[0] == 1
    assert ids_of(sentencepiece, "<s>a</s>")[-1] == 2

    tekken = Tokenizer.load(put(tmp_path / "..", "tekken"))
    assert ids_of(tekken, "<s>[INST]a[/INST]")[:2] == [1, 3]
    assert tekken.id_of("<SPECIAL_99>") == 99


def test_added_tokens_have_the_ids_that_the_config_gives_them(tmp_path: Path) -> None:
    size = len((HERE / "byte_pairs.tiktoken").read_text().splitlines())
    added = {str(size): {"content": "[BOS]", "special": True}, str(size + 2): {"content": "<think>", "special": False}}
    tokenizer = Tokenizer.load(put(tmp_path, "kimi", added_tokens_decoder=added))

    assert ids_of(tokenizer, "[BOS]<think>") == [size, size + 2]
    assert tokenizer.decode([size, size + 2], skip_special_tokens=True) == "<think>"
    assert tokenizer.id_of(f"<|reserved_token_{size + 1}|>") == size + 1


def test_added_tokens_may_stand_behind_a_gap(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(put(tmp_path, "qwen", added_tokens_decoder={"5000": {"content": "[FAR]"}}))

    assert ids_of(tokenizer, "[FAR]") == [5000]
    assert tokenizer.vocab_size == 5001


def test_a_sentencepiece_model_puts_a_bos_before_texts_unless_told_not_to(tmp_path: Path) -> None:
    assert Tokenizer.load(put(tmp_path, "llama")).specials.prefix == array("I", [1]).tobytes()
    assert Tokenizer.load(put(tmp_path, "llama", add_bos_token=False)).specials.prefix == b""


def test_a_pair_of_vocabulary_and_merges_is_read(tmp_path: Path) -> None:
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(TEXTS, trainer)
    library.model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')

    tokenizer = Tokenizer.load(tmp_path)

    for text in TEXTS:
        assert ids_of(tokenizer, text) == library.encode(text).ids


def test_tokenizer_json_is_taken_before_all_others(tmp_path: Path) -> None:
    put(tmp_path, "llama")
    Library(models.WordLevel({"only": 0}, unk_token="only")).save(str(tmp_path / "tokenizer.json"))

    assert Tokenizer.load(tmp_path).vocab_size == 1


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda folder: None, "holds no tokenizer: there is neither tokenizer.json, tekken.json"),
    "a broken tokenizer.json": (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json cannot be"),
    "a broken tekken.json": (lambda folder: (folder / "tekken.json").write_text("{}"), "tekken.json cannot be"),
    "no SentencePiece": (
        lambda folder: (folder / "tokenizer.model").write_bytes(b"\xff" * 9),
        "no SentencePiece model",
    ),
    "an empty SentencePiece": (lambda folder: (folder / "tokenizer.model").write_bytes(b""), "it holds no pieces"),
    "tiktoken of an unknown kind": (
        lambda folder: shutil.copy(HERE / "byte_pairs.tiktoken", folder / "a.tiktoken"),
        "tokenizer_class None does not say how text is split",
    ),
    "tiktoken's lines in tokenizer.model": (
        lambda folder: shutil.copy(HERE / "byte_pairs.tiktoken", folder / "tokenizer.model"),
        "write a tokenizer.json with transformers: AutoTokenizer.from_pretrained",
    ),
}


@pytest.mark.parametrize(("prepare", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_read_is_told_with_its_remedy(
    tmp_path: Path, prepare: Callable[[Path], object], message: str
) -> None:
    prepare(tmp_path)

    with pytest.raises(TokenizerFileError) as caught:
        load_tokenizer(tmp_path)

    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_word_models_of_sentencepiece_are_refused(tmp_path: Path) -> None:
    data = b"\x0a\x05\x0a\x03abc\x12\x02\x18\x03"  # a piece, and trainer_spec.model_type = WORD

    assert SentencePieceModel.parse(data).model_type == 3
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(TokenizerFileError, match="of a kind that is not read here"):
        load_tokenizer(tmp_path)
