"""What a simulated prefill hands over to a simulated decode: the tokens said so far, and the steps that took."""

import json
from collections.abc import Sequence


def pack(said: Sequence[int], steps: int) -> bytes:
    return json.dumps({"said": [*said], "steps": steps}).encode()


def unpack(handoff: bytes) -> tuple[list[int], int]:
    """(tokens said, steps taken); raises ValueError for what no simulator has packed."""
    try:
        content = json.loads(handoff)
        said, steps = [int(token_id) for token_id in content["said"]], int(content["steps"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the handoff is not one of a simulator's: {error}") from error
    return said, steps
