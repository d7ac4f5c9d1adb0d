"""`python -m perf.monolith STAMPS PORT`: a plain front in the engine's own process, the way engines serve today.

uvicorn (uvloop, httptools), FastAPI and pydantic, one event loop: it parses a body into models, renders and tokenizes
the prompt on a thread, detokenizes each token with the tokenizers library and writes it as an event, between the steps
of a simulated engine that the same process drives. It runs in an environment of its own (`perf/installed.py`) and knows
nothing of the gateway.
"""

import argparse
import asyncio
import json
import time
import uuid
from array import array
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jinja2
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from engine_adapters.base import KvEvent, Logprobs, Submission
from engine_adapters.simulator.__main__ import SHIPPED_MODEL, make_engine, parse_arguments
from engine_adapters.simulator.engine import SimulatedEngine
from engine_adapters.step.server import Output
from engine_adapters.step.session import Stream
from perf.idle import note_idle_time
from perf.stamps import StampFile

WORD = " the"


class Message(BaseModel):
    model_config = ConfigDict(extra="allow")
    role: str
    content: str


class ChatRequest(BaseModel):
    model_config = ConfigDict(extra="allow")
    model: str
    messages: list[Message]
    stream: bool = False
    max_tokens: int = 16
    temperature: float = 1.0


class Delta(BaseModel):
    role: str | None = None
    content: str | None = None


class StreamChoice(BaseModel):
    index: int
    delta: Delta
    finish_reason: str | None = None


class Chunk(BaseModel):
    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[StreamChoice]


class Front:
    """The engine, and what a request's tokens are put into."""

    def __init__(self, engine: SimulatedEngine, stamps: StampFile) -> None:
        self.engine = engine
        self.idle = 0.0
        self._stamps = stamps
        self._queues: dict[Any, asyncio.Queue[tuple[list[int], bool]]] = {}
        self.tokenizer = Tokenizer.from_file(str(SHIPPED_MODEL / "tokenizer.json"))
        settings = json.loads((SHIPPED_MODEL / "tokenizer_config.json").read_text())
        self._template = jinja2.Environment().from_string(template_of(settings))
        self._settings = {name: value for name, value in settings.items() if name.endswith("_token")}

    # --- the engine's harness ---------------------------------------------------------------------------------------

    def emit(self, step: int, outputs: Iterable[Output], logprobs: Mapping[Stream, Logprobs]) -> None:
        outputs = list(outputs)
        self._stamps.note(sum(len(token_ids) for _, token_ids, _ in outputs), self.idle)
        for key, token_ids, finish in outputs:
            if queue := self._queues.get(key):
                queue.put_nowait((list(token_ids), finish is not None))

    def emit_kv_events(self, events: Iterable[KvEvent]) -> None:
        pass

    async def frames_taken(self, timeout: float) -> None:  # noqa: ASYNC109
        await asyncio.sleep(0)

    # --- requests ---------------------------------------------------------------------------------------------------

    def prompt(self, messages: list[dict[str, Any]]) -> list[int]:
        text = self._template.render(messages=messages, add_generation_prompt=True, **self._settings)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    async def events(self, request: ChatRequest) -> AsyncIterator[str]:
        messages = [message.model_dump() for message in request.messages]
        ids = await asyncio.to_thread(self.prompt, messages)
        key: Any = f"chatcmpl-{uuid.uuid4().hex}"
        queue = self._queues[key] = asyncio.Queue()
        decoder, created = DecodeStream(skip_special_tokens=True), int(time.time())
        try:
            self.engine.submit([key], Submission(key, array("I", ids).tobytes(), request.max_tokens, ignore_eos=True))
            role: str | None = "assistant"
            is_over = False
            while not is_over:
                token_ids, is_over = await queue.get()
                text = "".join(filter(None, (decoder.step(self.tokenizer, token_id) for token_id in token_ids)))
                choice = StreamChoice(index=0, delta=Delta(role=role, content=text))
                choice.finish_reason, role = "length" if is_over else None, None
                chunk = Chunk(id=key, created=created, model=request.model, choices=[choice])
                yield f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            del self._queues[key]
            self.engine.abort(key)


def template_of(settings: Mapping[str, Any]) -> str:
    """The model's, from whichever file has it."""
    path = SHIPPED_MODEL / "chat_template.jinja"
    return path.read_text() if path.exists() else str(settings["chat_template"])


def make_app(front: Front) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.ensure_future(front.engine.run(front))
        yield
        running.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {}

    @app.post("/v1/chat/completions")
    async def chat(request: ChatRequest) -> StreamingResponse:
        return StreamingResponse(front.events(request), media_type="text/event-stream")

    return app


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m perf.monolith", description=__doc__)
    parser.add_argument("stamps", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--step-ms", type=float, default=20.0, help="0: at once")
    options = parser.parse_args()
    script = options.stamps.with_name("script.json")
    script.write_text(json.dumps([{"steps": [WORD], "finish": "repeat"}]))
    costs = ["--prefill-tps", "1e9", "--decode-per-request-ms", "0", "--max-running", "100000"]
    costs += ["--decode-base-ms", str(options.step_ms), *(() if options.step_ms else ("--speed", "0"))]
    costs += ["--kv-tokens", "100000000", "--block-size", "1024", "--ignore-eos", "--output", f"script:{script}"]
    engine = make_engine(parse_arguments(costs))
    front = Front(engine, StampFile(options.stamps))
    note_idle_time(engine, front)
    uvicorn.run(make_app(front), host="127.0.0.1", port=options.port, log_level="error", backlog=4096)


if __name__ == "__main__":
    main()
