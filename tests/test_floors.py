"""The architecture, held by its imports: they go down only, so those of one floor do not know each other."""

import ast
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT

FLOORS: list[set[str]] = [
    {"errors", "health", "immortal", "log", "metrics", "retries", "tasks"},
    {"config", "schemas", "threads", "tls", "types"},
    {"fetch"},
    {"generation_config", "limits", "multimodal", "parsers", "pools", "reload", "routing", "streams", "tokenizer"},
    {"decoder", "embedded", "engines", "model"},
    {"doctor", "http_loop", "key_command", "parse_command", "preprocess_command", "submissions", "worker_file"},
    {"gateway", "http1", "leg", "listening"},
    {"images"},
    {"prepare"},
    {"generate"},
    {"api", "gauges", "granian_server", "http_server", "watch"},
    {"app"},
    {"server"},
    {"command"},
    {"__main__"},
]
"""A part of gateway/ knows those on lower floors only."""
MAX_LINES = 400
MAX_FUNCTION_LINES = 60
PACKAGES = ("gateway", "engine_adapters")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
EXECUTORS_NEED = {"engine_adapters", "grpc"}
"""What an engine's own Python must offer beside the standard library."""
CLIENTS_NEED = {"engine_adapters.http2.connection": {"hpack"}}
"""What runs in gateways only may need more."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): ast.parse(path.read_text("utf-8")) for path in SOURCES}


def imports_of(name: str) -> set[str]:
    """The modules that a module imports, wherever in it: ours by their full names."""
    found: set[str] = set()
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name} has a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return found


def part_of(name: str) -> str | None:
    """The file or package below gateway/ that a module belongs to; None for what is outside of it."""
    words = name.split(".")
    return words[1] if words[0] == "gateway" and len(words) > 1 else None


def gateway_edges() -> set[tuple[str, str]]:
    """(importing part, imported part) of gateway/."""
    edges = set()
    for name in MODULES:
        for imported in imports_of(name):
            ours, theirs = part_of(name), part_of(imported)
            if ours and theirs and ours != theirs:
                edges.add((ours, theirs))
    return edges


def test_every_file_has_its_floor() -> None:
    parts = {part for name in MODULES if (part := part_of(name))}

    assert parts == set.union(*FLOORS)
    assert sum(map(len, FLOORS)) == len(parts), "nothing stands on two floors"


def test_imports_go_down() -> None:
    floor_of = {part: number for number, parts in enumerate(FLOORS) for part in parts}

    wrong = [f"{ours} imports {theirs}" for ours, theirs in gateway_edges() if floor_of[ours] <= floor_of[theirs]]
    assert not wrong


def test_no_module_imports_itself_by_a_detour() -> None:
    # A package's __init__ gathers its own modules, which import each other directly.
    edges = {name: {each for each in imports_of(name) if each in MODULES} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for imported in edges[name]:
                visit(imported, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_executors_need_nothing_of_the_gateway_and_only_grpc() -> None:
    for name in MODULES:
        if name.startswith("engine_adapters") and name != "engine_adapters.simulator.train_tokenizer":
            tops = {imported.partition(".")[0] for imported in imports_of(name)}
            foreign = tops - sys.stdlib_module_names - EXECUTORS_NEED - CLIENTS_NEED.get(name, set())
            assert not foreign, f"{name} imports {foreign}"


def test_executors_code_is_in_the_syntax_of_python_3_10() -> None:
    for path in (ROOT / "engine_adapters").rglob("*.py"):
        ast.parse(path.read_text("utf-8"), str(path), feature_version=(3, 10))


def test_the_entry_point_is_in_the_syntax_of_any_python_3() -> None:
    text = (ROOT / "gateway/__main__.py").read_text("utf-8")

    for minor in (7, 8, 9, 10, 11, 12):
        ast.parse(text, feature_version=(3, minor))
    top = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert all(alias.name in sys.stdlib_module_names for node in top for alias in node.names)


def test_only_the_engine_side_speaks_grpc() -> None:
    for name in MODULES:
        if name.startswith("gateway"):
            assert "grpc" not in {imported.partition(".")[0] for imported in imports_of(name)}, name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small_and_say_what_they_are(path: Path) -> None:
    tree = MODULES[name_of(path)]

    docstring = ast.get_docstring(tree)
    assert docstring, "a file opens with one sentence that says what it is"
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES or "written by proto/generate.py" in docstring
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name
