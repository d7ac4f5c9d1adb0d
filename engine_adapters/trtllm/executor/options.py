"""The executor's command line: its own options, and any option of `tensorrt_llm.LLM`, from flags and a YAML file."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine_adapters.base import Phase
from engine_adapters.serving import ServerTls, add_server_options
from engine_adapters.tls import WorkerTlsError

ROLES: "Mapping[str, Phase]" = {"any": "", "prefill": "prefill", "decode": "decode"}
SHORT_NAMES = {
    "tp_size": "tensor_parallel_size",
    "pp_size": "pipeline_parallel_size",
    "ep_size": "moe_expert_parallel_size",
}
"""As trtllm-serve calls them."""
OURS: "Mapping[str, Any]" = {
    "enable_iter_perf_stats": True,  # the load
    "kv_cache_config": {"event_buffer_max_size": 16384},  # KV events
}
"""What the executor asks of the engine where the user says nothing."""

EPILOG = """\
Any other flag is an option of tensorrt_llm.LLM, with _ or -, its value as JSON or else as text. A dot leads
into an option's own fields. The short names of trtllm-serve are understood:
  --tp_size 2 --max_batch_size 64 --kv_cache_config.free_gpu_memory_fraction 0.8 --guided_decoding_backend xgrammar
Flags win over --extra-llm-api-options FILE, which takes the YAML that trtllm-serve takes."""


class OptionError(Exception):
    """A command line or file that cannot be used; the message names what is wrong."""


@dataclass(frozen=True)
class Options:
    """`llm` are the arguments of tensorrt_llm.LLM beside the model."""

    model: str
    host: str
    port: int
    name: str
    role: Phase
    image_tensors: bool
    image_dtype: str
    llm: "dict[str, Any]"
    tls: "ServerTls | None" = None


def parse(arguments: "Sequence[str] | None", load_yaml: "Callable[[str], Any]") -> Options:
    """Raises OptionError; `--help` and errors of our own flags end the process as argparse does."""
    parser = argparse.ArgumentParser(
        prog="python -m engine_adapters.trtllm.executor",
        description="Serve a model by TensorRT-LLM's LLM API over the step stream. Runs in TensorRT-LLM's own Python.\n"
        "Prints one line of JSON with its address when it is ready.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a Hugging Face model folder (the gateway's has the same tokenizer), or a name")
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1); without TLS the port has no protection",
    )
    add("--port", type=int, default=0, help="port to listen on (default: 0, a free one)")
    add("--served-model-name", default="", metavar="NAME", help="the name told to gateways (default: the folder's)")
    add("--role", choices=[*ROLES], default="any", help="the only phase it serves (default: any)")
    add(
        "--image-tensors",
        action="store_true",
        help="take images preprocessed by the gateway: what TensorRT-LLM does with them is no documented interface",
    )
    add("--image-dtype", choices=["float16", "bfloat16"], default="", help="what such images are wanted in")
    add(
        "--extra-llm-api-options", "--extra_llm_api_options", metavar="FILE", help="options of tensorrt_llm.LLM as YAML"
    )
    add_server_options(parser)
    own, others = parser.parse_known_args(arguments)
    llm: dict[str, Any] = {}
    for layer in (OURS, _from_file(own.extra_llm_api_options, load_yaml), _from_flags(others)):
        llm = merged(llm, layer)
    if llm.get("num_postprocess_workers"):
        raise OptionError("num_postprocess_workers must be 0: the gateway does what these would do")
    try:
        tls = ServerTls.of(own)
    except WorkerTlsError as error:
        raise OptionError(str(error)) from error
    role, images = ROLES[own.role], (own.image_tensors, own.image_dtype)
    return Options(own.model, own.host, own.port, own.served_model_name, role, *images, llm, tls)


def merged(below: "Mapping[str, Any]", above: "Mapping[str, Any]") -> "dict[str, Any]":
    """`above` wins; where both have a mapping, key by key."""
    result = dict(below)
    for name, value in above.items():
        was = result.get(name)
        both = isinstance(was, Mapping) and isinstance(value, Mapping)
        result[name] = merged(was, value) if both and isinstance(was, Mapping) else value
    return result


def _from_file(path: "str | None", load_yaml: "Callable[[str], Any]") -> "dict[str, Any]":
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            content = load_yaml(file.read())
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise OptionError(f"{path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise OptionError(f"{path} must hold a mapping of option names to values")
    return content


def _from_flags(words: "Sequence[str]") -> "dict[str, Any]":
    result: dict[str, Any] = {}
    rest = [*words]
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or len(flag) < 3:
            raise OptionError(f"{flag!r} is not an option; options of tensorrt_llm.LLM are written --name value")
        name, has_value, text = flag[2:].partition("=")
        if not has_value:
            has_word = rest and not rest[0].startswith("--")
            text = rest.pop(0) if has_word else "true"
        result = merged(result, _nested(name.replace("-", "_"), _value(text)))
    return result


def _nested(name: str, value: Any) -> "dict[str, Any]":
    """a.b: value as {a: {b: value}}"""
    first, *others = name.split(".")
    for part in reversed(others):
        value = {part: value}
    return {SHORT_NAMES.get(first, first): value}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)
