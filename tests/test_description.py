"""/openapi.json: it names every endpoint, real answers fit it, and schemathesis finds nothing that does not."""

import subprocess
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest

from gateway.api.openapi import OPERATIONS
from gateway.api.unavailable import PATHS
from tests import chat, completions
from tests.processes import Gateway, Simulator, environment, wait_until_idle

TIED = "positive_data_acceptance,use_after_free"
"""Checks of what no description can say: which values may go together (min_tokens is at most max_tokens, the prompt
fits the context), and that a deleted worker is there until it has finished."""

LEAST = 30.0


@pytest.fixture(scope="module")
def description(gateway: Gateway) -> dict[str, Any]:
    result: dict[str, Any] = gateway.client.get("/openapi.json").json()
    return result


def test_every_endpoint_is_described_and_nothing_else() -> None:
    source = (Path(__file__).parent.parent / "gateway/app.py").read_text("utf-8")
    described: dict[str, set[str]] = {}
    for operation in OPERATIONS:
        described.setdefault(operation.path.replace("{name}", "{name:path}"), set()).add(operation.method)

    for path, methods in described.items():
        route = next(line for line in source.splitlines() if f'Route("{path}"' in line)
        assert all(f'"{method}"' in route for method in methods), route
        assert route.count('"') == 2 + 2 * len(methods), f"{route} has methods that are not described"
    assert source.count("Route(") == len(described) + 1, "and the one for those that are not here"
    assert not described.keys() & set(PATHS)


def fits(description: dict[str, Any], response: httpx.Response) -> None:
    """Raises when the answer is not as it is described."""
    path = response.request.url.path
    operation = description["paths"][path][response.request.method.lower()]
    media = response.headers["content-type"].partition(";")[0]
    schema = operation["responses"][str(response.status_code)]["content"][media]["schema"]
    value = response.json() if media == "application/json" else response.text
    jsonschema_rs.validate({**schema, "components": description["components"]}, value)


def test_answers_are_as_described(gateway: Gateway, description: dict[str, Any]) -> None:
    bodies = {
        "/v1/chat/completions": (chat.body(max_tokens=2), chat.body(max_tokens=2, stream=True), chat.body(n=0)),
        "/v1/completions": (completions.body(max_tokens=2), {"model": "nobody's", "prompt": "x"}),
        "/v1/tokenize": ({"model": "demo", "prompt": "Hi", "return_token_strs": True},),
        "/v1/detokenize": ({"model": "demo", "tokens": [1]}, {"model": "demo"}),
        "/parse/reasoning": ({"text": "a</think>b", "reasoning_parser": "deepseek_r1"},),
    }
    for path, given in bodies.items():
        for body in given:
            fits(description, gateway.client.post(path, json=body))
    for path in ("/v1/models", "/health", "/ready", "/metrics", "/openapi.json", "/admin/workers", "/admin/pools"):
        fits(description, gateway.client.get(path))
    assert description["components"]["schemas"]["Model"]["enum"] == ["demo"]


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("paths", ["--exclude-path-regex", "--include-path-regex"], ids=["clients", "admins"])
def test_schemathesis_finds_nothing(simulator: Simulator, tools_python: Path, duration: float, paths: str) -> None:
    if duration < LEAST:
        pytest.skip(f"finds little in less than --duration {LEAST:g}")
    with Gateway("--http-threads", "2", workers=[simulator.url]) as gateway:
        gateway.wait_until_ready()
        command = [tools_python.parent / "schemathesis", "run", f"{gateway.url}/openapi.json", paths, "^/admin"]
        command += ["--exclude-checks", TIED, "--max-time", str(int(duration)), "-n", "1000", "--no-color"]
        command += ["--warnings", "off", "--suppress-health-check", "all", "--generation-database", "none"]
        env = environment(PYTHON_GIL=None)
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)

        assert done.returncode == 0, done.stdout
        assert not [entry for entry in gateway.log() if entry["level"] == "ERROR"]
        wait_until_idle(gateway)
        assert gateway.terminate() == 0
