"""Where a tokenizer's text falls into parts that encode independently, read from the structure of its tokenizer.json.

A shortcut is taken only where it follows from that structure that the ids stay the same; what is not understood gets
none, and `Structure.report` says why. What is derived is also tried out on made-up texts before it is used.

The library first finds the added tokens that are not `normalized` in the raw text, leftmost and longest first. Each
stretch between them goes on by itself: normalizer, the `normalized` added tokens, pre-tokenizers, model. So both kinds
of borders are exact; within a stretch, `safe_pairs` proves where text can be cut.
"""

import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import tokenizers

from engine_adapters.tokenizer_file import BYTE_LEVEL
from gateway.tokenizer.split_pattern import (
    EVERY,
    Facts,
    Node,
    NotUnderstood,
    Parser,
    facts_of,
    set_source,
    to_python,
)

WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""What `rstrip` takes along: Unicode's White_Space, as a set."""
GPT_2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What a ByteLevel pre-tokenizer splits by."""
VISIBLE = sum(1 << code for code in range(0x21, 0x7F))
CAPITALS = sum(1 << code for code in range(0x41, 0x5B))
SPACE = 1 << 0x20
LINE_SPACE = SPACE | 1 << 0x0A | 1 << 0x0D | 1 << 0x09
INDEPENDENT = {
    "BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation", "Sequence", "Split",
    "UnicodeScripts", "Whitespace", "WhitespaceSplit",
}  # fmt: skip
"""Pre-tokenizers that treat each stretch alike, wherever it stands (Metaspace unless its scheme is "first")."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """A pre-tokenizer. `allowed` bounds (before, behind) a cut; `pattern` is what it splits by, None if it does not;
    `isolates` says that matches and what is between them are all kept as pieces."""

    allowed: tuple[int, int] = (EVERY, EVERY)
    pattern: Node | None = None
    isolates: bool = True
    always_splits: bool = False
    """At every pair that is allowed."""
    spells_bytes: bool = False
    """The model gets a character for each byte."""


class AddedTokens:
    """Added tokens as the library finds them in a text: the leftmost, and of those that begin there the longest."""

    def __init__(self, tokens: Iterable[Json]) -> None:
        self.ids: dict[str, bytes] = {}
        groups: dict[str, list[Json]] = {}
        for token in tokens:
            self.ids[token["content"]] = token["id"].to_bytes(4, "little")
            groups.setdefault(token["content"][0], []).append(token)
        # One pattern for each first character: `re` looks for a single one at the speed of memchr.
        self._patterns = [re.compile(_trie_source(group)) for group in groups.values()]

    def split(self, text: str) -> list[str | bytes]:
        """The stretches between the tokens, and in place of the tokens their ids."""
        nexts = [found for pattern in self._patterns if (found := pattern.search(text))]
        if not nexts:
            return [text]
        parts: list[str | bytes] = []
        start = 0
        while nexts:
            found = min(nexts, key=re.Match.start) if len(nexts) > 1 else nexts[0]
            begin, end = found.span()
            if begin > start:
                parts.append(text[start:begin])
            name = found[0]
            # Not by `get`: on 3.13t that takes 20 µs for what another thread made, and a message has two of them.
            parts.append(self.ids[name] if name in self.ids else self._stripped(name))
            start = end
            nexts = [later for each in nexts if (later := each if each.start() >= end else each.re.search(text, end))]
        if start < len(text):
            parts.append(text[start:])
        return parts

    def _stripped(self, name: str) -> bytes:
        return next(self.ids[name[:end]] for end in range(len(name), 0, -1) if name[:end] in self.ids)


def _trie_source(tokens: list[Json]) -> str:
    """A pattern for any of some tokens, the longest first; one with `rstrip` takes the white space behind it along."""
    trie: Json = {}
    for token in tokens:
        node = trie
        for character in token["content"]:
            node = node.setdefault(character, {})
        node[""] = f"[{WHITE_SPACE}]*" if token["rstrip"] else ""
    return _node_source(trie)


def _node_source(node: Json) -> str:
    prefix = ""
    while len(node) == 1 and "" not in node:
        ((character, node),) = node.items()
        prefix += re.escape(character)
    branches = [re.escape(key) + _node_source(child) for key, child in node.items() if key]
    if "" in node:
        branches.append(node[""])
    return prefix + (branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})")


class Structure:
    """What is proven of one tokenizer.

    `raw` and `normalized` are the added tokens at which text may be divided, None for no division. `cuts` finds places
    inside a stretch: matches end where it can be cut. `landmarks` are some of these places, chosen by what stands
    behind them: the cut is one character before the match. `pieces` finds all pieces of a stretch that the model
    encodes one by one, `spelling` is how the model reads them, `piece_letters` are those that can be a piece by
    themselves. `is_deterministic`: a text has one encoding.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        content = json.loads(tokenizer.to_str())
        self.is_deterministic = not content["model"].get("dropout")
        self.reasons: dict[str, str] = {}
        self.raw: AddedTokens | None = None
        self.normalized: AddedTokens | None = None
        self.cuts: re.Pattern[str] | None = None
        self.landmarks: re.Pattern[str] | None = None
        self.pieces: re.Pattern[str] | None = None
        self.spelling: Callable[[str], str] = str
        self.piece_letters = 0
        self.is_identity = _is_identity(content.get("normalizer"))
        added: list[Json] = content.get("added_tokens") or []
        if not self._attempt("segments", lambda: self._divide(content, added)):
            self.reasons |= {"cuts": self.reasons["segments"], "pieces": self.reasons["segments"]}
            return
        self._attempt("cuts", lambda: self._find_cuts(content))
        self._attempt("pieces", lambda: self._find_pieces(content, added))
        self._attempt("cuts", lambda: self._try_cuts(tokenizer))
        self._attempt("pieces", lambda: self._try_pieces(tokenizer))

    def split(self, text: str) -> list[str | bytes]:
        """Stretches that encode by themselves, and the ids of added tokens between them."""
        parts: list[str | bytes] = self.raw.split(text) if self.raw else [text]
        if self.normalized is None:
            return parts
        split = self.normalized.split
        return [each for part in parts for each in (split(part) if isinstance(part, str) else (part,))]

    def report(self) -> dict[str, str]:
        """For each shortcut, "proven" or why it is not taken."""
        return {name: self.reasons.get(name, "proven") for name in ("segments", "cuts", "pieces")}

    def _attempt(self, name: str, prove: Callable[[], None]) -> bool:
        try:
            prove()
        except NotUnderstood as reason:
            self.reasons[name] = str(reason)
            return False
        return True

    def _divide(self, content: Json, added: list[Json]) -> None:
        for step in _flat(content.get("pre_tokenizer"), "pretokenizers"):
            if step["type"] not in INDEPENDENT:
                raise NotUnderstood(f"pre-tokenizer {step['type']}")
            if step["type"] == "Metaspace" and step.get("prepend_scheme", "always") == "first":
                raise NotUnderstood("Metaspace treats the beginning of the text in its own way")
        if any(token["single_word"] for token in added):
            raise NotUnderstood("an added token is single_word: it looks at what stands around it")
        raw = [token for token in added if not token["normalized"] and token["content"]]
        strips = any(token["lstrip"] or token["rstrip"] for token in added)
        if strips and any(token["content"] != token["content"].strip(_WHITE) for token in added):
            raise NotUnderstood("added tokens strip white space that belongs to others")
        if any(token["lstrip"] for token in raw):
            raise NotUnderstood("an added token is lstrip")
        self.raw = AddedTokens(raw) if raw else None
        normalized = [token for token in added if token["normalized"] and token["content"]]
        if normalized and self.is_identity and not any(token["lstrip"] for token in normalized):
            self.normalized = AddedTokens(normalized)

    def _find_cuts(self, content: Json) -> None:
        before, behind = _normalizer_bounds(content.get("normalizer"))
        if self.normalized is None and any(token["normalized"] for token in content.get("added_tokens") or []):
            raise NotUnderstood("a normalized added token may stand across a cut")
        steps = [_step(each) for each in _flat(content.get("pre_tokenizer"), "pretokenizers")]
        for step in steps:
            before, behind = before & step.allowed[0], behind & step.allowed[1]
        pairs = safe_pairs(steps, before, behind)
        if not pairs:
            raise NotUnderstood("no pair of characters is always divided")
        self.cuts = re.compile("|".join(f"{set_source(one)}(?={set_source(other)})" for one, other in pairs))
        # The rarest sets come first: `re` passes over what cannot begin a match at the speed of a table look-up.
        rare, rarer = map(set_source, landmark_letters())
        behind_pair = "|".join(set_source(one) + set_source(other) for one, other in pairs)
        self.landmarks = re.compile(f"{rare}(?={rarer})(?<=(?:{behind_pair})[\\s\\S])")

    def _find_pieces(self, content: Json, added: list[Json]) -> None:
        if not self.is_identity:
            raise NotUnderstood("the normalizer changes text")
        if self.normalized is None and any(token["normalized"] for token in added):
            raise NotUnderstood("an added token may stand within a piece")
        steps = [_step(each) for each in _flat(content.get("pre_tokenizer"), "pretokenizers")]
        if any(step.allowed != (EVERY, EVERY) or step.always_splits or not step.isolates for step in steps):
            raise NotUnderstood("a pre-tokenizer does more than split by a pattern")
        if sum(step.spells_bytes for step in steps[:-1]):
            raise NotUnderstood("bytes are spelt before the last pre-tokenizer")
        if steps and steps[-1].spells_bytes:
            self.spelling = spelt_bytes
        patterns = [step.pattern for step in steps if step.pattern is not None]
        self.pieces = re.compile(pieces_source(patterns))
        for pattern in patterns:
            self.piece_letters |= facts_of(pattern).alone

    def _try_cuts(self, tokenizer: tokenizers.Tokenizer) -> None:
        cuts, self.cuts = self.cuts, None
        if cuts is None:
            return
        for text in made_up_texts():
            places = [0, *(found.end() for found in cuts.finditer(text)), len(text)]
            parts = [text[start:end] for start, end in zip(places, places[1:], strict=False)]
            whole, *encodings = tokenizer.encode_batch_fast([text, *parts], add_special_tokens=False)
            if [token_id for encoding in encodings for token_id in encoding.ids] != whole.ids:
                raise NotUnderstood(f"cutting {text!r} changes its ids, although it should not")
        self.cuts = cuts

    def _try_pieces(self, tokenizer: tokenizers.Tokenizer) -> None:
        pieces, self.pieces = self.pieces, None
        if pieces is None:
            return
        for text in made_up_texts():
            found, expected = pieces.findall(text), tokenizer.pre_tokenizer.pre_tokenize_str(text)
            if found != [text[start:end] for _, (start, end) in expected]:
                raise NotUnderstood(f"{text!r} falls into other pieces than it should")
            if [*map(self.spelling, found)] != [spelt for spelt, _ in expected]:
                raise NotUnderstood(f"pieces of {text!r} are not spelt as they should")
        self.pieces = pieces


