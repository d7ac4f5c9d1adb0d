"""What a family of models is to the parsers: how its formats are named, recognised and read."""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.parsers.formats import CallGrammar, Wrapping
from gateway.parsers.harmony import Harmony
from gateway.parsers.reader import Reader, call_id
from gateway.parsers.sequences import Sequence


@dataclass(frozen=True)
class Family:
    """How a format is named and recognised: by all of `signs` in the chat template or the vocabulary, and by
    config.json's `model_type`."""

    name: str
    models: str
    """In words."""
    signs: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    needs_type: bool = False
    """Its signs say nothing without the model type."""


@dataclass(frozen=True)
class CallFamily(Family):
    """`drops` is markup in the answer that means nothing; `new_id` makes ids as the family's clients expect them.

    `tag` is (what a call begins with, all before its arguments, all behind them), with NAME for its name: by that an
    engine can be told to keep to a tool's schema where the model calls it.
    """

    grammar: CallGrammar | Harmony = Sequence()
    drops: tuple[str, ...] = ()
    new_id: Callable[[Reader], str] = call_id
    tag: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class ReasoningFamily(Family):
    wrapping: Wrapping | Harmony = Wrapping((), ())
