"""`python3.13t -m gateway doctor`: what this installation is, and whether it can do what the gateway promises."""

import asyncio
import json
import os
import platform
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

from engine_adapters.base import EngineInfo, EngineLost
from engine_adapters.step.client import StepClient
from engine_adapters.tls import WorkerTls
from gateway import config
from gateway.model import Model, ParserNames, load_models
from gateway.routing import WorkerAddress
from gateway.tokenizer import ChatTemplate, RequestTemplates, Structure, Tokenizer
from gateway.tokenizer.tokenizer_files import find_tokenizer

PACKAGES = {
    "grpc": "grpcio",
    "tokenizers": "tokenizers",
    "jinja2": "jinja2",
    "jsonschema_rs": "jsonschema-rs",
    "numpy": "numpy",
    "PIL.Image": "pillow",
    "markupsafe": "markupsafe",
    "starlette": "starlette",
    "hypercorn": "hypercorn",
    "granian": "granian",
}
OPTIONAL = {"granian"}
PROBE = "import sys; before = sys._is_gil_enabled(); import {module}; print(int(before), int(sys._is_gil_enabled()))"
SPEED_SECONDS = 0.5
SAMPLE = "The gateway turns text into numbers, and numbers back into text, as quickly as it can. "


def main(arguments: Sequence[str]) -> int:
    """Print the report; the exit code is 1 if there is a problem that would keep the gateway from serving well."""
    parser = config.parser()
    parser.prog += " doctor"
    parser.description = "Examine the interpreter, the packages, the tokenizers and the workers."
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    as_json = getattr(parser.parse_args(arguments), "json", False)
    settings = config.load([each for each in arguments if each != "--json"], os.environ)
    report = examine(settings)
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if as_json else in_words(report))
    return 1 if report["problems"] else 0


def examine(settings: config.Config) -> dict[str, Any]:
    """All findings; `problems` lists in words what is wrong."""
    tls = WorkerTls.of(settings.worker_ca, settings.worker_cert, settings.worker_key)
    packages = [examine_package(module, name) for module, name in PACKAGES.items()]
    models = load_models(
        settings.model_path,
        settings.chat_template,
        RequestTemplates(settings.allow_request_templates),
        ParserNames(settings.tool_parser, settings.reasoning_parser),
    )
    report: dict[str, Any] = {
        "interpreter": interpreter(),
        "packages": packages,
        "models": [describe(model) for model in models.values()],
        "tokenizers": [tokenizer_speed(model) for model in models.values()],
        "parsers": [parsers_of(model) for model in models.values()],
        "workers": [asyncio.run(reach(WorkerAddress.parse(url), models, tls)) for url in settings.worker],
    }
    report["problems"] = [*interpreter_problems(report["interpreter"])]
    report["problems"] += [
        f"{package['name']} is not installed"
        for package in packages
        if package["version"] is None and package["module"] not in OPTIONAL
    ]
    report["problems"] += [worker["problem"] for worker in report["workers"] if worker["problem"]]
    return report


def parsers_of(model: Model) -> dict[str, Any]:
    """What reads its answers, and why that was chosen."""
    calls, reasoning = model.formats.calls, model.formats.reasoning
    return {
        "model": model.name,
        "tool_parser": calls.name,
        "tool_parser_why": calls.why,
        "reasoning_parser": reasoning.name,
        "reasoning_parser_why": reasoning.why,
    }


def interpreter() -> dict[str, Any]:
    return {
        "executable": sys.executable,
        "version": platform.python_version(),
        "free_threaded_build": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "gil_enabled_now": sys._is_gil_enabled(),
        "compiler": platform.python_compiler(),
        "configure_arguments": sysconfig.get_config_var("CONFIG_ARGS"),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
    }


def interpreter_problems(found: dict[str, Any]) -> list[str]:
    if not found["free_threaded_build"]:
        return ["this Python is not a free-threaded build; `make setup` provides one"]
    return ["the GIL is on (PYTHON_GIL or -X gil)"] if found["gil_enabled_now"] else []


