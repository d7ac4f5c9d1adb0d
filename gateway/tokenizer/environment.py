"""The sandbox that chat templates run in: jinja2 with the extensions and globals of transformers, and nothing else.

Threads: a `CompiledTemplate` serves every thread; a rendering keeps its state in locals. Compile each template once:
compiled functions are immortal on 3.13t.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from gateway.errors import BadRequest

FAULTS = (
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    AssertionError,
    MemoryError,
)
"""What a template does with a shape it did not expect."""


class CompiledTemplate:
    """Raises jinja2.TemplateSyntaxError, or what Python's compiler raises, for a source that cannot be compiled."""

    def __init__(self, source: str) -> None:
        environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals |= GLOBALS
        self._template = environment.from_string(source)
        # jinja2 leaves a ChainMap here, which it copies in Python for every rendering.
        self._template.globals = dict(self._template.globals)
        self.source = source
        self.strings = {str(node.value) for node in environment.parse(source).find_all(nodes.Const)}
        """The constants in its expressions."""

    def render(self, variables: Mapping[str, Any]) -> str:
        """Raises BadRequest when the template refuses or fails."""
        try:
            return self._template.render(variables)
        except jinja2.TemplateError as error:
            raise BadRequest(f"the chat template refuses these messages: {error}", param="messages") from error
        except FAULTS as error:
            # Still the messages' fault, not ours.
            raise BadRequest(f"the chat template fails on these messages: {error}", param="messages") from error


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, with short cuts to what templates do most: fields of messages, loops and namespaces.

    They give what the long way gives, which takes most of a rendering's time: it raises and catches an AttributeError
    for each field of a dict, and asks some twenty `isinstance` of each attribute.
    """

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is dict and attribute not in DICT_ATTRIBUTES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if kind is SafeNamespace and not attribute.startswith("_"):
            attributes = object.__getattribute__(obj, "_Namespace__attrs")
            return attributes[attribute] if attribute in attributes else self.undefined(obj=obj, name=attribute)
        if kind is LoopContext and attribute in LOOP_ATTRIBUTES:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)


# Dicts, since to look into a set locks it on 3.13t, even a frozen one.
DICT_ATTRIBUTES = dict.fromkeys(dir(dict))
LOOP_ATTRIBUTES = dict.fromkeys(name for name in dir(LoopContext) if not name.startswith("_"))


class GenerationBlocks(Extension):
    """`{% generation %}…{% endgeneration %}`: marks for training what an assistant said; here just its content.

    A call block, as in transformers, since that decides which variables are visible inside and outside.
    """

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Macro) -> str:
        return caller()


class SafeDict:
    """The global `dict`, without what the class itself would let a template reach."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class SafeNamespace(Namespace):
    """A `namespace()` whose attributes cannot begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _refuse_underscore(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have an attribute named {name!r}")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


GLOBALS: dict[str, Any] = {
    "raise_exception": _raise_exception,
    "strftime_now": _strftime_now,
    "dict": SafeDict(),
    "namespace": SafeNamespace,
}