SPELT = {byte: character for character, byte in BYTE_LEVEL.items()}


def spelt_bytes(piece: str) -> str:
    """A character for each byte, as byte-level vocabularies have it."""
    return piece.encode().decode("latin-1").translate(SPELT)


@cache
def made_up_texts() -> tuple[str, ...]:
    """Texts of characters that pre-tokenizers treat in different ways, in random order."""
    generator = random.Random(0)
    return tuple("".join(generator.choices(MADE_UP_OF, k=60)) for _ in range(40))


MADE_UP_OF = [
    *"  \t\n\r abcXYZ'''stredlm019.,;:!?/-_(){}<>|@#$%^&*+=~`éßÄ№٣½Ǆʰ字文かカ한ا\u0301\u00a0\u3000。，«’—…",
    "\n\n",
    "   ",
]


_WHITE = "".join(character for code in range(0x3001) if re.match(f"[{WHITE_SPACE}]", character := chr(code)))


@cache
def landmark_letters() -> tuple[int, int]:
    """Two sets with about an eighth of all characters each, as if drawn by lot."""
    first = sum(1 << code for code in range(0x10000) if code * 0x9E3779B1 >> 16 & 7 == 5)
    second = sum(1 << code for code in range(0x10000) if code * 0x85EBCA6B >> 15 & 7 == 2)
    return EVERY & first, EVERY & second


