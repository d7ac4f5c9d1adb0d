"""gRPC services by hand: handlers by the full paths of their methods, since no code is generated for them."""

from collections.abc import Mapping
from typing import Any

import grpc


def service_of(methods: "Mapping[str, grpc.RpcMethodHandler[Any, Any]]") -> grpc.GenericRpcHandler:
    """The one service whose methods have paths such as "/package.Service/Method"."""
    service = next(iter(methods)).split("/")[1]
    return grpc.method_handlers_generic_handler(
        service, {path.split("/")[-1]: handler for path, handler in methods.items()}
    )
