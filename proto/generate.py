"""Writes the message classes of our .proto files: `python proto/generate.py`, or `--check` to compare only."""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from proto3_parser import (
    PYTHON_TYPES,
    EnumDeclaration,
    FieldDeclaration,
    MessageDeclaration,
    Parser,
    ProtoError,
    ProtoFile,
)

ROOT = Path(__file__).resolve().parent.parent

MODULES = {
    "proto/executor.proto": "engine_adapters/step/messages.py",
    "proto/openengine.proto": "engine_adapters/trtllm/openengine/messages.py",
    "proto/trtllm_service.proto": "engine_adapters/trtllm/native/messages.py",
}

LINE_LENGTH = 120

ZEROS = {"int": "0", "float": "0.0", "bool": "False", "str": '""', "bytes": 'b""'}


class Writer:
    """Writes the module of one ProtoFile."""

    def __init__(self, file: ProtoFile, source: str) -> None:
        self.file = file
        self.source = source
        self.enums = {enum.name for enum in file.enums}
        self.messages = {message.name for message in file.messages}

    def module(self) -> str:
        blocks = [self._head()]
        if self.file.methods:
            blocks.append("\n".join(self._methods()))
        blocks += ["\n".join(self._enum(enum)) for enum in self.file.enums]
        blocks += ["\n" + "\n".join(self._message(message)) + "\n" for message in self.file.messages]
        blocks += ["\n".join(self._layout(message)) for message in self.file.messages]
        return re.sub(r"\n{4,}", "\n\n\n", "\n\n".join(blocks)) + "\n"

    def _head(self) -> str:
        fields = [declared for message in self.file.messages for declared in message.fields]
        functions = {self._constructor(declared) for declared in fields}
        sequences = any(declared.label == "repeated" and is_number(declared, self.enums) for declared in fields)
        dataclass_names = "dataclass, field" if functions & {"repeated", "mapping"} else "dataclass"
        typing_names = "ClassVar, Final" if self.file.enums or self.file.methods else "ClassVar"
        written = f"written by proto/generate.py from {self.source}: do not edit."
        return "\n".join(
            [
                f'"""The messages of {self.file.package}, {written}"""',
                "",
                "from __future__ import annotations",
                "",
                *(["from collections.abc import Sequence"] if sequences else []),
                f"from dataclasses import {dataclass_names}",
                f"from typing import {typing_names}",
                "",
                f"from engine_adapters.codec import {', '.join(['Layout', *sorted(functions)])}",
            ]
        )

    def _methods(self) -> Iterator[str]:
        for service, method in self.file.methods:
            constant = f"{screaming(service)}_{screaming(method)}"
            yield f'{constant}: Final = "/{self.file.package}.{service}/{method}"'

    def _enum(self, enum: EnumDeclaration) -> Iterator[str]:
        yield from wrapped_comment([*enum.comment] or [enum.name], "")
        for value in enum.values:
            yield from with_remark(f"{value.name}: Final = {value.number}", value.comment, value.remark, "")

    def _message(self, message: MessageDeclaration) -> Iterator[str]:
        yield "@dataclass(slots=True)"
        yield f"class {message.name}:"
        if message.comment:
            yield from docstring(message.comment)
            yield ""
        yield "    LAYOUT: ClassVar[Layout]"
        if message.fields:
            yield ""
        for declared in message.fields:
            remark = declared.remark
            if declared.type in self.enums:
                remark = f"{declared.type}; {remark}" if remark else declared.type
            yield from with_remark(f"    {self._attribute(declared)}", declared.comment, remark, "    ")

    def _attribute(self, declared: FieldDeclaration) -> str:
        python_type = PYTHON_TYPES.get(declared.type, "int" if declared.type in self.enums else declared.type)
        if declared.label == "map":
            key_type = PYTHON_TYPES[declared.key_type]
            return f"{declared.name}: dict[{key_type}, {python_type}] = field(default_factory=dict)"
        if declared.label == "repeated" and is_number(declared, self.enums):
            return f"{declared.name}: Sequence[{python_type}] = field(default_factory=list)"
        if declared.label == "repeated":
            return f"{declared.name}: list[{python_type}] = field(default_factory=list)"
        if declared.label in ("optional", "oneof") or declared.type in self.messages:
            return f"{declared.name}: {python_type} | None = None"
        return f"{declared.name}: {python_type} = {ZEROS[python_type]}"

    def _constructor(self, declared: FieldDeclaration) -> str:
        return {"": "singular", "map": "mapping", "oneof": "one_of"}.get(declared.label, declared.label)

    def _layout(self, message: MessageDeclaration) -> Iterator[str]:
        if not message.fields:
            yield f"{message.name}.LAYOUT = Layout()"
            return
        yield f"{message.name}.LAYOUT = Layout("
        for declared in sorted(message.fields, key=lambda each: each.number):
            yield f"    {self._constructor(declared)}({', '.join(self._arguments(declared))}),"
        yield ")"

    def _arguments(self, declared: FieldDeclaration) -> Iterator[str]:
        yield str(declared.number)
        yield f'"{declared.name}"'
        if declared.key_type:
            yield f'"{declared.key_type}"'
        yield declared.type if declared.type in self.messages else f'"{self._kind(declared)}"'
        yield from (f'"{other.name}"' for other in declared.oneof if other is not declared)

    def _kind(self, declared: FieldDeclaration) -> str:
        return "enum" if declared.type in self.enums else declared.type


def is_number(declared: FieldDeclaration, enums: set[str]) -> bool:
    """Of what kind the values are that travel packed, and that the codec also takes as a memoryview."""
    return declared.type in enums or PYTHON_TYPES.get(declared.type) in ("int", "float", "bool")


def screaming(name: str) -> str:
    """`GetInfo` as `GET_INFO`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()


def wrapped_comment(lines: list[str], indent: str) -> Iterator[str]:
    for line in lines:
        yield f"{indent}# {line}".rstrip()


def with_remark(code: str, comment: list[str], remark: str, indent: str) -> Iterator[str]:
    """The code under its comment, its remark behind it or, where that would be too long, above it."""
    yield from wrapped_comment(comment, indent)
    line = f"{code}  # {remark}" if remark else code
    if len(line) > LINE_LENGTH:
        yield from wrapped_comment([remark], indent)
        line = code
    yield line


def docstring(lines: list[str]) -> Iterator[str]:
    if len(lines) == 1:
        yield f'    """{lines[0]}"""'
        return
    yield f'    """{lines[0]}'
    yield from (f"    {line}".rstrip() for line in lines[1:])
    yield '    """'


def generate(source: Path, root: Path) -> str:
    """The text of the module for one .proto file; raises ProtoError."""
    name = source.relative_to(root).as_posix()
    return Writer(Parser(source.read_text("utf-8"), name).parse(), name).module()


def main() -> int:
    arguments = argparse.ArgumentParser(description="Write the message classes for our .proto files.")
    arguments.add_argument("--check", action="store_true", help="write nothing; fail when a module is not current")
    check = arguments.parse_args().check
    status = 0
    for source, module in MODULES.items():
        try:
            text = generate(ROOT / source, ROOT)
        except ProtoError as error:
            sys.exit(str(error))
        target = ROOT / module
        if not check:
            target.write_text(text, "utf-8")
        elif not target.exists() or target.read_text("utf-8") != text:
            sys.stderr.write(f"{module} is not what {source} says: run `python proto/generate.py`\n")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
