"""Reads a Hugging Face model folder with the standard library alone: vocabulary, token bytes, ends, limits.

An executor runs in its engine's Python, where `tokenizers` may be missing or another version. What it needs to know of
a tokenizer (its fingerprint, which bytes a token stands for, which ids end a stream) is all in the folder's JSON.
"""

import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

CONTEXT_LENGTH_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_ctx",
)
LANGUAGE_PART_NAMES = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where a multimodal model's config.json keeps what a text model has at the top."""
NO_LIMIT = 1e15
"""From here on transformers' model_max_length means that there is none."""
BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
WORD_START = "\u2581"


class TokenizerFileError(Exception):
    """A model folder that cannot be used; the message names the file and says what is wrong with it."""


def fingerprint(vocabulary: Mapping[str, int]) -> bytes:
    """SHA-256 over a vocabulary with its added tokens, the same wherever it is computed.

    `vocabulary` maps tokens to ids, as `tokenizers` reports it with `get_vocab(with_added_tokens=True)`. In ascending
    order of (id, token), each entry adds to the hash: the id as little-endian u32, the length in bytes of the token's
    UTF-8 as little-endian u32, and the UTF-8 itself.
    """
    entries: list[bytes] = []
    for token_id, token in sorted((token_id, token) for token, token_id in vocabulary.items()):
        encoded = token.encode("utf-8", "surrogatepass")
        entries += (struct.pack("<II", token_id, len(encoded)), encoded)
    return hashlib.sha256(b"".join(entries)).digest()


