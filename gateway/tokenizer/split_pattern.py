"""Regular expressions of pre-tokenizers, parsed: what holds of all their matches can be read off, and the same pattern
can be had for Python's `re`.

Sets of characters are integers with a bit for each code point of the basic multilingual plane, surrogates excluded.
What `\\p{L}` or `\\s` mean is asked of the tokenizers library itself, so that its version of Unicode counts.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

from tokenizers import Regex, pre_tokenizers

PLANE = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x10000))))
EVERY = ((1 << 0x10000) - 1) & ~(((1 << 0x800) - 1) << 0xD800)
ASCII = (1 << 0x80) - 1
CONTRACTIONS = ("'s|'t|'re|'ve|'m|'ll|'d", "[sdmt]|ll|ve|re")
"""What may stand where case is ignored: no two of these letters are together the folded form of another character."""
ESCAPES = {"r": "\r", "n": "\n", "t": "\t", "f": "\f", "v": "\v"}
REPETITION = re.compile(r"([*+?])([+?]?)|\{(\d+)(?:(,)(\d*))?\}(?![+?])")
NAMED = re.compile(r"\\(?:[pP]\{\^?\w+\}|[sSdDwW])")


class NotUnderstood(Exception):
    """A pattern with something in it that this module does not reason about."""


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of a set."""

    members: int


@dataclass(frozen=True, slots=True)
class Look:
    """`(?=.)` or `(?!.)`: the next character, which is not consumed, is or is not of a set."""

    members: int
    negative: bool


@dataclass(frozen=True, slots=True)
class Row:
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Either:
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`suffix` is "", "?" (lazy) or "+" (possessive)."""

    item: "Node"
    least: int
    most: int | None
    suffix: str


Node = Chars | Look | Row | Either | Repeat


@cache
def members_of(pattern: str) -> int:
    """The characters that a pattern of one character matches, as the library sees it."""
    split = pre_tokenizers.Split(Regex(f"(?:{pattern})+"), "removed")
    others = 0
    for _, (start, end) in split.pre_tokenize_str(PLANE):
        others |= ((1 << (end - start)) - 1) << start
    low, high = others & ((1 << 0xD800) - 1), others >> 0xD800 << 0xE000
    return EVERY & ~(low | high)


class Parser:
    """Of one pattern; raises NotUnderstood for whatever is not plainly one of the forms below."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._ignores_case = False

    def parse(self) -> Node:
        node = self._either()
        if self._at < len(self._source):
            self._refuse()
        return node

    def _refuse(self) -> None:
        raise NotUnderstood(f"the pattern has {self._source[self._at : self._at + 12]!r} at {self._at}")

    def _ahead(self, text: str) -> bool:
        return self._source.startswith(text, self._at)

    def _take(self, text: str) -> bool:
        if found := self._ahead(text):
            self._at += len(text)
        return found

    def _either(self) -> Node:
        rows = [self._row()]
        while self._take("|"):
            rows.append(self._row())
        return rows[0] if len(rows) == 1 else Either(tuple(rows))

    def _row(self) -> Node:
        items: list[Node] = []
        while self._at < len(self._source) and self._source[self._at] not in "|)":
            items.append(self._repeated())
        return items[0] if len(items) == 1 else Row(tuple(items))

    def _repeated(self) -> Node:
        item = self._atom()
        found = REPETITION.match(self._source, self._at)
        if found is None:
            return item
        self._at = found.end()
        sign, suffix, low, comma, high = found.groups()
        if isinstance(item, Look) or REPETITION.match(self._source, self._at):
            self._refuse()
        if sign:
            return Repeat(item, int(sign == "+"), 1 if sign == "?" else None, suffix)
        return Repeat(item, int(low), int(high) if high else None if comma else int(low), "")

    def _atom(self) -> Node:
        if self._ahead("["):
            return Chars(self._set())
        if self._take("(?i:"):
            return self._ignoring_case()
        for opening, negative in (("(?!", True), ("(?=", False)):
            if self._take(opening):
                item = self._group()
                if isinstance(item, Chars):
                    return Look(item.members, negative)
                self._refuse()
        if self._take("(?:") or (not self._ahead("(?") and self._take("(")):
            return self._group()
        if self._source[self._at] in ".^$*+?{(":
            self._refuse()
        return Chars(self._character()[1])

    def _group(self) -> Node:
        item = self._either()
        if not self._take(")"):
            self._refuse()
        return item

    def _ignoring_case(self) -> Node:
        if not any(self._ahead(f"{letters})") for letters in CONTRACTIONS):
            self._refuse()
        self._ignores_case = True
        item = self._group()
        self._ignores_case = False
        return item

    def _character(self) -> tuple[str, int]:
        """A literal, escaped or not, or "" for a named set; and its members."""
        if named := NAMED.match(self._source, self._at):
            self._at = named.end()
            return "", members_of(named[0])
        character = self._source[self._at]
        self._at += 1
        if character == "\\":
            if self._at == len(self._source):
                self._refuse()
            character = self._source[self._at]
            if character.isalnum() and character not in ESCAPES:
                self._refuse()
            character = ESCAPES.get(character, character)
            self._at += 1
        if ord(character) > 0xFFFF:
            self._refuse()
        if self._ignores_case and character.isalpha():
            return character, members_of(f"(?i:{character})")
        return character, 1 << ord(character)

    def _set(self) -> int:
        self._at += 1
        is_negated = self._take("^")
        members = 0
        while not self._take("]"):
            if self._at >= len(self._source) or self._ahead("[") or self._ahead("&&"):
                self._refuse()
            first, found = self._character()
            members |= found
            if self._ahead("-") and not self._ahead("-]"):
                self._at += 1
                last, _ = self._character()
                if not first or not last or self._ignores_case or last < first:
                    self._refuse()
                members |= (1 << (ord(last) + 1)) - (1 << ord(first))
        return EVERY & ~members if is_negated else EVERY & members


