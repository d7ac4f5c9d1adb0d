"""Endpoints of OpenAI's that clients may ask for and that are not here yet: a clear 501 instead of a 404."""

from gateway.api.reply import Scope, Send
from gateway.errors import NotImplementedYet
from gateway.http_loop import Receive

PATHS = (
    "/v1/audio/speech",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/batches",
    "/v1/embeddings",
    "/v1/files",
    "/v1/fine_tuning/jobs",
    "/v1/images/edits",
    "/v1/images/generations",
    "/v1/moderations",
    "/v1/rerank",
    "/v1/responses",
)


class NotHere:
    """An ASGI application; a class, since starlette takes a function for something else."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedYet(f"{scope['path']} is not implemented by this gateway")
