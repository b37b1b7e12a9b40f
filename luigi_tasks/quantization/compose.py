"""Composition of a classifier: a head is written into its frozen backbone's TFLite file, without TensorFlow.

The file is the one that the converter would write for the whole network
(tests/pipeline/quantization/test_compose.py holds the two equal). Only the head's few buffers differ from one
release to the next, so an update is a few kB, and no run waits for a conversion.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_client.contract.errors import InputError
from edge_client.contract.names import KNOWN_OUTPUT
from luigi_tasks.quantization.tflite_metadata import METADATA_NAME, append_labels, describe_classifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from luigi_tasks.training.records import Familiarity

# Versions that the converter gives these operators. Source: versions/op_version.cc.
INT8_VERSIONS = {"FULLY_CONNECTED": 4, "SOFTMAX": 2, "QUANTIZE": 1, "DEQUANTIZE": 2}
FLOAT_VERSION = 1

WEIGHT_STEPS = 127  # int8 weights are symmetric and leave -128 out (TFLite 8-bit quantization spec)
BIAS_STEPS = 2**30 - 1  # leaves the accumulator room; quantization_driver.cc, SetBiasParamsWithAdjustments
SMALLEST_RANGE = 1e-6  # kNearZeroTolerance of the converter: no range is narrower
SCORE_SCALE = 1 / 256  # of int8 and uint8 probabilities, the same source


@dataclasses.dataclass(frozen=True)
class Dense:
    """One dense layer of a head.

    Attributes:
        weights: (inputs, units) float32.
        bias: (units,) float32.
        low: Lowest output (a hidden layer's after ReLU, the last one's logits) that int8 must hold.
        high: Highest output.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class QuantizedDense:
    """A quantized dense layer; real = number * scale of its unit.

    Attributes:
        weights: (units, inputs) int8.
        bias: (units,) int32.
        weight_scales: (units,) float32.
        bias_scales: (units,) float32.
    """

    weights: NDArray[np.int8]
    bias: NDArray[np.int32]
    weight_scales: NDArray[np.float32]
    bias_scales: NDArray[np.float32]


def compose_classifier(
    backbone: bytes,
    layers: Sequence[Dense],
    labels: Sequence[str],
    *,
    name: str,
    description: str = "",
    familiarity: Familiarity | None = None,
) -> bytes:
    """Return backbone, dense layers (ReLU between them), softmax and metadata as one file.

    Same input, same bytes; heads of equal shape give files of equal layout.

    Args:
        backbone: TFLite, one input, one output (1, F): int8 features, or float ones.
        layers: The head; the last has one unit a label.
        labels: Label of each output.
        name: Name of the model in its metadata.
        description: Description in its metadata.
        familiarity: How to tell strangers, in a second output `known`; None: no such output.
    Raises: InputError if layers, labels and backbone do not fit, a number is not finite, or the backbone
        is not a TFLite file of that kind.
    """
    from ai_edge_litert import schema_py_generated as schema  # noqa: PLC0415 - 0.1 s, only for new files

    file = _File(schema, backbone, name)
    _check(layers, labels, file.width, name)
    for number, layer in enumerate(layers):
        last = number == len(layers) - 1
        file.add_dense(layer, "logits" if last else f"hidden_{number + 1}", relu=not last)
    if familiarity is not None:
        file.add_known(familiarity)
    file.add_softmax()
    known = familiarity is not None
    file.add_metadata(
        METADATA_NAME, describe_classifier(name, description, mean=127.5, std=127.5, known=known)
    )
    return append_labels(file.pack(), labels, known=known)


