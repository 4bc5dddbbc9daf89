"""What a model may hold, checked on its bytes before ONNX Runtime sees them.

A robot has no `onnx` package, and ONNX Runtime resolves external files, functions and subgraphs
while it opens a model. An ONNX file is a protocol buffer: this module walks its wire format with
one table per message. A field that no student needs is refused, whatever it holds, and so is a
second value of a field that has one: parsers differ in how they merge those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

from kdmarl_core.errors import UserError

# Operators whose second input is a matrix of weights, and those that move or compare numbers or
# are one operation per element. Where nothing but that input has more than one row, none of them
# makes a tensor with more elements than the weights have.
PRODUCTS = frozenset({"Gemm", "MatMul"})
ELEMENTWISE = frozenset({"Relu", "Tanh", "Sigmoid", "Add", "Sub", "Mul", "Sum", "Max", "Split"})
OWN_DOMAINS = ("", "ai.onnx")

LARGEST_MODEL = 16 * 2**20  # bytes; the largest students take some 100 kB
MOST_FIELDS = 100_000  # of all messages of a file; the largest students have some 1000
MOST_AXES = 2  # of a weight

FLOAT = 1  # TensorProto.DataType
FLOAT_BYTES = 4
PLAIN_ATTRIBUTES = {1: "f", 2: "i", 3: "s", 6: "floats", 7: "ints"}  # AttributeProto.AttributeType

_VARINT, _BYTES, _FIXED32 = 0, 2, 5  # wire types; others stand in no table
_Value = int | memoryview
_Size = int | str  # of an axis: a number, or the name of one that is not fixed
_Port = tuple[str, tuple[_Size, ...]]  # an input or output: name and shape


class _Field(NamedTuple):
    name: str
    wire: int
    repeated: bool = False


class _Table(NamedTuple):
    """One message: the fields that a student may have, and names for some that it may not."""

    fields: Mapping[int, _Field]
    refused: Mapping[int, str] = {}


_MODEL = _Table(
    {
        1: _Field("ir_version", _VARINT),
        2: _Field("producer_name", _BYTES),
        3: _Field("producer_version", _BYTES),
        4: _Field("domain", _BYTES),
        5: _Field("model_version", _VARINT),
        6: _Field("doc_string", _BYTES),
        7: _Field("graph", _BYTES),
        8: _Field("opset_import", _BYTES, repeated=True),
    },
    {14: "metadata", 20: "training information", 25: "functions of its own"},
)
_OPSET = _Table({1: _Field("domain", _BYTES), 2: _Field("version", _VARINT)})
_GRAPH = _Table(
    {
        1: _Field("node", _BYTES, repeated=True),
        2: _Field("name", _BYTES),
        5: _Field("initializer", _BYTES, repeated=True),
        10: _Field("doc_string", _BYTES),
        11: _Field("input", _BYTES, repeated=True),
        12: _Field("output", _BYTES, repeated=True),
    },
    {13: "value information", 15: "sparse weights", 16: "metadata"},
)
_NODE = _Table(
    {
        1: _Field("input", _BYTES, repeated=True),
        2: _Field("output", _BYTES, repeated=True),
        3: _Field("name", _BYTES),
        4: _Field("op_type", _BYTES),
        5: _Field("attribute", _BYTES, repeated=True),
        6: _Field("doc_string", _BYTES),
        7: _Field("domain", _BYTES),
    },
    {8: "a function's overload", 9: "metadata", 10: "device configurations"},
)
_ATTRIBUTE = _Table(
    {
        1: _Field("name", _BYTES),
        2: _Field("f", _FIXED32),
        3: _Field("i", _VARINT),
        4: _Field("s", _BYTES),
        7: _Field("floats", _FIXED32, repeated=True),
        8: _Field("ints", _VARINT, repeated=True),
        13: _Field("doc_string", _BYTES),
        20: _Field("type", _VARINT),
    },
    {
        5: "a tensor as attribute",
        6: "a subgraph",
        10: "tensors as attribute",
        11: "subgraphs",
        21: "a reference to an attribute",
        22: "a sparse tensor",
    },
)
_TENSOR = _Table(
    {
        1: _Field("dims", _VARINT, repeated=True),
        2: _Field("data_type", _VARINT),
        8: _Field("name", _BYTES),
        9: _Field("raw_data", _BYTES),
        12: _Field("doc_string", _BYTES),
        14: _Field("data_location", _VARINT),
    },
    {3: "segments", 4: "values that are not raw data", 13: "external data"},
)
_VALUE = _Table(
    {
        1: _Field("name", _BYTES),
        2: _Field("type", _BYTES),
        3: _Field("doc_string", _BYTES),
    }
)
_TYPE = _Table(
    {1: _Field("tensor_type", _BYTES)},
    {4: "a sequence", 5: "a map", 8: "a sparse tensor", 9: "an optional value"},
)
_TENSOR_TYPE = _Table({1: _Field("elem_type", _VARINT), 2: _Field("shape", _BYTES)})
_SHAPE = _Table({1: _Field("dim", _BYTES, repeated=True)})
_AXIS = _Table({1: _Field("dim_value", _VARINT), 2: _Field("dim_param", _BYTES)})


class _UnfitError(Exception):
    """Why a model is refused, in a few words."""


def check_model(
    model: bytes,
    inputs: Sequence[tuple[str, int]],
    outputs: Sequence[tuple[str, int]],
    where: str,
) -> None:
    """Refuse a model that is anything but a plain feed-forward step on its own weights.

    Args:
        model: the bytes of an ONNX file.
        inputs: names and sizes that the manifest promises, in their order.
        outputs: the same of what the model gives.
        where: the file that error messages begin with.

    Raises:
        UserError: it is no ONNX model, or holds external data, an operator outside of `PRODUCTS`
            and `ELEMENTWISE`, subgraphs, functions, weights of other types or sizes than they
            claim, or other inputs and outputs than the manifest's.
    """
    try:
        if len(model) > LARGEST_MODEL:
            raise _UnfitError(f"{len(model)} bytes are more than {LARGEST_MODEL}")
        found = _Walk().model(memoryview(model))
    except _UnfitError as unfit:
        raise UserError(f"{where}: not a student's model ({unfit}); export again") from None
    # The first axis is the batch: one decision, or any number.
    alike = [(name, shape[1:]) for name, shape in found if shape and _is_batch(shape[0])]
    expected = [(name, (size,)) for name, size in (*inputs, *outputs)]
    if len(alike) != len(found) or alike != expected:
        raise UserError(
            f"{where}: inputs and outputs {_described(found)} are not the manifest's "
            f"{_described([(name, ('n', *shape)) for name, shape in expected])}; "
            "model and manifest do not belong together, copy the bundle again"
        )


def _is_batch(size: _Size) -> bool:
    return size == 1 or isinstance(size, str)


def _described(ports: Sequence[_Port]) -> str:
    shown = [f"{name}[{', '.join(map(str, shape))}]" for name, shape in ports]
    return ", ".join(shown) or "none"


class _Message:
    """One message's fields by name."""

    def __init__(self, values: Mapping[str, list[_Value]]) -> None:
        self._values = values

    def number(self, name: str, default: int = 0) -> int:
        """A number; `default` where it is not set."""
        return next(iter(self.numbers(name)), default)

    def numbers(self, name: str) -> list[int]:
        """All values of a repeated number."""
        return [value for value in self._values.get(name, []) if isinstance(value, int)]

    def text(self, name: str) -> str:
        """A text; empty where it is not set."""
        value = self.part(name)
        try:
            return "" if value is None else str(value, "utf-8")
        except UnicodeDecodeError:
            raise _UnfitError(f"{name} is not text") from None

    def part(self, name: str) -> memoryview | None:
        """Bytes or an inner message; None where it is not set."""
        return next(iter(self.parts(name)), None)

    def parts(self, name: str) -> list[memoryview]:
        """All values of repeated bytes or inner messages."""
        return [value for value in self._values.get(name, []) if isinstance(value, memoryview)]

    def has(self, name: str) -> bool:
        """Whether the field is set at all."""
        return name in self._values


