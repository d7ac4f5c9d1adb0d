"""`python -m engine_adapters.simulator`: an executor without a GPU that answers readable text."""

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from engine_adapters.base import FEATURES, EngineInfo
from engine_adapters.serving import ServerTls, add_server_options
from engine_adapters.simulator.engine import SimulatedEngine
from engine_adapters.simulator.logprobs import LogprobSource
from engine_adapters.simulator.outputs import plan_maker
from engine_adapters.simulator.rank import Capacity
from engine_adapters.simulator.scheduler import Costs, Scheduler
from engine_adapters.simulator.script import ScriptError
from engine_adapters.simulator.trtllm_server import TrtllmServer
from engine_adapters.step.server import StepServer
from engine_adapters.step.session import Stream
from engine_adapters.tokenizer_file import (
    TokenizerFile,
    TokenizerFileError,
    read_context_length,
    read_eos_token_ids,
)

SHIPPED_MODEL = Path(__file__).parent / "model"
SHIPPED_NAME = "gateway-demo"
DEFAULT_CONTEXT_LENGTH = 32768
VERSION = "1"
WIRES: "dict[str, Callable[[SimulatedEngine], StepServer | TrtllmServer]]" = {
    "step": StepServer,
    "trtllm": TrtllmServer,
}

log = logging.getLogger("simulator")


def parse_arguments(arguments: "list[str] | None" = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m engine_adapters.simulator",
        description="An executor without a GPU: continuous batching in simulated time over the step stream, or over "
        "the wire of trtllm-serve. "
        "Prints one line of JSON with its address when it is ready; SIGUSR1 makes it forget its prefix cache.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=0, help="port to listen on; 0 lets the system choose")
    add("--model-path", type=Path, default=SHIPPED_MODEL, metavar="DIR", help="Hugging Face model folder")
    add("--prefill-tps", type=positive, default=8000.0, help="prompt tokens read per second")
    add("--decode-base-ms", type=not_negative, default=6.0, help="fixed part of a decode step")
    add("--decode-per-request-ms", type=not_negative, default=0.35, help="part of a decode step for each request")
    add("--role", choices=["any", "prefill", "decode"], default="any", help="the only phase of requests it serves")
    add("--transfer-tps", type=positive, default=400_000.0, help="prompt tokens that come from a prefill per second")
    add("--transfer-base-ms", type=not_negative, default=2.0, help="fixed part of a transfer")
    add("--prefill-chunk", type=at_least_one, default=2048, help="prompt tokens read in one step, beside decoding")
    add("--max-running", type=at_least_one, default=256, help="answers in a rank's batch; more of them wait")
    add("--kv-tokens", type=at_least_one, default=524288, help="tokens that a rank's KV cache holds")
    add("--block-size", type=at_least_one, default=16, help="tokens in a block of the KV cache")
    add("--dp-size", type=at_least_one, default=1, help="data-parallel ranks, each with its own batch and KV cache")
    add("--output", default="text", metavar="KIND", help="what to answer: text, echo, random or script:FILE")
    add("--image-dtype", choices=["float16", "bfloat16"], default="", help="what images' tensors are wanted in")
    add("--log-images", action="store_true", help="tell the log of each image, with the hash of its bytes")
    add("--ignore-eos", action="store_true", help="no answer ends by itself, only by its limit")
    add("--speed", type=not_negative, default=1.0, help="2 is twice as fast; 0 answers without delay")
    add("--wire", choices=[*WIRES], default="step", help="the step stream, or what trtllm-serve --grpc speaks")
    add("--until-stdin-closes", action="store_true", help="end when standard input reaches its end")
    add_server_options(parser)
    options = parser.parse_args(arguments)
    if options.kv_tokens < options.block_size:
        parser.error("--kv-tokens must be at least --block-size")
    return options


def at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def not_negative(text: str) -> float:
    return positive(text) if float(text) else 0.0


def make_engine(options: argparse.Namespace) -> SimulatedEngine:
    """Raises TokenizerFileError, ScriptError, or ValueError for an unknown output."""
    folder = options.model_path
    tokenizer = TokenizerFile(folder)
    eos_token_ids = read_eos_token_ids(folder)
    info = EngineInfo(
        engine="simulator",
        engine_version=VERSION,
        model=SHIPPED_NAME if folder.resolve() == SHIPPED_MODEL.resolve() else folder.resolve().name,
        vocab_size=tokenizer.vocab_size,
        context_length=read_context_length(folder) or DEFAULT_CONTEXT_LENGTH,
        max_running=options.max_running * options.dp_size,
        tokenizer_fingerprint=tokenizer.fingerprint(),
        eos_token_ids=eos_token_ids,
        kv_block_size=options.block_size,
        dp_size=options.dp_size,
        features=FEATURES,
        role="" if options.role == "any" else options.role,
        image_dtype=options.image_dtype,
    )
    capacity = Capacity(
        options.max_running,
        info.context_length,
        options.kv_tokens,
        options.block_size,
        options.prefill_chunk,
        options.dp_size,
    )
    scheduler: Scheduler[Stream] = Scheduler(
        plan_for=plan_maker(options.output, tokenizer, eos_token_ids),
        costs=Costs(
            options.prefill_tps,
            options.decode_base_ms / 1000,
            options.decode_per_request_ms / 1000,
            options.transfer_base_ms / 1000,
            options.transfer_tps,
        ),
        capacity=capacity,
        eos_token_ids=frozenset(eos_token_ids),
    )
    logprobs = LogprobSource(sorted(tokenizer.tokens.keys() - tokenizer.added_ids))
    engine = SimulatedEngine(info, scheduler, logprobs, speed=options.speed, ignore_eos=options.ignore_eos)
    engine.logs_images = options.log_images
    return engine


async def serve(options: argparse.Namespace, engine: SimulatedEngine) -> None:
    """Serve until a signal comes or, if asked for, standard input ends. Raises OSError when the port is taken."""
    must_stop = asyncio.Event()
    server = WIRES[options.wire](engine)
    port = await server.start(options.host, options.port, ServerTls.of(options))
    stepping = asyncio.create_task(engine.run(server))
    stepping.add_done_callback(lambda _: must_stop.set())
    listen_for_the_end(options.until_stdin_closes, must_stop)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, engine.clear_cache)
    ready = {"address": f"{options.host}:{port}", "model": engine.info().model, "pid": os.getpid()}
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    log.info("serving %s on %s", ready["model"], ready["address"])
    await must_stop.wait()
    await server.stop("the executor is shutting down")
    if stepping.done():
        stepping.result()
    stepping.cancel()


def listen_for_the_end(until_stdin_closes: bool, must_stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, must_stop.set)
    if until_stdin_closes:
        # Ctrl-C reaches the whole process group: the parent decides when its executor ends.
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        watch_stdin(lambda: loop.call_soon_threadsafe(must_stop.set))
    else:
        loop.add_signal_handler(signal.SIGINT, must_stop.set)


def watch_stdin(at_end: Callable[[], object]) -> None:
    def read() -> None:
        # Not sys.stdin: a thread waiting inside it makes the interpreter abort at its end.
        while os.read(0, 4096):
            pass
        at_end()

    threading.Thread(target=read, name="stdin", daemon=True).start()


def main() -> int:
    options = parse_arguments()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="simulator: %(message)s")
    try:
        engine = make_engine(options)
        asyncio.run(serve(options, engine))
    except (TokenizerFileError, ScriptError, ValueError, OSError) as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
