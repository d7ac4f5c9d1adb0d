"""The text path: what a prompt costs from its JSON to its ids, and a token from its id to its event.

CPU is that of the measuring thread; the least of several rounds counts, since whatever else the machine does can only
add. Where threads are compared it is wall time. Figures: 1 a conversation with a new turn, 2 the same prompt again,
3 a long prompt on several threads, 4 shared and new text through a whole gateway, 5 tokens to text.
"""

import argparse
import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import tokenizers

from gateway.__main__ import ENVIRONMENT
from gateway.api.body import parse
from gateway.api.conversation import read_conversation
from gateway.api.reply import quoted
from gateway.model import DEMO_FOLDER
from gateway.parsers.stop import StopScanner, StopStrings
from gateway.pools import Pool
from gateway.threads import Supervisor
from gateway.tokenizer import ChatTemplate, DetokenizerTable, Encoder, Structure, TokenCache, Tokenizer
from perf.report import table
from perf.samples import corpus

CACHE_BYTES = 256 << 20
TEMPLATES = {
    "<|im_start|>": "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n",
    "<｜User｜>": "{% for message in messages %}{% if message.role == 'user' %}<｜User｜>{{ message.content }}"
    "{% else %}<｜Assistant｜>{{ message.content }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}<｜Assistant｜>",
}
"""By a token that a vocabulary must have for it."""


class Bench:
    """A tokenizer, text, and how they are measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        path = Path(options.tokenizer)
        self.library = tokenizers.Tokenizer.from_file(str(path))
        self.tokenizer = Tokenizer(self.library)
        self.structure = Structure(self.library)
        vocabulary = self.library.get_vocab(with_added_tokens=True)
        self.template = ChatTemplate(next(TEMPLATES[token] for token in TEMPLATES if token in vocabulary), {})
        self.rounds = options.rounds
        self.corpus = corpus()
        self.options = options

    def encoder(self, cache: bool = True, pool: Pool | None = None, structure: Structure | None = None) -> Encoder:
        memory = TokenCache(CACHE_BYTES) if cache else None
        return Encoder(self.library, structure or self.structure, memory, pool.share if pool else None)

    def text(self, tokens: int, start: int = 0) -> str:
        """Some of the corpus that makes so many tokens, about."""
        per_character = len(self.tokenizer.encode(self.corpus[start : start + 200_000])) / 4 / 200_000
        return self.corpus[start : start + int(tokens / per_character)]

    def least_ms(self, measure: Callable[[int], object], clock: Callable[[], float] = time.thread_time) -> float:
        """Of as many rounds as were asked for; `measure` gets the round's number."""
        found = []
        for number in range(self.rounds):
            started = clock()
            measure(number)
            found.append(clock() - started)
        return min(found) * 1e3


