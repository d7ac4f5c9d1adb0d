"""The command line: `python3.13t -m gateway` serves, `... doctor` examines the installation, `... parse`
reads captured answers, `... preprocess` makes tensors of images, `... key` makes an API key."""

import gc
import logging
import os
import sys
from collections.abc import Sequence

from engine_adapters.tls import WorkerTlsError
from engine_adapters.tokenizer_file import TokenizerFileError
from gateway import config, doctor, key_command, log, parse_command, server
from gateway.limits import KeyFileError
from gateway.listening import StartError
from gateway.model import ParserNames, load_models
from gateway.parsers.detect import UnknownParser
from gateway.routing import AddressError, Policies, PolicyError, WorkerAddress
from gateway.tls import TlsError
from gateway.tokenizer import RequestTemplates

USAGE_ERROR = 2
COLLECT_AFTER = 100_000
"""Allocations not yet freed between collections. A request leaves no cycles behind, but what one thread makes and
another frees counts all the same, and on 3.13t a collection stops every thread and looks at every object."""


FAULTS = (
    *(config.ConfigError, TokenizerFileError, UnknownParser, AddressError, PolicyError),
    *(KeyFileError, TlsError, WorkerTlsError, StartError),
)
"""What an operator must put right."""


def preprocess(arguments: Sequence[str]) -> int:
    from gateway import preprocess_command  # not above: serving text needs neither numpy nor Pillow

    return preprocess_command.main(arguments)


COMMANDS = {"doctor": doctor.main, "key": key_command.main, "parse": parse_command.main, "preprocess": preprocess}


def main(arguments: Sequence[str]) -> int:
    """Run a command to its end; returns the exit code."""
    try:
        if arguments and arguments[0] in COMMANDS:
            return COMMANDS[arguments[0]](arguments[1:])
        return serve(config.load(arguments, os.environ))
    except FAULTS as error:
        sys.stderr.write(f"gateway: {error}\n")
        return USAGE_ERROR


def serve(settings: config.Config) -> int:
    refusal = gil_refusal(settings.allow_gil)
    if refusal:
        raise config.ConfigError(refusal)
    log.configure(settings.log_format, settings.log_level)
    workers = [WorkerAddress.parse(url) for url in settings.worker]
    models = load_models(
        settings.model_path,
        settings.chat_template,
        RequestTemplates(settings.allow_request_templates),
        ParserNames(settings.tool_parser, settings.reasoning_parser),
    )
    for model in models.values():
        for warning in model.warnings:
            log.event(logging.WARNING, f"model {model.name}: {warning}")
    policies = Policies(settings.policy, models)
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
    return server.run(settings, models, workers, policies)


def gil_refusal(allow_gil: bool) -> str | None:
    """Why we must not serve, once everything is imported."""
    if allow_gil or not sys._is_gil_enabled():
        return None
    if "free-threading" in sys.version:
        return "the GIL is on (PYTHON_GIL or -X gil); unset it, or say --allow-gil to serve all the same"
    return (
        f"this Python ({sys.executable}) has a GIL; `make setup` provides a free-threaded one in .venv, "
        "or say --allow-gil to serve all the same"
    )