def byte_level_alphabet() -> dict[str, int]:
    """The characters that stand for the 256 bytes in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


BYTE_LEVEL = byte_level_alphabet()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises TokenizerFileError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TokenizerFileError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise TokenizerFileError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerFileError(f"{path}: holds no JSON object")
    return content


def read_json_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


class TokenizerFile:
    """The vocabulary of one tokenizer.json.

    `ids` maps every token, added ones included, to its id, just as `tokenizers` would; `tokens` is the way back.
    `vocab_size` is the highest id plus one. `added_ids` are all added tokens, `special_ids` those marked special.
    """

    def __init__(self, folder: Path | str) -> None:
        """Raises TokenizerFileError."""
        self.path = Path(folder) / "tokenizer.json"
        content = read_json(self.path)
        try:
            self._read(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TokenizerFileError(f"{self.path}: not a tokenizer this can read: {error!r}") from error
        if not self.ids:
            raise TokenizerFileError(f"{self.path}: the vocabulary is empty")

    def _read(self, content: dict[str, Any]) -> None:
        model = content["model"]
        self.ids = read_vocabulary(model["vocab"])
        added = content.get("added_tokens") or []
        added_ids = place_added_tokens(self.ids, [token["content"] for token in added])
        self.ids.update(added_ids)
        self.tokens = {token_id: token for token, token_id in self.ids.items()}
        self.vocab_size = max(self.tokens, default=-1) + 1
        self.added_ids = frozenset(added_ids.values())
        self.special_ids = frozenset(added_ids[token["content"]] for token in added if token.get("special"))
        self._is_byte_level = names_a(content.get("decoder"), "ByteLevel") or names_a(
            content.get("pre_tokenizer"), "ByteLevel"
        )
        self._is_word_piece = model.get("type") == "WordPiece"
        self._continuation = model.get("continuing_subword_prefix") or "##"

    def fingerprint(self) -> bytes:
        """`fingerprint` of the whole vocabulary."""
        return fingerprint(self.ids)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for inside a text; none for an id without a token."""
        token = self.tokens.get(token_id)
        if token is None:
            return b""
        if token_id in self.added_ids:
            return token.encode("utf-8", "surrogatepass")
        return self._decode(token)

    def _decode(self, token: str) -> bytes:
        if self._is_byte_level:
            # A character outside the table is not of this alphabet: the library's decoder gives such a token verbatim.
            if all(character in BYTE_LEVEL for character in token):
                return bytes(BYTE_LEVEL[character] for character in token)
        elif self._is_word_piece:
            token = token[len(self._continuation) :] if token.startswith(self._continuation) else token
        elif fallback := BYTE_FALLBACK.fullmatch(token):
            return bytes.fromhex(fallback[1])
        else:
            token = token.replace(WORD_START, " ")
        return token.encode("utf-8", "surrogatepass")

    def text_of(self, token_ids: Iterable[int]) -> str:
        """The text of a token sequence, markers included, with U+FFFD where it is not UTF-8."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", "replace")

    def ids_for_text(self, text: str) -> list[int]:
        """Token ids whose bytes, joined, are the text's: the longest token first, never an added one.

        Not how the tokenizer itself would split the text. Bytes that no token stands for are left out, which
        happens only with vocabularies that do not cover all bytes.
        """
        data = text.encode("utf-8", "surrogatepass")
        by_bytes, longest = self._segments
        token_ids, position = [], 0
        while position < len(data):
            for end in range(min(position + longest.get(data[position : position + 2], 1), len(data)), position, -1):
                token_id = by_bytes.get(data[position:end])
                if token_id is not None:
                    token_ids.append(token_id)
                    break
            else:
                end = position + 1
            position = end
        return token_ids

    @cached_property
    def _segments(self) -> tuple[dict[bytes, int], dict[bytes, int]]:
        """Ids by their bytes, and the length of the longest token that begins with any two bytes."""
        by_bytes: dict[bytes, int] = {}
        longest: dict[bytes, int] = {}
        for token_id in sorted(self.tokens.keys() - self.added_ids):
            data = self.token_bytes(token_id)
            if data:
                by_bytes.setdefault(data, token_id)
                longest[data[:2]] = max(longest.get(data[:2], 1), len(data))
        return by_bytes, longest


def read_vocabulary(vocab: object) -> dict[str, int]:
    """Tokens to ids, from the dict of BPE, WordPiece and WordLevel or the (piece, score) list of Unigram."""
    if isinstance(vocab, dict):
        return {str(token): int(token_id) for token, token_id in vocab.items()}
    if isinstance(vocab, list):
        return {piece: token_id for token_id, (piece, _score) in enumerate(vocab)}
    raise ValueError("model.vocab is neither an object nor a list")


def place_added_tokens(ids: Mapping[str, int], contents: list[str]) -> dict[str, int]:
    """The ids of added tokens, as `tokenizers` gives them out on loading.

    It does not take the file's word for them: a token that the vocabulary has keeps that id, the others follow the
    vocabulary's size in the order of the file.
    """
    placed: dict[str, int] = {}
    next_id = len(ids)
    for content in contents:
        if not content or content in placed:
            continue
        if content in ids:
            placed[content] = ids[content]
        else:
            placed[content] = next_id
            next_id += 1
    return placed


def names_a(step: object, kind: str) -> bool:
    """Whether a decoder or pre-tokenizer is of this type or is a sequence with one in it."""
    if not isinstance(step, dict):
        return False
    parts = step.get("decoders") or step.get("pretokenizers") or []
    return step.get("type") == kind or any(names_a(part, kind) for part in parts)


def read_eos_token_ids(folder: Path | str, id_of: Callable[[str], int | None] | None = None) -> tuple[int, ...]:
    """The ids that end a stream: generation_config.json's (else config.json's), and the tokenizer's own eos_token.

    `id_of` knows the ids of tokens; without it tokenizer.json is read.
    """
    folder = Path(folder)
    found = as_ids(read_json_if_there(folder / "generation_config.json"), folder / "generation_config.json")
    for part in language_parts(read_json_if_there(folder / "config.json")):
        found = found or as_ids(part, folder / "config.json")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = read_json_if_there(folder / name).get("eos_token")
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            token_id = (id_of or TokenizerFile(folder).ids.get)(token)
            found += [token_id] if token_id is not None else []
            break
    return tuple(dict.fromkeys(found))


def language_parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """A config.json, and the parts of it that tell of the language model if it has others too."""
    parts = [config]
    for part in parts:
        nested = (part.get(name) for name in LANGUAGE_PART_NAMES)
        parts += [each for each in nested if isinstance(each, dict)]
    return parts


def as_ids(config: dict[str, Any], path: Path) -> list[int]:
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token_id, int) and token_id >= 0 for token_id in ids):
        raise TokenizerFileError(f"{path}: eos_token_id is neither an id nor a list of ids: {value!r}")
    return list(ids)


def read_context_length(folder: Path | str) -> int | None:
    """How many tokens a prompt and its completion may have together; None where the folder does not say.

    From config.json, stretched positions counted as the engines do; else the tokenizer's model_max_length.
    """
    folder = Path(folder)
    for part in language_parts(read_json_if_there(folder / "config.json")):
        for name in CONTEXT_LENGTH_NAMES:
            if isinstance(length := part.get(name), int) and length > 0:
                return stretched(length, part)
    length = read_json_if_there(folder / "tokenizer_config.json").get("model_max_length")
    return int(length) if isinstance(length, (int, float)) and 0 < length < NO_LIMIT else None


def stretched(length: int, config: dict[str, Any]) -> int:
    """`length` with the rope scaling that a config's length does not include yet: YaRN's and the dynamic one's.

    YaRN states its original length. The others (llama3, longrope, mrope, and linear in Gemma 3) state the final one.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    factor = rope.get("factor")
    if not isinstance(factor, (int, float)) or factor <= 1:
        return length
    kind = rope.get("rope_type") or rope.get("type")
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings") or length
        return max(length, int(original * factor))
    return int(length * factor) if kind == "dynamic" else length


def read_vocab_size(folder: Path | str) -> int | None:
    """How many ids the model has embeddings for, by its config.json; None where it does not say."""
    for part in language_parts(read_json_if_there(Path(folder) / "config.json")):
        if isinstance(size := part.get("vocab_size"), int) and size > 0:
            return size
    return None
