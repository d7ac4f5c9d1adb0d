"""Files of API keys: what they may say, what is refused, and quotas that outlive a change."""

from pathlib import Path

import pytest

from gateway import key_command
from gateway.errors import RateLimited
from gateway.limits import KeyFileError, Keys
from gateway.limits.keys import digest_of

MODELS = ("demo", "other")
A, B = digest_of(b"secret-a"), digest_of(b"secret-b")
FULL = f"""
[[key]]
name = "a"
sha256 = "{A.upper()}"
requests_per_minute = 2
tokens_per_minute = 100
concurrency = 3
priority = "high"
models = ["demo"]

[[key]]
name = "ops"
sha256 = "{B}"
admin = true
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(FULL)
    return path


def test_a_key_is_found_by_its_hash_and_may_what_the_file_says(path: Path) -> None:
    keys = Keys(["plain"], "boss", path, MODELS)

    a, ops = keys.find(b"secret-a"), keys.find(b"secret-b")
    assert a is not None and ops is not None
    assert (a.name, a.priority, a.is_admin, a.may_use("demo"), a.may_use("other")) == ("a", "high", False, True, False)
    assert (ops.name, ops.is_admin, ops.may_use("other"), ops.quota) == ("ops", True, True, None)
    assert [key and key.name for key in (keys.find(b"plain"), keys.find(b"boss"), keys.find(b"a"), keys.find(b""))] == [
        "api-key-1",
        "admin",
        None,
        None,
    ]


def test_a_file_closes_v1_even_when_it_is_empty(path: Path) -> None:
    assert not Keys().are_needed
    assert not Keys(admin="boss").are_needed
    assert Keys(["plain"]).are_needed
    path.write_text("")
    keys = Keys(path=path)
    assert keys.are_needed and not keys.have_admin


def entry(text: str) -> str:
    return f'[[key]]\nname = "x"\nsha256 = "{A}"\n{text}'


BAD = {
    "key = ": "is not valid TOML",
    "keys = []": "must have a list of [[key]]",
    "key = 1": "must have a list of [[key]]",
    "key = [1]": "key[0] must have a name and a sha256",
    '[[key]]\nname = "x"': "key[0] must have a name and a sha256",
    entry("requests = 1"): "key[0] has a field requests of the wrong kind; there is name (str)",
    entry('concurrency = "1"'): "key[0] has a field concurrency of the wrong kind",
    entry("concurrency = true"): "key[0] has a field concurrency of the wrong kind",
    entry("concurrency = -1"): "key[0].concurrency must not be below 0",
    entry('priority = "best"'): "key[0].priority must be one of high, normal, low",
    entry('models = ["gpt"]'): "key[0].models names 'gpt', which is not served here; there is 'demo', 'other'",
    entry("") + entry("").replace(A, B): "key[1]: there is a key 'x' already",
    entry("") + entry("").replace('"x"', '"y"'): "key 'y' has the hash of another one",
    entry("").replace(A, "secret-a"): "key[0].sha256 must be the 64 hexadecimal digits",
    entry("").replace('"x"', '"two words"'): "key[0].name must be 1 to 64 letters",
}


@pytest.mark.parametrize(("text", "complaint"), BAD.items())
def test_what_makes_no_sense_is_told_with_its_place_and_no_hash(path: Path, text: str, complaint: str) -> None:
    path.write_text(text)

    with pytest.raises(KeyFileError) as caught:
        Keys(path=path, models=MODELS)

    assert complaint in str(caught.value)
    assert A not in str(caught.value) and "secret" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot read .*nowhere.toml"):
        Keys(path=tmp_path / "nowhere.toml")


def test_what_a_key_has_used_outlives_a_change_and_so_do_keys_a_bad_one(path: Path) -> None:
    keys = Keys(path=path, models=MODELS)
    before = keys.find(b"secret-a")
    assert before is not None and before.quota is not None
    before.quota.begin()
    before.quota.begin()

    path.write_text(FULL.replace(A.upper(), digest_of(b"secret-new")))
    assert keys.read(path) == 2
    after = keys.find(b"secret-new")
    assert after is not None and after.quota is before.quota and keys.find(b"secret-a") is None
    with pytest.raises(RateLimited):
        after.quota.begin()
    path.write_text("key = ")
    with pytest.raises(KeyFileError):
        keys.read(path)
    assert keys.find(b"secret-new") is after
    assert keys.active() == [("a", 2)]


def test_the_command_makes_a_key_and_an_entry_that_fit(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["team", "--requests-per-minute", "5", "--priority", "low", "--concurrency", "1", "--admin"]
    assert key_command.main(arguments) == 0

    key, toml = capsys.readouterr().out.removeprefix("The key, which is shown only now:\n\n").split("\n\n", 1)
    path.write_text(toml.partition("[[key]]")[1] + toml.partition("[[key]]")[2])
    found = Keys(path=path).find(key.strip().encode())
    assert found is not None
    assert (found.name, found.priority, found.is_admin) == ("team", "low", True)
    assert (found.limits.requests_per_minute, found.limits.concurrency, found.limits.tokens_per_minute) == (5, 1, 0)
    assert len(key.strip()) > 40 and key.strip() not in toml


def test_the_command_refuses_a_name_that_no_file_may_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert key_command.main(["two words"]) == 2
    assert "NAME must be" in capsys.readouterr().err
