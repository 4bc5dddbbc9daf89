"""What a model may hold: crafted models are refused before ONNX Runtime sees them."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf.message import DecodeError
from helpers import dense_layers, make_manifest, make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from kdmarl_core.bundle import BundlePolicy
from kdmarl_core.bundle.onnx_check import (
    ELEMENTWISE,
    LARGEST_MODEL,
    PRODUCTS,
    check_model,
)
from kdmarl_core.errors import UserError
from kdmarl_core.export import EncodedWeights, Encodings, GruWeights, Layer, student_model

MANIFEST = make_manifest(blocks=[("position", 2), ("others", 3)])
INPUTS, OUTPUTS = [("observation", 5)], [("logits", 5)]
FEED_FORWARD = make_model(MANIFEST)


def recurrent_model():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    gru = GruWeights(draw(4, 12), draw(12), draw(4, 12), draw(12))
    first, last = dense_layers([5, 4])[0], Layer(draw(4, 5), draw(5))
    return student_model([first, gru, last])


RECURRENT = recurrent_model()
RECURRENT_PORTS = ([("observation", 5), ("state", 4)], [("logits", 5), ("next_state", 4)])


def encoding_model():
    """Of a block of two rows, at which two actions aim, and a feature beside it."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    block = EncodedWeights(
        np.array([[0, 1], [2, 3]]),
        Layer(draw(2, 3), draw(3)),
        draw(3, 4),
        Layer(draw(4, 3), draw(3)),
        [1, 3],
    )
    first, last = Layer(draw(1, 4), draw(4)), Layer(draw(4, 5), draw(5))
    return student_model(
        [first, *dense_layers([4, 4]), last], encodings=Encodings(np.array([4]), [block])
    )


ENCODING = encoding_model()


def check(model, inputs=INPUTS, outputs=OUTPUTS):
    check_model(model, inputs, outputs, "model.onnx")


def accepted(model, inputs=INPUTS, outputs=OUTPUTS):
    try:
        check(model, inputs, outputs)
    except UserError:
        return False
    return True


def spoiled(spoil, model=FEED_FORWARD):
    """A model's bytes after a change that the onnx package makes."""
    proto = onnx.load_model_from_string(model)
    spoil(proto)
    return proto.SerializeToString()