@dataclass(slots=True)
class Facts:
    """What holds of all matches of a pattern, wherever the matcher looks and whatever it tries.

    `pairs` are (one, next): no attempt at a match ever steps from a character to the next one unless some pair has the
    former in `one` and the latter in `next`. `looks` are pairs too: a lookahead whose answer depends on the next
    character, asked behind a character of `one`, for which `next` and the end of the text differ.
    `alone`: characters that always belong to a match.
    """

    pairs: list[tuple[int, int]] = field(default_factory=list)
    looks: list[tuple[int, int]] = field(default_factory=list)
    alone: int = 0
    members: int = 0
    """Every character that can be part of a match."""


def facts_of(node: Node) -> Facts:
    """By the positions automaton (Glushkov 1961). Raises NotUnderstood when the pattern matches the empty text."""
    walk = _Walk()
    is_nullable, _, _ = walk.visit(node)
    if is_nullable:
        raise NotUnderstood("the pattern matches the empty text")
    facts = Facts(alone=alone(node))
    for one, followers in enumerate(walk.followers):
        leaf = walk.leaves[one]
        if isinstance(leaf, Look):
            continue
        facts.members |= leaf.members
        for other in followers:
            following = walk.leaves[other]
            where = facts.looks if isinstance(following, Look) else facts.pairs
            where.append((leaf.members, following.members))
    return facts


class _Walk:
    """Numbers the leaves of a tree and notes which may follow which. Lookaheads consume nothing: all go past them."""

    def __init__(self) -> None:
        self.leaves: list[Chars | Look] = []
        self.followers: list[set[int]] = []

    def visit(self, node: Node) -> tuple[bool, set[int], set[int]]:
        """(whether it can be empty, the leaves it can begin with, those it can end with)."""
        match node:
            case Chars() | Look():
                number = len(self.leaves)
                self.leaves.append(node)
                self.followers.append(set())
                return isinstance(node, Look), {number}, {number}
            case Either(items):
                parts = [self.visit(item) for item in items]
                return (
                    any(p[0] for p in parts),
                    set().union(*(p[1] for p in parts)),
                    set().union(*(p[2] for p in parts)),
                )
            case Row(items):
                return self._row(items)
            case Repeat(item, least, most, _):
                is_nullable, first, last = self.visit(item)
                if most is None or most > 1:
                    self._link(last, first)
                return is_nullable or least == 0, first, last

    def _row(self, items: Iterable[Node]) -> tuple[bool, set[int], set[int]]:
        is_nullable, first, last = True, set[int](), set[int]()
        for item in items:
            can_be_empty, begins, ends = self.visit(item)
            self._link(last, begins)
            first = first | begins if is_nullable else first
            last = last | ends if can_be_empty else ends
            is_nullable = is_nullable and can_be_empty
        return is_nullable, first, last

    def _link(self, last: set[int], first: set[int]) -> None:
        for number in last:
            self.followers[number] |= first


def alone(node: Node) -> int:
    """Characters that match by themselves, whatever stands around them."""
    match node:
        case Chars(members):
            return members
        case Look():
            return 0
        case Either(items):
            return _union(map(alone, items))
        case Repeat(item, least, _, _):
            return alone(item) if least <= 1 else 0
        case Row(items):
            return _union(
                alone(item)
                for number, item in enumerate(items)
                if all(map(_may_be_left_out, items[:number] + items[number + 1 :]))
            )


def _union(masks: Iterable[int]) -> int:
    total = 0
    for mask in masks:
        total |= mask
    return total


def _may_be_left_out(node: Node) -> bool:
    # A possessive repetition keeps what it has taken, so that another item may never get its turn.
    return isinstance(node, Repeat) and node.least == 0 and node.suffix != "+"


def to_python(node: Node, excluded: int = 0) -> str:
    """The pattern for `re`, equal in its matches on texts of the basic plane. Never takes characters of `excluded`, and
    takes a lookahead before one of them for the end of the text."""
    match node:
        case Chars(members):
            return set_source(members & ~excluded)
        case Look(members, negative):
            return f"(?{'!' if negative else '='}{set_source(members & ~excluded)})"
        case Either(items):
            return f"(?:{'|'.join(to_python(item, excluded) for item in items)})"
        case Row(items):
            return "".join(to_python(item, excluded) for item in items)
        case Repeat(item, least, most, suffix):
            inner = to_python(item, excluded)
            grouped = inner if isinstance(item, Chars) else f"(?:{inner})"
            return f"{grouped}{{{least},{'' if most is None else most}}}{suffix}"


def ranges(members: int) -> list[tuple[int, int]]:
    """The runs of a set, ends included."""
    found, position = [], 0
    while members:
        gap = (members & -members).bit_length() - 1
        members >>= gap
        run = (~members & (members + 1)).bit_length() - 1
        found.append((position + gap, position + gap + run - 1))
        members >>= run
        position += gap + run
    return found


def set_source(members: int) -> str:
    """A set as `re` writes it; one that nothing is in never matches."""
    if not members:
        return "(?!)"
    return "[" + "".join(f"{re.escape(chr(low))}-{re.escape(chr(high))}" for low, high in ranges(members)) + "]"
