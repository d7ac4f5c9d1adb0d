"""Tests of the standard-library tokenizer reader, most of them against the `tokenizers` library."""

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from engine_adapters.tokenizer_file import (
    TokenizerFile,
    TokenizerFileError,
    fingerprint,
    read_context_length,
    read_eos_token_ids,
)

SIMULATOR = Path(__file__).resolve().parents[2] / "engine_adapters/simulator"
SHIPPED = TokenizerFile(SIMULATOR / "model")
SHIPPED_LIBRARY = Tokenizer.from_file(str(SIMULATOR / "model/tokenizer.json"))
TEXTS = [path.read_text(encoding="utf-8") for path in sorted((SIMULATOR / "texts").glob("*.txt"))]


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: token_id for token_id, character in enumerate(alphabet)} | {"Ġa": 256, "Ã©": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "a"), ("Ã", "©")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", "a"])
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("größe")])
    return tokenizer


def sentence_piece() -> Tokenizer:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁der", "der", "▁Hund", "é"]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "[INST]"])
    return tokenizer


def unigram() -> Tokenizer:
    pieces = [("<unk>", 0.0), ("▁", -1.0), ("▁the", -2.0), ("cat", -3.0), *((letter, -9.0) for letter in "acehst")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


def word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"hello": 0, "world": 1, "[UNK]": 7}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["[END]"])
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({"play": 0, "##ing": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[UNK]", "[SEP]"])
    return tokenizer


MAKERS: list[Callable[[], Tokenizer]] = [byte_level, sentence_piece, unigram, word_level, word_piece]


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("make", MAKERS)
def test_the_vocabulary_and_its_fingerprint_are_those_of_the_library(
    tmp_path: Path, make: Callable[[], Tokenizer]
) -> None:
    tokenizer = make()
    file = TokenizerFile(saved(tokenizer, tmp_path))
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    assert file.ids == vocabulary
    assert file.fingerprint() == fingerprint(vocabulary)
    assert file.vocab_size == max(vocabulary.values()) + 1
    added = tokenizer.get_added_tokens_decoder()
    assert file.added_ids == added.keys()
    assert file.special_ids == {token_id for token_id, token in added.items() if token.special}


def test_the_shipped_vocabulary_and_its_fingerprint_are_those_of_the_library() -> None:
    assert SHIPPED.ids == SHIPPED_LIBRARY.get_vocab(with_added_tokens=True)
    assert SHIPPED.fingerprint() == fingerprint(SHIPPED_LIBRARY.get_vocab(with_added_tokens=True))
    assert SHIPPED.vocab_size == 8192


def test_ids_the_library_gives_out_differently_than_the_file_says_are_the_librarys(tmp_path: Path) -> None:
    content = json.loads(byte_level().to_str())
    for token in content["added_tokens"]:
        token["id"] += 1000 if token["content"] != "a" else 0
    content["added_tokens"].append(content["added_tokens"][0] | {"single_word": True})
    write(tmp_path, tokenizer=content)
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert TokenizerFile(tmp_path).ids == library.get_vocab(with_added_tokens=True)


def test_the_fingerprint_is_the_documented_hash() -> None:
    expected = hashlib.sha256(bytes.fromhex("00000000 01000000 62 01000000 01000000 61 01000000 02000000 c3a9"))
    assert fingerprint({"é": 1, "a": 1, "b": 0}) == expected.digest()


def test_a_changed_id_changes_the_fingerprint() -> None:
    assert fingerprint({"a": 0, "b": 1}) != fingerprint({"a": 1, "b": 0})
    assert fingerprint({"ab": 0}) != fingerprint({"a": 0, "b": 1})


@given(text=st.text())
def test_the_bytes_of_any_texts_tokens_are_the_text(text: str) -> None:
    token_ids = SHIPPED_LIBRARY.encode(text).ids
    assert b"".join(map(SHIPPED.token_bytes, token_ids)) == text.encode()


def test_any_token_sequence_reads_like_the_librarys_decode() -> None:
    randomness = random.Random(7)
    for _ in range(200):
        token_ids = randomness.choices(range(SHIPPED.vocab_size), k=30)
        assert SHIPPED.text_of(token_ids) == SHIPPED_LIBRARY.decode(token_ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("make", "tokens", "expected"),
    [
        (byte_level, ["Ġa", "Ã©", "größe", "Ċ"], b" a\xc3\xa9gr\xc3\xb6\xc3\x9fe\n"),
        (sentence_piece, ["▁der", "<0xE2>", "<0x82>", "<0xAC>", "é", "[INST]"], " der€é[INST]".encode()),
        (unigram, ["▁the", "cat", "▁"], b" thecat "),
        (word_piece, ["play", "##ing"], b"playing"),
        (word_level, ["hello"], b"hello"),
    ],
)
def test_tokens_stand_for_the_bytes_their_kind_of_tokenizer_says(
    tmp_path: Path, make: Callable[[], Tokenizer], tokens: list[str], expected: bytes
) -> None:
    file = TokenizerFile(saved(make(), tmp_path))
    assert b"".join(file.token_bytes(file.ids[token]) for token in tokens) == expected


def test_an_id_without_a_token_stands_for_nothing(tmp_path: Path) -> None:
    assert TokenizerFile(saved(word_level(), tmp_path)).token_bytes(5) == b""


@given(text=st.one_of(st.text(), st.sampled_from(TEXTS), st.just("<|im_end|><think>")))
def test_ids_for_text_spell_the_text_without_added_tokens(text: str) -> None:
    token_ids = SHIPPED.ids_for_text(text)
    assert b"".join(map(SHIPPED.token_bytes, token_ids)) == text.encode()
    assert SHIPPED.added_ids.isdisjoint(token_ids)


def test_ids_for_text_take_the_longest_tokens(tmp_path: Path) -> None:
    file = TokenizerFile(saved(sentence_piece(), tmp_path))
    assert file.ids_for_text("der Hund der€") == [
        file.ids[token] for token in ("der", "▁Hund", "▁der", "<0xE2>", "<0x82>", "<0xAC>")
    ]


def test_ids_for_text_leave_out_what_the_vocabulary_cannot_spell(tmp_path: Path) -> None:
    file = TokenizerFile(saved(unigram(), tmp_path))
    assert file.text_of(file.ids_for_text("the fat cat")) == "the at cat"


def test_the_shipped_texts_make_at_least_3_3_bytes_a_token() -> None:
    token_ids = SHIPPED_LIBRARY.encode("\n".join(TEXTS)).ids
    assert len("\n".join(TEXTS).encode()) / len(token_ids) >= 3.3


def test_a_folder_that_cannot_be_used_names_the_file_and_the_fault(tmp_path: Path) -> None:
    with pytest.raises(TokenizerFileError, match=r"tokenizer\.json: there is no such file"):
        TokenizerFile(tmp_path)
    for content, fault in [
        ("{", "cannot be read"),
        ("[]", "holds no JSON object"),
        ("{}", "KeyError"),
        ('{"model": {"vocab": 7}}', "neither an object nor a list"),
        ('{"model": {"vocab": {}}}', "the vocabulary is empty"),
        ('{"model": {"vocab": {"a": null}}}', "not a tokenizer"),
        ('{"model": {"vocab": [["a"]]}}', "not a tokenizer"),
        ('{"model": {"vocab": {"a": 0}}, "added_tokens": [7]}', "not a tokenizer"),
    ]:
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(TokenizerFileError, match=fault) as caught:
            TokenizerFile(tmp_path)
        assert str(tmp_path / "tokenizer.json") in str(caught.value)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def test_the_shipped_model_ends_turns_and_texts() -> None:
    ends = [SHIPPED.ids[token] for token in ("<|im_end|>", "<|endoftext|>")]
    assert list(read_eos_token_ids(SIMULATOR / "model")) == ends


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ()),
        ({"generation_config": {"eos_token_id": 3}}, (3,)),
        ({"generation_config": {"eos_token_id": [3, 4]}, "config": {"eos_token_id": 5}}, (3, 4)),
        ({"generation_config": {"eos_token_id": None}, "config": {"eos_token_id": 5}}, (5,)),
        ({"config": {"text_config": {"eos_token_id": [6]}}}, (6,)),
        ({"tokenizer_config": {"eos_token": "[END]"}}, (3,)),
        ({"config": {"eos_token_id": 5}, "tokenizer_config": {"eos_token": {"content": "[END]"}}}, (5, 3)),
        ({"config": {"eos_token_id": 3}, "tokenizer_config": {"eos_token": "[END]"}}, (3,)),
        ({"tokenizer_config": {"eos_token": "unheard of"}}, ()),
    ],
)
def test_ends_of_sequence_are_found_wherever_a_folder_keeps_them(
    tmp_path: Path, files: dict[str, Any], expected: tuple[int, ...]
) -> None:
    saved(word_level(), tmp_path)
    assert read_eos_token_ids(write(tmp_path, **files)) == expected


