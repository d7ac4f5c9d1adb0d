"""Tests of the wire codec, most of them against google.protobuf: pure Python here, C in the tools' interpreter."""

import math
import os
import random
import struct
import subprocess
from array import array
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError as GoogleDecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine_adapters.codec import DecodeError, decode, encode
from engine_adapters.packed import MANY
from engine_adapters.step import messages
from engine_adapters.step.messages import ClientFrame, Finished, HealthReply, Info, Load, Sampling, StepFrame, Submit
from engine_adapters.trtllm.native import messages as trtllm_messages
from engine_adapters.trtllm.openengine import messages as openengine_messages

WIRES = {"gateway.executor.v1": messages, "trtllm": trtllm_messages, "openengine.v1": openengine_messages}
"""The modules written by proto/generate.py, by package."""
EVERY_KIND_MESSAGES = [f"gateway.tests.{name}" for name in ("EveryKind", "FewKinds", "Node", "Nothing")]


def names_of(package: str) -> list[str]:
    """The full names of a wire's messages."""
    classes = [each for each in vars(WIRES[package]).values() if isinstance(each, type) and is_dataclass(each)]
    return [f"{package}.{cls.__name__}" for cls in classes]


# OpenEngine has many small ones; these contain them.
OPENENGINE_MESSAGES = (
    "GenerateRequest",
    "GenerateResponse",
    "ServerInfo",
    "ModelInfo",
    "LoadInfo",
    "KvEvent",
    "Struct",
)
WIRE_MESSAGES = [
    *names_of("gateway.executor.v1"),
    *names_of("trtllm"),
    *(f"openengine.v1.{name}" for name in OPENENGINE_MESSAGES),
]


@dataclass
class Pair:
    """Our class of one message and google.protobuf's."""

    ours: Any
    google: Any
    module: ModuleType

    @property
    def descriptor(self) -> Descriptor:
        return self.google.DESCRIPTOR


@pytest.fixture(scope="session")
def pair(every_kind: ModuleType, google_classes: Callable[[str], Any]) -> Callable[[str], Pair]:
    def find(name: str) -> Pair:
        package, _, message = name.rpartition(".")
        module = WIRES.get(package, every_kind)
        return Pair(getattr(module, message), google_classes(name), module)

    return find


# --- messages as plain values: {field name: value}, with dicts for messages -----------------------------------------

SCALAR_VALUES = {
    **dict.fromkeys(("INT32", "SINT32", "SFIXED32", "ENUM"), st.integers(-(2**31), 2**31 - 1)),
    **dict.fromkeys(("INT64", "SINT64", "SFIXED64"), st.integers(-(2**63), 2**63 - 1)),
    **dict.fromkeys(("UINT32", "FIXED32"), st.integers(0, 2**32 - 1)),
    **dict.fromkeys(("UINT64", "FIXED64"), st.integers(0, 2**64 - 1)),
    "BOOL": st.booleans(),
    "FLOAT": st.floats(width=32),
    "DOUBLE": st.floats(),
    "STRING": st.text(max_size=200),
    "BYTES": st.binary(max_size=200),
}
TYPE_NAMES = {getattr(FieldDescriptor, f"TYPE_{name}"): name for name in (*SCALAR_VALUES, "MESSAGE")}


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def plain_values(descriptor: Descriptor, depth: int = 2) -> st.SearchStrategy[dict[str, Any]]:
    """Any message of this type: some of its fields, at most one of each oneof."""
    fields = {field.name: field_values(field, depth) for field in descriptor.fields if depth or not field.message_type}
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: without_rivals(descriptor, values))


def without_rivals(descriptor: Descriptor, values: dict[str, Any]) -> dict[str, Any]:
    for oneof in descriptor.oneofs:
        for name in [field.name for field in oneof.fields if field.name in values][1:]:
            del values[name]
    return values


def field_values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if is_map(field):
        key, value = field.message_type.fields
        return st.dictionaries(field_values(key, depth), field_values(value, depth), max_size=3)
    if field.message_type:
        one: st.SearchStrategy[Any] = st.deferred(lambda: plain_values(field.message_type, depth - 1))
    else:
        one = SCALAR_VALUES[TYPE_NAMES[field.type]]
    return st.lists(one, max_size=4) if field.is_repeated else one


