"""`python -m engine_adapters.trtllm.executor MODEL --port N`: serves a model by TensorRT-LLM over the step stream."""

import asyncio
import gc
import json
import logging
import os
import signal
import sys
from pathlib import Path

from engine_adapters.base import CONSTRAINT_KINDS, EngineInfo
from engine_adapters.step.server import StepServer
from engine_adapters.tokenizer_file import (
    TokenizerFile,
    TokenizerFileError,
    read_context_length,
    read_eos_token_ids,
    read_json_if_there,
)
from engine_adapters.trtllm.executor.api import ApiError, TensorRt, load_yaml
from engine_adapters.trtllm.executor.engine import EngineDead, TrtllmEngine
from engine_adapters.trtllm.executor.options import OptionError, Options, parse

FEATURES = frozenset(
    {
        "min_tokens",
        "n",
        "logprobs",
        "prompt_logprobs",
        "cache_salt",
        "kv_retention",
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "logit_bias",
        "top_p_min",
        "top_p_decay",
        "top_p_reset_id",
        "no_repeat_ngram_size",
        "bad_token_ids",
    }
)
"""What every engine of this kind can; others depend on its options."""
DEFAULT_CONTEXT_LENGTH = 32768
DEFAULT_MAX_RUNNING = 2048
DEFAULT_BLOCK_SIZE = 32
STOP_SECONDS = 5.0
log = logging.getLogger("executor")


def features(trt: TensorRt) -> "frozenset[str]":
    found = set(FEATURES)
    found |= {"priority"} if trt.has_priority else set()
    found |= {"lora"} if trt.argument("enable_lora") or trt.argument("lora_config") else set()
    found |= {"disaggregation"} if trt.argument("cache_transceiver_config") else set()
    if trt.argument("kv_cache_config.event_buffer_max_size") and trt.argument("kv_cache_config.enable_block_reuse"):
        found.add("kv_events")
    backend = trt.argument("guided_decoding_backend")
    if backend:
        found |= {f"constraint.{kind}" for kind in CONSTRAINT_KINDS}
        found |= {"constraint.begins_after"} if backend == "xgrammar" else set()
    return frozenset(found)


def describe(options: Options, trt: TensorRt, tokenizer: TokenizerFile, eos_token_ids: "tuple[int, ...]") -> EngineInfo:
    """What gateways are told."""
    folder = Path(options.model)
    has_dp = bool(trt.argument("enable_attention_dp"))
    config_size = read_json_if_there(folder / "config.json").get("vocab_size")
    return EngineInfo(
        engine="tensorrt-llm",
        engine_version=trt.names.version,
        model=options.name or folder.resolve().name,
        # The embedding may have rows beyond the tokenizer's ids.
        vocab_size=max(tokenizer.vocab_size, config_size if isinstance(config_size, int) else 0),
        context_length=trt.argument("max_seq_len") or read_context_length(folder) or DEFAULT_CONTEXT_LENGTH,
        max_running=trt.argument("max_batch_size") or DEFAULT_MAX_RUNNING,
        tokenizer_fingerprint=tokenizer.fingerprint(),
        eos_token_ids=eos_token_ids,
        kv_block_size=trt.argument("kv_cache_config.tokens_per_block") or DEFAULT_BLOCK_SIZE,
        dp_size=(trt.argument("tensor_parallel_size") or 1) if has_dp else 1,
        features=features(trt),
        role=options.role,
    )


async def serve(options: Options, trt: TensorRt, info: EngineInfo) -> None:
    """Serve until a signal comes. Raises OSError when the port is taken, EngineDead when the engine is."""
    must_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, must_stop.set)
    gc.collect()
    gc.freeze()  # TensorRT-LLM leaves millions of objects: looking at them again would take a good part of a second
    engine = TrtllmEngine(info, trt)
    server = StepServer(engine)
    port = await server.start(options.host, options.port, options.tls)
    running = asyncio.ensure_future(engine.run(server))
    running.add_done_callback(lambda _: must_stop.set())
    ready = {"address": f"{options.host}:{port}", "model": info.model, "pid": os.getpid()}
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    log.info("serving %s by TensorRT-LLM %s on %s", info.model, info.engine_version, ready["address"])
    await must_stop.wait()
    await server.stop("the executor is shutting down")
    if not running.done():
        await engine.stop(STOP_SECONDS)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    if not running.cancelled() and (error := running.exception()) is not None:
        raise error


def run(options: Options) -> None:
    """Raises ApiError, TokenizerFileError, OSError, EngineDead."""
    folder = Path(options.model)
    if not folder.is_dir():
        raise TokenizerFileError(f"{folder} is not a folder: download the model first, the gateway needs it as well")
    tokenizer, eos_token_ids = TokenizerFile(folder), read_eos_token_ids(folder)
    if not eos_token_ids:
        raise TokenizerFileError(f"{folder} names no end-of-sequence token; put eos_token_id into config.json")
    trt = TensorRt(options.model, options.llm, eos_token_ids[0], tokenizer)
    try:
        info = describe(options, trt, tokenizer, eos_token_ids)
        if info.role and "disaggregation" not in info.features:
            raise ApiError(f'--role {info.role} needs --cache_transceiver_config, for example \'{{"backend": "UCX"}}\'')
        asyncio.run(serve(options, trt, info))
    finally:
        trt.shutdown()


def main() -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="executor: %(message)s")
    try:
        run(parse(None, load_yaml))
    except (ApiError, OptionError, TokenizerFileError, OSError) as error:
        log.error("%s", error)
        return 1
    except EngineDead as error:
        log.error("the engine died: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
