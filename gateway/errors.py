"""What can go wrong, as exceptions that know their HTTP status and their place in OpenAI's error shape.

GatewayError
├── BadRequest            400  the body, a field, the prompt's length
├── Unauthorized          401
├── Forbidden             403  a model that is not this key's, or an admin endpoint without its key from elsewhere
├── NotFound              404  no such path
├── MethodNotAllowed      405
├── ModelNotFound         404
├── BodyTimeout           408  the body did not arrive in time
├── BodyTooLarge          413
├── UnsupportedMediaType  415
├── Overloaded            429  a queue is full, or too much is in memory
├── RateLimited           429  a key has used what it may
├── Unavailable           503  no engine is ready, or this process is ending
│   └── QueueTimeout      503  no place came free in time
├── NotImplementedYet     501  an endpoint of OpenAI's that is not here
├── EngineFailed          502  an engine broke the request and another one may not
├── InvalidModelOutput    502  what a strict request asked for is not what the model wrote
├── DeadlineExceeded      504  the request took longer than it may
└── ClientLeft            499  nobody is there to read the answer
"""

from typing import Any, ClassVar

type Headers = list[tuple[bytes, bytes]]


class GatewayError(Exception):
    """`message` is for the client's eyes, `param` is the JSON path of the field at fault, `code` is for programs."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None
    retry_after: int | None = None
    """Seconds, for the header of that name."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        if retry_after is not None:
            self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """OpenAI's error body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> Headers:
        """What belongs to the status."""
        return [] if self.retry_after is None else [(b"retry-after", str(self.retry_after).encode())]


class BadRequest(GatewayError):
    status = 400
    type = "invalid_request_error"


class Unauthorized(GatewayError):
    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"

    def headers(self) -> Headers:
        return [(b"www-authenticate", b"Bearer")]


class Forbidden(GatewayError):
    status = 403
    type = "invalid_request_error"
    default_code = "forbidden"


class NotFound(GatewayError):
    status = 404
    type = "invalid_request_error"


class MethodNotAllowed(GatewayError):
    """`allowed` are the methods that the path has, as the header wants them."""

    status = 405
    type = "invalid_request_error"

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self._allowed = allowed

    def headers(self) -> Headers:
        return [(b"allow", self._allowed.encode())]


class ModelNotFound(GatewayError):
    status = 404
    type = "invalid_request_error"
    default_code = "model_not_found"


class BodyTimeout(GatewayError):
    status = 408
    type = "invalid_request_error"
    default_code = "body_timeout"


class BodyTooLarge(GatewayError):
    status = 413
    type = "invalid_request_error"
    default_code = "body_too_large"


class UnsupportedMediaType(GatewayError):
    status = 415
    type = "invalid_request_error"


class NotImplementedYet(GatewayError):
    status = 501
    type = "invalid_request_error"
    default_code = "not_implemented"


class DeadlineExceeded(GatewayError):
    status = 504
    default_code = "deadline_exceeded"


class Overloaded(GatewayError):
    status = 429
    type = "overloaded_error"
    default_code = "overloaded"
    retry_after = 1


class RateLimited(GatewayError):
    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"


class Unavailable(GatewayError):
    status = 503
    default_code = "unavailable"
    retry_after = 1


class QueueTimeout(Unavailable):
    default_code = "queue_timeout"


class EngineFailed(GatewayError):
    status = 502
    default_code = "engine_failed"


class InvalidModelOutput(GatewayError):
    """`text` is what the model wrote, None where the client has it already."""

    status = 502
    default_code = "invalid_model_output"

    def __init__(self, message: str, text: str | None = None, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self._text = text

    def body(self) -> dict[str, Any]:
        body = super().body()
        if self._text is not None:
            body["error"]["output"] = self._text
        return body


class ClientLeft(GatewayError):
    status = 499
    default_code = "client_left"
