"""Detokenizers against the tokenizer's own full decode."""

import json
from collections.abc import Callable

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from gateway.tokenizer import DetokenizerTable, Tokenizer
from gateway.tokenizer.detokenize import piece_of
from tests.demo_model import TOKENIZER, VOCAB_SIZE, ids_of, text_of

CUTS = st.lists(st.integers(0, 1000), max_size=10)
CORPUS = [
    "The gateway turns text into numbers, and numbers back into text. ",
    "Größe, Übung und süße Früchte; où est l'élève?  Two  spaces.\n\tA tab.",
    "网关把文字变成数字 です 게이트웨이 🦊",
]


def run(table: DetokenizerTable, pieces: list[list[int]]) -> str:
    detokenizer = table.new()
    text = "".join(map(detokenizer.feed, pieces))
    return text + detokenizer.flush()


def cut(token_ids: list[int], places: list[int]) -> list[list[int]]:
    borders = [0, *sorted(place % (len(token_ids) + 1) for place in places), len(token_ids)]
    return [token_ids[start:end] for start, end in zip(borders, borders[1:], strict=False)]


@pytest.fixture(scope="module")
def byte_level() -> DetokenizerTable:
    table = Tokenizer(TOKENIZER).table
    assert table.pieces is not None
    return table


@given(token_ids=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=30), places=CUTS)
def test_any_ids_in_any_pieces_give_the_full_decode(
    byte_level: DetokenizerTable, token_ids: list[int], places: list[int]
) -> None:
    assert run(byte_level, cut(token_ids, places)) == text_of(token_ids)


@given(text=st.text(max_size=30), places=CUTS)
def test_any_text_in_any_pieces_comes_back(byte_level: DetokenizerTable, text: str, places: list[int]) -> None:
    token_ids = ids_of(text)

    assert run(byte_level, cut(token_ids, places)) == text_of(token_ids)


@given(data=st.binary(max_size=12), places=CUTS)
def test_any_bytes_in_any_pieces_give_the_full_decode(
    byte_level: DetokenizerTable, data: bytes, places: list[int]
) -> None:
    assert byte_level.pieces is not None
    token_ids = [byte_level.pieces.index(piece_of(bytes([byte]))) for byte in data]

    assert run(byte_level, cut(token_ids, places)) == text_of(token_ids) == data.decode(errors="replace")


def test_what_is_certain_comes_out_at_once(byte_level: DetokenizerTable) -> None:
    detokenizer = byte_level.new()
    fox = ids_of("🦊")

    assert detokenizer.feed(ids_of("a")) == "a"
    assert [detokenizer.feed([token_id]) for token_id in fox] == [""] * (len(fox) - 1) + ["🦊"]
    assert detokenizer.flush() == ""


def test_ids_beyond_the_vocabulary_are_counted_and_have_no_text(byte_level: DetokenizerTable) -> None:
    detokenizer = byte_level.new()

    text = detokenizer.feed([*ids_of("a"), VOCAB_SIZE, (1 << 32) - 1, *ids_of("b")])

    assert text + detokenizer.flush() == "ab"
    assert detokenizer.unknown == 2


def metaspace_bpe() -> tokenizers.Tokenizer:
    """As in Llama 2: words marked by U+2581, what is not in the vocabulary spelled in byte tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", *byte_tokens()],
        max_token_length=5,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS[:2], trainer)
    # Training makes the byte tokens special ones; they are to be ordinary.
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def metaspace_unigram() -> tokenizers.Tokenizer:
    """As in T5 and Gemma 1: the Metaspace decoder."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def word_piece() -> tokenizers.Tokenizer:
    """As in BERT: the decoder puts spaces between words and takes them away before punctuation."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_level_with_odd_tokens() -> tokenizers.Tokenizer:
    """Added tokens in letters that stand for bytes elsewhere, and in letters that do not."""
    tokenizer = tokenizers.Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("é", "Ġ", "naïve 🦊", "Ġé網")])
    tokenizer.add_special_tokens([AddedToken("<|é|>", normalized=False)])
    return tokenizer


def test_odd_added_tokens_give_the_full_decode() -> None:
    tokenizer = byte_level_with_odd_tokens()
    table = Tokenizer(tokenizer).table
    assert table.pieces is not None
    odd = list(range(VOCAB_SIZE, tokenizer.get_vocab_size()))
    for token_ids in [*([each] for each in odd), odd, odd + ids_of("a🦊") + odd[::-1]]:
        assert run(table, [[token_id] for token_id in token_ids]) == tokenizer.decode(token_ids)


def byte_tokens() -> list[AddedToken]:
    return [AddedToken(f"<0x{byte:02X}>", special=False, normalized=False) for byte in range(256)]


MAKERS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "metaspace BPE": metaspace_bpe,
    "metaspace Unigram": metaspace_unigram,
    "WordPiece": word_piece,
}


@pytest.fixture(scope="module", params=[*MAKERS])
def other(request: pytest.FixtureRequest) -> tokenizers.Tokenizer:
    """A tokenizer whose tokens' text depends on their neighbours."""
    return MAKERS[request.param]()


