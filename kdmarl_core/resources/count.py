"""Counting parameters and operations from an ONNX graph, not from a formula."""

from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from kdmarl_core.bundle.onnx_check import ELEMENTWISE, PRODUCTS
from kdmarl_core.errors import UserError
from kdmarl_core.export import CONSTANT


class Cost(NamedTuple):
    """Cost of one decision."""

    parameters: int
    flops: int


def count(model: bytes) -> Cost:
    """Parameters, and 2 x multiply-accumulates of one decision (batch of one).

    Raises:
        UserError: the graph has an operator whose multiply-accumulates are not known.
    """
    graph = onnx.load_model_from_string(model).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    macs = 0
    for node in graph.node:
        if node.op_type in PRODUCTS and node.input[1] in weights:
            shape = weights[node.input[1]].shape
            macs += int(np.prod(shape[-2:]))
        elif node.op_type not in ELEMENTWISE:
            raise UserError(
                f"model.onnx: cannot count operator {node.op_type}; extend the counter"
            )
    learned = (tensor for name, tensor in weights.items() if not name.startswith(CONSTANT))
    return Cost(sum(int(tensor.size) for tensor in learned), 2 * macs)