def floats(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def test_what_export_writes_is_accepted():
    check(FEED_FORWARD)
    check(RECURRENT, *RECURRENT_PORTS)
    check(ENCODING)


# One change each


def external_data(proto):
    tensor = proto.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    tensor.ClearField("raw_data")


def external_location_only(proto):
    proto.graph.initializer[0].data_location = TensorProto.EXTERNAL


def custom_domain(proto):
    proto.graph.node[0].domain = "com.microsoft"


def custom_operator_set(proto):
    proto.opset_import.append(helper.make_opsetid("evil.corp", 1))


def no_operator_set(proto):
    del proto.opset_import[:]


def unknown_operator(proto):
    proto.graph.node[1].op_type = "ConstantOfShape"


def subgraph(proto):
    body = helper.make_graph([], "body", [], [])
    proto.graph.node[1].attribute.append(helper.make_attribute("body", body))


def subgraphs(proto):
    body = helper.make_graph([], "body", [], [])
    proto.graph.node[1].attribute.append(helper.make_attribute("bodies", [body]))


def tensor_attribute(proto):
    value = numpy_helper.from_array(np.zeros(3, np.float32))
    proto.graph.node[1].attribute.append(helper.make_attribute("value", value))


def attribute_of_another_type(proto):
    attribute = helper.make_attribute("alpha", 1.0)
    attribute.type = onnx.AttributeProto.INT
    proto.graph.node[0].attribute.append(attribute)


def function(proto):
    node = helper.make_node("Relu", ["x"], ["y"])
    proto.functions.append(
        helper.make_function("", "Relu", ["x"], ["y"], [node], [helper.make_opsetid("", 17)])
    )


def training(proto):
    proto.training_info.add()


def metadata(proto):
    proto.metadata_props.add(key="ort_config", value='{"session_options": {}}')


def sparse_weights(proto):
    proto.graph.sparse_initializer.add()


def huge_weights(proto):
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend([2**31, 2**31])


def negative_weights(proto):
    proto.graph.initializer[0].dims[0] = -1


def many_axes(proto):
    proto.graph.initializer[0].dims.extend([1] * 10)


def doubles(proto):
    tensor = proto.graph.initializer[0]
    values = numpy_helper.to_array(tensor).astype(np.float64)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def weights_as_numbers(proto):
    tensor = proto.graph.initializer[0]
    tensor.float_data.extend(numpy_helper.to_array(tensor).ravel().tolist())
    tensor.ClearField("raw_data")


def weights_for_an_input(proto):
    proto.graph.initializer.append(
        numpy_helper.from_array(np.zeros((1, 5), np.float32), "observation")
    )


def outer_sum(proto):
    """A column and a row are small, and what their sum takes is not."""
    column = numpy_helper.from_array(np.zeros((1000, 1), np.float32), "column")
    proto.graph.initializer.append(column)
    proto.graph.node.insert(0, helper.make_node("Add", ["column", "observation"], ["sum"]))


def outer_variadic(operator):
    def spoil(proto):
        outer_sum(proto)
        proto.graph.node[0].op_type = operator

    spoil.__name__ = f"outer_{operator}"
    return spoil


def split_that_wraps_around(proto):
    """In 64 bits the sizes add up to 5, that of the input."""
    sizes = [200_000_000, 2**63 - 1, 2**63 - 200_000_000 + 6]
    sizes = [size if size < 2**63 else size - 2**64 for size in sizes]
    node = helper.make_node("Split", ["observation"], ["a", "b", "c"], axis=1, split=sizes)
    proto.graph.node.append(node)


def outer_product(proto):
    column = numpy_helper.from_array(np.zeros((1000, 1), np.float32), "column")
    proto.graph.initializer.append(column)
    proto.graph.node.insert(0, helper.make_node("MatMul", ["column", "observation"], ["sum"]))


def turned_input(proto):
    proto.graph.node[0].attribute.append(helper.make_attribute("transA", 1))


def no_graph(proto):
    proto.ClearField("graph")


REFUSALS = {
    external_data: "external data",
    external_location_only: "external data",
    custom_domain: "com.microsoft",
    custom_operator_set: "evil.corp",
    no_operator_set: "0 operator sets",
    unknown_operator: "ConstantOfShape",
    subgraph: "subgraph",
    subgraphs: "subgraphs",
    tensor_attribute: "tensor as attribute",
    attribute_of_another_type: "not what its type says",
    function: "functions",
    training: "training",
    metadata: "metadata",
    sparse_weights: "sparse",
    huge_weights: "it holds 160",
    negative_weights: "it holds 160",
    many_axes: "axes",
    doubles: "not float32",
    weights_as_numbers: "not raw data",
    weights_for_an_input: "'observation' stands for two values",
    outer_sum: "weight 'column': shape [1000, 1]",
    outer_product: "weight 'column': shape [1000, 1]",
    outer_variadic("Sum"): "weight 'column': shape [1000, 1]",
    outer_variadic("Max"): "weight 'column': shape [1000, 1]",
    split_that_wraps_around: "Split into pieces",
    turned_input: "turns its input round",
    no_graph: "no graph",
}


@pytest.mark.parametrize("spoil", REFUSALS, ids=lambda spoil: spoil.__name__)
def test_crafted_models_are_refused_before_a_session(spoil, refusal, monkeypatch):
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("opened"))
    message = refusal(BundlePolicy, MANIFEST, spoiled(spoil), "robot_0/model.onnx")
    assert message.startswith("robot_0/model.onnx: ")
    assert REFUSALS[spoil] in message


def another_input(proto):
    proto.graph.input.append(floats("backdoor", ["n", 1]))


def another_output(proto):
    proto.graph.output.append(floats("linear_0", ["n", 8]))


def renamed_input(proto):
    proto.graph.input[0].name = "image"


def wider_input(proto):
    proto.graph.input[0].CopyFrom(floats("observation", ["n", 6]))


def fixed_batch(proto):
    proto.graph.input[0].CopyFrom(floats("observation", [64, 5]))


def scalar_output(proto):
    proto.graph.output[0].CopyFrom(floats("logits", []))


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (another_input, "backdoor[n, 1]"),
        (another_output, "linear_0[n, 8]"),
        (renamed_input, "image[n, 5]"),
        (wider_input, "observation[n, 6]"),
        (fixed_batch, "observation[64, 5]"),
        (scalar_output, "logits[]"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_other_inputs_and_outputs_are_listed(spoil, found, refusal):
    message = refusal(check, spoiled(spoil))
    assert found in message
    assert "the manifest's observation[n, 5], logits[n, 5]" in message


def test_every_mismatch_is_listed(refusal):
    def both(proto):
        wider_input(proto)
        another_output(proto)

    message = refusal(check, spoiled(both))
    assert "observation[n, 6], logits[n, 5], linear_0[n, 8]" in message


def test_whole_number_inputs_are_refused(refusal):
    def spoil(proto):
        proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64

    assert "data type 7" in refusal(check, spoiled(spoil))


def test_weights_that_do_not_fit_one_another_are_refused(refusal):
    """In order by themselves, but the product cannot be made."""

    def spoil(proto):
        proto.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(np.zeros((6, 8), np.float32), proto.graph.initializer[0].name)
        )

    model = spoiled(spoil)
    check(model)
    assert "not a usable ONNX model" in refusal(BundlePolicy, MANIFEST, model)


