"""One frozen Config; the command line, the environment, the file and the documentation all follow from its fields.

Precedence: command line, then environment (`GATEWAY_` + the field's name), then `--config FILE` (TOML), then defaults.
"""

import argparse
import ipaddress
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, get_type_hints

from gateway.log import FORMATTERS, LEVELS


class ConfigError(Exception):
    """A setting that cannot be used; the message names it, where it came from, and what it may be."""


Check = Callable[[Any], str | None]
"""What is wrong with a value, or None."""


def between(low: float, high: float) -> Check:
    return lambda value: None if low <= value <= high else f"must be between {low:g} and {high:g}"


def one_of(*choices: str) -> Check:
    return lambda value: None if value in choices else f"must be one of {', '.join(choices)}"


def networks(values: tuple[str, ...]) -> str | None:
    for value in values:
        try:
            ipaddress.ip_network(value)
        except ValueError as error:
            return f"must be networks such as 10.1.0.0/16: {error}"
    return None


def option(default: Any, help: str, metavar: str = "", check: Check | None = None, default_text: str = "") -> Any:
    """A setting; `default_text` says in words what the default is where that depends on the machine."""
    shown = default_text or (str(default) if default not in ((), "") else "none")
    return field(default=default, metadata={"help": help, "metavar": metavar, "check": check, "shown": shown})


