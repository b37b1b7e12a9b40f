"""A real TFLite classifier of about 2 KB, built without TensorFlow.

It takes the mean colour of a picture and names the nearest corner of the RGB cube, so a test knows
the answer to every plain picture. All operators are of versions that tflite-runtime 2.14 has.
The FlatBuffers encoding is written here by hand: nothing that a device installs has a writer.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Label of each output with `bias` 0, and the colour that it stands for.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
TINY_LABELS = tuple(COLOURS)

Kind = Literal["int8", "uint8", "float32"]

# Numbers from tensorflow/lite/schema/schema.fbs.
_FULLY_CONNECTED, _LOGISTIC, _SOFTMAX, _MEAN = 9, 14, 25, 40
_OPTIONS = {_FULLY_CONNECTED: 8, _SOFTMAX: 9, _MEAN: 27}
_INT32 = 2
_TYPES = {"float32": 0, "uint8": 3, "int8": 9}
# First versions that take int8; float32 and uint8 are version 1.
_INT8_VERSIONS = {_FULLY_CONNECTED: 4, _LOGISTIC: 2, _SOFTMAX: 2, _MEAN: 2}

_GAIN = 2.0  # logits reach +-3 * gain


def plain_picture(label: str, height: int = 32, width: int = 32) -> NDArray[np.uint8]:
    """Return (height, width, 3) uint8 RGB of one colour that the tiny model with bias 0 names `label`."""
    return np.full((height, width, 3), COLOURS[label], np.uint8)


def tiny_labels(labels: int = 3, bias: int = 0) -> tuple[str, ...]:
    """Labels in the order in which `tiny_model(bias, labels=labels)` answers right."""
    return tuple(TINY_LABELS[(k + bias) % labels] for k in range(labels))


def tiny_model(
    bias: int = 0,
    size: int = 32,
    labels: int = 3,
    *,
    kind: Kind = "int8",
    softmax: bool = True,
    fully_connected_version: int | None = None,
    second_output: str = "",
) -> bytes:
    """Build a TFLite file.

    Args:
        bias: Output k answers to colour (k + bias) % labels: two models with different `bias` have
            different bytes, and different answers unless they differ by a multiple of `labels`.
        size: Input is (1, size, size, 3).
        labels: Number of outputs, 1-8; output is (1, labels).
        kind: Type of input and output. int8 and uint8 inputs: real = pixel / 127.5 - 1.
        softmax: False: the output is logits in [-6, 6].
        fully_connected_version: Claimed operator version; 99 is in no runtime.
        second_output: Name of a second output, (1, 1): 0.002 for black, 0.12 for red, 0.88 for yellow, 0.998
            for white; empty: there is none.
    """
    return encode(
        tiny_tree(
            bias,
            size,
            labels,
            kind=kind,
            softmax=softmax,
            fully_connected_version=fully_connected_version,
            second_output=second_output,
        )
    )


def tiny_tree(
    bias: int = 0,
    size: int = 32,
    labels: int = 3,
    *,
    kind: Kind = "int8",
    softmax: bool = True,
    fully_connected_version: int | None = None,
    second_output: str = "",
) -> dict[int, Any]:
    """Return the tables of `tiny_model`, to change before they are encoded; arguments as there."""
    corners = np.array([COLOURS[TINY_LABELS[(k + bias) % labels]] for k in range(labels)], np.float64)
    weights = np.where(corners > 127, 1.0, -1.0) * _GAIN  # (labels, 3)
    network = _Network(kind, fully_connected_version)
    pixels = network.tensor("pixels", (1, size, size, 3), "input")
    axes = network.constant("axes", np.array([1, 2], np.int32))
    colour = network.tensor("colour", (1, 3), "input")
    network.operator(_MEAN, [pixels, axes], colour, {0: ("?", 0)})
    matrix = network.weights(weights)
    offsets = network.constant("offsets", np.zeros(labels, np.float32 if kind == "float32" else np.int32))
    logits = network.tensor("logits", (1, labels), "logits")
    network.operator(_FULLY_CONNECTED, [colour, matrix, offsets], logits, {})
    answer = logits
    if softmax:
        answer = network.tensor("scores", (1, labels), "scores")
        network.operator(_SOFTMAX, [logits], answer, {0: ("f", 1.0)})
    answers = [answer]
    if second_output:
        brightness = network.tensor("brightness", (1, 1), "logits")
        ones = network.weights(np.full((1, 3), _GAIN))
        network.operator(_FULLY_CONNECTED, [colour, ones, -1], brightness, {})
        answers.append(network.tensor(second_output, (1, 1), "scores"))
        network.operator(_LOGISTIC, [brightness], answers[-1], {})
    return network.finish(pixels, answers, f"tiny {kind} model, bias {bias}")


@dataclasses.dataclass(frozen=True)
class Vector:
    """A vector of scalars (struct code) or of tables and strings (code "ref")."""

    code: str
    items: Sequence[object]
    align: int = 4


_Value: TypeAlias = "tuple[str, int | float] | Vector | str | _Table"
_Table: TypeAlias = Mapping[int, _Value]  # field number -> value


class _Network:
    """Collects tensors, buffers and operators of one subgraph."""

    def __init__(self, kind: Kind, fully_connected_version: int | None) -> None:
        self._kind = kind
        self._fully_connected_version = fully_connected_version
        self._tensors: list[_Table] = []
        self._buffers: list[_Table] = [{}]  # buffer 0 is the empty one, by convention
        self._codes: list[_Table] = []
        self._operators: list[_Table] = []

    def tensor(self, name: str, shape: Sequence[int], role: str) -> int:
        """Add an activation; `role` chooses its quantization."""
        zero = 128 if self._kind == "uint8" else 0
        scale, zero_point = {
            "input": (1 / 127.5, zero - 1),  # pixel 0 is -1, pixel 255 is +1
            "logits": (6 * _GAIN / 255, zero),  # [-3 * gain, 3 * gain]
            "scores": (1 / 256, zero - 128),  # the runtime insists on exactly this
        }[role]
        return self._add_tensor(name, shape, _TYPES[self._kind], 0, (scale, zero_point))

    def weights(self, weights: NDArray[np.float64]) -> int:
        """Add (labels, 3) weights whose values are all +-`_GAIN`."""
        if self._kind == "float32":
            return self.constant("weights", weights.astype(np.float32))
        signs = np.sign(weights)
        quantized = (signs * 127 + 128).astype(np.uint8) if self._kind == "uint8" else signs * 127
        buffer = self._add_buffer(quantized.astype(self._kind))
        zero_point = 128 if self._kind == "uint8" else 0
        return self._add_tensor(
            "weights", weights.shape, _TYPES[self._kind], buffer, (_GAIN / 127, zero_point)
        )

    def constant(self, name: str, values: NDArray[np.generic]) -> int:
        """Add a constant; int32 offsets get the scale that the runtime derives for them."""
        type_code = _INT32 if values.dtype == np.int32 else _TYPES["float32"]
        quantization = (_GAIN / 127 / 127.5, 0) if name == "offsets" else None
        return self._add_tensor(name, values.shape, type_code, self._add_buffer(values), quantization)

    def operator(self, builtin: int, inputs: list[int], output: int, options: _Table) -> None:
        """Append one operator."""
        version = _INT8_VERSIONS[builtin] if self._kind == "int8" else 1
        if builtin == _FULLY_CONNECTED and self._fully_connected_version is not None:
            version = self._fully_connected_version
        self._codes.append({0: ("b", builtin), 2: ("i", version), 3: ("i", builtin)})
        self._operators.append(
            {
                0: ("I", len(self._codes) - 1),
                1: Vector("i", inputs),
                2: Vector("i", [output]),
                3: ("B", _OPTIONS.get(builtin, 0)),
                4: options,
            }
        )

    def finish(self, source: int, answers: list[int], description: str) -> dict[int, Any]:
        """Return the tables of the file."""
        subgraph: _Table = {
            0: Vector("ref", self._tensors),
            1: Vector("i", [source]),
            2: Vector("i", answers),
            3: Vector("ref", self._operators),
            4: "main",
        }
        return {
            0: ("I", 3),
            1: Vector("ref", self._codes),
            2: Vector("ref", [subgraph]),
            3: description,
            4: Vector("ref", self._buffers),
        }

    def _add_tensor(
        self,
        name: str,
        shape: Sequence[int],
        type_code: int,
        buffer: int,
        quantization: tuple[float, int] | None,
    ) -> int:
        tensor: dict[int, _Value] = {
            0: Vector("i", list(shape)),
            1: ("b", type_code),
            2: ("I", buffer),
            3: name,
        }
        if quantization is not None and self._kind != "float32":
            scale, zero_point = quantization
            tensor[4] = {2: Vector("f", [scale]), 3: Vector("q", [zero_point], align=8)}
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def _add_buffer(self, values: NDArray[np.generic]) -> int:
        self._buffers.append({0: Vector("B", list(values.tobytes()), align=16)})
        return len(self._buffers) - 1


def encode(root: _Table) -> bytes:
    """Encode as FlatBuffers: parents before children, every offset points forward."""
    out = bytearray(struct.pack("<I4s", 0, b"TFL3"))
    struct.pack_into("<I", out, 0, _write_table(out, root))
    return bytes(out)


def _write_table(out: bytearray, fields: _Table) -> int:
    """Append vtable, table, then its children; return the table's position."""
    layout: dict[int, int] = {}
    end = 4  # the table begins with its offset to the vtable
    for number, value in fields.items():
        width = struct.calcsize("<" + value[0]) if isinstance(value, tuple) else 4
        end += -end % width
        layout[number] = end
        end += width
    slots = [layout.get(number, 0) for number in range(max(fields, default=-1) + 1)]
    vtable = struct.pack(f"<HH{len(slots)}H", 4 + 2 * len(slots), end, *slots)
    out.extend(b"\0" * (-(len(out) + len(vtable)) % 8))
    start = len(out) + len(vtable)
    out.extend(vtable)
    out.extend(struct.pack("<i", len(vtable)).ljust(end, b"\0"))
    for number, value in fields.items():
        at = start + layout[number]
        if isinstance(value, tuple):
            struct.pack_into("<" + value[0], out, at, value[1])
        else:
            child = _write_child(out, value)
            struct.pack_into("<I", out, at, child - at)
    return start


def _write_child(out: bytearray, value: Vector | str | _Table) -> int:
    if isinstance(value, str):
        position = _write_vector(out, Vector("B", list(value.encode())))
        out.append(0)  # strings end with a zero that their length does not count
        return position
    if isinstance(value, Vector):
        return _write_vector(out, value)
    return _write_table(out, value)


def _write_vector(out: bytearray, vector: Vector) -> int:
    out.extend(b"\0" * (-(len(out) + 4) % max(vector.align, 4)))  # the first item is aligned
    position = len(out)
    out.extend(struct.pack("<I", len(vector.items)))
    if vector.code != "ref":
        out.extend(struct.pack(f"<{len(vector.items)}{vector.code}", *vector.items))
        return position
    out.extend(b"\0" * (4 * len(vector.items)))
    for index, item in enumerate(vector.items):
        at = position + 4 + 4 * index
        struct.pack_into("<I", out, at, _write_table(out, item) - at)  # type: ignore[arg-type]
    return position
