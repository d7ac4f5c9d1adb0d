"""Token ids back to text, piece by piece: what is certain comes out at once, and the pieces join to the full decode.

Threads: a `Detokenizer` belongs to one stream. A `DetokenizerTable` is read only; every event loop has a copy of its
own (`copy`), since on 3.13t the reference counts of shared pieces would make the loops fight over cache lines.
"""

import codecs
import re
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


Piece = str | bytes
"""A token's text; its bytes where they are not whole characters."""


def piece_of(data: bytes) -> Piece:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


@dataclass(frozen=True, slots=True)
class DetokenizerTable:
    """Makes detokenizers for one vocabulary.

    `pieces` holds each id's piece if the tokenizer is a byte-level one, where a token's bytes do not depend on its
    neighbours, else None. `visible` is the same with nothing for special tokens, and `marked` with nothing for those
    that are not in `marker_ids`: parsers see these.
    """

    tokenizer: tokenizers.Tokenizer
    special_ids: frozenset[int]
    pieces: list[Piece] | None
    visible: list[Piece] | None
    marked: list[Piece] | None = None
    marker_ids: frozenset[int] = frozenset()

    @classmethod
    def of(
        cls,
        tokenizer: tokenizers.Tokenizer,
        special_ids: frozenset[int],
        pieces: list[Piece] | None,
        marker_ids: frozenset[int] = frozenset(),
    ) -> "DetokenizerTable":
        visible = marked = None
        if pieces is not None:
            visible = ["" if token_id in special_ids else piece for token_id, piece in enumerate(pieces)]
            marked = visible
        if pieces is not None and visible is not None and marker_ids:
            marked = [pieces[token_id] if token_id in marker_ids else piece for token_id, piece in enumerate(visible)]
        return cls(tokenizer, special_ids, pieces, visible, marked, marker_ids)

    def with_markers(self, marker_ids: frozenset[int]) -> "DetokenizerTable":
        return DetokenizerTable.of(self.tokenizer, self.special_ids, self.pieces, marker_ids)

    def new(self, skip_special_tokens: bool = True, shows_markers: bool = False) -> Detokenizer:
        """`shows_markers`: the special tokens among `marker_ids` have their text all the same."""
        if self.pieces is None:
            skipped = self.special_ids if skip_special_tokens else frozenset()
            return WindowDetokenizer(self.tokenizer, skipped - self.marker_ids if shows_markers else skipped)
        pieces = (self.marked if shows_markers else self.visible) if skip_special_tokens else self.pieces
        return ByteLevelDetokenizer(pieces or [])

    def token_bytes(self, token_id: int) -> bytes:
        """One token by itself, special or not; b"" for an unknown one."""
        if self.pieces is None:
            text: str = self.tokenizer.decode([token_id], skip_special_tokens=False)
            return text.encode()
        piece = self.pieces[token_id] if token_id < len(self.pieces) else b""
        return piece.encode() if isinstance(piece, str) else piece

    def token_text(self, token_id: int) -> str:
        """The same as text, with U+FFFD for bytes that are no whole character."""
        return self.token_bytes(token_id).decode(errors="replace")


class ByteLevelDetokenizer:
    """Pieces by table; bytes that are not whole characters go through a decoder, with U+FFFD for what is invalid, as
    `String::from_utf8_lossy` does it. Nearly every token is text, and while no character is incomplete costs no more
    than a join."""

    __slots__ = ("_decoder", "_is_incomplete", "_pieces", "unknown")

    def __init__(self, pieces: list[Piece]) -> None:
        self._pieces = pieces
        self._decoder: codecs.IncrementalDecoder | None = None
        self._is_incomplete = False
        self.unknown = 0

    def feed(self, token_ids: Sequence[int]) -> str:
        pieces = self._pieces
        if not self._is_incomplete:
            try:
                return "".join([pieces[token_id] for token_id in token_ids])  # type: ignore[misc]
            except (TypeError, IndexError):
                pass  # bytes among them, or an id beyond the vocabulary
        return self._feed_bytes(token_ids)

    def flush(self) -> str:
        return self._decoder.decode(b"", True) if self._decoder is not None else ""

    def _feed_bytes(self, token_ids: Sequence[int]) -> str:
        decoder = self._decoder
        if decoder is None:
            decoder = self._decoder = UTF_8("replace")
        known = [self._pieces[token_id] for token_id in token_ids if token_id < len(self._pieces)]
        self.unknown += len(token_ids) - len(known)
        text = decoder.decode(b"".join([piece.encode() if isinstance(piece, str) else piece for piece in known]))
        self._is_incomplete = bool(decoder.getstate()[0])
        return text


UTF_8 = codecs.getincrementaldecoder("utf-8")
BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


class WindowDetokenizer:
    """For every other tokenizer: decode a window of recent ids twice, with and without the new ones, and emit the
    difference once it does not end in the middle of a character (the scheme of vLLM and TGI).

    A run of byte tokens is text as a whole or U+FFFDs as a whole, so nothing of it is certain before it ends.
    """

    __slots__ = ("_ids", "_in_bytes", "_read", "_skipped", "_start", "_tokenizer", "unknown")

    def __init__(self, tokenizer: tokenizers.Tokenizer, skipped: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._ids: list[int] = []
        self._in_bytes = False
        self._start = 0
        self._read = 0
        self.unknown = 0

    def feed(self, token_ids: Sequence[int]) -> str:
        for token_id in token_ids:
            token = self._tokenizer.id_to_token(token_id)
            if token is None:
                self.unknown += 1
            elif token_id not in self._skipped:
                self._ids.append(token_id)
                self._in_bytes = BYTE_TOKEN.fullmatch(token) is not None
        text = "" if self._in_bytes else self._new_text()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._start, self._read = self._read, len(self._ids)
        self._forget()
        return text

    def flush(self) -> str:
        return self._new_text()

    def _new_text(self) -> str:
        known = self._decode(self._ids[self._start : self._read])
        return self._decode(self._ids[self._start :])[len(known) :]

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=False)
        return text

    def _forget(self) -> None:
        del self._ids[: self._start]
        self._read -= self._start
        self._start = 0
