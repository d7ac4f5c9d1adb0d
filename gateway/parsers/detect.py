"""Which formats a model writes: by what its folder says, or by the names it was given."""

import importlib
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

from gateway.parsers.call_families import CALL_FAMILIES
from gateway.parsers.family import CallFamily, Family, ReasoningFamily
from gateway.parsers.formats import Wrapping
from gateway.parsers.harmony import Harmony
from gateway.parsers.reasoning_families import REASONING_FAMILIES

AUTO, NONE = "auto", "none"


class UnknownParser(Exception):
    """No parser has this name; the message lists those there are."""


@dataclass(frozen=True)
class Signs:
    """What there is to recognise a model by: config.json's model_type, its chat templates, its added tokens."""

    model_type: str
    templates: str
    tokens: Container[str]

    def show(self, sign: str) -> bool:
        return sign in self.templates or sign in self.tokens


@dataclass(frozen=True)
class Choice[Kind: Family]:
    """A family, or None, and why."""

    family: Kind | None
    why: str

    @property
    def name(self) -> str:
        return self.family.name if self.family else NONE


def choose_calls(name: str, signs: Signs | None) -> Choice[CallFamily]:
    """`name` is a family's, auto, none, or package.module:Class; raises UnknownParser."""
    if name != AUTO:
        return Choice(named_calls(name), "--tool-parser")
    return _by_signs(CALL_FAMILIES, signs, needs_signs=False)


def choose_reasoning(name: str, signs: Signs | None) -> Choice[ReasoningFamily]:
    """The same for reasoning; a model type alone says nothing there, since its models may or may not think."""
    if name != AUTO:
        return Choice(named_reasoning(name), "--reasoning-parser")
    return _by_signs(REASONING_FAMILIES, signs, needs_signs=True)


def _by_signs[Kind: Family](families: tuple[Kind, ...], signs: Signs | None, needs_signs: bool) -> Choice[Kind]:
    """The families stand in the order from special signs to common ones; of equal signs the model type decides."""
    if signs is None:
        return Choice(None, "there is no model folder to look at")
    for place, show in (("template", signs.templates.__contains__), ("template or vocabulary", signs.show)):
        shown = [family for family in families if _fits(family, signs, show)]
        alike = [family for family in shown if family.signs == shown[0].signs]
        typed = [family for family in alike if signs.model_type in family.model_types]
        if typed:
            return Choice(typed[0], f"model_type {signs.model_type}, and {_quoted(typed[0])} in the {place}")
        if alike:
            return Choice(alike[0], f"{_quoted(alike[0])} in the {place}")
    named = [family for family in families if signs.model_type in family.model_types]
    if named and not needs_signs:
        return Choice(named[0], f"model_type {signs.model_type}")
    return Choice(None, "neither model_type, template nor vocabulary are those of a known format")


def _fits(family: Family, signs: Signs, show: Callable[[str], bool]) -> bool:
    has_type = signs.model_type in family.model_types or not family.needs_type
    return has_type and bool(family.signs) and all(map(show, family.signs))


def _quoted(family: Family) -> str:
    return " and ".join(map(repr, family.signs))


def named_calls(name: str) -> CallFamily | None:
    """The call family of a name, None for none; raises UnknownParser."""
    return _named(name, CALL_FAMILIES, "tool", _as_calls)


def named_reasoning(name: str) -> ReasoningFamily | None:
    """The reasoning family of a name, None for none; raises UnknownParser."""
    return _named(name, REASONING_FAMILIES, "reasoning", _as_reasoning)


def _named[Kind: Family](
    name: str, families: tuple[Kind, ...], kind: str, convert: Callable[[str, Any], Kind | None]
) -> Kind | None:
    if ":" in name:
        family = convert(name, _imported(name))
        if family is None:
            raise UnknownParser(f"{name} is no {kind} parser; docs/parsers.md says what one is")
        return family
    wanted = name.lower().replace("-", "_")
    for family in families:
        if wanted == family.name or wanted in family.aliases:
            return family
    if wanted == NONE:
        return None
    names = ", ".join(family.name for family in families)
    raise UnknownParser(f"there is no {kind} parser {name!r}; there is {names}, auto, none, and package.module:Class")


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownParser(f"{name} cannot be loaded: {error}") from error
    return found() if isinstance(found, type) else found


def _as_calls(name: str, value: Any) -> CallFamily | None:
    if isinstance(value, CallFamily):
        return value
    is_grammar = isinstance(value, Harmony) or (hasattr(value, "markers") and hasattr(value, "read"))
    return CallFamily(name, name, grammar=value) if is_grammar else None


def _as_reasoning(name: str, value: Any) -> ReasoningFamily | None:
    if isinstance(value, ReasoningFamily):
        return value
    return ReasoningFamily(name, name, wrapping=value) if isinstance(value, Wrapping | Harmony) else None
