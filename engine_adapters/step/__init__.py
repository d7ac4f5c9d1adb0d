"""The step stream: both halves of the wire that proto/executor.proto defines."""

PROTOCOL_VERSION = 1
STREAM_ID_LIMIT = 1 << 32
ANSWERS_LIMIT = 128
"""The largest `n` of a Submit."""