def make_ours(module: ModuleType, descriptor: Descriptor, values: dict[str, Any]) -> Any:
    message = getattr(module, descriptor.name)()
    for name, value in values.items():
        field = descriptor.fields_by_name[name]
        setattr(message, name, convert(field, value, lambda of, plain: make_ours(module, of, plain)))
    return message


def make_google(google: Any, values: dict[str, Any]) -> Any:
    message = google()
    for name, value in values.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        if is_map(field):
            fill_map(getattr(message, name), field, value)
        elif field.is_repeated and field.message_type:
            for each in value:
                part = getattr(message, name).add()
                part.CopyFrom(make_google(type(part), each))
        elif field.is_repeated:
            getattr(message, name).extend(value)
        elif field.message_type:
            part = getattr(message, name)
            part.SetInParent()
            part.CopyFrom(make_google(type(part), value))
        else:
            setattr(message, name, value)
    return message


def fill_map(target: Any, field: FieldDescriptor, values: dict[Any, Any]) -> None:
    for key, value in values.items():
        if field.message_type.fields_by_name["value"].message_type:
            target[key].CopyFrom(make_google(type(target[key]), value))
        else:
            target[key] = value


def convert(field: FieldDescriptor, value: Any, message: Callable[[Descriptor, Any], Any]) -> Any:
    """The value of a field with `message` applied to each message in it."""
    if value is None:
        return None
    if is_map(field):
        inner = field.message_type.fields_by_name["value"]
        return {key: convert(inner, each, message) for key, each in value.items()}
    if field.is_repeated:
        return [message(field.message_type, each) if field.message_type else comparable(each) for each in value]
    return message(field.message_type, value) if field.message_type else comparable(value)


