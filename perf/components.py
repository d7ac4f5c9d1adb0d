"""The parts of the gateway that work per request or per token, each as a call that can be repeated on any thread.

`python -m perf.components THREADS SECONDS ROUNDS` prints, as JSON, how often all threads together did each a second and
the CPU microseconds of one. What requests share in the gateway (templates, the tokenizer, caches, the router) is shared
here; what an HTTP loop or a request has for itself, each thread has.

Threads: those of `rates`, each with calls of its own.
"""

import functools
import itertools
import json
import os
import random
import sys
import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine_adapters import codec
from engine_adapters.base import EngineInfo, KvStored, Load
from engine_adapters.step import messages
from engine_adapters.step.client import columns
from gateway.__main__ import ENVIRONMENT
from gateway.api.body import parse
from gateway.api.conversation import read_conversation
from gateway.api.reply import quoted
from gateway.decoder import AnswerDecoder, AnswerReader
from gateway.immortal import make_immortal
from gateway.model import Model, load_models
from gateway.parsers.detect import Choice, named_calls, named_reasoning
from gateway.parsers.output import Formats
from gateway.parsers.stop import StopScanner, StopStrings
from gateway.routing import Policies, Query, Router, Worker, WorkerAddress, WorkerState
from gateway.tokenizer import ChatTemplate, Encoder, Structure, TokenCache
from gateway.types import ChatInput, OutputOptions, Reading
from perf.machine import ROOT
from perf.samples import chat_body, documents

SHAPES = ROOT / "tests/tokenizer/templates/shapes"
STREAMS = 256
WORKERS = 64
BLOCK_SIZE = 32
STOPS = ("\n\nUser:", "</answer>")
CALL = '<tool_call>\n{"name": "f", "arguments": {"k": "'
PROMPT_TOKENS = 10_000
PROMPTS = 40
BATCH_SECONDS = 0.004

Call = Callable[[], object]


@dataclass(frozen=True)
class Component:
    """`share` makes what all threads have in common, `make` a thread's own call with it."""

    title: str
    share: Callable[[], Any]
    make: Callable[[Any], Call]


@functools.cache
def model() -> Model:
    return load_models(())["demo"]


def encoder(cache_bytes: int = 0) -> Encoder:
    library = model().tokenizer.library
    return Encoder(library, Structure(library), TokenCache(cache_bytes) if cache_bytes else None, None)


def chat_template() -> ChatTemplate:
    return ChatTemplate((SHAPES / "qwen_3.jinja").read_text("utf-8"))


def rendering(template: ChatTemplate) -> Call:
    turn = [{"role": "user", "content": "question " * 90}, {"role": "assistant", "content": "answer " * 110}]
    source = ChatInput((turn * 10)[:-1])
    return lambda: template.render(source)


def tokenizing(shared: Encoder) -> Call:
    (text,) = documents(1, 1000)
    return lambda: shared.encode(text, True)


def known_prompt(shared: Encoder) -> Call:
    """Level 0: all of it has been seen. The copy has its hash to be computed, as a new request's text has."""
    data = documents(1, PROMPT_TOKENS)[0].encode()
    for _ in range(3):
        shared.encode(data.decode(), True)
    return lambda: shared.encode(data.decode(), True)


def known_segments(shared: Encoder) -> Call:
    """Level 1: all but the newest turn has been seen."""
    old = "".join(f"<|im_start|>user\n{text}<|im_end|>\n" for text in documents(10, 500))
    numbers = iter(range(1 << 60))
    shared.encode(old, True)
    return lambda: shared.encode(f"{old}<|im_start|>user\nand {next(numbers)}?<|im_end|>\n", True)


def preparing(shared: Encoder) -> Call:
    """From a chat's body to its ids, nothing of it known: the cache holds a third of the texts that come in turn. This
    thread has met their words before."""
    templates = model().templates
    texts = documents(PROMPTS, PROMPT_TOKENS)
    bodies = itertools.cycle([json.dumps(chat_body(True, 1, prompt=text)).encode() for text in texts])
    for text in texts:
        shared.encode(text, True)
    for _ in range(random.randrange(PROMPTS)):  # not at the same place as another thread
        next(bodies)

    def prepare() -> object:
        text, _ = templates.render(read_conversation(parse(next(bodies))))
        return shared.encode(text, True)

    return prepare


def detokenizing(_: None) -> Call:
    feed = model().tokenizer.table.new().feed
    token_ids = array("I", model().tokenizer.encode(" the")).tolist()
    return lambda: feed(token_ids)


def scanning(_: None) -> Call:
    feed = StopScanner(StopStrings(STOPS)).feed
    return lambda: feed(" the")


def call_formats() -> Formats:
    return Formats(Choice(named_reasoning("qwen3"), ""), Choice(named_calls("hermes"), ""))


def reading_call(formats: Formats) -> Call:
    """Tokens of a tool call's argument, one at a time; a new answer when its text is used up."""
    table = model().tokenizer.table
    prose = "The gateway turns text into numbers, and numbers back into text. " * 20
    opening, ids = (list(memoryview(model().tokenizer.encode(text)).cast("I")) for text in (CALL, prose))
    state: dict[str, Any] = {"left": iter(())}

    def read() -> None:
        token_id = next(state["left"], None)
        if token_id is None:
            parser = formats.parser(Reading(tools={"f": None}), False)
            assert parser is not None
            decoder = AnswerDecoder(0, table, OutputOptions(), StopStrings(()), AnswerReader(parser, frozenset()))
            decoder.event(opening, None, None)
            state["left"], state["event"], token_id = iter(ids[1:]), decoder.event, ids[0]
        state["event"]([token_id], None, None)

    return read


