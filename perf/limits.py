"""What keys, quotas and admission add to a request when nobody has to wait: CPU time of a thread, best of rounds."""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gateway.api.access import check_access
from gateway.api.ticket import Ticket
from gateway.limits import Admission, Keys
from gateway.limits.keys import digest_of
from gateway.metrics import Cells
from gateway.types import RequestRecord
from perf.report import table

KEY = "k" * 46
HEADERS = [
    *((b"host", b"x"), (b"user-agent", b"y"), (b"accept", b"*/*"), (b"content-type", b"application/json")),
    *((b"content-length", b"200"), (b"authorization", b"Bearer " + KEY.encode())),
]
LIMITED = f"""
[[key]]
name = "limited"
sha256 = "{digest_of(KEY.encode())}"
requests_per_minute = 1000000000
tokens_per_minute = 1000000000
concurrency = 1000000
"""


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python3.13t -m perf limits", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    parser.add_argument("--requests", type=int, default=20_000, help="in each round (default: 20000)")
    options = parser.parse_args(arguments)
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        path = Path(file.name)
        path.write_text(LIMITED)
        gateways = {
            "nothing limited": gateway(Admission(), Keys()),
            "a key": gateway(Admission(), Keys([KEY])),
            "places": gateway(Admission(100), Keys()),
            "a key with every limit, and places": gateway(Admission(100), Keys(path=path)),
        }
    best = dict.fromkeys(gateways, float("inf"))
    for _ in range(options.rounds):
        for name, each in gateways.items():
            best[name] = min(best[name], asyncio.run(measured(each, options.requests)))
    sys.stdout.write(table(["", "µs"], [[name, f"{1e6 * seconds:.1f}"] for name, seconds in best.items()]))


def gateway(admission: Admission, keys: Keys) -> Any:
    return SimpleNamespace(admission=admission, keys=keys)


def scope(cells: Cells) -> dict[str, Any]:
    record = RequestRecord("id", 0.0)
    record.model, record.routed = "demo", 1.0
    state = {"loop": SimpleNamespace(cells=cells)}
    path, client = "/v1/chat/completions", ("127.0.0.1", 1)
    return {"path": path, "headers": HEADERS, "client": client, "record": record, "state": state, "key": None}


async def measured(each: Any, requests: int) -> float:
    """Seconds a request."""
    cells = Cells()
    scopes = [scope(cells) for _ in range(requests)]
    started = time.thread_time()
    for one in scopes:
        key = one["key"] = check_access(one, each.keys)
        quota = key.quota if key is not None else None
        if quota is not None:
            quota.begin()
        async with Ticket(each, one):
            pass
        if quota is not None:
            quota.end()
    return (time.thread_time() - started) / requests
