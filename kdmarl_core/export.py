"""Students become ONNX models, each checked against torch before it is trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kdmarl_core import __version__
from kdmarl_core.bundle.policy import (
    LOGITS,
    MESSAGE,
    MESSAGES,
    NEXT_STATE,
    OBSERVATION,
    STATE,
)
from kdmarl_core.errors import UserError

# The newest whose Split has its sizes as an attribute: later ones read them from weights, which
# would be integers.
OPSET = 12
IR_VERSION = 8
LARGEST_DIFFERENCE = 1e-5
CONSTANT = "constant"  # what the names of weights begin with that are no parameters


class Layer(NamedTuple):
    """A linear layer."""

    weight: np.ndarray  # [in, out]
    bias: np.ndarray  # [out]

    def single(self) -> Layer:
        """In single precision, as exported."""
        return Layer(*(array.astype(np.float32) for array in self))


class GruWeights(NamedTuple):
    """A gated recurrent unit; gates lie behind one another: reset, update, new."""

    input_weight: np.ndarray  # [in, 3 W]
    input_bias: np.ndarray  # [3 W]
    state_weight: np.ndarray  # [W, 3 W]
    state_bias: np.ndarray  # [3 W]

    def single(self) -> GruWeights:
        """In single precision, as exported."""
        return GruWeights(*(array.astype(np.float32) for array in self))


class MessageWeights(NamedTuple):
    """How a student reads messages, beside its observation, and what it tells others."""

    input_weight: np.ndarray | None  # [R, W] to the first layer; None: it listens to nobody
    head: Layer | None  # from the last hidden layer to its message; None: it is silent


SILENT = MessageWeights(None, None)


class ImputeWeights(NamedTuple):
    """What a student makes of features that are hidden from it: the sum of these."""

    messages: np.ndarray | None  # [R, F]; None: it listens to nobody
    state: np.ndarray | None  # [W, F]; None: it has no memory
    bias: np.ndarray  # [F]


class EncodedWeights(NamedTuple):
    """How a student reads a block that lists several things, and how it aims at them."""

    rows: np.ndarray  # columns of the observation, [U, F]
    encoder: Layer  # of a row, [F, E]
    pool: np.ndarray  # of the greatest encodings to the first layer, [E, W]
    aim: Layer | None  # from the last hidden layer, [W, E]; None: no action aims at any row
    actions: Sequence[int]  # that aim at the rows


class Encodings(NamedTuple):
    """How a student reads an observation of which it encodes some blocks."""

    rest: np.ndarray  # columns that the first layer reads as they are: all, or those left over
    blocks: Sequence[EncodedWeights]

    @property
    def rows(self) -> list[np.ndarray]:
        """Columns of all rows."""
        return [row for block in self.blocks for row in block.rows]

    @property
    def columns(self) -> np.ndarray:
        """All columns of the observation."""
        return np.unique(np.concatenate([self.rest, *self.rows]))


def student_model(
    layers: Sequence[Layer | GruWeights],
    messages: MessageWeights = SILENT,
    impute: ImputeWeights | None = None,
    encodings: Encodings | None = None,
) -> bytes:
    """An ONNX model of linear layers, with ReLU between them, and at most one GRU.

    Inputs observation [n, D], messages [n, R] if the student listens, and state [n, W] if there
    is a GRU; outputs logits [n, A], message [n, M] if it tells others something, and next_state
    [n, W]. If it imputes, the first half of an observation is features, the other one tells which
    of them are visible. If it encodes blocks, the first layer reads some columns as they are.
    The graph is written directly from the weights, so that it holds these operators and nothing
    else.
    """
    graph = _Graph()
    features = len(encodings.columns) if encodings else next(iter(layers[0])).shape[0]
    actions = layers[-1][1].shape[0]
    inputs = [_tensor(OBSERVATION, features)]
    outputs = [_tensor(LOGITS, actions)]
    if messages.input_weight is not None:
        inputs.append(_tensor(MESSAGES, messages.input_weight.shape[0]))
    if messages.head is not None:
        outputs.append(_tensor(MESSAGE, messages.head.bias.shape[0]))
    value = OBSERVATION
    for i, layer in enumerate(layers):
        if isinstance(layer, GruWeights):
            width = layer.state_weight.shape[0]
            inputs.append(_tensor(STATE, width))
            outputs.append(_tensor(NEXT_STATE, width))
            value = graph.gru(value, layer)
        elif i == len(layers) - 1:
            if messages.head is not None:
                graph.add("Tanh", [graph.linear(value, *messages.head, "told")], MESSAGE)
            graph.logits(value, *layer, encodings.blocks if encodings else ())
        else:
            if i == 0 and impute is not None:
                sums = graph.imputing(value, *layer, f"linear_{i}", impute)
            elif i == 0 and encodings is not None:
                sums = graph.encoding(*layer, f"linear_{i}", encodings)
            else:
                sums = graph.linear(value, *layer, f"linear_{i}")
            if i == 0 and messages.input_weight is not None:
                read = graph.product(MESSAGES, messages.input_weight, "read")
                sums = graph.add("Add", [sums, read], "sensed")
            value = graph.add("Relu", [sums], f"hidden_{i}")
    model = helper.make_model(
        helper.make_graph(graph.nodes, "student", inputs, outputs, graph.weights),
        producer_name="kdmarl",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


class _Graph:
    """Nodes and weights, in the order in which they were added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._arrays: dict[str, np.ndarray] = {}

    def add(self, operator: str, inputs: list[str], output: str) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output]))
        return output

    def linear(self, value: str, weight: np.ndarray, bias: np.ndarray, output: str) -> str:
        names = self._weight(f"{output}_weight", weight), self._weight(f"{output}_bias", bias)
        return self.add("Gemm", [value, *names], output)

    def product(self, value: str, weight: np.ndarray, output: str) -> str:
        return self.add("MatMul", [value, self._weight(f"{output}_weight", weight)], output)

    def _weight(self, name: str, array: np.ndarray) -> str:
        """A weight by its name; one that is there already, and the same, serves once more."""
        if name not in self._arrays:
            self._arrays[name] = array
            self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        assert np.array_equal(self._arrays[name], array), name
        return name

    def imputing(
        self, value: str, weight: np.ndarray, bias: np.ndarray, output: str, impute: ImputeWeights
    ) -> str:
        """The first layer of a student that imputes: of features, and of flags which are visible.

        Features that are hidden are zero: what is read is seen + (1 - visible) * guess.
        """
        features = len(impute.bias)
        self.nodes.append(helper.make_node("Split", [value], ["seen", "visible"], axis=1))
        guess = self._guess(impute)
        known = self.add("Mul", ["visible", guess], "known")
        gaps = self.add("Sub", [guess, known], "gaps")
        filled = self.add("Add", ["seen", gaps], "filled")
        of_filled = self.linear(filled, weight[:features], bias, f"{output}_filled")
        told = self.product("visible", weight[features:], f"{output}_visible")
        return self.add("Add", [of_filled, told], output)

    def _guess(self, impute: ImputeWeights) -> str:
        if impute.state is None:
            assert impute.messages is not None
            return self.linear(MESSAGES, impute.messages, impute.bias, "guess")
        remembered = self.linear(STATE, impute.state, impute.bias, "remembered")
        if impute.messages is None:
            return remembered
        heard = self.product(MESSAGES, impute.messages, "heard")
        return self.add("Add", [remembered, heard], "guess")

    def encoding(
        self,
        weight: np.ndarray,
        bias: np.ndarray,
        output: str,
        encodings: Encodings,
    ) -> str:
        """The first layer of a student that encodes blocks: of the rest, and of what is pooled."""
        rest, rows, columns = encodings.rest, encodings.rows, encodings.columns
        left = np.setdiff1d(columns, np.concatenate(rows))
        runs = [run for cut in (left, *rows) for run in _runs(cut)]
        runs.sort(key=lambda run: int(run[0]))
        pieces, sizes = [_piece(run) for run in runs], [len(run) for run in runs]
        self.nodes.append(helper.make_node("Split", [OBSERVATION], pieces, axis=1, split=sizes))
        parts = []
        if len(rest) == len(columns):
            parts.append(self.product(OBSERVATION, weight, "rest"))
        elif len(rest):
            parts.append(self._of_pieces(rest, weight, None, "rest", "rest"))
        for b, block in enumerate(encodings.blocks):
            encoded = []
            for u, row in enumerate(block.rows):
                sums = self._of_pieces(row, *block.encoder, f"encoder_{b}", f"sums_{b}_{u}")
                encoded.append(self.add("Relu", [sums], _encoding(b, u)))
            most = self.add("Max", encoded, f"most_{b}")
            parts.append(self.product(most, block.pool, f"pooled_{b}"))
        return self.add("Sum", [*parts, self._weight(f"{output}_bias", bias)], output)

    def _of_pieces(
        self,
        columns: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None,
        shared: str,
        output: str,
    ) -> str:
        """A linear map of pieces of the observation; its weights, called `shared`, serve again."""
        parts, done = [], 0
        for k, run in enumerate(_runs(columns)):
            own = self._weight(f"{shared}_weight_{k}", weight[done : done + len(run)])
            done += len(run)
            if k == 0 and bias is not None:
                shift = self._weight(f"{shared}_bias", bias)
                parts.append(self.add("Gemm", [_piece(run), own, shift], f"{output}_{k}"))
            else:
                parts.append(self.add("MatMul", [_piece(run), own], f"{output}_{k}"))
        return self.add("Sum", parts, output) if len(parts) > 1 else parts[0]

    def logits(
        self, value: str, weight: np.ndarray, bias: np.ndarray, blocks: Sequence[EncodedWeights]
    ) -> None:
        """The last layer, and what encodings add to the logits of actions that aim at them."""
        targets = [(b, block) for b, block in enumerate(blocks) if block.aim]
        if not targets:
            self.linear(value, weight, bias, LOGITS)
            return
        parts = [self.linear(value, weight, bias, "of_actions")]
        for b, block in targets:
            assert block.aim is not None
            aim = self.linear(value, *block.aim, f"aim_{b}")
            ones = np.ones((len(block.aim.bias), 1), np.float32)
            adding = self._weight(f"{CONSTANT}_ones", ones)
            for u, action in enumerate(block.actions):
                met = self.add("Mul", [_encoding(b, u), aim], f"met_{b}_{u}")
                score = self.add("MatMul", [met, adding], f"score_{b}_{u}")
                here = np.eye(len(bias), dtype=np.float32)[action]
                only = self._weight(f"{CONSTANT}_action_{action}", here)
                parts.append(self.add("Mul", [score, only], f"scores_{b}_{u}"))
        self.add("Sum", parts, LOGITS)

    def gru(self, value: str, gru: GruWeights) -> str:
        gates = ["reset", "update", "new"]
        for source, name, weight, bias in (
            (value, "input", gru.input_weight, gru.input_bias),
            (STATE, "recurrent", gru.state_weight, gru.state_bias),
        ):
            joined = self.linear(source, weight, bias, name)
            parts = [f"{name}_{gate}" for gate in gates]
            self.nodes.append(helper.make_node("Split", [joined], parts, axis=1))
        for gate in gates[:2]:
            total = self.add("Add", [f"input_{gate}", f"recurrent_{gate}"], f"{gate}_sum")
            self.add("Sigmoid", [total], gate)
        self.add("Mul", ["reset", "recurrent_new"], "kept_new")
        self.add("Add", ["input_new", "kept_new"], "new_sum")
        self.add("Tanh", ["new_sum"], "new")
        self.add("Sub", [STATE, "new"], "change")
        self.add("Mul", ["update", "change"], "kept")
        return self.add("Add", ["new", "kept"], NEXT_STATE)


def _runs(columns: np.ndarray) -> list[np.ndarray]:
    """Columns, cut where one does not follow the one before; none of none."""
    return np.split(columns, np.flatnonzero(np.diff(columns) != 1) + 1) if len(columns) else []


def _piece(run: np.ndarray) -> str:
    return f"{OBSERVATION}_{run[0]}"


def _encoding(block: int, row: int) -> str:
    return f"encoding_{block}_{row}"


def _tensor(name: str, size: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])


def check_agreement(robot: str, of_onnx: np.ndarray, of_torch: np.ndarray) -> float:
    """Largest difference between ONNX Runtime's and torch's outputs for the same inputs.

    Raises:
        UserError: it is not below `LARGEST_DIFFERENCE`, times the largest output where that is
            above 1: float32 rounds in proportion.
    """
    difference = float(np.abs(of_onnx - of_torch).max())
    limit = LARGEST_DIFFERENCE * max(1.0, float(np.abs(of_torch).max()))
    if not difference < limit:
        raise UserError(
            f"{robot}: ONNX Runtime and torch differ by {difference:.2e}, not less than "
            f"{limit:.1e}; nothing was exported"
        )
    return difference