def examine_package(module: str, name: str) -> dict[str, Any]:
    """Version, build tag, and what importing it alone does to the GIL of a fresh interpreter left to itself."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return {"name": name, "module": module, "version": None}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHON_GIL"}
    probe = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE.format(module=module)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    before, after = ([bool(int(word)) for word in probe.stdout.split()] + [None, None])[:2]
    wheel = (distribution.read_text("WHEEL") or "").splitlines()
    return {
        "name": name,
        "module": module,
        "version": distribution.version,
        "wheel": [line.removeprefix("Tag: ") for line in wheel if line.startswith("Tag: ")],
        "gil_before_import": before,
        "gil_after_import": after,
        "would_enable_gil": before is False and after is True,
        "error": probe.stderr.strip() or None,
    }


def describe(model: Model) -> dict[str, Any]:
    """What was found in a model's folder."""
    tokenizer = model.tokenizer
    return {
        "model": model.name,
        "folder": str(model.folder),
        "tokenizer_file": find_tokenizer(model.folder)[0].name,
        "vocab_size": tokenizer.vocab_size,
        "context_length": model.context_length,
        "eos": texts_of(tokenizer, model.eos_token_ids),
        "before_texts": texts_of(tokenizer, tokenizer.specials.prefix),
        "after_texts": texts_of(tokenizer, tokenizer.specials.suffix),
        "special_tokens": dict(tokenizer.specials.names),
        "chat_templates": {name: describe_template(template) for name, template in model.templates.named.items()},
        "warnings": list(model.warnings),
    }


def texts_of(tokenizer: Tokenizer, token_ids: bytes) -> dict[int, str]:
    return {token_id: tokenizer.table.token_text(token_id) for token_id in memoryview(token_ids).cast("I")}


def describe_template(template: ChatTemplate) -> dict[str, Any]:
    facts = template.facts
    return {
        "content_parts": sorted(facts.takes_parts),
        "arguments": "objects" if facts.takes_objects else "text",
        "tools": facts.uses_tools,
        "documents": facts.uses_documents,
        "thinking": [*facts.toggles, *(["reasoning_effort"] if facts.uses_effort else [])],
        "opens_reasoning": template.opens_reasoning,
        "writes_bos": facts.writes_bos,
    }


def tokenizer_speed(model: Model) -> dict[str, Any]:
    """MB/s of prompt text on one thread, and on as many as there are cores, together."""
    cores = os.cpu_count() or 1
    alone, together = megabytes_per_second(model, 1), megabytes_per_second(model, cores)
    return {
        "model": model.name,
        "vocab_size": model.tokenizer.vocab_size,
        "fingerprint": model.tokenizer.fingerprint.hex(),
        "one_thread_mb_per_s": round(alone, 2),
        "threads": cores,
        "all_threads_mb_per_s": round(together, 2),
        "scaling": round(together / alone, 2),
        "shortcuts": Structure(model.tokenizer.library).report(),
    }


