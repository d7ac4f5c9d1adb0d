"""HTTP/1.1 (RFC 9112) on asyncio transports, with ASGI on the other side.

h11 checks the same but takes most of a short request's time on 3.13t: it looks handlers up by tuples of classes and
makes an object of each event (docs/performance.md).
"""

from gateway.http1.connection import Connection
from gateway.http1.exchange import Serving

__all__ = ["Connection", "Serving"]