class ExactFloat(float):
    """A float equal to those with the same bits, so that NaN is itself and 0.0 is not -0.0."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and (
            (math.isnan(self) and math.isnan(other)) or struct.pack("<d", self) == struct.pack("<d", other)
        )

    __hash__ = float.__hash__


def comparable(value: Any) -> Any:
    return ExactFloat(value) if isinstance(value, float) else value


def plain_ours(descriptor: Descriptor, message: Any) -> dict[str, Any]:
    return {field.name: convert(field, getattr(message, field.name), plain_ours) for field in descriptor.fields}


def plain_google(descriptor: Descriptor, message: Any) -> dict[str, Any]:
    return {
        field.name: None
        if field.has_presence and not message.HasField(field.name)
        else convert(field, getattr(message, field.name), plain_google)
        for field in descriptor.fields
    }


# --- both ways ------------------------------------------------------------------------------------------------------

EACH_MESSAGE = pytest.mark.parametrize("name", WIRE_MESSAGES + EVERY_KIND_MESSAGES)
FUZZ = settings(max_examples=20, suppress_health_check=list(HealthCheck))


@EACH_MESSAGE
@FUZZ
@given(data=st.data())
def test_protobuf_reads_what_we_write(name: str, pair: Callable[[str], Pair], data: st.DataObject) -> None:
    both = pair(name)
    message = make_ours(both.module, both.descriptor, data.draw(plain_values(both.descriptor)))
    theirs = both.google.FromString(encode(message))
    assert plain_google(both.descriptor, theirs) == plain_ours(both.descriptor, message)


@EACH_MESSAGE
@FUZZ
@given(data=st.data())
def test_we_read_what_protobuf_writes(name: str, pair: Callable[[str], Pair], data: st.DataObject) -> None:
    both = pair(name)
    theirs = make_google(both.google, data.draw(plain_values(both.descriptor)))
    written = theirs.SerializeToString()
    for source in (written, memoryview(written)):
        assert plain_ours(both.descriptor, decode(both.ours, source)) == plain_google(both.descriptor, theirs)


@pytest.mark.parametrize("name", WIRE_MESSAGES)
@FUZZ
@given(data=st.data())
def test_a_wire_has_the_bytes_that_protobuf_writes(name: str, pair: Callable[[str], Pair], data: st.DataObject) -> None:
    both = pair(name)
    values = data.draw(plain_values(both.descriptor))
    assert (
        encode(make_ours(both.module, both.descriptor, values)) == make_google(both.google, values).SerializeToString()
    )


@FUZZ
@given(data=st.data())
def test_unknown_fields_are_skipped(pair: Callable[[str], Pair], data: st.DataObject) -> None:
    many, few, nothing = pair("gateway.tests.EveryKind"), pair("gateway.tests.FewKinds"), pair("gateway.tests.Nothing")
    written = encode(make_ours(many.module, many.descriptor, data.draw(plain_values(many.descriptor))))
    assert plain_ours(few.descriptor, decode(few.ours, written)) == plain_google(
        few.descriptor, few.google.FromString(written)
    )
    assert decode(nothing.ours, written) == nothing.ours()


@FUZZ
@given(data=st.data())
def test_two_messages_in_a_row_merge_as_in_protobuf(pair: Callable[[str], Pair], data: st.DataObject) -> None:
    both = pair("gateway.tests.EveryKind")
    values = plain_values(both.descriptor)
    written = b"".join(make_google(both.google, data.draw(values)).SerializeToString() for _ in range(2))
    assert plain_ours(both.descriptor, decode(both.ours, written)) == plain_google(
        both.descriptor, both.google.FromString(written)
    )


@EACH_MESSAGE
@FUZZ
@given(garbage=st.binary(max_size=300))
def test_garbage_is_a_message_or_a_decode_error(name: str, pair: Callable[[str], Pair], garbage: bytes) -> None:
    cls = pair(name).ours
    try:
        message = decode(cls, garbage)
    except DecodeError as error:
        assert str(error).startswith(f"{cls.__name__}: ")
        with pytest.raises(DecodeError):
            decode(cls, memoryview(garbage))
    else:
        assert encode(message) == encode(decode(cls, memoryview(garbage)))


# --- the same malformed bytes as protobuf's C parser ----------------------------------------------------------------


def mutated(written: bytes, dice: random.Random) -> bytes:
    data = bytearray(written)
    for _ in range(dice.randint(0, 2)):
        position = dice.randrange(len(data) + 1)
        match dice.randrange(5):
            case 0:
                del data[position:]
            case 1:
                data[position : position + 1] = dice.randbytes(1)
            case 2:
                data[position:position] = dice.randbytes(dice.randint(1, 4))
            case 3:
                del data[position : position + dice.randint(1, 4)]
            case _:
                data[position : position + 1] = dice.choice((b"\x00", b"\x7f", b"\x80", b"\xff", b"\x08", b"\x0a"))
    return bytes(data)


def corpus(pair: Callable[[str], Pair]) -> list[tuple[str, bytes]]:
    """Mutations of a message with something in every field, the same ones on every run."""
    dice = random.Random(2)
    found = []
    for name in (*WIRE_MESSAGES, *EVERY_KIND_MESSAGES):
        both = pair(name)
        for _ in range(200):
            values = some_values(both.descriptor, dice, 2)
            found.append((name, mutated(make_google(both.google, values).SerializeToString(), dice)))
    return found


def some_values(descriptor: Descriptor, dice: random.Random, depth: int) -> dict[str, Any]:
    chosen = dice.sample(list(descriptor.fields), min(len(descriptor.fields), 6))
    return {field.name: some_value(field, dice, depth) for field in chosen if depth or not field.message_type}


def some_value(field: FieldDescriptor, dice: random.Random, depth: int) -> Any:
    if is_map(field):
        key, value = field.message_type.fields
        return {some_value(key, dice, 0): some_value(value, dice, 0) if not value.message_type else {}}
    if field.is_repeated:
        return [some_single_value(field, dice, depth) for _ in range(dice.randint(0, 3))]
    return some_single_value(field, dice, depth)


def some_single_value(field: FieldDescriptor, dice: random.Random, depth: int) -> Any:
    if field.message_type:
        return some_values(field.message_type, dice, depth - 1)
    name = TYPE_NAMES[field.type]
    if name in ("STRING", "BYTES"):
        text = "".join(dice.choices("aé€𝄞", k=dice.randint(0, 6)))
        return text if name == "STRING" else text.encode()
    if name in ("FLOAT", "DOUBLE"):
        return dice.choice((0.0, -0.0, 0.5, -2.0, math.inf))
    return dice.choice((0, 1, 127, 128, 300, 2**31 - 1)) if name != "BOOL" else dice.random() < 0.5


def test_we_take_and_refuse_the_bytes_that_the_c_parser_takes_and_refuses(
    pair: Callable[[str], Pair], tools_python: str, descriptors: Path
) -> None:
    cases = corpus(pair)
    script = Path(__file__).with_name("upb_oracle.py")
    lines = "".join(f"{pair(name).descriptor.full_name} {data.hex()}\n" for name, data in cases)
    oracle = subprocess.run(
        [tools_python, str(script), str(descriptors)],
        input=lines,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "upb"},
    )
    answers = oracle.stdout.split("\n")[:-1]
    assert len(answers) == len(cases)
    for (name, data), answer in zip(cases, answers, strict=True):
        both = pair(name)
        try:
            message = decode(both.ours, data)
        except DecodeError as error:
            assert answer == "reject" or is_deliberate(error, both), (name, data.hex(), str(error))
        else:
            assert answer != "reject", (name, data.hex(), message)
            # The C parser drops a map entry that has an unknown field, the pure Python one keeps it, as we do.
            theirs = [both.google.FromString(bytes.fromhex(answer)), both.google.FromString(data)]
            expected = [plain_google(both.descriptor, each) for each in theirs]
            assert plain_ours(both.descriptor, message) in expected, (name, data.hex())
    assert 500 < answers.count("reject") < len(answers) - 500


def is_deliberate(error: DecodeError, both: Pair) -> bool:
    """The C parser skips groups, and takes the field number 0 in a message without fields."""
    return "not of proto3" in str(error) or ("no field number" in str(error) and not both.descriptor.fields)


# --- one by one -----------------------------------------------------------------------------------------------------

FRAME = StepFrame(
    step=300,
    stream_ids=bytes(range(8)),
    token_ids=bytes(range(100, 108)),
    finished=[Finished(stream_id=7, reason=messages.FINISH_REASON_STOP, matched_stop=0, error="né")],
    load=Load(running=1, kv_tokens_used=1 << 40, tokens_per_second=0.5),
)


def test_a_frame_comes_back_as_it_was() -> None:
    assert decode(StepFrame, encode(FRAME)) == FRAME
    submits = [Submit(1, "a", b"\1\0\0\0", Sampling(temperature=0.0, seed=-1), 5, ignore_eos=True), Submit()]
    assert decode(ClientFrame, encode(ClientFrame(submits=submits))).submits == submits


def test_bytes_are_bytes_also_when_the_source_is_a_view_of_something_else() -> None:
    padded = encode(StepFrame(token_ids=bytes(8), protocol_version=1))
    words = memoryview(bytearray(padded)).cast("I")
    frame = decode(StepFrame, words)
    words[0] = 0
    assert type(frame.token_ids) is bytes
    assert frame == StepFrame(token_ids=bytes(8), protocol_version=1)


def fields_or_none(
    both: Pair, parse: Callable[[bytes], Any], plain: Callable[[Descriptor, Any], Any], data: bytes
) -> Any:
    try:
        return plain(both.descriptor, parse(data))
    except (DecodeError, GoogleDecodeError):
        return None


def test_a_message_cut_anywhere_is_refused_or_ends_between_two_fields(pair: Callable[[str], Pair]) -> None:
    both = pair("gateway.executor.v1.StepFrame")
    cuts = [encode(FRAME)[:end] for end in range(len(encode(FRAME)))]
    ours = [fields_or_none(both, lambda data: decode(StepFrame, data), plain_ours, cut) for cut in cuts]
    theirs = [fields_or_none(both, both.google.FromString, plain_google, cut) for cut in cuts]
    assert ours == theirs
    between = [b"", *accumulate([encode(StepFrame(step=300)), encode(StepFrame(stream_ids=FRAME.stream_ids))])]
    assert [cut for cut, fields in zip(cuts, ours, strict=True) if fields is not None][:3] == between


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x08", "the data ends inside a field"),
        (b"\x08\x80", "the data ends inside a field"),
        (b"\x08" + b"\x80" * 10 + b"\x00", "a varint is longer than 10 bytes"),
        (b"\x12\x05abc", "a field ends behind its message"),
        (b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "a field ends behind its message"),
        (b"\x2a\x02\x3a\x01a", "a field ends behind its message"),
        (b"\x32\x03\x2d\x00\x00", "the data ends inside a field"),
        (b"\x2a\x04\x3a\x02\xc3\x28", "a string is not UTF-8"),
        (b"\x2a\x05\x3a\x03\xed\xa0\x80", "a string is not UTF-8"),
        (b"\x00\x00", "0 is no field number"),
        (b"\x80\x80\x80\x80\x80\x01\x00", "4294967296 is no field number"),
        (b"\x0b\x0c", "wire type 3 is not of proto3"),
        (b"\x0c", "wire type 4 is not of proto3"),
        (b"\x0e", "wire type 6 is not of proto3"),
        (b"\xfd\x7f\x00\x00\x00", "a field ends behind its message"),
        (b"\xf9\x7f\x00\x00\x00", "a field ends behind its message"),
        (b"\xf8\x7f\x80", "the data ends inside a field"),
    ],
)
def test_malformed_data_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(StepFrame, data)
    assert str(caught.value).startswith(f"StepFrame: {reason}")


def test_a_field_with_the_wrong_wire_type_is_unknown() -> None:
    assert decode(Load, b"\x0d\x01\x02\x03\x04\x10\x05") == Load(waiting=5)


def test_numbers_wider_than_their_field_are_cut_as_in_protobuf(every_kind: ModuleType) -> None:
    wide = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
    keys = {"a_int32": 1, "a_int64": 2, "a_uint32": 3, "a_uint64": 4, "a_sint32": 5, "a_sint64": 6, "a_bool": 7}
    message = decode(every_kind.EveryKind, b"".join(bytes((number << 3,)) + wide for number in keys.values()))
    assert {name: getattr(message, name) for name in keys} == {
        "a_int32": -1,
        "a_int64": -1,
        "a_uint32": 2**32 - 1,
        "a_uint64": 2**64 - 1,
        "a_sint32": -(2**31),
        "a_sint64": -(2**63),
        "a_bool": True,
    }
    assert decode(every_kind.EveryKind, b"\x38\x80\x01").a_bool is True


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("a_int32", 2**31, "2147483648 is not in -2147483648..2147483647"),
        ("a_int64", -(2**63) - 1, "-9223372036854775809 is not in -9223372036854775808..9223372036854775807"),
        ("a_uint32", -1, "-1 is not in 0..4294967295"),
        ("a_uint32", 2**32, "4294967296 is not in 0..4294967295"),
        ("a_uint64", 2**64, "18446744073709551616 is not in 0..18446744073709551615"),
        ("a_sint32", -(2**31) - 1, "-2147483649 is not in -2147483648..2147483647"),
        ("a_colour", 2**31, "2147483648 is not in -2147483648..2147483647"),
        ("a_fixed32", 2**32, ""),
        ("a_sfixed64", 2**63, ""),
        ("a_float", 1e300, ""),
        ("a_string", "\ud800", "'utf-8' codec can't encode"),
        ("a_bytes", memoryview(bytes(8)).cast("I"), "expected bytes, not memoryview"),
        ("a_uint32", 1.5, ""),
        ("some_uint32", [1, -1], "-1 is not in 0..4294967295"),
        ("by_bool", {True: "x"}, "_Entry.value: "),
    ],
)
def test_a_value_that_does_not_fit_is_an_error_that_names_its_field(
    every_kind: ModuleType, name: str, value: object, reason: str
) -> None:
    message = every_kind.EveryKind()
    setattr(message, name, value)
    with pytest.raises(ValueError) as caught:
        encode(message)
    assert str(caught.value).startswith(f"EveryKind.{name}: {reason}")


def test_the_error_names_the_way_to_a_nested_field() -> None:
    with pytest.raises(ValueError, match=r"^ClientFrame.submits: Submit.stream_id: -1 is not in 0..4294967295$"):
        encode(ClientFrame(submits=[Submit(stream_id=-1)]))


def test_the_last_member_of_a_oneof_wins(every_kind: ModuleType) -> None:
    first = encode(every_kind.EveryKind(one_uint32=0)) + encode(every_kind.EveryKind(one_string="a"))
    assert decode(every_kind.EveryKind, first) == every_kind.EveryKind(one_string="a")
    node = encode(every_kind.EveryKind(one_node=every_kind.Node(name="n")))
    assert decode(every_kind.EveryKind, first + node) == every_kind.EveryKind(one_node=every_kind.Node(name="n"))


def test_repeated_numbers_are_written_packed_and_read_either_way(every_kind: ModuleType) -> None:
    written = encode(every_kind.EveryKind(some_uint32=[1, 300]))
    assert written == b"\xda\x02\x03\x01\xac\x02"
    assert decode(every_kind.EveryKind, written + b"\xd8\x02\x05").some_uint32 == [1, 300, 5]
    with pytest.raises(DecodeError, match="a packed value ends behind its field"):
        decode(every_kind.EveryKind, b"\xda\x02\x01\xac\x02")


COUNTS = st.sampled_from((0, 1, MANY - 1, MANY, 1000))
LARGEST = st.sampled_from([1 << bits for bits in range(33)] + [(1 << bits) - 1 for bits in range(1, 33)])


@FUZZ
@given(count=COUNTS, largest=LARGEST, seed=st.integers(0, 1000))
def test_many_numbers_are_written_at_once_as_a_list_or_a_column(
    pair: Callable[[str], Pair], count: int, largest: int, seed: int
) -> None:
    both = pair("gateway.tests.EveryKind")
    dice = random.Random(seed)
    numbers = [min(largest, 2**32 - 1), *(dice.randrange(largest) for _ in range(count))]
    floats = [each / 4 for each in range(count)]
    as_lists = encode(both.ours(some_uint32=numbers, some_fixed32=numbers, some_float=floats))
    columns = [memoryview(array("I", numbers)), memoryview(array("f", floats))]
    as_columns = encode(both.ours(some_uint32=columns[0], some_fixed32=columns[0], some_float=columns[1]))
    for written in (as_lists, as_columns):
        theirs = both.google.FromString(written)
        assert theirs.some_uint32 == theirs.some_fixed32 == numbers
        assert theirs.some_float == floats
        assert decode(both.ours, written).some_uint32 == numbers
    assert as_columns == as_lists or count < MANY


def test_a_column_of_another_kind_is_written_number_by_number(every_kind: ModuleType) -> None:
    column = memoryview(array("H", [1, 300]))
    assert encode(every_kind.EveryKind(some_uint32=column)) == encode(every_kind.EveryKind(some_uint32=[1, 300]))


def test_an_enum_keeps_a_number_it_has_no_name_for() -> None:
    assert decode(Finished, encode(Finished(reason=99))).reason == 99


def test_presence_tells_zero_from_absent() -> None:
    assert encode(Sampling(temperature=0.0, top_p=None, seed=0)) == b"\x0d\0\0\0\0\x18\0"
    assert encode(Info()) == encode(HealthReply(healthy=False, message="")) == b""
    assert encode(StepFrame(load=Load())) == b"\x32\x00"


def test_minus_zero_is_not_the_default() -> None:
    assert math.copysign(1.0, decode(Load, encode(Load(tokens_per_second=-0.0))).tokens_per_second) == -1.0


def nested(node: Callable[..., Any], depth: int) -> Any:
    message = node()
    for _ in range(depth):
        message = node(next=message)
    return message


def test_messages_nest_a_hundred_deep_and_no_deeper_as_in_protobuf(
    every_kind: ModuleType, pair: Callable[[str], Pair]
) -> None:
    deepest = encode(nested(every_kind.Node, 100))
    assert encode(decode(every_kind.Node, deepest)) == deepest
    pair("gateway.tests.Node").google.FromString(deepest)

    too_deep = encode(nested(every_kind.Node, 101))
    with pytest.raises(DecodeError, match="messages nest deeper than 100"):
        decode(every_kind.Node, too_deep)
    with pytest.raises(GoogleDecodeError):
        pair("gateway.tests.Node").google.FromString(too_deep)