@dataclass(frozen=True, slots=True)
class Config:
    host: str = option("127.0.0.1", "address to listen on", "ADDRESS")
    port: int = option(8000, "port to listen on; 0 takes a free one", "PORT", between(0, 65535))
    reuse_port: bool = option(
        False,
        "let other processes listen on the same port, and the system share out connections (SO_REUSEPORT)",
        default_text="off",
    )
    model_path: tuple[str, ...] = option(
        (),
        "a Hugging Face model folder to serve, optionally under a name",
        "[NAME=]DIR",
        default_text="the demo model",
    )
    lora: tuple[str, ...] = option(
        (),
        "a LoRA adapter of a model, served under a name of its own; PATH is where the engine finds it",
        "NAME=[MODEL:]ID[@PATH]",
    )
    chat_template: tuple[str, ...] = option(
        (),
        "a Jinja file to use in place of a model's own chat template",
        "[NAME=]FILE",
        default_text="the model folder's",
    )
    allow_request_templates: int = option(
        0,
        "how many different chat templates of clients are taken in all; trust them: each may loop, and stays in memory",
        "N",
        between(0, 10000),
    )
    tool_parser: tuple[str, ...] = option(
        (),
        "how a model writes tool calls: a name of `gateway parse --list`, auto, none, or package.module:Class",
        "[MODEL=]PARSER",
        default_text="auto",
    )
    reasoning_parser: tuple[str, ...] = option(
        (),
        "how a model wraps its reasoning: as for --tool-parser",
        "[MODEL=]PARSER",
        default_text="auto",
    )
    worker: tuple[str, ...] = option(
        (),
        "an engine, such as step://host:port?model=NAME&role=any&weight=1; also trtllm:// (trtllm-serve --grpc) and "
        "openengine://",
        "URL",
        default_text="an embedded simulator for each model",
    )
    alias: tuple[str, ...] = option(
        (), "another name for a model, for clients, and for engines that call it so", "NAME=MODEL"
    )
    worker_file: str = option(
        "", "a TOML or JSON file that lists workers, followed while it changes (docs/routing.md)", "FILE"
    )
    policy: tuple[str, ...] = option(
        (),
        "who gets a request, for all models, one, or its workers of one role: cache_aware, least_load, power_of_two, "
        "round_robin, random, prefix_hash, consistent_hashing, sticky, bucket or passthrough (docs/routing.md)",
        "[MODEL[/ROLE]=]NAME",
        default_text="cache_aware",
    )
    worker_ca: str = option(
        "",
        "speak TLS with workers, and trust those whose certificate is from an authority in this PEM file; "
        "?tls=false in a worker's URL is an exception",
        "FILE",
        default_text="no TLS",
    )
    worker_cert: str = option("", "the gateway's own certificate, for workers that want one (PEM)", "FILE")
    worker_key: str = option("", "the key of --worker-cert (PEM)", "FILE")
    server: str = option(
        "hypercorn",
        "the HTTP server: hypercorn, or granian (HTTP in Rust, for less CPU)",
        "NAME",
        one_of("hypercorn", "granian"),
    )
    tls_cert: str = option(
        "", "serve HTTPS with this certificate and its chain (PEM), read again when it changes", "FILE"
    )
    tls_key: str = option("", "the key of --tls-cert (PEM)", "FILE")
    http_threads: int = option(
        max(1, (os.cpu_count() or 1) // 4),
        "event-loop threads that serve HTTP",
        "N",
        between(1, 256),
        default_text="a quarter of the cores",
    )
    tokenize_threads: int = option(
        max(1, os.cpu_count() or 1),
        "threads that render and tokenize long prompts",
        "N",
        between(1, 256),
        default_text="the cores",
    )
    vision_threads: int = option(
        max(1, (os.cpu_count() or 1) - 1),
        "threads that decode and preprocess images",
        "N",
        between(1, 256),
        default_text="the cores but one",
    )
    image_cache_mb: int = option(
        512, "memory for preprocessed images seen before, in MiB; 0: none", "MIB", between(0, 1 << 20)
    )
    image_limit: int = option(32, "images that a request may have", "N", between(1, 10000))
    image_mb: int = option(32, "largest image file taken, in MiB", "MIB", between(1, 4096))
    image_seconds: float = option(10.0, "how long fetching an image may take", "SECONDS", between(0.1, 600))
    image_http: bool = option(False, "fetch images from http:// URLs, too", default_text="off")
    image_domain: tuple[str, ...] = option(
        (), "a domain that images may be fetched from, with those below it", "DOMAIN", default_text="any"
    )
    image_network: tuple[str, ...] = option(
        (),
        "a network, such as 10.1.0.0/16, that images may be fetched from although its addresses are not public",
        "NETWORK",
        check=networks,
    )
    image_directory: str = option("", "a directory that file:// URLs may name images in", "DIR")
    cache_mb: int = option(
        256,
        "memory for the token ids of text seen before, in MiB; 0: nothing of any text is kept",
        "MIB",
        between(0, 1 << 20),
    )
    grace_seconds: float = option(
        30.0, "how long running streams may go on after SIGTERM", "SECONDS", between(0, 86400)
    )
    stall_seconds: float = option(
        60.0, "name a stream in the log that made no progress for this long", "SECONDS", between(1, 86400)
    )
    connect_seconds: float = option(
        5.0, "how long a request waits for a worker when none is ready", "SECONDS", between(0, 3600)
    )
    max_concurrency: int = option(
        0, "requests answered at a time; more of them wait; 0: any number (docs/limits.md)", "N", between(0, 1 << 20)
    )
    queue_size: int = option(
        1024, "requests of each priority class that may wait for a place; more are refused", "N", between(0, 1 << 20)
    )
    queue_seconds: float = option(30.0, "how long a request may wait for a place", "SECONDS", between(0.001, 86400))
    max_body_mb: int = option(64, "largest request body taken, in MiB", "MIB", between(1, 4096))
    max_bodies_mb: int = option(
        1024,
        "memory for request bodies in all, in MiB; a request that would need more is refused",
        "MIB",
        between(1, 1 << 20),
    )
    max_connections: int = option(
        16384, "connections of clients to each HTTP thread; more of them are closed", "N", between(1, 1 << 20)
    )
    body_seconds: float = option(
        120.0, "how long a client may take to send a request's body", "SECONDS", between(0.1, 86400)
    )
    dead_client_seconds: float = option(
        30.0, "cut a client that acknowledges nothing for this long, or reads too slowly", "SECONDS", between(1, 3600)
    )
    request_seconds: float = option(
        0.0,
        "how long a request may take in all, whatever its x-request-timeout says; 0 is for ever",
        "SECONDS",
        between(0, 86400),
    )
    retries: int = option(
        2, "how often a request that failed before its first token is sent to another worker", "N", between(0, 10)
    )
    retry_budget: float = option(
        0.2, "the share of a model's requests that may be sent again, besides 10 a second", "SHARE", between(0, 1)
    )
    health_seconds: float = option(
        2.0,
        "how often a worker is asked how it is; 3 bad answers take it out, 2 good ones back",
        "SECONDS",
        between(0.1, 3600),
    )
    breaker_error_rate: float = option(
        0.5, "a worker gets no requests for a while when this share of them failed; 0: never", "SHARE", between(0, 1)
    )
    breaker_requests: int = option(10, "how many requests, at least, that share is of", "N", between(1, 1_000_000))
    breaker_window_seconds: float = option(
        30.0, "how long a request counts for that share", "SECONDS", between(1, 3600)
    )
    breaker_open_seconds: float = option(
        5.0,
        "how long such a worker gets no requests at first; twice as long each time it does not help",
        "SECONDS",
        between(0.1, 60),
    )
    api_key: tuple[str, ...] = option((), "a key that clients must have one of", "KEY", default_text="no key needed")
    api_keys: str = option(
        "", "a TOML file of hashed keys with their limits, followed while it changes (docs/limits.md)", "FILE"
    )
    admin_key: str = option("", "the key for /admin; without one it is open to this machine only", "KEY")
    log_format: str = option("human", "how log lines look: human or json", "FORMAT", one_of(*FORMATTERS))
    log_prompts: bool = option(False, "log what clients send to models, which is else nowhere", default_text="off")
    log_level: str = option("info", "debug, info, warning or error", "LEVEL", one_of(*LEVELS))
    allow_gil: bool = option(False, "serve even though the GIL is on (for comparisons)", default_text="off")


def load(arguments: Sequence[str], environment: Mapping[str, str]) -> Config:
    """The Config of a process; raises ConfigError. `--help` and unknown flags end the process as argparse does."""
    given = vars(parser().parse_args(arguments))
    path = given.pop("config", None) or environment.get("GATEWAY_CONFIG")
    layers = [
        (f"the file {path}", _from_file(path) if path else {}),
        ("the environment", _from_environment(environment)),
        ("the command line", given),
    ]
    values: dict[str, Any] = {}
    for source, layer in layers:
        for name, value in layer.items():
            values[name] = _checked(name, value, source)
    return Config(**values)


def parser() -> argparse.ArgumentParser:
    """The command line, made from Config's fields."""
    result = argparse.ArgumentParser(
        prog="python3.13t -m gateway",
        description="OpenAI-compatible gateway to LLM engines, in free-threaded Python. Without arguments it serves a\n"
        "demo model from an embedded simulator. `python3.13t -m gateway doctor` examines the installation,\n"
        "`... parse` reads captured answers as the gateway would, `... preprocess` makes of images what a model would\n"
        "get, and `... key` makes an API key.",
        epilog="Every option can also be set in the environment (GATEWAY_PORT=8080; lists are separated by spaces)\n"
        "or in a TOML file (port = 8080). The command line wins over the environment, which wins over the file.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    result.add_argument("--config", metavar="FILE", help="read settings from a TOML file")
    for item in fields(Config):
        flag = "--" + item.name.replace("_", "-")
        if isinstance(item.default, bool):
            result.add_argument(flag, action="store_true", help=item.metadata["help"])
        else:
            repeatable = isinstance(item.default, tuple)
            result.add_argument(
                flag,
                action="append" if repeatable else "store",
                metavar=item.metadata["metavar"],
                help=_help(item, repeatable),
            )
    return result


def _help(item: Field[Any], repeatable: bool) -> str:
    repetition = ", repeatable" if repeatable else ""
    return f"{item.metadata['help']} (default: {item.metadata['shown']}{repetition})"


def as_markdown() -> str:
    """docs/configuration.md."""
    rows = [
        f"| `--{item.name.replace('_', '-')}` | `{item.metadata['metavar']}`".replace(" | ``", " |")
        + f" | {item.metadata['help']} | {item.metadata['shown']} |"
        for item in fields(Config)
    ]
    return "\n".join([MARKDOWN_HEAD, *rows, ""])


MARKDOWN_HEAD = """# Configuration

Made from the fields of `gateway/config.py` by `make docs`.

Every option can be given on the command line (`--port 8080`), in the environment (`GATEWAY_PORT=8080`; lists are
separated by spaces, switches are `1` or `0`), or in a TOML file named by `--config FILE` or `GATEWAY_CONFIG`
(`port = 8080`; repeatable options are lists). The command line wins over the environment, the environment over the
file. A setting that cannot be used ends the start with exit code 2 and a message that names it and its source.

| option | value | what it does | default |
|---|---|---|---|"""


def _from_file(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    names = {item.name for item in fields(Config)}
    result = {name.replace("-", "_"): value for name, value in values.items()}
    unknown = sorted(result.keys() - names)
    if unknown:
        raise ConfigError(f"{path} sets {', '.join(unknown)}; the settings are {', '.join(sorted(names))}")
    return result


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for item in fields(Config):
        text = environment.get("GATEWAY_" + item.name.upper())
        if text is not None:
            result[item.name] = text.split() if isinstance(item.default, tuple) else text
    return result


def _checked(name: str, value: Any, source: str) -> Any:
    """`value` in the type of the field `name`; raises ConfigError."""
    item = next(item for item in fields(Config) if item.name == name)
    try:
        result = _converted(value, type(item.default))
    except (TypeError, ValueError, KeyError):
        expected = get_type_hints(Config)[name]
        kind = getattr(expected, "__name__", str(expected))
        raise ConfigError(f"{name} from {source}: {value!r} is not a valid {kind}") from None
    check: Check | None = item.metadata["check"]
    fault = check(result) if check else None
    if fault:
        raise ConfigError(f"{name} from {source}: {value!r} {fault}")
    return result


# What each kind of field may be given as: text from the command line and the environment, values from TOML.
CONVERTIBLE: dict[type, tuple[type, ...]] = {str: (str,), int: (str, int), float: (str, int, float)}


BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}


def _converted(value: Any, kind: type) -> Any:
    if kind is bool:
        return _as_bool(value)
    if kind is tuple:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
            raise TypeError(value)
        return tuple(values)
    if not isinstance(value, CONVERTIBLE[kind]) or isinstance(value, bool):
        raise TypeError(value)
    return kind(value)


def _as_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return BOOLEANS[str(value).lower()]
