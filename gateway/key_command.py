"""`python3.13t -m gateway key NAME`: makes an API key."""

import argparse
import secrets
import sys
from collections.abc import Sequence

from gateway.limits.keys import LIMITS, NAME, NAME_RULE, digest_of
from gateway.limits.priority import DEFAULT, PRIORITIES

KEY_BYTES = 32


def main(arguments: Sequence[str]) -> int:
    """Print a new key on standard output, once, and the entry for the --api-keys file."""
    options = parser().parse_args(arguments)
    if not NAME.fullmatch(options.name):
        sys.stderr.write(f"gateway key: NAME {NAME_RULE}\n")
        return 2
    key = "sk-" + secrets.token_urlsafe(KEY_BYTES)
    sys.stdout.write(
        f"The key, which is shown only now:\n\n    {key}\n\nAdd to the file of --api-keys:\n\n{entry(key, options)}"
    )
    return 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python3.13t -m gateway key",
        description="Makes an API key: prints it, and what to add to the file of --api-keys (docs/limits.md), which "
        "has only its hash.",
        allow_abbrev=False,
    )
    add = result.add_argument
    add("name", metavar="NAME", help="who it is for; it is shown in logs and metrics")
    add("--requests-per-minute", type=int, default=0, metavar="N", help="0, the default: any number")
    add("--tokens-per-minute", type=int, default=0, metavar="N", help="of prompts and answers; 0, the default: any")
    add("--concurrency", type=int, default=0, metavar="N", help="requests at a time; 0, the default: any number")
    add("--priority", choices=[*PRIORITIES], default=DEFAULT, help=f"its best class (default: {DEFAULT})")
    add("--admin", action="store_true", help="a key for /admin, and for nothing else")
    return result


def entry(key: str, options: argparse.Namespace) -> str:
    """TOML, with what is not the default."""
    lines = ["[[key]]", f'name = "{options.name}"', f'sha256 = "{digest_of(key.encode())}"']
    given = {name: getattr(options, name) for name in LIMITS}
    lines += [f"{name} = {value}" for name, value in given.items() if value]
    if options.priority != DEFAULT:
        lines.append(f'priority = "{options.priority}"')
    if options.admin:
        lines.append("admin = true")
    return "\n".join([*lines, ""])
