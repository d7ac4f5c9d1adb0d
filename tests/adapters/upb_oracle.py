"""Runs in the tools' Python: says for each line "message hex" of stdin whether protobuf's C parser takes it.

Answers "reject", or the message in hex as it is with nothing unknown in it. Usage: upb_oracle.py DESCRIPTOR_SET
"""

import sys
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
from google.protobuf.internal import api_implementation

assert api_implementation.Type() == "upb", "this Python has no C parser of protobuf"
pool = descriptor_pool.DescriptorPool()
for file in descriptor_pb2.FileDescriptorSet.FromString(Path(sys.argv[1]).read_bytes()).file:
    pool.Add(file)
for line in sys.stdin:
    name, _, data = line.strip().partition(" ")
    try:
        parsed = message_factory.GetMessageClass(pool.FindMessageTypeByName(name)).FromString(bytes.fromhex(data))
        parsed.DiscardUnknownFields()
        sys.stdout.write(parsed.SerializeToString().hex() + "\n")
    except message.DecodeError:
        sys.stdout.write("reject\n")