class _Walk:
    """One pass over a model; the depth is that of the tables, the number of fields is bounded."""

    def __init__(self) -> None:
        self._fields = 0
        self._rows: set[str] = set()  # what nodes read and that must have one row, save the batch

    def model(self, data: memoryview) -> list[_Port]:
        """The model's inputs and outputs, once all else has been found in order."""
        model = self._message(data, _MODEL, "the model")
        sets = model.parts("opset_import")
        for entry in sets:
            what = "an operator set"
            _check_domain(self._message(entry, _OPSET, what).text("domain"), what)
        if len(sets) != 1:
            raise _UnfitError(f"{len(sets)} operator sets are not 1")
        graph = self._message(_needed(model, "graph", "the model"), _GRAPH, "the graph")
        for node in graph.parts("node"):
            self._node(node)
        ports = [self._port(value) for name in ("input", "output") for value in graph.parts(name)]
        names = [name for name, _ in ports]
        for tensor in graph.parts("initializer"):
            name, shape = self._weights(tensor)
            names.append(name)
            if name in self._rows and prod(shape[:-1]) > 1:
                raise _UnfitError(f"weight '{name[:40]}': shape {shape} is not one of a layer")
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise _UnfitError(f"the name '{twice[:40]}' stands for two values")
        return ports

    def _node(self, data: memoryview) -> None:
        node = self._message(data, _NODE, "an operator")
        operator = node.text("op_type")
        _check_domain(node.text("domain"), f"operator '{operator[:40]}'")
        if operator not in PRODUCTS | ELEMENTWISE:
            raise _UnfitError(f"operator '{operator[:40]}' is not one that students have")
        for entry in node.parts("attribute"):
            attribute = self._message(entry, _ATTRIBUTE, f"an attribute of {operator}")
            kind = PLAIN_ATTRIBUTES.get(attribute.number("type"))
            values = [name for name in PLAIN_ATTRIBUTES.values() if attribute.has(name)]
            if kind is None or values not in ([kind], []):
                raise _UnfitError(f"an attribute of {operator} is not what its type says")
            if attribute.text("name") == "transA" and attribute.number("i"):
                raise _UnfitError(f"{operator} turns its input round, which no student needs")
            # As ONNX Runtime adds sizes up, they can wrap around, and be read beyond the input.
            if operator == "Split" and sum(attribute.numbers("ints")) > LARGEST_MODEL:
                raise _UnfitError(f"{operator} into pieces that are larger than any model")
        inputs = [str(part, "utf-8", "replace") for part in node.parts("input")]
        self._rows.update(inputs[:1] + inputs[2:] if operator in PRODUCTS else inputs)

    def _weights(self, data: memoryview) -> tuple[str, list[int]]:
        tensor = self._message(data, _TENSOR, "a weight")
        name = tensor.text("name")
        what = f"weight '{name[:40]}'"
        if tensor.number("data_location"):
            raise _UnfitError(f"{what}: external data")
        if tensor.number("data_type") != FLOAT:
            raise _UnfitError(f"{what}: data type {tensor.number('data_type')} is not float32")
        shape = tensor.numbers("dims")
        if len(shape) > MOST_AXES:
            raise _UnfitError(f"{what}: {len(shape)} axes are more than {MOST_AXES}")
        claimed = prod(shape) * FLOAT_BYTES
        held = len(tensor.part("raw_data") or b"")
        if claimed != held:
            raise _UnfitError(f"{what}: shape {shape} takes {claimed} bytes, it holds {held}")
        return name, shape

    def _port(self, data: memoryview) -> _Port:
        value = self._message(data, _VALUE, "an input or output")
        name = value.text("name")
        what = f"'{name[:40]}'"
        kind = self._message(_needed(value, "type", what), _TYPE, what)
        tensor = self._message(_needed(kind, "tensor_type", what), _TENSOR_TYPE, what)
        if tensor.number("elem_type") != FLOAT:
            raise _UnfitError(f"{what}: data type {tensor.number('elem_type')} is not float32")
        shape = self._message(_needed(tensor, "shape", what), _SHAPE, what)
        axes = tuple(self._axis(axis, what) for axis in shape.parts("dim"))
        return name, axes

    def _axis(self, data: memoryview, what: str) -> _Size:
        axis = self._message(data, _AXIS, what)
        if axis.has("dim_value") and axis.has("dim_param"):
            raise _UnfitError(f"{what}: an axis has two sizes")
        return axis.number("dim_value") if axis.has("dim_value") else axis.text("dim_param")

    def _message(self, data: memoryview, table: _Table, what: str) -> _Message:
        values: dict[str, list[_Value]] = {}
        for number, wire, value in self._wire(data, what):
            field = table.fields.get(number)
            if field is None:
                refused = table.refused.get(number, f"field {number}")
                raise _UnfitError(f"{what} has {refused}, which no student needs")
            if wire != field.wire:
                raise _UnfitError(f"{what}: {field.name} is damaged")
            known = values.setdefault(field.name, [])
            if known and not field.repeated:
                raise _UnfitError(f"{what}: {field.name} stands twice")
            known.append(value)
        return _Message(values)

    def _wire(self, data: memoryview, what: str) -> Iterator[tuple[int, int, _Value]]:
        """Field number, wire type and value of each field; each takes at least one byte."""
        at = 0
        while at < len(data):
            self._fields += 1
            if self._fields > MOST_FIELDS:
                raise _UnfitError(f"more than {MOST_FIELDS} fields")
            tag, at = _varint(data, at, what)
            wire = tag & 7
            if wire == _VARINT:
                value, at = _varint(data, at, what)
                yield tag >> 3, wire, value
                continue
            length = FLOAT_BYTES
            if wire == _BYTES:
                length, at = _varint(data, at, what)
            elif wire != _FIXED32:
                raise _UnfitError(f"{what}: wire type {wire} is not one that ONNX has")
            if length > len(data) - at:
                raise _UnfitError(f"{what} is cut off")
            yield tag >> 3, wire, data[at : at + length]
            at += length


def _varint(data: memoryview, at: int, what: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at == len(data):
            raise _UnfitError(f"{what} is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 2**64:
                break
            return value, at
    raise _UnfitError(f"{what}: a number is longer than 64 bits")


def _needed(message: _Message, name: str, what: str) -> memoryview:
    value = message.part(name)
    if value is None:
        raise _UnfitError(f"{what} has no {name}")
    return value


def _check_domain(domain: str, what: str) -> None:
    if domain not in OWN_DOMAINS:
        raise _UnfitError(f"{what}: domain '{domain[:40]}' is not ONNX's own")
