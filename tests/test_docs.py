"""The documentation says what the code does."""

import re
from dataclasses import fields

from gateway import key_command, parse_command, preprocess_command
from gateway.config import Config, as_markdown, parser
from tests.processes import ROOT

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_configuration_page_is_made_from_the_fields() -> None:
    assert (ROOT / "docs/configuration.md").read_text("utf-8") == as_markdown(), "run `make docs`"


def test_the_configuration_page_has_every_option_of_the_command_line() -> None:
    page = (ROOT / "docs/configuration.md").read_text("utf-8")

    for action in parser()._actions:
        for flag in action.option_strings:
            if flag not in ("-h", "--help"):
                assert flag in page


def test_every_option_in_the_documents_exists() -> None:
    known = {f"--{item.name.replace('_', '-')}" for item in fields(Config)} | {"--config", "--help", "--json"}
    for command in (key_command, parse_command, preprocess_command):
        known |= {flag for action in command.parser()._actions for flag in action.option_strings}

    for path in DOCS:
        for line in path.read_text("utf-8").splitlines():
            if "-m gateway" in line and "simulator" not in line:
                words = line.partition("-m gateway")[2].partition("`")[0]
                assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", words)) <= known, f"{path.name}: {line}"


def test_every_file_that_the_documents_name_exists() -> None:
    places = ("gateway", "engine_adapters", "proto", "setup", "tests", "perf", "docs")
    pattern = re.compile(rf"`((?:{'|'.join(places)})/[\w./-]+)`")

    for path in DOCS:
        for name in pattern.findall(path.read_text("utf-8")):
            assert (ROOT / name).exists(), f"{path.name} names {name}"