class _File:
    """A TFLite file to which operators are appended, through the schema's object interface."""

    def __init__(self, schema: Any, data: bytes, name: str) -> None:  # noqa: ANN401 - generated code
        self._schema = schema
        self._model = _read(schema, data, name)
        self._graph = self._model.subgraphs[0]
        if len(self._graph.inputs) != 1 or len(self._graph.outputs) != 1:
            msg = f"backbone of {name}: give one with one input and one output"
            raise InputError(msg)
        self._end = int(self._graph.outputs[0])
        features = self._graph.tensors[self._end]
        features.name = b"features"
        types = schema.TensorType
        ends = (self._graph.tensors[int(self._graph.inputs[0])].type, features.type)
        if ends not in {(types.UINT8, types.INT8), (types.INT8, types.INT8), (types.FLOAT32, types.FLOAT32)}:
            msg = f"backbone of {name}: give one from 8-bit pixels to int8, or from float32 to float32"
            raise InputError(msg)
        if features.shape is None or len(features.shape) != 2 or features.shape[0] != 1:
            msg = f"backbone of {name}: give one whose output is (1, features)"
            raise InputError(msg)
        self._features = self._end
        self._known: list[int] = []  # the second output, if there is one
        self._int8 = features.type == types.INT8
        self.width = int(features.shape[-1])

    def add_dense(self, layer: Dense, name: str, *, relu: bool) -> None:
        """Append a FULLY_CONNECTED operator."""
        schema = self._schema
        options = schema.FullyConnectedOptionsT()
        if relu:
            options.fusedActivationFunction = schema.ActivationFunctionType.RELU
        given = self._graph.tensors[self._end]
        quantized = None
        if self._int8:
            numbers = quantize_dense(layer, float(given.quantization.scale[0]))
            inputs = [
                self._constant(f"{name}/weights", numbers.weights, numbers.weight_scales),
                self._constant(f"{name}/bias", numbers.bias, numbers.bias_scales),
            ]
            quantized = choose_scale(layer.low, layer.high)
        else:
            inputs = [
                self._constant(f"{name}/weights", np.ascontiguousarray(layer.weights.T, np.float32)),
                self._constant(f"{name}/bias", np.asarray(layer.bias, np.float32)),
            ]
        self._end = self._operate(
            "FULLY_CONNECTED", [self._end, *inputs], options, name, len(layer.bias), quantized
        )

    def add_softmax(self) -> None:
        """Append SOFTMAX; with a uint8 input, the output is uint8 too."""
        schema = self._schema
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        units = int(self._graph.tensors[self._end].shape[-1])
        quantized = (SCORE_SCALE, -128) if self._int8 else None
        self._end = self._operate("SOFTMAX", [self._end], options, "scores", units, quantized)
        if self._takes_uint8():
            self._end = self._operate("QUANTIZE", [self._end], None, "probabilities", units, (SCORE_SCALE, 0))
            self._graph.tensors[self._end].type = schema.TensorType.UINT8

    def add_known(self, familiarity: Familiarity) -> None:
        """Append the second output `known`, from the logits, which must be the last tensor, and the features.

        In float also behind int8: the length of the features has no fixed range, and strangers leave any.
        """
        schema = self._schema
        features, logits = (self._as_float(one) for one in (self._features, self._end))
        width = int(self._graph.tensors[features].shape[-1])
        squares = self._operate("MUL", [features, features], schema.MulOptionsT(), "known/squares", width)
        axis = self._constant("known/axis", np.array([1], np.int32))
        kept = schema.ReducerOptionsT()
        kept.keepDims = True
        sum_of_squares = self._operate("SUM", [squares, axis], kept, "known/sum_of_squares", 1)
        parts = [
            self._operate("REDUCE_MAX", [logits, axis], kept, "known/highest_logit", 1),
            self._operate("MEAN", [logits, axis], kept, "known/mean_logit", 1),
            self._operate("SQRT", [sum_of_squares], None, "known/length", 1),
        ]
        joined = schema.ConcatenationOptionsT()
        joined.axis = 1
        seen = self._operate("CONCATENATION", parts, joined, "known/seen", len(parts))
        weights = np.array([[familiarity.margin, -familiarity.margin, -familiarity.length]], np.float32)
        constants = [
            self._constant("known/weights", weights),
            self._constant("known/bias", np.array([familiarity.bias], np.float32)),
        ]
        dense = schema.FullyConnectedOptionsT()
        odds = self._operate("FULLY_CONNECTED", [seen, *constants], dense, "known/log_odds", 1)
        known = self._operate("LOGISTIC", [odds], None, KNOWN_OUTPUT if not self._int8 else "known/float", 1)
        if self._int8:
            # MediaPipe wants both outputs quantized, or neither.
            zero_point = 0 if self._takes_uint8() else -128
            known = self._operate("QUANTIZE", [known], None, KNOWN_OUTPUT, 1, (SCORE_SCALE, zero_point))
            if self._takes_uint8():
                self._graph.tensors[known].type = schema.TensorType.UINT8
        self._known = [known]

    def _as_float(self, tensor: int) -> int:
        """Return the tensor in float, behind a DEQUANTIZE where it is int8."""
        given = self._graph.tensors[tensor]
        if not self._int8:
            return tensor
        name = f"known/{given.name.decode()}"
        return self._operate("DEQUANTIZE", [tensor], None, name, int(given.shape[-1]))

    def _takes_uint8(self) -> bool:
        given = self._graph.tensors[int(self._graph.inputs[0])]
        return bool(given.type == self._schema.TensorType.UINT8)

    def add_metadata(self, name: bytes, content: bytes) -> None:
        """Append a metadata buffer."""
        entry = self._schema.MetadataT()
        entry.name, entry.buffer = name, self._buffer(np.frombuffer(content, np.uint8))
        self._model.metadata = [*(self._model.metadata or []), entry]

    def pack(self) -> bytes:
        """Return the file's bytes."""
        self._graph.outputs = [self._end, *self._known]
        builder = _aligned_builder()
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _operate(
        self,
        kind: str,
        inputs: list[int],
        options: Any,  # noqa: ANN401 - generated code
        name: str,
        units: int,
        quantized: tuple[float, int] | None = None,
    ) -> int:
        """Append an operator; return its output, (1, units): int8 with scale and zero point, or float."""
        schema = self._schema
        tensor = self._tensor(
            name, (1, units), schema.TensorType.INT8 if quantized else schema.TensorType.FLOAT32
        )
        if quantized is not None:
            self._quantize(tensor, np.array([quantized[0]], np.float32), quantized[1])
        operator = schema.OperatorT()
        # QUANTIZE and DEQUANTIZE stand at the border; the others are of the type of their output.
        int8 = quantized is not None or kind == "DEQUANTIZE"
        operator.opcodeIndex = self._code(kind, INT8_VERSIONS[kind] if int8 else FLOAT_VERSION)
        operator.inputs, operator.outputs = inputs, [self._append(tensor)]
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__[:-1])
        self._graph.operators.append(operator)
        return int(operator.outputs[0])

    def _code(self, kind: str, version: int) -> int:
        schema = self._schema
        number = getattr(schema.BuiltinOperator, kind)
        for index, code in enumerate(self._model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == number and code.version == version:
                return index
        code = schema.OperatorCodeT()
        # The old field holds at most 127, for runtimes that know only that field.
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), version
        self._model.operatorCodes.append(code)
        return len(self._model.operatorCodes) - 1

    def _constant(self, name: str, values: NDArray[Any], scales: NDArray[np.float32] | None = None) -> int:
        types = self._schema.TensorType
        kind = {"int8": types.INT8, "int32": types.INT32, "float32": types.FLOAT32}[values.dtype.name]
        tensor = self._tensor(name, values.shape, kind)
        tensor.buffer = self._buffer(np.frombuffer(values.tobytes(), np.uint8))
        if scales is not None:
            self._quantize(tensor, scales, 0)
        return self._append(tensor)

    def _tensor(self, name: str, shape: Sequence[int], kind: int) -> Any:  # noqa: ANN401
        tensor = self._schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name.encode(), list(shape), kind
        tensor.hasRank = True
        tensor.buffer = 0  # the empty buffer
        return tensor

    def _quantize(self, tensor: Any, scales: NDArray[np.float32], zero_point: int) -> None:  # noqa: ANN401
        tensor.quantization = self._schema.QuantizationParametersT()
        tensor.quantization.scale = scales
        tensor.quantization.zeroPoint = np.full(len(scales), zero_point, np.int64)

    def _append(self, tensor: Any) -> int:  # noqa: ANN401
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _buffer(self, content: NDArray[np.uint8]) -> int:
        buffer = self._schema.BufferT()
        buffer.data = content
        self._model.buffers.append(buffer)
        return len(self._model.buffers) - 1


