"""Students become ONNX models, each checked against torch before it is trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kdmarl_core import __version__
from kdmarl_core.bundle.policy import LOGITS, OBSERVATION
from kdmarl_core.errors import UserError

OPSET = 17
IR_VERSION = 8
LARGEST_DIFFERENCE = 1e-5

Layer = tuple[np.ndarray, np.ndarray]  # weight [in, out], bias [out]


def feed_forward_model(layers: Sequence[Layer]) -> bytes:
    """An ONNX model of linear layers with ReLU between them: observation [n, D] -> logits [n, A].

    The graph is written directly from the weights, so that it holds these operators and nothing
    else.
    """
    nodes, weights, value = [], [], OBSERVATION
    for i, (weight, bias) in enumerate(layers):
        last = i == len(layers) - 1
        output = LOGITS if last else f"hidden_{i}"
        weights.append(numpy_helper.from_array(np.ascontiguousarray(weight), f"weight_{i}"))
        weights.append(numpy_helper.from_array(np.ascontiguousarray(bias), f"bias_{i}"))
        linear = output if last else f"linear_{i}"
        nodes.append(helper.make_node("Gemm", [value, f"weight_{i}", f"bias_{i}"], [linear]))
        if not last:
            nodes.append(helper.make_node("Relu", [linear], [output]))
        value = output
    features, actions = layers[0][0].shape[0], layers[-1][0].shape[1]
    graph = helper.make_graph(
        nodes,
        "student",
        [helper.make_tensor_value_info(OBSERVATION, TensorProto.FLOAT, ["n", features])],
        [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["n", actions])],
        weights,
    )
    model = helper.make_model(
        graph,
        producer_name="kdmarl",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def check_agreement(robot: str, onnx_logits: np.ndarray, torch_logits: np.ndarray) -> float:
    """Largest difference between ONNX Runtime and torch on the same observations.

    Raises:
        UserError: it is not below `LARGEST_DIFFERENCE`, times the largest logit where that is
            above 1: float32 rounds in proportion.
    """
    difference = float(np.abs(onnx_logits - torch_logits).max())
    limit = LARGEST_DIFFERENCE * max(1.0, float(np.abs(torch_logits).max()))
    if not difference < limit:
        raise UserError(
            f"{robot}: ONNX Runtime and torch differ by {difference:.2e}, not less than "
            f"{limit:.1e}; nothing was exported"
        )
    return difference