def test_an_end_of_sequence_that_is_no_id_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerFileError, match=r"config\.json: eos_token_id is neither"):
        read_eos_token_ids(write(tmp_path, config={"eos_token_id": "</s>"}))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 8192}}, 8192),
        ({"max_position_embeddings": None, "max_sequence_length": 77}, 77),
        ({"vocab_size": 10}, None),
        ({"thinker_config": {"text_config": {"max_position_embeddings": 32768}}}, 32768),
        ({"max_position_embeddings": 40960, "rope_scaling": YARN}, 131072),
        ({"max_position_embeddings": 163840, "rope_scaling": {**YARN, "factor": 5}}, 163840),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 8192),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        ({"max_position_embeddings": 131072, "rope_parameters": {"rope_type": "linear", "factor": 8.0}}, 131072),
        ({"max_position_embeddings": 100, "rope_parameters": {"full_attention": {"factor": 8.0}}}, 100),
    ],
)
def test_the_context_length_is_found_by_any_of_its_names(
    tmp_path: Path, config: dict[str, Any], expected: int | None
) -> None:
    assert read_context_length(write(tmp_path, config=config)) == expected


def test_the_tokenizers_limit_counts_where_the_config_says_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path, tokenizer_config={"model_max_length": 2048})
    assert read_context_length(folder) == 2048
    assert read_context_length(write(tmp_path, config={"n_ctx": 4096})) == 4096


def test_a_tokenizer_without_a_limit_gives_none(tmp_path: Path) -> None:
    assert read_context_length(write(tmp_path, tokenizer_config={"model_max_length": int(1e30)})) is None


def test_a_folder_without_a_config_has_no_context_length(tmp_path: Path) -> None:
    assert read_context_length(tmp_path) is None
