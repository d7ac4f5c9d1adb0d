"""What the tests of the wire codec share: our message classes, and google.protobuf's for the same .proto files."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# The parser in Python, also where the C one loads: that one is asked in a process of its own (upb_oracle.py).
os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

ROOT = Path(__file__).resolve().parents[2]
PROTO_FILES = (
    "proto/executor.proto",
    "proto/openengine.proto",
    "proto/trtllm_service.proto",
    "tests/adapters/every_kind.proto",
)


def load_module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def generator() -> ModuleType:
    """proto/generate.py, which no import finds."""
    sys.path.append(str(ROOT / "proto"))
    return load_module("proto_generate", ROOT / "proto/generate.py")


@pytest.fixture(scope="session")
def every_kind(generator: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module generated from every_kind.proto."""
    path = tmp_path_factory.mktemp("generated") / "every_kind.py"
    path.write_text(generator.generate(ROOT / "tests/adapters/every_kind.proto", ROOT), "utf-8")
    return load_module("every_kind", path)


@pytest.fixture(scope="session")
def tools_python() -> str:
    """A Python with grpcio-tools, of which there is no build for a free-threaded one."""
    path = os.environ.get("GATEWAY_TOOLS_PYTHON") or str(ROOT / ".venv-tools/bin/python")
    if not Path(path).exists():
        pytest.fail(f"no {path}: name a Python that has grpcio-tools in GATEWAY_TOOLS_PYTHON")
    return path


@pytest.fixture(scope="session")
def descriptors(tools_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FileDescriptorSet of PROTO_FILES, made by protoc."""
    path = tmp_path_factory.mktemp("descriptors") / "set"
    protoc = [tools_python, "-m", "grpc_tools.protoc", f"-I{ROOT}", f"--descriptor_set_out={path}"]
    subprocess.run([*protoc, *(str(ROOT / name) for name in PROTO_FILES)], check=True, timeout=60)
    return path


@pytest.fixture(scope="session")
def google_classes(descriptors: Path) -> Callable[[str], Any]:
    """The google.protobuf class of a message by its full name."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes()).file:
        pool.Add(file)
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
