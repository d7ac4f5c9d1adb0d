"""Logs on standard error: one line a request, one line a change of state, human-readable or JSON."""

import json
import logging
import sys
import time
from typing import Any

logger = logging.getLogger("gateway")
SOURCES = (logger, logging.getLogger("engine_adapters"))
_auditor = logger.getChild("audit")
"""Has a level of its own: what admins do is told whatever --log-level is."""
_auditor.setLevel(logging.INFO)
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


class HumanFormatter(logging.Formatter):
    """`12:34:56 INFO message key=value …`"""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname:<7} {record.getMessage()}"
        line += "".join(f" {key}={value}" for key, value in _fields(record).items())
        if not line.isprintable():
            line = line.translate(
                CONTROLS
            )  # paths and errors are in clients' words, which must not make lines of their own
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, ISO 8601), level, message, then the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


FORMATTERS = {"human": HumanFormatter, "json": JsonFormatter}
LEVELS = ("debug", "info", "warning", "error")


def configure(log_format: str, level: str) -> None:
    """Send the gateway's log to standard error; `log_format` is a key of FORMATTERS, `level` one of LEVELS."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATTERS[log_format]())
    for source in SOURCES:
        source.handlers[:] = [handler]
        source.propagate = False
        source.setLevel(level.upper())


def event(level: int, message: str, **fields: Any) -> None:
    """Log `message` with structured fields."""
    logger.log(level, message, extra={"fields": fields})


def audit(message: str, **fields: Any) -> None:
    """Log what an admin did, or was not let do."""
    _auditor.info("admin: %s", message, extra={"fields": fields})


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in getattr(record, "fields", {}).items() if value != ""}
