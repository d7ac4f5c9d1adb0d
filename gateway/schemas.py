"""JSON schemas, compiled once: what answers and tool arguments are held against.

Threads: a `Validators` is shared by all loops; `_lock` guards the table and is not held while a schema compiles. Two
threads that want the same new schema may both compile it.
"""

import json
import threading
from collections import OrderedDict
from typing import Any, NoReturn

import jsonschema_rs

MAX_SCHEMA_CHARACTERS = 1 << 18
"""Of its JSON; one of that size compiles in some 20 ms."""
MAX_SCHEMAS = 1024
MAX_TOTAL_CHARACTERS = 1 << 24
BACKTRACKS = 100_000
"""How often a pattern may try again for one text, so that none can hold a thread."""


class SchemaError(Exception):
    """A schema that cannot be used; the message says why."""


class Validator:
    """One compiled schema."""

    __slots__ = ("_validator", "characters")

    def __init__(self, schema: Any, characters: int) -> None:
        self.characters = characters
        try:
            self._validator = jsonschema_rs.validator_for(
                schema, retriever=_refuse, pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=BACKTRACKS)
            )
        except ValueError as error:  # jsonschema_rs.ValidationError is one
            raise SchemaError(f"is no usable JSON schema: {_first_line(error)}") from error

    def fault(self, text: str) -> str | None:
        """What is wrong with the JSON in `text`, None if nothing is."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            return f"it is not JSON: {error}"
        try:
            self._validator.validate(value)
        except ValueError as error:  # jsonschema_rs.ValidationError is one, and so are its refusals of odd values
            path = "".join(f"[{part!r}]" for part in getattr(error, "instance_path", ()))
            return f"{path or 'it'}: {_first_line(error)}"
        return None


class Validators:
    """The compiled schemas of recent requests, the most recently used ones, bounded in number and size."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._validators: OrderedDict[str, Validator] = OrderedDict()
        self._characters = 0

    def get(self, schema: Any) -> Validator:
        """Raises SchemaError."""
        key = json.dumps(schema)
        with self._lock:
            if key in self._validators:  # not by `get`: on 3.13t that takes 20 µs for a key another thread has made
                self._validators.move_to_end(key)
                return self._validators[key]
        if len(key) > MAX_SCHEMA_CHARACTERS:
            raise SchemaError(f"has {len(key)} characters as JSON, and {MAX_SCHEMA_CHARACTERS} is the most")
        compiled = Validator(schema, len(key))
        with self._lock:
            self._add(key, compiled)
        return compiled

    def _add(self, key: str, compiled: Validator) -> None:
        if key in self._validators:
            return
        self._validators[key] = compiled
        self._characters += compiled.characters
        while len(self._validators) > MAX_SCHEMAS or self._characters > MAX_TOTAL_CHARACTERS:
            _, oldest = self._validators.popitem(last=False)
            self._characters -= oldest.characters


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _refuse(uri: str) -> NoReturn:
    raise ValueError(f"{uri} is outside of the schema")
