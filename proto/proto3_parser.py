"""Reads the part of proto3 that we use; anything else is an error with its line.

That is: top-level messages, enums and services, with scalar, message, enum, optional, repeated, oneof and map fields,
`reserved`, and `//` comments.
"""

import keyword
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

PYTHON_TYPES = {
    **dict.fromkeys(("int32", "int64", "uint32", "uint64", "sint32", "sint64"), "int"),
    **dict.fromkeys(("fixed32", "fixed64", "sfixed32", "sfixed64"), "int"),
    **dict.fromkeys(("float", "double"), "float"),
    "bool": "bool",
    "string": "str",
    "bytes": "bytes",
}
KEY_TYPES = PYTHON_TYPES.keys() - {"float", "double", "bytes"}

# A field of this name would hide what the class body goes on to use.
UNUSABLE_NAMES = {"int", "float", "bool", "str", "bytes", "list", "dict", "field", "ClassVar", "Layout", "LAYOUT"}

TOKEN = re.compile(r'\s*(?://(?P<comment>[^\n]*)|(?P<token>[A-Za-z_][\w.]*|-?\d\w*|"[^"\n]*"|[{}()\[\]<>=;,]))')


class ProtoError(Exception):
    """A .proto file that cannot be read; the message says where and why."""


@dataclass
class FieldDeclaration:
    """A field as declared. `key_type` is set for a map, whose value type is `type`."""

    name: str
    number: int
    type: str
    label: str
    comment: list[str]
    remark: str
    key_type: str = ""
    oneof: list["FieldDeclaration"] = field(default_factory=list)


@dataclass
class MessageDeclaration:
    """A message as declared; the members of a oneof share one list of their fellows."""

    name: str
    comment: list[str]
    fields: list[FieldDeclaration] = field(default_factory=list)
    reserved: set[int] = field(default_factory=set)


@dataclass
class EnumValue:
    """One number of an enum."""

    name: str
    number: int
    comment: list[str]
    remark: str


@dataclass
class EnumDeclaration:
    """An enum as declared."""

    name: str
    comment: list[str]
    values: list[EnumValue] = field(default_factory=list)


@dataclass
class ProtoFile:
    """What one .proto file declares. `methods` are pairs (service, method)."""

    package: str = ""
    messages: list[MessageDeclaration] = field(default_factory=list)
    enums: list[EnumDeclaration] = field(default_factory=list)
    methods: list[tuple[str, str]] = field(default_factory=list)


