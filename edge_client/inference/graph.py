"""What a TFLite file says of itself, read without a runtime: its tensors, its operators, and how it ends.

Whether an output is scores or logits is a fact of the graph, found here by walking back from the output: a
softmax or a logistic function gives scores, a dense layer or a convolution logits. The values of a picture
do not tell: logits of a dull picture may all lie between 0 and 1.

Source: tensorflow/lite/schema/schema.fbs. The numbers are the field ids of its tables.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import struct
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from edge_client.inference.flatbuffer import root_table

if TYPE_CHECKING:
    from edge_client.inference.flatbuffer import Table

_METADATA_NAME = "TFLITE_METADATA"
# Operators by their number in BuiltinOperator, as far as a decision needs them.
_ADD, _CONCATENATION, _CONV_2D, _DEPTHWISE_CONV_2D, _FULLY_CONNECTED = 0, 2, 3, 4, 9
_L2_NORMALIZATION, _LOGISTIC, _MUL, _RELU6, _SOFTMAX, _CUSTOM = 11, 14, 18, 21, 25, 32
_SUB, _DIV, _TOPK, _LOG_SOFTMAX, _SUM, _ARG_MAX, _RELU_0_TO_1 = 41, 42, 48, 50, 74, 56, 152
_BATCH_MATMUL = 126
_NAMES = {
    0: "ADD",
    2: "CONCATENATION",
    18: "MUL",
    19: "RELU",
    21: "RELU6",
    28: "TANH",
    32: "an operator of its own",
    41: "SUB",
    42: "DIV",
    48: "TOPK_V2",
    73: "LOG",
    74: "SUM",
    119: "WHILE",
    206: "STABLEHLO_COMPOSITE",
}
# Change no value, or average, order, choose and limit values: what they are made of is what comes out.
# AVERAGE_POOL_2D, DEQUANTIZE, MAX_POOL_2D, RELU, RELU6, RESHAPE, PAD, GATHER, TRANSPOSE, MEAN, SQUEEZE,
# STRIDED_SLICE, SPLIT, CAST, MAXIMUM, MINIMUM, SLICE, TILE, EXPAND_DIMS, FAKE_QUANT, REDUCE_MAX, UNPACK,
# SPLIT_V, QUANTIZE, BROADCAST_TO.
_KEEPS = {1, 6, 17, 19, 21, 22, 34, 36, 39, 40, 43, 45, 49, 53, 55, 57, 65, 69, 70, 80, 82, 88, 102, 114, 130}
# Whose inputs count all: ADD, CONCATENATION, MUL, SUB, DIV, PACK, ADD_N.
_JOINS = {_ADD, _CONCATENATION, _MUL, _SUB, _DIV, 83, 106}
# Those of them that put values beside each other.
_COLLECTS = {_CONCATENATION, 83}
_WEIGHTED = {_FULLY_CONNECTED, _CONV_2D, _DEPTHWISE_CONV_2D, _BATCH_MATMUL, 67}
# The operand of SPLIT that is split is its second.
_SECOND_OPERAND = {49}
# First operators of a graph that scales its pixels itself, as Keras' Rescaling layer does.
_SCALES = {_ADD, _MUL, _SUB, _DIV}
_FUSED_RELU6 = 3
# A walk from an output backwards meets so many operators at most.
_LONGEST_WALK = 64
_TYPES = (
    *("float32", "float16", "int32", "uint8", "int64", "string", "bool", "int16", "complex64", "int8"),
    *("float64", "complex128", "uint64", "resource", "variant", "uint32", "uint16", "int4", "bfloat16"),
)


class Ending(enum.Enum):
    """What the values of an output are, as far as the graph tells."""

    SCORES = "scores"
    ONE_SOFTMAX = "a softmax of one value"
    LOGITS = "logits"
    FEATURES = "features"
    CLASS_NUMBER = "class number"
    BEST_ONLY = "the best scores or their classes"
    UNKNOWN = "unknown"


# What an operator makes, whatever it is made of. A softmax of log scores gives the scores back.
_ENDINGS = {
    **dict.fromkeys((_SOFTMAX, _LOGISTIC, _RELU_0_TO_1), Ending.SCORES),
    **dict.fromkeys((*_WEIGHTED, _LOG_SOFTMAX), Ending.LOGITS),
    _L2_NORMALIZATION: Ending.FEATURES,
    _ARG_MAX: Ending.CLASS_NUMBER,
    _TOPK: Ending.BEST_ONLY,
}


@dataclasses.dataclass(frozen=True)
class TensorFacts:
    """An input or output.

    Attributes:
        name: Its name in the file.
        shape: As the file was converted; an open dimension is 1 there.
        signature: The same with -1 for an open dimension; empty where the file has none.
        kind: Name of its type, as in `float32`.
    """

    name: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    kind: str

    def in_words(self) -> str:
        """Return name, type and shape, for people."""
        return f"{self.name or 'unnamed'} {self.kind} {self.signature or self.shape}"


@dataclasses.dataclass(frozen=True)
class Graph:
    """What a file says of itself.

    Attributes:
        inputs: Inputs of the main graph.
        outputs: Its outputs.
        endings: What the values of each output are.
        highest: Largest value of each output of scores: 1, or 100 where they are percent.
        last_operators: Name of the operator that makes each output.
        custom_operators: Names of operators that are not TFLite's own.
        scales_pixels: Whether the graph begins with arithmetic on its input.
        metadata: Content of the standard TFLite Metadata; empty without.
    """

    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    endings: tuple[Ending, ...]
    highest: tuple[float, ...]
    last_operators: tuple[str, ...]
    custom_operators: tuple[str, ...]
    scales_pixels: bool
    metadata: bytes


def read_graph(model: bytes) -> Graph:
    """Read a `.tflite` file.

    Raises: InputError if it is damaged.
    """
    try:
        return _read(root_table(model))
    except InputError as e:
        msg = f"not a whole TFLite file: {e}; download or convert it again"
        raise InputError(msg) from e


def _read(model: Table) -> Graph:
    subgraphs = model.tables(2)
    if not subgraphs:
        msg = "it has no graph"
        raise InputError(msg)
    main = subgraphs[0]
    tensors = main.tables(0)
    given, told = (_chosen(tensors, main.integers(field)) for field in (1, 2))
    operators = _Operators(model, main)
    values = [operators.values(index, _shape(tensor)) for index, tensor in told]
    custom = (code.text(1) for code in model.tables(1) if _builtin(code) == _CUSTOM)
    return Graph(
        inputs=tuple(_facts(tensor) for _, tensor in given),
        outputs=tuple(_facts(tensor) for _, tensor in told),
        endings=tuple(one.ending for one in values),
        highest=tuple(one.highest for one in values),
        last_operators=tuple(operators.name(index) for index, _ in told),
        custom_operators=tuple(dict.fromkeys(custom)),
        scales_pixels=any(operators.scales(index) for index, _ in given),
        metadata=_metadata(model),
    )


def _chosen(tensors: list[Table], indices: tuple[int, ...]) -> list[tuple[int, Table]]:
    for index in indices:
        if not 0 <= index < len(tensors):
            msg = f"it names tensor {index} of {len(tensors)}"
            raise InputError(msg)
    return [(index, tensors[index]) for index in indices]


def _facts(tensor: Table) -> TensorFacts:
    number = tensor.integer(1, "b")
    kind = _TYPES[number] if 0 <= number < len(_TYPES) else f"type {number}"
    return TensorFacts(tensor.text(3), _shape(tensor), tensor.integers(7), kind)


def _shape(tensor: Table) -> tuple[int, ...]:
    return tensor.integers(0)


def _builtin(code: Table) -> int:
    """Return the number of an operator: the old field of 8 bits, or the new one of 32."""
    return max(code.integer(0, "b"), code.integer(3, "i"))


def _metadata(model: Table) -> bytes:
    buffers = model.tables(4)
    for entry in model.tables(6):
        number = entry.integer(1, "I")
        if entry.text(0) == _METADATA_NAME and number < len(buffers):
            return buffers[number].content(0)
    return b""


@dataclasses.dataclass(frozen=True)
class _Values:
    """What the values of a tensor are; scores lie between 0 and `highest`."""

    ending: Ending
    highest: float = 1.0


class _Operators:
    """The operators of the main graph, found by the tensors that they make and take."""

    def __init__(self, model: Table, main: Table) -> None:
        codes = [_builtin(code) for code in model.tables(1)]
        self._operators = main.tables(3)
        self._builtins = [_at(codes, one.integer(0, "I")) for one in self._operators]
        self._taken = [one.integers(1) for one in self._operators]
        self._made_by = {
            tensor: number for number, one in enumerate(self._operators) for tensor in one.integers(2)
        }
        self._tensors, self._buffers = main.tables(0), model.tables(4)

    def name(self, tensor: int) -> str:
        """Return the name of the operator that makes a tensor."""
        number = self._made_by.get(tensor)
        if number is None:
            return "nothing"
        builtin = self._builtins[number]
        return _NAMES.get(builtin, f"operator {builtin}")

    def scales(self, tensor: int) -> bool:
        """Whether the first operator on an input is arithmetic."""
        first = next((n for n, taken in enumerate(self._taken) if tensor in taken), None)
        return first is not None and self._builtins[first] in _SCALES

    def values(self, tensor: int, shape: tuple[int, ...]) -> _Values:
        """Return what an output's values are."""
        found = self._walk(tensor, [_LONGEST_WALK])
        lone = found.ending is Ending.SCORES and all(size == 1 for size in shape)
        return _Values(Ending.ONE_SOFTMAX) if lone and self._is_softmax(tensor) else found

    def _is_softmax(self, tensor: int) -> bool:
        for _ in range(_LONGEST_WALK):
            number = self._made_by.get(tensor)
            if number is None or self._builtins[number] not in _KEEPS:
                break
            tensor = self._first_operand(number)
        return number is not None and self._builtins[number] == _SOFTMAX

    def _walk(self, tensor: int, left: list[int]) -> _Values:
        """Follow a tensor back to what made its values; `left` counts the steps of the whole walk."""
        number = self._made_by.get(tensor)
        left[0] -= 1
        if number is None or left[0] < 0:
            return _Values(Ending.UNKNOWN)
        builtin = self._builtins[number]
        if builtin in _ENDINGS:
            return _Values(_ENDINGS[builtin])
        if self._divides_by_sum(number, builtin) or self._is_hard_sigmoid(number, builtin):
            return _Values(Ending.SCORES)
        if builtin in _KEEPS:
            return self._walk(self._first_operand(number), left)
        return self._walk_all(number, builtin, left) if builtin in _JOINS else _Values(Ending.UNKNOWN)

    def _walk_all(self, number: int, builtin: int, left: list[int]) -> _Values:
        """Return what all computed operands are; of different kinds, as in swish, they are no scores."""
        operands = [one for one in self._taken[number] if one in self._made_by]
        found = [self._walk(one, left) for one in operands]
        kinds = {one.ending for one in found}
        if kinds != {Ending.SCORES}:
            same = len(kinds) == 1
            return _Values(
                kinds.pop() if same else Ending.LOGITS if Ending.LOGITS in kinds else Ending.UNKNOWN
            )
        constants = [self._constant(one) for one in self._taken[number] if one not in self._made_by]
        return _joined(builtin, [one.highest for one in found], constants)

    def _constant(self, tensor: int) -> float | None:
        """Return a constant of one float32; None for others."""
        if not 0 <= tensor < len(self._tensors):
            return None
        buffer = self._tensors[tensor].integer(2, "I")
        content = self._buffers[buffer].content(0) if buffer < len(self._buffers) else b""
        is_float = self._tensors[tensor].integer(1, "b") == 0
        return float(struct.unpack("<f", content)[0]) if is_float and len(content) == 4 else None

    def _divides_by_sum(self, number: int, builtin: int) -> bool:
        """Whether an operator makes values sum to 1, as a softmax that is written out does."""
        operands = self._taken[number]
        divisor = self._made_by.get(operands[1]) if len(operands) > 1 else None
        return builtin == _DIV and divisor is not None and self._builtins[divisor] == _SUM

    def _is_hard_sigmoid(self, number: int, builtin: int) -> bool:
        """Whether an operator scales values that are limited to 0 to 6: Keras' `hard_sigmoid`."""
        made = [self._made_by[one] for one in self._taken[number] if one in self._made_by]
        if builtin not in {_MUL, _DIV} or len(made) != 1:
            return False
        options = self._operators[made[0]].table(4)
        fused = self._builtins[made[0]] in {_ADD, _FULLY_CONNECTED} and options is not None
        return self._builtins[made[0]] == _RELU6 or (
            fused and options is not None and options.integer(0, "b") == _FUSED_RELU6
        )

    def _first_operand(self, number: int) -> int:
        """Return the first computed operand; that of a constant and a tensor may be in either place."""
        operands = self._taken[number]
        if self._builtins[number] in _SECOND_OPERAND:
            operands = operands[1:]
        computed = (one for one in operands if one in self._made_by)
        return next(computed, operands[0] if operands else -1)


def _joined(builtin: int, highest: list[float], constants: list[float | None]) -> _Values:
    """Return what arithmetic makes of scores: of a mean of several models, of percent, of 1 - p."""
    if None in constants or len(constants) + len(highest) != 2:
        return _Values(Ending.SCORES, max(highest)) if builtin in _COLLECTS else _Values(Ending.UNKNOWN)
    values = [*highest, *(one for one in constants if one is not None)]
    if builtin == _ADD:
        top = sum(values)
    elif builtin == _MUL:
        top = values[0] * values[1]
    elif builtin == _DIV and len(highest) == 1 and values[1] > 0:
        top = values[0] / values[1]
    elif builtin == _SUB and len(highest) == 1:
        top = values[1]
    else:
        top = max(highest) if builtin in _COLLECTS else 0.0
    return _Values(Ending.SCORES, top) if top > 0 and math.isfinite(top) else _Values(Ending.UNKNOWN)


def _at(codes: list[int], number: int) -> int:
    if number >= len(codes):
        msg = f"it names operator code {number} of {len(codes)}"
        raise InputError(msg)
    return codes[number]