def _is_identity(normalizer: Json | None) -> bool:
    return not _flat(normalizer, "normalizers")


def _flat(part: Json | None, name: str) -> list[Json]:
    """The members of nested sequences, in order."""
    if part is None:
        return []
    return [each for inner in part[name] for each in _flat(inner, name)] if part["type"] == "Sequence" else [part]


def _normalizer_bounds(normalizer: Json | None) -> tuple[int, int]:
    """Which characters may stand before and behind a cut so that both sides are normalized as they are together.

    A visible ASCII character stays what it is (a capital apart) and white space joins with nothing before it.
    """
    before, behind = EVERY, EVERY
    for each in _flat(normalizer, "normalizers"):
        match each["type"]:
            case "NFC" | "NFD" | "NFKC" | "NFKD":
                before, behind = before & VISIBLE, behind & LINE_SPACE
            case "Lowercase" | "StripAccents" | "BertNormalizer":
                before, behind = before & VISIBLE & ~CAPITALS, behind & SPACE
            case kind:
                raise NotUnderstood(f"normalizer {kind}")
    return before, behind


def _step(part: Json) -> Step:
    match part["type"]:
        case "Split" if part["behavior"] in ("Isolated", "Removed") and not part["invert"]:
            pattern = part["pattern"]
            source = pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"])
            return Step(pattern=Parser(source).parse(), isolates=part["behavior"] == "Isolated")
        case "ByteLevel":
            # A prefix space goes before whatever does not begin with a space.
            allowed = (EVERY, SPACE) if part["add_prefix_space"] else (EVERY, EVERY)
            pattern = Parser(GPT_2_SPLIT).parse() if part.get("use_regex", True) else None
            return Step(allowed, pattern, spells_bytes=True)
        case "WhitespaceSplit" | "Whitespace" | "BertPreTokenizer":
            return Step((VISIBLE, SPACE), always_splits=True)
        case "Metaspace" if part.get("split", True):
            return Step((VISIBLE, SPACE), always_splits=True)
        case "Digits" | "Punctuation" if part.get("behavior", "Isolated") == "Isolated":
            # Each splits around characters of its kind, and a space is of neither.
            return Step((VISIBLE, SPACE))
    raise NotUnderstood(f"pre-tokenizer {part['type']} of this form")