def quantize_dense(layer: Dense, input_scale: float) -> QuantizedDense:
    """Quantize a layer exactly as the converter does.

    Args:
        layer: Any finite layer, also with units whose weights are all 0.
        input_scale: Real value of one step of the layer's int8 input.
    Source: quantization_driver.cc and quantization_utils.cc of TensorFlow 2.21's converter.
    """
    weights = np.asarray(layer.weights, np.float32).T  # (units, inputs)
    bias = np.asarray(layer.bias, np.float32)
    largest = np.maximum(np.abs(weights).max(1), SMALLEST_RANGE / 2).astype(np.float64)
    scales = (largest / WEIGHT_STEPS).astype(np.float32).astype(np.float64)
    bias_scales = scales * input_scale
    # With tiny weights, the steps of the bias would be so small that int32 could not hold it. Wider steps
    # make the weights coarser, which matters little next to such a bias.
    least = np.abs(bias).astype(np.float64) / BIAS_STEPS
    scales = np.where(least >= bias_scales, least / input_scale, scales)
    bias_scales = np.maximum(least, bias_scales)
    return QuantizedDense(
        weights=_count_steps(weights, scales[:, None]).astype(np.int8),
        bias=_count_steps(bias, bias_scales).astype(np.int32),
        weight_scales=scales.astype(np.float32),
        bias_scales=bias_scales.astype(np.float32),
    )


