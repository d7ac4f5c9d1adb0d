"""A Hugging Face model folder's tokenizer.

Threads: `encode` may be called from any thread at once; nothing here changes after `load` (truncation and padding
are switched off there, since setting them later on a shared tokenizer is a race).
"""

import json
from array import array
from pathlib import Path
from typing import Any

import tokenizers

from engine_adapters import tokenizer_file
from gateway.tokenizer.chat_template import ChatTemplate
from gateway.tokenizer.detokenize import DetokenizerTable, Piece, piece_of

SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    """`tokenizer.json`, loaded. `fingerprint` says over the wire that an executor has the same vocabulary."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self.fingerprint = tokenizer_file.fingerprint(vocabulary)
        added = tokenizer.get_added_tokens_decoder()
        special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        pieces = self._pieces(vocabulary) if _is_byte_level(tokenizer) else None
        self.table = DetokenizerTable.of(tokenizer, special_ids, pieces)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Raises TokenizerFileError, which names the file and what is wrong with it."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise tokenizer_file.TokenizerFileError(f"{path} does not exist; a model folder needs it")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise tokenizer_file.TokenizerFileError(f"{path} cannot be loaded: {error}") from error

    @property
    def library(self) -> tokenizers.Tokenizer:
        """The library's own; not to be changed."""
        return self._tokenizer

    def encode(self, text: str) -> bytes:
        """The ids of `text`, special tokens in it recognised, none added, as little-endian u32.

        By the library, from beginning to end; what prompts go through is `Encoder`.
        """
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return array("I", encoding.ids).tobytes()

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def _pieces(self, vocabulary: dict[str, int]) -> list[Piece]:
        pieces: list[Piece] = [""] * self.vocab_size
        for token, token_id in vocabulary.items():
            pieces[token_id] = piece_of(_byte_level(token))
        return pieces


def _byte_level(token: str) -> bytes:
    """What the ByteLevel decoder makes of a token: its characters stand for bytes, unless one of them does not."""
    try:
        return bytes(tokenizer_file.BYTE_LEVEL[character] for character in token)
    except KeyError:
        return token.encode()


def load_chat_template(folder: Path) -> ChatTemplate:
    """The folder's chat template; raises TokenizerFileError when it has none or a broken one."""
    path = folder / "tokenizer_config.json"
    settings = tokenizer_file.read_json(path)
    separate = folder / "chat_template.jinja"
    source = separate.read_text("utf-8") if separate.is_file() else _default_template(settings.get("chat_template"))
    if source is None:
        raise tokenizer_file.TokenizerFileError(f"{path} has no chat_template, and there is no {separate.name} either")
    special_tokens = {
        name: token["content"] if isinstance(token, dict) else token
        for name in SPECIAL_TOKENS
        if (token := settings.get(name)) is not None
    }
    try:
        return ChatTemplate(source, special_tokens)
    except Exception as error:  # jinja2 raises its own and, for odd sources, Python's compile errors
        raise tokenizer_file.TokenizerFileError(f"the chat template of {folder} does not compile: {error}") from error


def _default_template(value: Any) -> str | None:
    if isinstance(value, list):
        return next((entry["template"] for entry in value if entry.get("name") == "default"), None)
    return value if isinstance(value, str) else None


def _is_byte_level(tokenizer: tokenizers.Tokenizer) -> bool:
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    return decoder.get("type") == "ByteLevel"