def safe_pairs(steps: list[Step], before: int, behind: int) -> list[tuple[int, int]]:
    """(before, behind): sets such that text may be cut between a character of the one and a character of the other.

    A cut is safe if no attempt at a match ever steps over it and no lookahead is asked at it, so that the matcher does
    the same on either side as in the whole text; and if one of the steps divides there anyway, since one of the two
    characters always belongs to a match.
    """
    facts: list[Facts | None] = [facts_of(step.pattern) if step.pattern is not None else None for step in steps]
    classes = _classes(before, behind, [each for each in facts if each])
    rows: dict[int, int] = {}
    for one in classes:
        if one & before:
            others = sum(other for other in classes if other & behind and _is_safe(one, other, steps, facts))
            rows[others] = rows.get(others, 0) | one
    return [(one, other) for other, one in rows.items() if other]


def _classes(before: int, behind: int, facts: list[Facts]) -> list[int]:
    """The characters, divided so that those of one class are alike in all that `facts` know."""
    masks = {before, behind}
    for each in facts:
        masks |= {each.alone, *(mask for pair in each.pairs + each.looks for mask in pair)}
    classes = [EVERY]
    for mask in masks:
        classes = [part for each in classes for part in (each & mask, each & ~mask) if part]
    return classes


def _is_safe(one: int, other: int, steps: list[Step], facts: list[Facts | None]) -> bool:
    for step, fact in zip(steps, facts, strict=True):
        if step.always_splits:
            return True
        if fact is None:
            continue
        if any(one & first and other & second for first, second in fact.pairs + fact.looks):
            return False
        if (one | other) & fact.alone:
            return True
    return False


def pieces_source(patterns: list[Node]) -> str:
    """One pattern whose matches are the pieces that several make one after the other; matches cover every text.

    All but the last must be runs of characters that are theirs alone: those are out of reach for the ones behind. What
    nothing is known of (beyond the basic plane, or in no match) is found by the last branch, one character at a time.
    """
    if not patterns:
        raise NotUnderstood("there is no pattern to split by")
    taken, branches = 0, []
    for number, pattern in enumerate(patterns):
        facts = facts_of(pattern)
        if number < len(patterns) - 1 and (facts.looks or facts.members & ~facts.alone):
            raise NotUnderstood("patterns that depend on each other")
        branches.append(to_python(pattern, taken))
        taken |= facts.alone
    return "|".join((*branches, UNKNOWN_PIECE))


UNKNOWN_PIECE = r"[\s\S]"
