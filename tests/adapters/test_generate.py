"""Tests of the classes that proto/generate.py writes and of what it refuses to read."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from engine_adapters.scalars import read_varint
from engine_adapters.step import messages

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = ("proto/generate.py", "proto/proto3_parser.py")
PROTOS = {
    "proto/executor.proto": "engine_adapters/step/messages.py",
    "proto/openengine.proto": "engine_adapters/trtllm/openengine/messages.py",
    "proto/trtllm_service.proto": "engine_adapters/trtllm/native/messages.py",
}


def run_generator(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "proto/generate.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the generator reads and writes."""
    for name in (*GENERATOR, *PROTOS, *PROTOS.values()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def test_the_generated_files_are_current() -> None:
    assert run_generator(ROOT, "--check").stderr == ""


def test_a_changed_proto_file_makes_the_check_fail_until_it_is_generated(checkout: Path) -> None:
    proto = checkout / "proto/executor.proto"
    proto.write_text(proto.read_text("utf-8").replace("uint32 max_running = 7;", "uint64 max_running = 17;"), "utf-8")

    check = run_generator(checkout, "--check")
    assert check.returncode == 1
    assert "engine_adapters/step/messages.py is not what proto/executor.proto says" in check.stderr

    assert run_generator(checkout).returncode == 0
    assert run_generator(checkout, "--check").returncode == 0
    assert 'singular(17, "max_running", "uint64")' in (checkout / "engine_adapters/step/messages.py").read_text("utf-8")


def test_a_proto_file_that_cannot_be_read_ends_with_its_line(checkout: Path) -> None:
    proto = checkout / "proto/executor.proto"
    proto.write_text('syntax = "proto3";\npackage a;\nimport "b.proto";\n', "utf-8")
    result = run_generator(checkout)
    assert result.returncode != 0
    assert result.stderr == "proto/executor.proto:3: 'import' is not supported here\n"


def test_comments_become_docstrings_and_remarks(generator: ModuleType) -> None:
    text = generator.generate(ROOT / "tests/adapters/every_kind.proto", ROOT)
    assert '"""One field of each kind, in each way that proto3 has.\n\n    A second paragraph.\n    """' in text
    assert "    # Open: any number may come.\n    a_colour: int = 0  # Colour; red by choice\n" in text
    assert "# What a colour is called.\nCOLOUR_UNSPECIFIED: Final = 0\nCOLOUR_RED: Final = 1  # like blood\n" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_a_remark_too_long_for_its_line_goes_above(generator: ModuleType) -> None:
    proto = "message M {\n  string name = 1;  // " + "long " * 22 + "\n}"
    module = generator.Writer(generator.Parser(proto, "x.proto").parse(), "x.proto").module()
    assert "    # " + ("long " * 22).strip() + '\n    name: str = ""\n' in module


def test_attributes_have_the_types_and_defaults_of_their_fields(every_kind: ModuleType) -> None:
    declared = {field.name: field.type for field in fields(every_kind.EveryKind)}
    assert declared["a_sint64"] == "int"
    assert declared["a_float"] == "float"
    assert declared["maybe_bool"] == "bool | None"
    assert declared["a_node"] == declared["maybe_node"] == declared["one_node"] == "Node | None"
    assert declared["one_colour"] == "int | None"
    assert declared["some_bytes"] == "list[bytes]"
    assert declared["by_string"] == "dict[str, Node]"

    message = every_kind.EveryKind()
    assert (message.a_int32, message.a_double, message.a_bool, message.a_string, message.a_bytes) == (
        0,
        0,
        False,
        "",
        b"",
    )
    assert (message.maybe_string, message.one_string, message.a_node) == (None, None, None)
    assert (message.some_node, message.by_int32) == ([], {})
    assert message.some_node is not every_kind.EveryKind().some_node
    assert not hasattr(message, "__dict__")


def test_methods_have_their_paths(every_kind: ModuleType) -> None:
    assert messages.EXECUTOR_ATTACH == "/gateway.executor.v1.Executor/Attach"
    assert messages.EXECUTOR_GET_INFO == "/gateway.executor.v1.Executor/GetInfo"
    assert every_kind.PROBE_TRY_IT == "/gateway.tests.Probe/TryIt"


@pytest.mark.parametrize(("package", "module"), [("gateway.executor.v1", "step"), ("gateway.tests", "every_kind")])
def test_every_field_has_the_number_and_name_that_protoc_gives_it(
    package: str, module: str, every_kind: ModuleType, google_classes: Callable[[str], Any]
) -> None:
    ours = every_kind if module == "every_kind" else messages
    classes: list[Any] = [each for each in vars(ours).values() if isinstance(each, type) and is_dataclass(each)]
    for cls in classes:
        descriptor = google_classes(f"{package}.{cls.__name__}").DESCRIPTOR
        expected = [(field.number, field.name) for field in sorted(descriptor.fields, key=lambda each: each.number)]
        assert [(read_varint(tag, 0)[0] >> 3, name) for name, _, tag, _ in cls.LAYOUT.writes] == expected
        assert {field.name for field in fields(cls)} == {name for _, name in expected}
    file = google_classes(f"{package}.{classes[0].__name__}").DESCRIPTOR.file
    assert {cls.__name__ for cls in classes} == set(file.message_types_by_name)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("message M { repeated group G = 1 {} }", "expected ';', found '{'"),
        ("message M { int32 a = 1; int32 b = 1; }", "number 1 of M is taken"),
        ("message M { int32 a = 1; string a = 2; }", "M has a field 'a' already"),
        ("message M { reserved 3 to 5; int32 a = 4; }", "number 4 of M is taken"),
        ("message M { int32 a = 0; }", "0 is no field number"),
        ("message M { int32 a = 19500; }", "19500 is no field number"),
        ("message M { int32 from = 1; }", "'from' cannot be a field name in Python"),
        ("message M { int32 bytes = 1; }", "'bytes' cannot be a field name in Python"),
        ("message M { map<float, int32> a = 1; }", "'float' cannot be the key of a map"),
        ("message M { oneof o { repeated int32 a = 1; } }", "expected '=', found 'a'"),
        ("message M { int32 a = 1 [deprecated = true]; }", "expected ';', found '['"),
        ("message M { int32 a = one; }", "expected a number, found 'one'"),
        ("message M { int32 a = 1;", "the file ends in the middle of a declaration"),
        ("message M { message N {} }", "'message' is not supported here"),
        ("enum E { A = 1; }", "the first value of E must be 0"),
        ("option java_package = 1;", "'option' is not supported here"),
        ("message M { /* no */ }", "cannot read '/*'"),
        ('syntax = "proto2";', "expected '\"proto3\"', found '\"proto2\"'"),
    ],
)
def test_what_the_parser_does_not_know_is_an_error_with_its_line(generator: ModuleType, line: str, reason: str) -> None:
    with pytest.raises(generator.ProtoError) as caught:
        generator.Parser(f"// a comment\n\n{line}\n", "x.proto").parse()
    assert str(caught.value) == f"x.proto:3: {reason}"


def test_an_unknown_type_is_an_error_that_names_its_field(generator: ModuleType) -> None:
    with pytest.raises(generator.ProtoError, match=r"x.proto: M.a: no type 'Missing' here"):
        generator.Parser("message M { Missing a = 1; }", "x.proto").parse()
