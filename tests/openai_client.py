"""The official OpenAI client on a lead: a line of JSON is a command on standard input, an answer on standard output.

Runs in whatever Python has the `openai` package (3.10 or newer) and knows nothing of the gateway's code. A command has
`base_url`, `method` (such as "chat.completions.create"), `arguments`, and for streams `take`: after how many chunks to
close it, null for never. The answer has either `result` or `error`.
"""

import json
import sys
from operator import attrgetter
from typing import Any

import openai


def answer(command: dict[str, Any]) -> dict[str, Any]:
    with openai.OpenAI(base_url=command["base_url"] + "/v1", api_key="none", max_retries=0, timeout=20) as client:
        try:
            result = attrgetter(command["method"])(client)(**command["arguments"])
            if command["arguments"].get("stream"):
                return {"result": chunks_of(result, command["take"])}
            return {"result": result.model_dump()}
        except openai.APIError as error:
            return {"error": describe(error)}


def chunks_of(stream: Any, take: int | None) -> list[dict[str, Any]]:
    chunks: list[dict[str, Any]] = []
    with stream:
        for chunk in stream:
            chunks.append(chunk.model_dump())
            if len(chunks) == take:
                break
    return chunks


def describe(error: openai.APIError) -> dict[str, Any]:
    fields = ("message", "type", "param", "code", "status_code")
    return {"class": type(error).__name__, **{name: getattr(error, name, None) for name in fields}}


for line in sys.stdin:
    sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
    sys.stdout.flush()
