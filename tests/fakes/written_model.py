"""A TFLite file read back: its dense layers as they are written, and what it answers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edge_client.inference.runtime import load_interpreter

FULLY_CONNECTED = 9


@dataclasses.dataclass(frozen=True)
class WrittenDense:
    """A dense layer as it is written in a file; scales are empty, or 1, where it is float.

    Attributes:
        weights: int8 or float32.
        bias: int32 or float32.
        weight_scales: One for each unit.
        bias_scales: The same.
        input_scale: Of the layer's input.
        scale: Of its output.
        zero_point: Of its output.
        relu: Whether ReLU follows.
        version: Of the operator.
    """

    weights: bytes
    bias: bytes
    weight_scales: tuple[float, ...]
    bias_scales: tuple[float, ...]
    input_scale: float
    scale: float
    zero_point: int
    relu: bool
    version: int

    def real_bias(self) -> np.ndarray:
        """Return the bias in real numbers."""
        real: np.ndarray = np.frombuffer(self.bias, np.int32) * np.array(self.bias_scales)
        return real


def dense_layers(model: bytes) -> list[WrittenDense]:
    """Return the dense layers of a file, in its order."""
    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    graph = tree.subgraphs[0]
    found = []
    for operator in graph.operators:
        code = tree.operatorCodes[operator.opcodeIndex]
        if max(code.builtinCode, code.deprecatedBuiltinCode) != FULLY_CONNECTED:
            continue
        given, weights, bias = (graph.tensors[index] for index in operator.inputs)
        told = graph.tensors[operator.outputs[0]].quantization
        scale = _scales(told)
        found.append(
            WrittenDense(
                weights=tree.buffers[weights.buffer].data.tobytes(),
                bias=tree.buffers[bias.buffer].data.tobytes(),
                weight_scales=_scales(weights.quantization),
                bias_scales=_scales(bias.quantization),
                input_scale=(_scales(given.quantization) or (1.0,))[0],
                scale=(scale or (1.0,))[0],
                zero_point=int(told.zeroPoint[0]) if scale else 0,
                relu=operator.builtinOptions.fusedActivationFunction == 1,
                version=code.version,
            )
        )
    return found


def infer(model: bytes, pixels: np.ndarray) -> np.ndarray:
    """Return the scores of one picture, (H, W, 3) uint8, as the file gives them."""
    interpreter = load_interpreter(model, 1)
    given, told = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    shown = pixels if given["dtype"] == np.uint8 else pixels.astype(np.float32) / 127.5 - 1
    interpreter.set_tensor(given["index"], shown[None])
    interpreter.invoke()
    scores: np.ndarray = interpreter.get_tensor(told["index"])[0]
    return scores


def _scales(quantization: Any) -> tuple[float, ...]:
    return () if quantization is None or quantization.scale is None else tuple(map(float, quantization.scale))
