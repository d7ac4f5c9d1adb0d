"""What a prefill hands over to a decode, as bytes: the fields of TensorRT-LLM's DisaggregatedParams that are set.

JSON with the binary parts in base64. Fields that this module has never heard of pass through as long as they are made
of numbers, texts, bytes, lists and dicts, so that a newer TensorRT-LLM on both sides loses nothing.
"""

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any


def pack(fields: Mapping[str, Any]) -> bytes:
    """Raises TypeError for a value that cannot travel."""
    present = {name: _packed(value) for name, value in fields.items() if value is not None}
    return json.dumps(present, separators=(",", ":")).encode()


def unpack(handoff: bytes, logprob: "Callable[[float, int | None], Any]") -> "dict[str, Any]":
    """`logprob(value, rank)` makes TensorRT-LLM's Logprob. Raises ValueError for bytes that no executor has packed."""
    try:
        content = json.loads(handoff)
        if not isinstance(content, dict):
            raise TypeError("no object")
        return {name: _unpacked(value, logprob) for name, value in content.items()}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the handoff is not one of this kind of executor: {error}") from error


def _packed(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {"pairs": [[_packed(key), _packed(each)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_packed(each) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "logprob"):  # TensorRT-LLM's Logprob
        return {"logprob": [value.logprob, value.rank]}
    raise TypeError(f"a {type(value).__name__} in a handoff")


def _unpacked(value: Any, logprob: "Callable[[float, int | None], Any]") -> Any:
    if isinstance(value, list):
        return [_unpacked(each, logprob) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "bytes":
        return base64.b64decode(content, validate=True)
    if kind == "pairs":
        return {_unpacked(key, logprob): _unpacked(each, logprob) for key, each in content}
    return logprob(*content)