def conversation(bench: Bench, tokens: int, newest: str) -> bytes:
    """A body of so many tokens in turns of about 800, the newest one a given text."""
    text = bench.text(tokens)
    turns = [text[start : start + 3300] for start in range(0, len(text), 3300)]
    messages = [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]
    messages = messages[: len(messages) // 2 * 2] + [{"role": "user", "content": newest}]
    return json.dumps({"model": "demo", "messages": messages}).encode()


def prepare(bench: Bench, encode: Callable[[str], object], body: bytes, marks: list[float] | None = None) -> None:
    """What the gateway does from the body to the ids; `marks` gets the moments between the stages."""
    clock = time.thread_time
    moments = [clock()]
    fields = parse(body)
    moments.append(clock())
    text = bench.template.render(read_conversation(fields))
    moments.append(clock())
    encode(text)
    moments.append(clock())
    if marks is not None:
        marks[:] = moments


def multi_turn(bench: Bench) -> Iterator[list[str]]:
    newest = [bench.text(900, 1_000_000 + 4000 * number) + f" {number}" for number in range(bench.rounds + 1)]
    bodies = [conversation(bench, 80_000, text) for text in newest]
    least: dict[str, float] = {}
    for name, encoder in (("token cache", bench.encoder()), ("cache off", bench.encoder(cache=False))):
        for body in bodies[-1:] * 2:
            prepare(bench, encoder.encode, body)
        stages: list[list[float]] = []
        for body in bodies[:-1]:
            marks: list[float] = []
            prepare(bench, encoder.encode, body, marks)
            stages.append([(after - before) * 1e3 for before, after in zip(marks, marks[1:], strict=False)])
        best = min(stages, key=sum)
        least[name] = sum(best)
        parts = "JSON {:.2f}, render {:.2f}, encode {:.2f}".format(*best)
        yield [f"1 new turn of 80k tokens, {name}", f"{sum(best):.2f} ms", parts]
    yield ["1 cache off, to the cache", f"{least['cache off'] / least['token cache']:.1f}x", ">= 15x, <= 6 ms"]


def same_prompt(bench: Bench) -> Iterator[list[str]]:
    data = bench.corpus[:320_000].encode()
    encoder = bench.encoder()
    for _ in range(3):
        encoder.encode(data.decode())
    copies = [data.decode() for _ in range(bench.rounds)]  # each has its hash to be computed
    again = bench.least_ms(lambda number: encoder.encode(copies[number]))
    hashing = bench.least_ms(lambda number: hash(data.decode()))
    yield ["2 the same 320 KB again", f"{again:.3f} ms", f"<= 1.5 ms; decoding and hashing it: {hashing:.3f} ms"]


def many_threads(bench: Bench) -> Iterator[list[str]]:
    text = bench.text(100_000)
    counts = sorted({1, 2, os.cpu_count() or 1})
    pools = {count: Pool("perf", count, Supervisor(), threading.Semaphore(count)) for count in counts}
    for shortcut in (True, False):
        walls: dict[int, list[float]] = {count: [] for count in counts}
        for _ in range(bench.rounds):
            for count, pool in pools.items():
                walls[count].append(cold_encode(bench, pool, text, shortcut))
        one = min(walls[1])
        for count in counts:
            best = min(walls[count])
            name = f"3 cold 100k tokens, {'piece table' if shortcut else 'library'}, {count} threads"
            yield [name, f"{best * 1e3:.1f} ms", f"{one / best:.2f}x" + (", >= 1.7x" if count == 2 else "")]


def cold_encode(bench: Bench, pool: Pool, text: str, shortcut: bool) -> float:
    """Seconds on the wall; the cache knows nothing, the threads' piece tables have seen other text."""
    encoder = bench.encoder(pool=pool, structure=None if shortcut else without_pieces(bench))
    warm = bench.corpus[2_000_000:2_600_000]

    async def story() -> float:
        await pool.run(encoder.encode, warm)
        started = time.perf_counter()
        await pool.run(encoder.encode, text)
        return time.perf_counter() - started

    return asyncio.run(story())


def without_pieces(bench: Bench) -> Structure:
    structure = Structure(bench.library)
    structure.pieces = None
    return structure


def tokens_to_text(bench: Bench) -> Iterator[list[str]]:
    token_ids = memoryview(bench.tokenizer.encode(bench.corpus[:400_000])).cast("I").tolist()
    counts = (1, 2)
    rates, costs = dict[int, float](), dict[int, float]()
    for stops in (("\n\nUser:",), tuple(f"</stop {number}>" for number in range(2000))):
        for count in counts:
            runs = [emit_on_threads(bench.tokenizer.table, token_ids, stops, count) for _ in range(bench.rounds)]
            rates[count] = count * len(token_ids) / min(wall for wall, _ in runs)
            costs[count] = min(cpu for _, cpu in runs) / count
        automaton = StopStrings(stops)
        least = bench.least_ms(lambda _, automaton=automaton: emit(bench.tokenizer.table, token_ids, automaton))
        cpu = least * 1e3 / len(token_ids)
        yield [
            f"5 token to event, {len(stops)} stop strings",
            f"{cpu:.2f} µs",
            f"<= 2 µs; two threads {rates[2] / rates[1]:.2f}x, by CPU {2 * costs[1] / costs[2]:.2f}x, >= 1.8x",
        ]


def emit(own: DetokenizerTable, token_ids: Sequence[int], stops: StopStrings) -> int:
    """Every token to the bytes of its event, one at a time."""
    feed, scan = own.new().feed, StopScanner(stops).feed
    head, tail = 'data: {"id":"chatcmpl-0","choices":[{"index":0,"delta":{"content":', "}}]}\n\n"
    size = 0
    for token_id in token_ids:
        if text := scan(feed((token_id,))):
            size += len(f"{head}{quoted(text)}{tail}".encode())
    return size


def emit_on_threads(
    shared: DetokenizerTable, token_ids: Sequence[int], stops: tuple[str, ...], count: int
) -> tuple[float, float]:
    """Seconds on the wall and of CPU; the latter says how threads get on where other processes want the cores too."""
    cpu: list[float] = []
    ready, go = threading.Barrier(count + 1), threading.Barrier(count + 1)

    def run() -> None:
        own, ids, automaton = shared.copy(), [int(str(token_id)) for token_id in token_ids], StopStrings(stops)
        ready.wait()
        go.wait()
        started = time.thread_time()
        emit(own, ids, automaton)
        cpu.append(time.thread_time() - started)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    ready.wait()
    started = time.perf_counter()
    go.wait()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started, sum(cpu)


FIGURES: dict[str, Callable[[Bench], Iterator[list[str]]]] = {
    "1": multi_turn,
    "2": same_prompt,
    "3": many_threads,
    "5": tokens_to_text,
}


def main(arguments: Sequence[str]) -> None:
    options = parse_options(arguments)
    os.environ.update(ENVIRONMENT)
    bench = Bench(options)
    gil = "on" if sys._is_gil_enabled() else "off"
    sys.stdout.write(f"{options.tokenizer}: {bench.structure.report()}\nGIL {gil}\n\n")
    rows: list[list[str]] = []
    for name in options.only:
        for row in FIGURES[name](bench):
            rows.append(row)
            sys.stderr.write(" | ".join(row) + "\n")
    sys.stdout.write(table(("figure", "measured", "goal or parts"), rows))


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3.13t -m perf text", description=__doc__)
    parser.add_argument("--tokenizer", default=str(DEMO_FOLDER / "tokenizer.json"), metavar="FILE")
    parser.add_argument("--only", nargs="+", default=list(FIGURES), choices=list(FIGURES), help="figures")
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    return parser.parse_args(arguments)
