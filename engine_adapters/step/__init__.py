"""The step stream: both halves of the wire that proto/executor.proto defines."""

PROTOCOL_VERSION = 1
