"""How a gRPC call ended, from what stands at its end.

Threads: nothing here changes.
"""

from urllib.parse import unquote

STATUSES = (
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED "
    "RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS "
    "UNAUTHENTICATED"
).split()
"""gRPC's statuses by their numbers."""


class CallFailed(Exception):
    """A call that ended with another status than OK: `code` is its name, `details` what the server says."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details


OF_HTTP = {"401": "UNAUTHENTICATED", "403": "PERMISSION_DENIED", "404": "UNIMPLEMENTED", "400": "INTERNAL"}
OF_HTTP |= dict.fromkeys(("429", "502", "503", "504"), "UNAVAILABLE")
"""What stands for a status of gRPC when something on the way answers that does not know it."""


def failure_of(headers: dict[str, str]) -> "CallFailed | None":
    """What the headers at the end of a call say; None when it went well."""
    number = headers.get("grpc-status")
    if number == "0":
        return None
    if number is None:
        status = headers.get(":status", "")
        return CallFailed(OF_HTTP.get(status, "UNKNOWN"), f"answered by HTTP {status} and no gRPC status")
    is_known = number.isascii() and number.isdecimal() and int(number) < len(STATUSES)
    return CallFailed(STATUSES[int(number)] if is_known else "UNKNOWN", unquote(headers.get("grpc-message", "")))
