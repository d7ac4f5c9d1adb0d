"""Token ids back to text, piece by piece: what is certain comes out at once, and the pieces join to the full decode.

Threads: a `Detokenizer` belongs to one stream. A `DetokenizerTable` is read only; every event loop has a copy of its
own (`copy`), since on 3.13t the reference counts of shared bytes would make the loops fight over cache lines.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import tokenizers

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer(Protocol):
    """Text of one stream. The joined results of `feed` and the final `flush` equal the tokenizer's full decode."""

    unknown: int
    """Token ids met that are not in the vocabulary; they have no text."""

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that became certain with `token_ids`."""

    def flush(self) -> str:
        """What was held back; the stream is over."""


@dataclass(frozen=True, slots=True)
class DetokenizerTable:
    """Makes detokenizers for one vocabulary: `pieces` holds each id's bytes (special tokens: none) if the tokenizer
    is a byte-level one, where a token's bytes do not depend on its neighbours; otherwise it is None."""

    tokenizer: tokenizers.Tokenizer
    pieces: list[bytes] | None

    def new(self) -> Detokenizer:
        return WindowDetokenizer(self.tokenizer) if self.pieces is None else ByteLevelDetokenizer(self.pieces)

    def copy(self) -> "DetokenizerTable":
        pieces = None if self.pieces is None else [bytes(bytearray(piece)) for piece in self.pieces]
        return DetokenizerTable(self.tokenizer, pieces)


class ByteLevelDetokenizer:
    """Bytes by table, then UTF-8 with U+FFFD for what is invalid, as `String::from_utf8_lossy` does it."""

    __slots__ = ("_decode", "_pieces", "unknown")

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.unknown = 0

    def feed(self, token_ids: Sequence[int]) -> str:
        pieces = self._pieces
        try:
            return self._decode(b"".join([pieces[token_id] for token_id in token_ids]))
        except IndexError:
            known = [token_id for token_id in token_ids if token_id < len(pieces)]
            self.unknown += len(token_ids) - len(known)
            return self._decode(b"".join([pieces[token_id] for token_id in known]))

    def flush(self) -> str:
        return self._decode(b"", True)


class WindowDetokenizer:
    """For every other tokenizer: decode a window of recent ids twice, with and without the new ones, and emit the
    difference once it does not end in the middle of a character (the scheme of vLLM and TGI)."""

    __slots__ = ("_ids", "_read", "_tokenizer", "_start", "unknown")

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0
        self._read = 0
        self.unknown = 0

    def feed(self, token_ids: Sequence[int]) -> str:
        for token_id in token_ids:
            if self._tokenizer.id_to_token(token_id) is None:
                self.unknown += 1
            else:
                self._ids.append(token_id)
        text = self._new_text()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._start, self._read = self._read, len(self._ids)
        self._forget()
        return text

    def flush(self) -> str:
        return self._new_text()

    def _new_text(self) -> str:
        known: str = self._tokenizer.decode(self._ids[self._start : self._read])
        text: str = self._tokenizer.decode(self._ids[self._start :])
        return text[len(known) :]

    def _forget(self) -> None:
        del self._ids[: self._start]
        self._read -= self._start
        self._start = 0