def writing_event(_: None) -> Call:
    before, after = 'data: {"choices":[{"index":0,"delta":{"content":', '},"finish_reason":null}]}\n\n'
    return lambda: (before + quoted(" the") + after).encode()


def reading_body(_: None) -> Call:
    body = json.dumps(chat_body(True, 1, prompt=documents(1, PROMPT_TOKENS)[0])).encode()
    return lambda: parse(body)


def frame() -> messages.StepFrame:
    load = messages.Load(running=STREAMS, kv_tokens_used=100_000, kv_tokens_total=500_000, tokens_per_second=12_800.0)
    ids = array("I", range(1000, 1000 + STREAMS)).tobytes()
    return messages.StepFrame(step=12345, stream_ids=ids, token_ids=array("I", range(STREAMS)).tobytes(), load=load)


def decoding_frame(_: None) -> Call:
    data = codec.encode(frame())
    return lambda: columns(codec.decode(messages.StepFrame, data))


def encoding_submit(_: None) -> Call:
    submit = messages.ClientFrame(
        submits=[messages.Submit(stream_id=1, request_id="chatcmpl-1", token_ids=bytes(4000), max_tokens=100)]
    )
    return lambda: codec.encode(submit)


def router() -> Router:
    """Before 64 workers, with half of a prompt cached by some of them."""
    dice = random.Random(1)
    found = Router(Policies(["cache_aware"]))
    info = EngineInfo("perf", "1", "m", 100_000, 1 << 20, 256, b"", (), BLOCK_SIZE, 1, frozenset({"kv_events"}))
    for number in range(WORKERS):
        worker = Worker(f"w{number}", WorkerAddress("step", f"w{number}", 1), None)
        found.add(worker)
        found.publish(worker, WorkerState("ready", model="m", info=info))
        found.report(worker, Load(running=dice.randrange(20), kv_tokens_used=500, kv_tokens_total=1000))
        if number % 8 == 0:
            event = KvStored(0, tuple(range(1, 33)), _routed_prompt()[: 4 * BLOCK_SIZE * 32])
            found.note_kv_events(worker, [event], is_first=False)
    return found


def _routed_prompt() -> bytes:
    return array("I", random.Random(2).choices(range(100_000), k=2048)).tobytes()


def deciding(shared: Router) -> Call:
    prompt = _routed_prompt()
    return lambda: shared.lease("m", set(), Query(prompt, routing_key="k")).release()


def nothing() -> None:
    return None


COMPONENTS = (
    Component("prepare 10k tokens, cold", lambda: encoder(1 << 20), preparing),
    Component("render 19 messages", chat_template, rendering),
    Component("tokenize 1k tokens", encoder, tokenizing),
    Component("token cache, whole prompt", lambda: encoder(64 << 20), known_prompt),
    Component("token cache, new turn", lambda: encoder(64 << 20), known_segments),
    Component("read a JSON body of 40 KB", nothing, reading_body),
    Component("routing decision, 64 workers", router, deciding),
    Component("encode a submit", nothing, encoding_submit),
    Component("decode a frame of 256 tokens", nothing, decoding_frame),
    Component("detokenize a token", nothing, detokenizing),
    Component("stop strings, a token", nothing, scanning),
    Component("read a tool call, a token", call_formats, reading_call),
    Component("write a token's event", nothing, writing_event),
    # Image processors: perf/images.py.
)


def rates(component: Component, threads: int, seconds: float, rounds: int) -> tuple[float, float]:
    """Calls a second of all threads together, the best round's, and the CPU seconds of one call, the least."""
    model()  # made by this thread, as in a gateway: what others make would not become immortal
    shared = component.share()
    make_immortal()
    found = [_round(component, shared, threads, seconds) for _ in range(rounds)]
    return max(rate for rate, _ in found), min(cpu for _, cpu in found)


def _round(component: Component, shared: Any, threads: int, seconds: float) -> tuple[float, float]:
    counts, cpu, walls = [0] * threads, [0.0] * threads, [0.0] * threads
    start = threading.Barrier(threads)

    def work(number: int) -> None:
        call = component.make(shared)
        batch = batch_size(call)
        start.wait()
        began, began_cpu = time.perf_counter(), time.thread_time()
        while not counts[number] or time.perf_counter() - began < seconds:
            for _ in range(batch):
                call()
            counts[number] += batch
        walls[number], cpu[number] = time.perf_counter() - began, time.thread_time() - began_cpu

    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(count / wall for count, wall in zip(counts, walls, strict=True)), sum(cpu) / sum(counts)


def batch_size(call: Call) -> int:
    """So many calls that looking at the clock in between costs nothing; the first ones also warm what is warmed."""
    call()
    size = 1
    while True:
        began = time.perf_counter()
        for _ in range(size):
            call()
        if time.perf_counter() - began > BATCH_SECONDS:
            return size
        size *= 2


def main() -> None:
    os.environ.update(ENVIRONMENT)
    threads, seconds, rounds = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    found = {component.title: rates(component, threads, seconds, rounds) for component in COMPONENTS}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