def choose_scale(low: float, high: float) -> tuple[float, int]:
    """Return scale and zero point of an int8 tensor that holds [low, high] and 0 exactly.

    Source: TFLite 8-bit quantization specification, asymmetric activations; in float32 as the converter.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < SMALLEST_RANGE:
        low, high = low - SMALLEST_RANGE, high + SMALLEST_RANGE
    scale = float((np.float32(high) - np.float32(low)) / np.float32(255))
    zero_point = int(_round(np.float32(-128 - low / scale)))
    return scale, min(127, max(-128, zero_point))


def _count_steps(values: NDArray[np.float32], scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to whole steps as the converter does: by the inverse, in float32."""
    inverse = (1 / scales.astype(np.float32).astype(np.float64)).astype(np.float32)
    return _round(values * inverse)


def _round(values: NDArray[np.float32] | np.float32) -> NDArray[np.float64]:
    """Round halves away from zero, as C's round() and the converter do."""
    exact = np.asarray(values, np.float64)
    rounded: NDArray[np.float64] = np.sign(exact) * np.floor(np.abs(exact) + 0.5)
    return rounded


def _check(layers: Sequence[Dense], labels: Sequence[str], width: int, name: str) -> None:
    if not layers:
        msg = f"head of {name}: it has no layers; train it"
        raise InputError(msg)
    for number, layer in enumerate(layers, start=1):
        shape = layer.weights.shape
        if len(shape) != 2 or shape[0] != width or layer.bias.shape != shape[1:]:
            msg = (
                f"head of {name}: layer {number} has weights {layer.weights.shape} and bias "
                f"{layer.bias.shape}, it gets {width} values; train it on this backbone"
            )
            raise InputError(msg)
        numbers = (layer.weights, layer.bias, np.array([layer.low, layer.high]))
        if not all(np.isfinite(values).all() for values in numbers):
            msg = f"head of {name}: layer {number} has numbers that are not finite; lower learning_rate"
            raise InputError(msg)
        if layer.low > layer.high:
            msg = f"head of {name}: layer {number} has a range from {layer.low} to {layer.high}; swap them"
            raise InputError(msg)
        width = shape[1]
    if width != len(labels):
        msg = f"head of {name}: {width} outputs for {len(labels)} labels; train it on this snapshot"
        raise InputError(msg)


def _read(schema: Any, data: bytes, name: str) -> Any:  # noqa: ANN401 - generated code
    try:
        if not schema.Model.ModelBufferHasIdentifier(data, 0):
            msg = f"backbone of {name}: {len(data)} bytes, not a TFLite file; convert it again"
            raise InputError(msg)
        return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    except (struct.error, TypeError, ValueError, IndexError) as e:
        # Raised by flatbuffers where an offset points outside the file.
        msg = f"backbone of {name}: a broken TFLite file of {len(data)} bytes ({e}); convert it again"
        raise InputError(msg) from e


def _aligned_builder() -> Any:  # noqa: ANN401 - flatbuffers has no types
    """Return a builder that aligns buffers to 16 bytes, as the TFLite schema requires."""
    import flatbuffers  # noqa: PLC0415 - as above

    class Builder(flatbuffers.Builder):  # type: ignore[misc]
        def CreateNumpyVector(self, values: NDArray[Any]) -> int:  # noqa: N802 - the library's name
            alignment = 16 if values.dtype == np.uint8 else values.itemsize
            self.StartVector(values.itemsize, values.size, alignment)
            end = int(self.Head())
            self.head = end - values.nbytes
            self.Bytes[self.head : end] = values.tobytes()
            self.vectorNumElems = values.size
            return int(self.EndVector())

    return Builder(1 << 20)