@pytest.fixture(scope="module")
def with_byte_tokens() -> tokenizers.Tokenizer:
    return metaspace_bpe()


@given(text=st.text(st.sampled_from([*"aeinrst TGüß,.;'\n 网です🦊é\u0301"]), max_size=25), places=CUTS)
def test_texts_of_other_tokenizers_come_back_in_any_pieces(
    other: tokenizers.Tokenizer, text: str, places: list[int]
) -> None:
    token_ids = other.encode(text, add_special_tokens=False).ids
    table = Tokenizer(other).table
    assert table.pieces is None

    assert run(table, cut(token_ids, places)) == other.decode(token_ids)


@given(data=st.data(), places=CUTS)
def test_any_ids_of_other_tokenizers_in_any_pieces_give_the_full_decode(
    other: tokenizers.Tokenizer, data: st.DataObject, places: list[int]
) -> None:
    token_ids = data.draw(st.lists(st.integers(0, other.get_vocab_size() - 1), max_size=20))
    table = Tokenizer(other).table

    assert run(table, cut(token_ids, places)) == other.decode(token_ids)


@given(bytes_and_letters=st.lists(st.sampled_from([*b"\xc3\xa9\xe4\xbd\xa0\xf0\x9f", "a", "▁"]), max_size=9))
def test_any_run_of_byte_tokens_gives_the_full_decode(
    with_byte_tokens: tokenizers.Tokenizer, bytes_and_letters: list[int | str]
) -> None:
    # The ByteFallback decoder makes a whole run of bytes U+FFFD when any of them is wrong.
    tokens = [f"<0x{each:02X}>" if isinstance(each, int) else each for each in bytes_and_letters]
    token_ids = [with_byte_tokens.token_to_id(token) for token in tokens]

    pieces = [[token_id] for token_id in token_ids]
    assert run(Tokenizer(with_byte_tokens).table, pieces) == with_byte_tokens.decode(token_ids)


def test_text_of_other_tokenizers_comes_out_as_it_is_certain(other: tokenizers.Tokenizer) -> None:
    text = "The gateway turns text into numbers"
    token_ids = other.encode(text, add_special_tokens=False).ids
    detokenizer = Tokenizer(other).table.new()

    pieces = [detokenizer.feed([token_id]) for token_id in token_ids]

    assert "".join(pieces) == other.decode(token_ids)
    assert len([piece for piece in pieces if piece]) > 4


def test_unknown_ids_of_other_tokenizers_are_counted(other: tokenizers.Tokenizer) -> None:
    detokenizer = Tokenizer(other).table.new()
    token_ids = other.encode("text", add_special_tokens=False).ids

    text = detokenizer.feed([other.get_vocab_size(), *token_ids, (1 << 32) - 1]) + detokenizer.flush()

    assert text == other.decode(token_ids)
    assert detokenizer.unknown == 2


def test_a_long_answer_takes_time_in_proportion(other: tokenizers.Tokenizer) -> None:
    token_ids = other.encode(" ".join(CORPUS[0].split() * 400), add_special_tokens=False).ids
    detokenizer = Tokenizer(other).table.new()

    pieces = [detokenizer.feed([token_id]) for token_id in token_ids]

    assert "".join(pieces) + detokenizer.flush() == other.decode(token_ids)
