"""TFLite files with standard metadata, written by the tables' numbers: what other people's tools write.

Source: metadata_schema.fbs of TensorFlow Lite, file identifier M001.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import zipfile
from typing import TYPE_CHECKING, Any

from tests.fakes.tiny_model import Vector, encode, tiny_tree

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
    model: Written,
    *,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    outputs: Sequence[Sequence[Labels]] = (),
    units: Sequence[int] = (),
    scores: bool = False,
) -> bytes:
    """Return a model with metadata.

    Args:
        model: Of `tiny`.
        mean: Of the input normalization.
        std: Of it.
        outputs: Labels files of each output.
        units: Process units of each output: CALIBRATION, THRESHOLDING.
        scores: Whether the outputs are said to lie in [0, 1].
    """
    normalization: Mapping[int, Any] = {0: Vector("f", mean), 1: Vector("f", std)}
    given: dict[int, Any] = {0: "image"}
    if mean or std:
        given[4] = Vector("ref", [{0: ("B", 1), 1: normalization}])
    told = [_output(files, units, scores=scores) for files in outputs]
    graph: Mapping[int, Any] = {2: Vector("ref", [given]), 3: Vector("ref", told)}
    written = bytearray(encode({0: "a model", 3: Vector("ref", [graph]), 7: "1.0.0"}))
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
        table[4] = Vector("ref", [{0: ("B", unit), 1: options} for unit in units])
    if scores:
        table[5] = {0: Vector("f", [1.0]), 1: Vector("f", [0.0])}
    if files:
        table[6] = Vector(
            "ref",
            [{0: one.name, 2: ("b", one.kind), **({3: one.locale} if one.locale else {})} for one in files],
        )
    return table


def attach(model: Written, metadata: bytes) -> Written:
    """Return a model with a metadata buffer of any bytes."""

    def change(tree: Any) -> None:
        buffers = tree[4].items
        buffers.append({0: Vector("B", list(metadata), align=16)})
        tree[6] = Vector("ref", [{0: "TFLITE_METADATA", 1: ("I", len(buffers) - 1)}])

    return changed(model, change)


class Written(bytes):
    """A file with the tables that it was written from."""

    tree: dict[int, Any]


def tiny(**options: Any) -> Written:
    """Return `tiny_model` with its tables."""
    return write(tiny_tree(**options))


def write(tree: dict[int, Any]) -> Written:
    """Return the file of a tree."""
    file = Written(encode(tree))
    file.tree = tree
    return file


def changed(model: Written, change: Callable[[Any], None]) -> Written:
    """Return a file with a change to its tables."""
    tree = copy.deepcopy(model.tree)
    change(tree)
    return write(tree)


def graph_of(tree: Any) -> Any:
    """Return the tables of the main graph."""
    return tree[2].items[0]


def set_shape(tensor: Any, shape: Sequence[int]) -> None:
    """Give a tensor another shape; -1 is an open dimension, written as converters do."""
    tensor[0] = Vector("i", [max(size, 1) for size in shape])
    tensor[7] = Vector("i", list(shape))


def as_custom(name: str) -> Callable[[Any], None]:
    """Return the change that makes the first operator one of another maker."""

    def change(tree: Any) -> None:
        tree[1].items[0] = {0: ("b", 32), 1: name, 3: ("i", 32)}

    return change


def of_shape(place: str, shape: Sequence[int], kind: int | None = None) -> Callable[[Any], None]:
    """Return the change of the shape of the input, or of the first output, and of its TensorType."""

    def change(tree: Any) -> None:
        graph = graph_of(tree)
        tensor = graph[0].items[graph[1 if place == "input" else 2].items[0]]
        set_shape(tensor, shape)
        if kind is not None:
            tensor[1] = ("b", kind)

    return change


def ends_in(builtin: int) -> Callable[[Any], None]:
    """Return the change of the last operator to another one of one input and no options."""

    def change(tree: Any) -> None:
        operator = graph_of(tree)[3].items[-1]
        tree[1].items[operator[0][1]] |= {0: ("b", builtin), 3: ("i", builtin)}
        operator[3] = ("B", 0)
        del operator[4]

    return change