class Parser:
    """Reads one .proto text into a ProtoFile; raises ProtoError."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.file = ProtoFile()
        self.tokens: list[tuple[str, int]] = []
        self.comments: dict[int, str] = {}
        self.code_lines: set[int] = set()
        self.index = 0
        self._tokenize(text)

    def parse(self) -> ProtoFile:
        statements: dict[str, Callable[[], None]] = {
            "syntax": self._syntax,
            "package": self._package,
            "message": self._message,
            "enum": self._enum,
            "service": self._service,
        }
        while self.index < len(self.tokens):
            statement = self._next()
            if statement not in statements:
                raise self._error(f"{statement!r} is not supported here")
            statements[statement]()
        self._check_types()
        return self.file

    def _tokenize(self, text: str) -> None:
        position = 0
        text = text.rstrip()
        while position < len(text):
            match = TOKEN.match(text, position)
            if match is None:
                line = text.count("\n", 0, position + len(text[position:]) - len(text[position:].lstrip())) + 1
                raise ProtoError(f"{self.name}:{line}: cannot read {text[position:].split()[0]!r}")
            position = match.end()
            line = text.count("\n", 0, position) + 1
            if match["token"] is None:
                self.comments[line] = match["comment"].strip()
            else:
                self.tokens.append((match["token"], line))
                self.code_lines.add(line)

    def _error(self, reason: str) -> ProtoError:
        line = self.tokens[max(self.index - 1, 0)][1] if self.tokens else 1
        return ProtoError(f"{self.name}:{line}: {reason}")

    def _next(self) -> str:
        if self.index == len(self.tokens):
            raise self._error("the file ends in the middle of a declaration")
        self.index += 1
        return self.tokens[self.index - 1][0]

    def _expect(self, *expected: str) -> None:
        for token in expected:
            if (found := self._next()) != token:
                raise self._error(f"expected {token!r}, found {found!r}")

    def _accept(self, token: str) -> bool:
        if self.index < len(self.tokens) and self.tokens[self.index][0] == token:
            self.index += 1
            return True
        return False

    def _identifier(self) -> str:
        name = self._next()
        if not name.isidentifier():
            raise self._error(f"expected a name, found {name!r}")
        return name

    def _number(self) -> int:
        token = self._next()
        try:
            return int(token, 0)
        except ValueError:
            raise self._error(f"expected a number, found {token!r}") from None

    def _body(self) -> Iterator[None]:
        """Stops once in front of every statement between braces."""
        self._expect("{")
        while not self._accept("}"):
            yield

    def _leading_comment(self) -> list[str]:
        """The comment lines right above the token read last."""
        line = first = self.tokens[self.index - 1][1]
        while first - 1 in self.comments and first - 1 not in self.code_lines:
            first -= 1
        return [self.comments[number] for number in range(first, line)]

    def _remark(self) -> str:
        """The comment behind the token read last, on the same line."""
        return self.comments.get(self.tokens[self.index - 1][1], "")

    def _syntax(self) -> None:
        self._expect("=", '"proto3"', ";")

    def _package(self) -> None:
        self.file.package = self._next()
        self._expect(";")

    def _service(self) -> None:
        service = self._identifier()
        for _ in self._body():
            self._expect("rpc")
            self.file.methods.append((service, self._identifier()))
            self._method_type()
            self._expect("returns")
            self._method_type()
            self._expect(";")

    def _method_type(self) -> None:
        self._expect("(")
        self._accept("stream")
        self._identifier()
        self._expect(")")

    def _enum(self) -> None:
        comment = self._leading_comment()
        enum = EnumDeclaration(self._identifier(), comment)
        self.file.enums.append(enum)
        for _ in self._body():
            name = self._identifier()
            comment = self._leading_comment()
            self._expect("=")
            number = self._number()
            self._expect(";")
            enum.values.append(EnumValue(name, number, comment, self._remark()))
        if not enum.values or enum.values[0].number != 0:
            raise self._error(f"the first value of {enum.name} must be 0")

    def _message(self) -> None:
        comment = self._leading_comment()
        message = MessageDeclaration(self._identifier(), comment)
        self.file.messages.append(message)
        for _ in self._body():
            if self._accept("reserved"):
                self._reserved(message)
            elif self._accept("oneof"):
                self._oneof(message)
            else:
                self._field(message, ("optional", "repeated", "map"))

    def _reserved(self, message: MessageDeclaration) -> None:
        while True:
            first = last = self._number()
            if self._accept("to"):
                last = self._number()
            message.reserved.update(range(first, last + 1))
            if not self._accept(","):
                break
        self._expect(";")

    def _oneof(self, message: MessageDeclaration) -> None:
        self._identifier()
        members: list[FieldDeclaration] = []
        for _ in self._body():
            member = self._field(message, ())
            member.label, member.oneof = "oneof", members
            members.append(member)

    def _field(self, message: MessageDeclaration, labels: tuple[str, ...]) -> FieldDeclaration:
        label = self._identifier()
        if label in ("message", "enum", "group", "option", "extensions"):
            raise self._error(f"{label!r} is not supported here")
        comment = self._leading_comment()
        key_type = ""
        if label not in labels:
            label, type_name = "", label
        elif label == "map":
            self._expect("<")
            key_type = self._identifier()
            self._expect(",")
            type_name = self._identifier()
            self._expect(">")
        else:
            type_name = self._identifier()
        name = self._identifier()
        self._expect("=")
        number = self._number()
        self._expect(";")
        declared = FieldDeclaration(name, number, type_name, label, comment, self._remark(), key_type)
        self._check_field(message, declared)
        message.fields.append(declared)
        return declared

    def _check_field(self, message: MessageDeclaration, declared: FieldDeclaration) -> None:
        number = declared.number
        if not 0 < number < 1 << 29 or 19000 <= number < 20000:
            raise self._error(f"{number} is no field number")
        if number in message.reserved or any(number == other.number for other in message.fields):
            raise self._error(f"number {number} of {message.name} is taken")
        if any(declared.name == other.name for other in message.fields):
            raise self._error(f"{message.name} has a field {declared.name!r} already")
        if keyword.iskeyword(declared.name) or declared.name in UNUSABLE_NAMES:
            raise self._error(f"{declared.name!r} cannot be a field name in Python")
        if declared.key_type and declared.key_type not in KEY_TYPES:
            raise self._error(f"{declared.key_type!r} cannot be the key of a map")

    def _check_types(self) -> None:
        known = {*PYTHON_TYPES, *(each.name for each in self.file.messages), *(each.name for each in self.file.enums)}
        for message in self.file.messages:
            for declared in message.fields:
                if declared.type not in known:
                    raise ProtoError(f"{self.name}: {message.name}.{declared.name}: no type {declared.type!r} here")
