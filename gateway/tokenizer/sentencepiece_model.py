"""SentencePiece's `tokenizer.model`, made into a `tokenizers.Tokenizer` with the same ids.

The file is a ModelProto of sentencepiece_model.proto; its few fields that matter are read here, since Google's protobuf
runs only in pure Python on 3.13t. tests/tokenizer/test_tokenizer_files.py compares ids with sentencepiece's own.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from engine_adapters.tokenizer_file import TokenizerFileError, read_json_if_there

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
UNIGRAM, BPE = 1, 2
WORD_START = "\u2581"
SPACE_RUNS = ((r"\A +| +\z", ""), (" {2,}", " "))
"""What `remove_extra_whitespaces` does: of all white space, to spaces alone."""


@dataclass(slots=True)
class Piece:
    text: str = ""
    score: float = 0.0
    kind: int = NORMAL


@dataclass(slots=True)
class SentencePieceModel:
    """The fields of the file, with the defaults of its format."""

    pieces: list[Piece] = field(default_factory=list)
    model_type: int = UNIGRAM
    byte_fallback: bool = False
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    treat_whitespace_as_suffix: bool = False

    @classmethod
    def parse(cls, data: bytes) -> "SentencePieceModel":
        """Raises ValueError or IndexError for what is no such file."""
        model = cls()
        for number, value in fields(data):
            if number == 1:
                model.pieces.append(parse_piece(value))
            elif number in SPECS:
                for part, setting in fields(value):
                    if part in SPECS[number]:
                        name, convert = SPECS[number][part]
                        setattr(model, name, convert(setting))
        if not model.pieces:
            raise ValueError("it holds no pieces")
        return model


def signed(value: int) -> int:
    """An int32 of the wire: negative numbers come as 64 bits."""
    return value - (1 << 64) if value >> 63 else value


SPECS: dict[int, dict[int, tuple[str, Any]]] = {
    2: {
        3: ("model_type", int),
        24: ("treat_whitespace_as_suffix", bool),
        35: ("byte_fallback", bool),
        40: ("unk_id", signed),
        41: ("bos_id", signed),
        42: ("eos_id", signed),
    },
    3: {
        2: ("charsmap", bytes),
        3: ("add_dummy_prefix", bool),
        4: ("remove_extra_whitespaces", bool),
        5: ("escape_whitespaces", bool),
    },
}
"""Of ModelProto's trainer_spec and normalizer_spec: field number to attribute."""


def parse_piece(data: bytes) -> Piece:
    piece = Piece()
    for number, value in fields(data):
        if number == 1:
            piece.text = value.decode()
        elif number == 2:
            (piece.score,) = struct.unpack("<f", value)
        elif number == 3:
            piece.kind = value
    return piece


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protobuf message's fields: ints for varints, bytes for all else."""
    position = 0
    while position < len(data):
        key, position = varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = varint(data, position)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(wire_type)
        if wire_type == 2:
            size, position = varint(data, position)
        if size is None or position + size > len(data):
            raise ValueError("it is no protobuf message")
        yield number, data[position : position + size]
        position += size


def varint(data: bytes, position: int) -> tuple[int, int]:
    """(value, position behind it)"""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def load_sentencepiece(path: Path) -> Tokenizer:
    """Raises TokenizerFileError."""
    try:
        model = SentencePieceModel.parse(path.read_bytes())
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise TokenizerFileError(f"{path} is no SentencePiece model: {error}") from error
    if model.model_type not in (UNIGRAM, BPE) or model.treat_whitespace_as_suffix:
        raise TokenizerFileError(
            f"{path} is a SentencePiece model of a kind that is not read here; write a tokenizer.json with "
            f"transformers: AutoTokenizer.from_pretrained({str(path.parent)!r}).save_pretrained({str(path.parent)!r})"
        )
    config = read_json_if_there(path.parent / "tokenizer_config.json")
    tokenizer = Tokenizer(unigram(model) if model.model_type == UNIGRAM else byte_pair(model))
    prefixed = model.add_dummy_prefix and config.get("add_prefix_space", True) is not False
    set_steps(tokenizer, model, prefixed, is_legacy=config.get("legacy", True) is not False)
    unknown = model.pieces[model.unk_id].text
    specials = [piece.text for piece in model.pieces if piece.kind == CONTROL or piece.text == unknown]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in specials])
    add_configured(tokenizer, path, config.get("added_tokens_decoder") or {})
    if model.bos_id >= 0 and config.get("add_bos_token", True) is not False:
        bos = model.pieces[model.bos_id].text
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, model.bos_id)]
        )
    return tokenizer


def add_configured(tokenizer: Tokenizer, path: Path, added: dict[str, dict[str, Any]]) -> None:
    """The added tokens of tokenizer_config.json, by their ids."""
    for number, token in sorted(added.items(), key=lambda each: int(each[0])):
        special = bool(token.get("special"))
        each = AddedToken(token["content"], normalized=bool(token.get("normalized", not special)), special=special)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([each])
        if tokenizer.token_to_id(token["content"]) != int(number):
            raise TokenizerFileError(
                f"{path.parent}/tokenizer_config.json: {token['content']!r} cannot have id {number}"
            )


def unigram(model: SentencePieceModel) -> models.Unigram:
    pieces = [(piece.text, piece.score) for piece in model.pieces]
    return models.Unigram(pieces, unk_id=model.unk_id, byte_fallback=model.byte_fallback)


def byte_pair(model: SentencePieceModel) -> models.BPE:
    """SentencePiece merges the neighbours whose joint piece has the best score; only normal pieces are merged."""
    ids = {piece.text: number for number, piece in enumerate(model.pieces)}
    normal = {piece.text: piece.score for piece in model.pieces if piece.kind == NORMAL}
    ranked = sorted(
        (-score, ids[text], text[:cut], text[cut:])
        for text, score in normal.items()
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    )
    return models.BPE(
        ids,
        [(left, right) for _, _, left, right in ranked],
        unk_token=model.pieces[model.unk_id].text,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        ignore_merges=any(piece.kind == USER_DEFINED for piece in model.pieces),
    )


def set_steps(tokenizer: Tokenizer, model: SentencePieceModel, prefixed: bool, is_legacy: bool) -> None:
    """Normalization, the space before a text, pieces that stay whole, and the way back.

    `is_legacy` as in transformers: every stretch between special tokens gets a space, not only a text's first.
    """
    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(pattern), by) for pattern, by in SPACE_RUNS]
    if model.escape_whitespaces:
        steps.append(normalizers.Replace(" ", WORD_START))
    if prefixed and is_legacy:
        # Metaspace adds no space before a text that begins with one; SentencePiece does.
        steps.append(normalizers.Replace(Regex(rf"\A{WORD_START}"), WORD_START * 2))
    tokenizer.normalizer = normalizers.Sequence(steps)
    before: list[Any] = []
    if prefixed:
        scheme = "always" if is_legacy else "first"
        before.append(pre_tokenizers.Metaspace(replacement=WORD_START, prepend_scheme=scheme, split=False))
    whole = sorted((piece.text for piece in model.pieces if piece.kind == USER_DEFINED), key=len, reverse=True)
    if whole:
        before.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, whole))), behavior="isolated"))
    if before:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(before)
    back: list[Any] = [decoders.Replace(WORD_START, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(back + ([decoders.Strip(" ", 1, 0)] if prefixed else []))
