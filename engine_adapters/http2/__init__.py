"""gRPC calls over one HTTP/2 connection, as a client.

grpc.aio costs 43-50 µs for a message it receives, ten times that when the machine slept before, this a few: one read of
the socket brings what an engine step said to all requests, and their messages are handed over from there, without a
task or a thread between.

It reads all that comes at once, whoever waits for it: what is received is bounded by what is asked for. No compression.
RFC 9113 and gRPC's "PROTOCOL-HTTP2" say how both look on the wire.
"""

from engine_adapters.http2.connection import Connection, connect
from engine_adapters.http2.reach import reach
from engine_adapters.http2.status import CallFailed
from engine_adapters.http2.stream import Metadata, Receiver, Sender

__all__ = ["CallFailed", "Connection", "Metadata", "Receiver", "Sender", "connect", "reach"]