def test_a_graph_in_two_parts_is_refused(refusal):
    """Protocol buffers merge both: what a reader of the first alone sees is not what runs."""
    more = onnx.ModelProto()
    more.graph.node.append(helper.make_node("Relu", ["logits"], ["shadow"], domain="evil.corp"))
    joined = FEED_FORWARD + more.SerializeToString()
    assert len(onnx.load_model_from_string(joined).graph.node) == 4
    assert "graph stands twice" in refusal(check, joined)


# Bytes


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 operator sets"),
        (b"\x08", "cut off"),
        (b"\x08" + b"\x80" * 9, "cut off"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "64 bits"),
        (b"\x3a\xff\xff\xff\xff\x0f", "cut off"),
        (b"\x3b\x3c", "wire type 3"),  # groups
        (b"\x39" + b"\0" * 8, "wire type 1"),
        (b"\x00\x00", "field 0"),
        (b"\x38\x01", "damaged"),
        (b"\x08\x01\x08\x01", "twice"),
        (b"\x42\x00" * 200_000, "fields"),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else None,
)
def test_damaged_bytes_are_refused(content, said, refusal):
    assert said in refusal(check, content)


def test_a_model_that_is_too_large_is_refused(refusal):
    assert str(LARGEST_MODEL) in refusal(check, bytes(LARGEST_MODEL + 1))


def violations(model, ports):
    """What the onnx package sees in a model that a student must not have; None: no model."""
    try:
        proto = onnx.load_model_from_string(model)
    except DecodeError:
        return None
    graph = proto.graph
    found = []
    if proto.functions or proto.training_info or graph.sparse_initializer:
        found.append("functions, training or sparse weights")
    if [entry.domain for entry in proto.opset_import] not in ([""], ["ai.onnx"]):
        found.append("operator sets")
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in PRODUCTS | ELEMENTWISE:
            found.append(node.op_type)
        if any(a.HasField("g") or a.graphs or a.HasField("t") for a in node.attribute):
            found.append("inner graph or tensor")
    for tensor in graph.initializer:
        size = 4 * math.prod(tensor.dims)
        if tensor.data_type != TensorProto.FLOAT or size != len(tensor.raw_data):
            found.append(tensor.name)
        if tensor.external_data or tensor.data_location != TensorProto.DEFAULT:
            found.append("external")
    shown = [
        [
            (value.name, [d.dim_value for d in value.type.tensor_type.shape.dim][1:])
            for value in group
        ]
        for group in (graph.input, graph.output)
    ]
    if shown != [[(name, [size]) for name, size in group] for group in ports]:
        found.append("inputs or outputs")
    return found


@settings(max_examples=1000)
@given(st.data())
def test_mutated_models_never_crash_and_onnx_agrees(data):
    """Bytes are flipped, cut out, put in and repeated; what is accepted is what onnx reads."""
    model, ports = data.draw(
        st.sampled_from(
            [
                (FEED_FORWARD, (INPUTS, OUTPUTS)),
                (RECURRENT, RECURRENT_PORTS),
                (ENCODING, (INPUTS, OUTPUTS)),
            ]
        )
    )
    content = bytearray(model)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        length = data.draw(st.integers(0, 12))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"]))
        if kind == "flip" and start < len(content):
            content[start] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del content[start : start + length]
        elif kind == "insert":
            content[start:start] = data.draw(st.binary(max_size=12))
        else:
            content[start:start] = content[start : start + length]
    if accepted(bytes(content), *ports):
        assert violations(bytes(content), ports) == []


FEATURES = {
    "external": external_data,
    "domain": custom_domain,
    "set": custom_operator_set,
    "operator": unknown_operator,
    "subgraph": subgraph,
    "function": function,
    "huge": huge_weights,
    "input": another_input,
    "output": another_output,
}
HARMLESS = {
    "doc": lambda proto: setattr(proto, "doc_string", "é" * 50),
    "producer": lambda proto: setattr(proto, "producer_name", ""),
    "named set": lambda proto: setattr(proto.opset_import[0], "domain", "ai.onnx"),
    "node name": lambda proto: setattr(proto.graph.node[0], "name", "first"),
    "attribute": lambda proto: proto.graph.node[0].attribute.append(
        helper.make_attribute("alpha", 1.0)
    ),
    "numbers": lambda proto: proto.graph.node[1].attribute.append(
        helper.make_attribute("axes", [0, -1, 2**62])
    ),
}


@given(st.sets(st.sampled_from(sorted(FEATURES))), st.sets(st.sampled_from(sorted(HARMLESS))))
def test_models_are_accepted_exactly_when_onnx_sees_nothing_wrong(wrong, harmless):
    def spoil(proto):
        for name in sorted(harmless):
            HARMLESS[name](proto)
        for name in sorted(wrong):
            FEATURES[name](proto)

    model = spoiled(spoil)
    assert (violations(model, (INPUTS, OUTPUTS)) == []) == (not wrong)
    assert accepted(model) == (not wrong)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(content):
    assert not accepted(content)
