"""Chat templates: a conversation rendered to the text its model was trained on, in sandboxed jinja2.

Threads: one compiled template serves every thread; rendering keeps all its state in locals. A template is compiled
once, at start: compiled functions are immortal on 3.13t.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.errors import BadRequest


class ChatTemplate:
    """`source` is the template as the model folder has it; `special_tokens` are variables such as `bos_token`.

    Raises jinja2.TemplateSyntaxError for a source that cannot be compiled.
    """

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._template = environment.from_string(source)
        # jinja2 leaves a ChainMap here, which it copies in Python for every rendering.
        self._template.globals = dict(self._template.globals)
        self._special_tokens = special_tokens

    def render(
        self,
        messages: list[dict[str, Any]],
        arguments: Mapping[str, Any] = MappingProxyType({}),
        continue_final_message: bool = False,
    ) -> str:
        """The prompt, ending where the assistant begins to speak, or where the last message stops.

        `arguments` are further variables of the template. Raises BadRequest when the template refuses.
        """
        variables = {
            "messages": messages,
            "add_generation_prompt": not continue_final_message,
            **self._special_tokens,
            **arguments,
        }
        text = self._render(variables)
        return _up_to_last_message(text, messages) if continue_final_message else text

    def _render(self, variables: dict[str, Any]) -> str:
        try:
            return self._template.render(variables)
        except jinja2.TemplateError as error:
            raise BadRequest(f"the chat template refuses these messages: {error}", param="messages") from error
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, LookupError, RecursionError) as error:
            # What a template does with a shape it did not expect: still the messages' fault, not ours.
            raise BadRequest(f"the chat template fails on these messages: {error}", param="messages") from error


def _up_to_last_message(text: str, messages: list[dict[str, Any]]) -> str:
    """What transformers does: drop all that the template writes after the last message's content."""
    content = (messages[-1].get("content") or "").strip()
    end = text.rfind(content)
    if not content or end < 0:
        raise BadRequest(
            "continue_final_message needs a last message whose text the chat template leaves as it is",
            param="continue_final_message",
        )
    return text[: end + len(content)]


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
