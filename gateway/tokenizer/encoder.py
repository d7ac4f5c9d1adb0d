"""Text to token ids by the shortest way that is proven exact: what is known is looked up, what is not is divided among
the threads that are free.

A prompt falls into stretches between added tokens, a long stretch into chunks at safe cuts (`Structure`). Chunks end at
landmarks, which depend on the text around them alone, so that a passage falls into the same chunks wherever it stands.
The cache knows each chunk once, however many prompts it is part of; whole prompts only when they come again. So its
memory is in proportion to the text that differs.

Threads: any thread may call `encode`. Nothing here changes after construction, except the cache, which guards itself,
and the piece tables, of which every thread has its own.
"""

import re
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import tokenizers

from gateway.tokenizer.cache import Space, TokenCache
from gateway.tokenizer.structure import Structure
from gateway.types import Encoded

CHUNK_CHARACTERS = 2048
"""A chunk has at least so many characters, and up to four times as many until a landmark is found."""
SHARE_CHARACTERS = 16_384
"""As much work, at least, as is worth waking a thread for: about 0.7 ms with a warm piece table."""
UNPROVEN = re.compile("[^\0-\uffff]+")
"""What `split_pattern` says nothing of."""
LOOK_BACK_CHARACTERS = 64
MAX_PIECES = 32_768
"""About 5 MB for each thread."""
MAX_PIECE_CHARACTERS = 48


class Share(Protocol):
    """`Pool.share`: a function of every item, on several threads."""

    def __call__[Item, Result](
        self, function: Callable[[Item], Result], items: Sequence[Item], /
    ) -> Sequence[Result]: ...


class Encoder:
    """For one tokenizer, whose truncation and padding are off. Without a `cache` everything is computed, and of no
    text anything is kept, not even single words."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        structure: Structure,
        cache: TokenCache | None = None,
        share: Share | None = None,
        chunk_characters: int = CHUNK_CHARACTERS,
    ) -> None:
        self.structure = structure
        self._chunk = chunk_characters
        self._tokenizer = tokenizer
        self._share = share
        self._space = Space(cache) if cache is not None and self.structure.is_deterministic else None
        self._remembers_pieces = self._space is not None and structure.pieces is not None
        self._pieces = threading.local()
        self._learnt: dict[str, bytes] = {}

    def knows(self, text: str) -> bool:
        """Whether a whole prompt is in the cache."""
        return self._space is not None and text in self._space

    def known(self, text: str) -> bytes | None:
        """The ids of a whole prompt, if they are in the cache."""
        return self._space.get(text) if self._space is not None else None

    def encode(self, text: str, may_wait: bool = True) -> Encoded:
        """The ids of `text`, added tokens in it recognised, none added.

        An event loop must not wait for what another thread is computing just now: `may_wait` is False there.
        """
        started = time.monotonic()
        if (ids := self.known(text)) is not None:
            return Encoded(ids, "hit", len(ids) // 4, 0, 0, time.monotonic() - started, 0.0)
        parts = self._parts(text)
        wanted = {number: part for number, part in enumerate(parts) if isinstance(part, str)}
        hits, known = 0, 0
        if self._space is not None:
            for number, part in [*wanted.items()]:
                if (ids := self._space.get(part)) is not None:
                    parts[number] = ids
                    known += len(ids) // 4
                    hits += 1
                    del wanted[number]
        looked_up = time.monotonic()
        found = self._compute([*wanted.values()], may_wait) if wanted else {}
        encoded = time.monotonic()
        token_ids = b"".join([part if isinstance(part, bytes) else found[part] for part in parts])
        outcome = "off" if self._space is None else "part" if hits else "miss"
        if self._space is not None and len(parts) > 1:
            self._space.put_prompt(text, token_ids)
        lookup_seconds = looked_up - started + time.monotonic() - encoded
        return Encoded(token_ids, outcome, known, hits, len(wanted), lookup_seconds, encoded - looked_up)

    def _parts(self, text: str) -> list[str | bytes]:
        """The chunks of a prompt, and the ids of the added tokens between them."""
        parts: list[str | bytes] = []
        for part in self.structure.split(text):
            if isinstance(part, str) and len(part) > 2 * self._chunk:
                parts.extend(self._chunks(part))
            else:
                parts.append(part)
        return parts

    def _chunks(self, text: str) -> Iterator[str]:
        landmarks, cuts = self.structure.landmarks, self.structure.cuts
        start = 0
        while cuts is not None and landmarks is not None and len(text) - start > 2 * self._chunk:
            if found := landmarks.search(text, start + self._chunk, start + 4 * self._chunk):
                end = found.start() - 1
            elif found := cuts.search(text, start + 4 * self._chunk):
                end = found.end()
            else:
                break
            yield text[start:end]
            start = end
        yield text[start:]

    def _compute(self, texts: list[str], may_wait: bool) -> dict[str, bytes]:
        if self._space is not None:
            return self._space.compute(texts, self._encode_all, may_wait)
        return dict(zip(texts, self._encode_all(texts), strict=True))

    def _encode_all(self, texts: Sequence[str]) -> list[bytes]:
        if self._share is None:
            return self._encode_some(texts)
        return [ids for each in self._share(self._encode_some, batches(texts)) for ids in each]

    def _encode_some(self, texts: Sequence[str]) -> list[bytes]:
        if not self._remembers_pieces:
            return library_ids(self._tokenizer, texts)
        table: PieceTable | None = getattr(self._pieces, "table", None)
        if table is None:
            table = self._pieces.table = PieceTable(self._tokenizer, self.structure, self._learnt)
        return [self._encode_known(table, text) for text in texts]

    def _encode_known(self, table: "PieceTable", text: str) -> bytes:
        """By the table, but for the surroundings of what nothing is proven of, such as an emoji."""
        if (ids := table.encode(text)) is not None:
            return ids
        parts = []
        at = 0
        for start, end in self._strange(text):
            parts += [text[at:start], text[start:end]]
            at = end
        parts.append(text[at:])
        return b"".join(table.encode(part) or library_ids(self._tokenizer, [part])[0] for part in parts if part)

    def _strange(self, text: str) -> Iterator[tuple[int, int]]:
        """Where characters stand that proofs leave out, each time from a safe cut before them to the next one."""
        cuts, end = self.structure.cuts, 0
        if cuts is None:
            return
        for found in UNPROVEN.finditer(text):
            if found.end() <= end:
                continue
            start = end
            for cut in cuts.finditer(text, max(end, found.start() - LOOK_BACK_CHARACTERS), found.start()):
                start = cut.end()
            after = cuts.search(text, found.end())
            end = after.end() if after is not None else len(text)
            yield start, end


def batches(texts: Sequence[str]) -> list[Sequence[str]]:
    """Consecutive texts, so many together that they are worth a thread's while."""
    found: list[Sequence[str]] = []
    start = characters = 0
    for number, text in enumerate(texts):
        characters += len(text)
        if characters >= SHARE_CHARACTERS:
            found.append(texts[start : number + 1])
            start, characters = number + 1, 0
    if start < len(texts):
        found.append(texts[start:])
    return found


