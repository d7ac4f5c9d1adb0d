"""Our proto/trtllm_service.proto against the published one: same numbers, types and presence."""

import json
import subprocess
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

PUBLISHED = """
import json
from smg_grpc_proto.generated import trtllm_service_pb2 as published

def field(each):
    presence = each.containing_oneof is not None
    return [each.name, each.type, each.is_repeated, presence]

messages = published.DESCRIPTOR.message_types_by_name
guides = messages["GuidedDecodingParams"].enum_types_by_name["GuideType"].values
print(json.dumps({
    "messages": {name: {each.number: field(each) for each in message.fields} for name, message in messages.items()},
    "methods": [each.name for each in published.DESCRIPTOR.services_by_name["TrtllmService"].methods],
    "guides": {each.name: each.number for each in guides},
}))
"""
OLD = {"GenerateError"}
"""What is no longer published, and old servers send."""


def test_our_messages_are_the_published_ones(tools_python: str, descriptors: Path) -> None:
    output = subprocess.run([tools_python, "-c", PUBLISHED], capture_output=True, text=True, check=True, timeout=60)
    published: dict[str, Any] = json.loads(output.stdout)
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes()).file
    (ours,) = [file for file in files if file.package == "trtllm"]

    assert {method.name for method in ours.service[0].method} <= set(published["methods"])
    assert {value.name: value.number for value in ours.enum_type[0].value} == published["guides"]
    for message in ours.message_type:
        if message.name in OLD:
            continue
        theirs = published["messages"][message.name]
        for field in message.field:
            if field.type_name.removeprefix(".trtllm.") not in OLD:
                is_repeated = field.label == field.LABEL_REPEATED
                expected = [field.name, field.type, is_repeated, field.HasField("oneof_index")]
                assert theirs[str(field.number)] == expected, f"{message.name}.{field.name}"