def megabytes_per_second(model: Model, threads: int) -> float:
    text = SAMPLE * 200
    done = [0] * threads
    started = time.perf_counter()

    def encode(number: int) -> None:
        while done[number] == 0 or time.perf_counter() - started < SPEED_SECONDS:
            model.tokenizer.encode(text)
            done[number] += len(text)

    workers = [threading.Thread(target=encode, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done) / 1e6 / (time.perf_counter() - started)


async def reach(address: WorkerAddress, models: dict[str, Model], tls: WorkerTls | None) -> dict[str, Any]:
    """Ask a worker what it serves."""
    client: StepClient[object] = StepClient(address.target, lambda kind: None, None, tls if address.tls else None)
    started = time.perf_counter()
    try:
        info = await client.connect()
    except EngineLost as error:
        return {"worker": str(address), "problem": str(error)}
    finally:
        await client.close()
    return {
        "worker": str(address),
        "problem": fingerprint_problem(address, info, models),
        "milliseconds": round((time.perf_counter() - started) * 1000, 1),
        "engine": f"{info.engine} {info.engine_version}",
        "model": info.model,
        "fingerprint": info.tokenizer_fingerprint.hex(),
    }


def fingerprint_problem(address: WorkerAddress, info: EngineInfo, models: dict[str, Model]) -> str | None:
    known = {model.tokenizer.fingerprint for model in models.values()}
    if not info.tokenizer_fingerprint or info.tokenizer_fingerprint in known:
        return None
    return f"worker {address} has another tokenizer than any model folder given here"


def in_words(report: dict[str, Any]) -> str:
    """The report for people."""
    python = report["interpreter"]
    build = "free-threaded build" if python["free_threaded_build"] else "build with a GIL"
    gil = on_or_off(python["gil_enabled_now"])
    lines = [
        f"Python {python['version']} ({build}), GIL {gil}, {python['cores']} cores",
        f"  {python['executable']}",
        f"  {python['compiler']}; configure {python['configure_arguments'] or ''}",
        "",
        "Packages                        GIL before and after importing it alone, without PYTHON_GIL=0",
    ]
    lines += [package_line(package) for package in report["packages"]]
    lines += ["", "Models", *(line for each in report["models"] for line in model_lines(each))]
    lines += ["", "Tokenizers"]
    for each in report["tokenizers"]:
        lines += [speed_line(each), *(f"    {name}: {finding}" for name, finding in each["shortcuts"].items())]
    lines += ["", "Parsers"]
    for each in report["parsers"]:
        lines += [
            f"  {each['model']:<12} tools {each['tool_parser']} ({each['tool_parser_why']})",
            f"  {'':<12} reasoning {each['reasoning_parser']} ({each['reasoning_parser_why']})",
        ]
    lines += ["", "Workers"] if report["workers"] else []
    lines += [f"  {each['worker']}: {each['problem'] or 'reached, ' + each['engine']}" for each in report["workers"]]
    lines += ["", *(f"PROBLEM: {problem}" for problem in report["problems"] or ())]
    return "\n".join(lines) + ("\n" if report["problems"] else "No problems found.\n")


def model_lines(model: dict[str, Any]) -> Iterator[str]:
    ends = ", ".join(f"{text} ({token_id})" for token_id, text in model["eos"].items())
    size, length = model["vocab_size"], model["context_length"]
    yield f"  {model['model']:<12} {model['tokenizer_file']}, {size} ids; context {length}"
    yield f"    ends with {ends}; put before texts: {' '.join(model['before_texts'].values()) or 'nothing'}"
    for name, template in model["chat_templates"].items():
        takes = [name for name in ("tools", "documents") if template[name]]
        takes += [f"parts from {', '.join(template['content_parts'])}"] if template["content_parts"] else []
        yield f"    chat template {name}: {', '.join(takes) or 'texts only'}; arguments as {template['arguments']}"
        if template["thinking"] or template["opens_reasoning"]:
            switches = ", ".join(template["thinking"]) or "nothing"
            yield f"      thinking is switched by {switches}; prompts open {template['opens_reasoning'] or 'no block'}"
    for warning in model["warnings"]:
        yield f"    note: {warning}"


def speed_line(speed: dict[str, Any]) -> str:
    one, all_threads = speed["one_thread_mb_per_s"], speed["all_threads_mb_per_s"]
    return (
        f"  {speed['model']:<12} {one:.2f} MB/s on one thread, "
        f"{all_threads:.2f} on {speed['threads']} ({speed['scaling']:.2f}x)"
    )


def package_line(package: dict[str, Any]) -> str:
    if package["version"] is None:
        return f"  {package['name']:<12} not installed"
    change = f"{on_or_off(package['gil_before_import'])} -> {on_or_off(package['gil_after_import'])}"
    remark = "  would switch the GIL on; the gateway keeps it off" if package["would_enable_gil"] else ""
    return f"  {package['name']:<12} {package['version']:<16} {change}{remark}"


def on_or_off(gil: bool | None) -> str:
    return {True: "on", False: "off", None: "?"}[gil]