def library_ids(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> list[bytes]:
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [array("I", encoding.ids).tobytes() for encoding in encodings]


class PieceTable:
    """What one thread knows of single pieces: the pre-tokenizer's pattern in `re`, and a dict from piece to ids.

    Six times as fast as the library (perf/, "text"): the model gives a piece the same ids wherever it stands, and most
    pieces are words that have been seen. What one thread learns goes into `learnt` too, where the others copy it from:
    with ids of their own they do not contend for reference counts.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, structure: Structure, learnt: dict[str, bytes]) -> None:
        assert structure.pieces is not None
        self._find: Callable[[str], list[str]] = structure.pieces.findall
        self._match = structure.pieces.match
        self._letters = structure.piece_letters
        self._model = tokenizer.model
        self._spelling = structure.spelling
        self._learnt = learnt
        self._ids: dict[str, bytes] = {}

    def encode(self, text: str) -> bytes | None:
        """The ids of a stretch without added tokens; None if there is something in it that nothing is proven of."""
        pieces = self._find(text)
        try:
            return b"".join(map(self._ids.__getitem__, pieces))
        except KeyError:
            pass
        missing = set(pieces).difference(self._ids)
        if not all(map(self._is_understood, missing)):
            return None
        self._learn(missing)
        ids = b"".join(map(self._ids.__getitem__, pieces))
        if len(self._ids) > MAX_PIECES:
            self._ids.clear()
        for piece in missing:
            if len(piece) > MAX_PIECE_CHARACTERS:
                self._ids.pop(piece, None)
        return ids

    def _learn(self, missing: set[str]) -> None:
        learnt, new = self._learnt, []
        for piece in missing:
            try:
                if piece in learnt:
                    self._ids[piece] = bytes(bytearray(learnt[piece]))  # not dict.get, see Space.get
                else:
                    new.append(piece)
            except KeyError:
                new.append(piece)  # another thread has cleared the table just now
        tokenize, spelling = self._model.tokenize, self._spelling
        for piece in new:
            self._ids[piece] = array("I", [token.id for token in tokenize(spelling(piece))]).tobytes()
        if len(self._learnt) > MAX_PIECES:
            self._learnt.clear()
        for piece in new:
            if len(piece) <= MAX_PIECE_CHARACTERS:
                self._learnt[piece] = self._ids[piece]

    def _is_understood(self, piece: str) -> bool:
        """Not the last branch's, and still one piece when it stands alone."""
        if len(piece) == 1 and not self._letters >> ord(piece) & 1:
            return False
        alone = self._match(piece)
        return alone is not None and alone.end() == len(piece)
