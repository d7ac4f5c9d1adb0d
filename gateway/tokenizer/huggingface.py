"""The tokenizer of a model folder, as the gateway uses it.

Threads: `encode` may be called from any thread at once; nothing here changes after `load` (truncation and padding
are switched off there, since setting them later on a shared tokenizer is a race).
"""

import json
from array import array
from collections.abc import Collection
from pathlib import Path

import tokenizers

from engine_adapters import tokenizer_file
from gateway.tokenizer.detokenize import DetokenizerTable, Piece, piece_of
from gateway.tokenizer.special_tokens import SpecialTokens, read_special_tokens
from gateway.tokenizer.tokenizer_files import load_tokenizer

NO_SPECIALS = SpecialTokens({})


class Tokenizer:
    """A tokenizer and its vocabulary. `fingerprint` says over the wire that an executor has the same one."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, specials: SpecialTokens = NO_SPECIALS) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.specials = specials
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self.base_size: int = tokenizer.get_vocab_size(with_added_tokens=False)
        self.fingerprint = tokenizer_file.fingerprint(vocabulary)
        added = tokenizer.get_added_tokens_decoder()
        special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.added_tokens = {token.content: token_id for token_id, token in added.items()}
        pieces = self._pieces(vocabulary) if _is_byte_level(tokenizer) else None
        self.table = DetokenizerTable.of(tokenizer, special_ids, pieces)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Raises TokenizerFileError, which names the file and what is wrong with it."""
        tokenizer = load_tokenizer(folder)
        return cls(tokenizer, read_special_tokens(folder, tokenizer))

    def show_markers(self, markup: Collection[str]) -> None:
        """Special tokens that are a part of `markup` get a text for who asks the table; before its first use."""
        found = [token_id for token, token_id in self.added_tokens.items() if any(token in tag for tag in markup)]
        self.table = self.table.with_markers(self.table.special_ids.intersection(found))

    def id_of(self, token: str) -> int | None:
        """The id of a token by its text."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

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


def _is_byte_level(tokenizer: tokenizers.Tokenizer) -> bool:
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    return decoder.get("type") == "ByteLevel"
