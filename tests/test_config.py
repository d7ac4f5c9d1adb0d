"""One Config: where its values come from, which wins, and what a bad one is told."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Config, ConfigError, load, parser

FIELDS = {item.name: item for item in fields(Config)}


def loaded(*arguments: str, file: Path | None = None, **environment: str) -> Config:
    words = [*arguments, "--config", str(file)] if file else list(arguments)
    return load(words, {f"GATEWAY_{name.upper()}": value for name, value in environment.items()})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text('port = 1111\nhost = "file"\nworker = ["step://file:1"]\ngrace_seconds = 7\nallow-gil = true\n')
    return path


def test_nothing_given_gives_the_defaults() -> None:
    assert loaded() == Config()


def test_the_command_line_wins_over_the_environment_which_wins_over_the_file(file: Path) -> None:
    config = loaded("--port", "3333", file=file, port="2222", host="environment")

    assert (config.port, config.host, config.grace_seconds) == (3333, "environment", 7.0)


def test_a_list_replaces_the_list_of_a_weaker_source(file: Path) -> None:
    assert loaded(file=file).worker == ("step://file:1",)
    assert loaded(file=file, worker="step://a:1 step://b:2").worker == ("step://a:1", "step://b:2")
    assert loaded("--worker", "step://c:3", "--worker", "step://d:4", worker="step://a:1").worker == (
        "step://c:3",
        "step://d:4",
    )


def test_the_file_may_be_named_in_the_environment(file: Path) -> None:
    assert loaded(config=str(file)).port == 1111


def test_a_switch_may_be_set_anywhere(file: Path) -> None:
    assert loaded("--allow-gil").allow_gil
    assert loaded(file=file).allow_gil
    for text, expected in {"1": True, "true": True, "YES": True, "0": False, "no": False, "": False}.items():
        assert loaded(allow_gil=text).allow_gil is expected
    assert not loaded(file=file, allow_gil="0").allow_gil


BAD_VALUES: dict[str, tuple[tuple[str, ...], dict[str, str], str]] = {
    "a word for a number": (("--port", "many"), {}, "port from the command line: 'many' is not a valid int"),
    "out of range": ((), {"port": "99999"}, "port from the environment: '99999' must be between 0 and 65535"),
    "infinite": (("--grace-seconds", "nan"), {}, "grace_seconds from the command line: 'nan' must be between"),
    "no such choice": ((), {"log_level": "loud"}, "log_level from the environment: 'loud' must be one of debug, info"),
    "no yes or no": ((), {"allow_gil": "perhaps"}, "allow_gil from the environment: 'perhaps' is not a valid bool"),
}


@pytest.mark.parametrize(("arguments", "environment", "message"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_bad_value_is_named_with_its_source(
    arguments: tuple[str, ...], environment: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(*arguments, **environment)

    assert message in str(caught.value)


BAD_FILES: dict[str, tuple[str, str]] = {
    "no TOML": ("port 8000", "is not valid TOML"),
    "an unknown setting": ("prot = 8000", "sets prot; the settings are"),
    "a number for a text": ("host = 5", "host from the file"),
    "a text for a list of texts": ("worker = [5]", "worker from the file"),
    "a switch for a number": ("port = true", "port from the file"),
    "a fraction for a whole number": ("port = 80.5", "port from the file"),
    "a table": ("[port]\nnumber = 1", "port from the file"),
    "no UTF-8": ("host = '\udce9'", "is not valid TOML"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content.encode(errors="surrogateescape"))

    with pytest.raises(ConfigError) as caught:
        loaded(file=path)

    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_every_default_passes_its_own_check() -> None:
    for name, item in FIELDS.items():
        check = item.metadata["check"]
        assert check is None or check(item.default) is None, name


def test_every_field_is_an_option_with_help() -> None:
    actions = {action.dest: action for action in parser()._actions}

    for name in FIELDS:
        action = actions[name]
        assert action.option_strings == [f"--{name.replace('_', '-')}"]
        assert action.help and action.help is not argparse.SUPPRESS
        assert action.metavar or action.nargs == 0


@pytest.mark.parametrize("arguments", [("--prot", "1"), ("serve",), ("--port",), ("--work", "x")])
def test_what_is_no_option_is_a_usage_error(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        loaded(*arguments)

    assert caught.value.code == 2
    assert "usage: python3.13t -m gateway" in capsys.readouterr().err
