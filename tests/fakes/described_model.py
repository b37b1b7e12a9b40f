"""TFLite files with standard metadata, written by the tables' numbers: what other people's tools write.

Source: metadata_schema.fbs of TensorFlow Lite, file identifier M001.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from typing import TYPE_CHECKING, Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

from tests.fakes.tiny_model import _encode, _Vector

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

AXIS_LABELS, VALUE_LABELS = 2, 3
CALIBRATION, THRESHOLDING = 2, 3


@dataclasses.dataclass(frozen=True)
class Labels:
    """A labels file inside a model."""

    content: bytes
    name: str = "labels.txt"
    kind: int = AXIS_LABELS
    locale: str = ""
    packed: bool = True


def describe(
    model: bytes,
    *,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    outputs: Sequence[Sequence[Labels]] = (),
    units: Sequence[int] = (),
    scores: bool = False,
) -> bytes:
    """Return a model with metadata.

    Args:
        model: A TFLite file.
        mean: Of the input normalization.
        std: Of it.
        outputs: Labels files of each output.
        units: Process units of each output: CALIBRATION, THRESHOLDING.
        scores: Whether the outputs are said to lie in [0, 1].
    """
    normalization: Mapping[int, Any] = {0: _Vector("f", mean), 1: _Vector("f", std)}
    given: dict[int, Any] = {0: "image"}
    if mean or std:
        given[4] = _Vector("ref", [{0: ("B", 1), 1: normalization}])
    told = [_output(files, units, scores=scores) for files in outputs]
    graph: Mapping[int, Any] = {2: _Vector("ref", [given]), 3: _Vector("ref", told)}
    written = bytearray(_encode({0: "a model", 3: _Vector("ref", [graph]), 7: "1.0.0"}))
    written[4:8] = b"M001"
    file = io.BytesIO(attach(model, bytes(written)))
    packed = {one.name: one.content for files in outputs for one in files if one.packed}
    if packed:
        file.seek(0, io.SEEK_END)
        with zipfile.ZipFile(file, "a") as archive:
            for name, content in packed.items():
                archive.writestr(name, content)
    return file.getvalue()


def _output(files: Sequence[Labels], units: Sequence[int], *, scores: bool) -> Mapping[int, Any]:
    table: dict[int, Any] = {0: "score"}
    if units:
        options: Mapping[int, Any] = {0: ("f", 0.5)}
        table[4] = _Vector("ref", [{0: ("B", unit), 1: options} for unit in units])
    if scores:
        table[5] = {0: _Vector("f", [1.0]), 1: _Vector("f", [0.0])}
    if files:
        table[6] = _Vector(
            "ref",
            [{0: one.name, 2: ("b", one.kind), **({3: one.locale} if one.locale else {})} for one in files],
        )
    return table


def attach(model: bytes, metadata: bytes) -> bytes:
    """Return a model with a metadata buffer of any bytes."""
    tree = read(model)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = list(metadata)
    entry.name, entry.buffer = b"TFLITE_METADATA", len(tree.buffers)
    tree.buffers.append(buffer)
    tree.metadata = [entry]
    return write(tree)


def read(model: bytes) -> Any:
    """Return a file as a tree to change."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))


def write(tree: Any) -> bytes:
    """Return the file of a tree."""
    builder = flatbuffers.Builder(4096)
    builder.Finish(tree.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def changed(model: bytes, change: Callable[[Any], None]) -> bytes:
    """Return a file with a change to its tree."""
    tree = read(model)
    change(tree)
    return write(tree)


def as_custom(name: str) -> Callable[[Any], None]:
    """Return the change that makes the first operator one of another maker."""

    def change(tree: Any) -> None:
        code = tree.operatorCodes[0]
        code.deprecatedBuiltinCode = code.builtinCode = 32
        code.customCode = name.encode()

    return change


def of_shape(place: str, shape: Sequence[int], kind: int | None = None) -> Callable[[Any], None]:
    """Return the change of the shape of the input, or of the first output, and of its TensorType."""

    def change(tree: Any) -> None:
        graph = tree.subgraphs[0]
        tensor = graph.tensors[(graph.inputs if place == "input" else graph.outputs)[0]]
        tensor.shape = [max(size, 1) for size in shape]
        tensor.shapeSignature = list(shape)
        tensor.type = tensor.type if kind is None else kind

    return change


def ends_in(builtin: int) -> Callable[[Any], None]:
    """Return the change of the last operator to another one of one input and no options."""

    def change(tree: Any) -> None:
        operator = tree.subgraphs[0].operators[-1]
        code = tree.operatorCodes[operator.opcodeIndex]
        code.deprecatedBuiltinCode = code.builtinCode = builtin
        operator.builtinOptionsType, operator.builtinOptions = 0, None

    return change
