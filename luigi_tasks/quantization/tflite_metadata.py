"""Standard TFLite Metadata, so that other tools open our files: labels, normalization, colours.

Source: metadata_schema.fbs of TensorFlow Lite, file identifier M001. The numbers are the field ids of
its tables; the schema's own generated code is not on any registry by itself.
"""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, Any

from edge_client.contract.names import KNOWN_OUTPUT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

METADATA_NAME = b"TFLITE_METADATA"
LABELS_FILE = "labels.txt"
KNOWN_LABELS_FILE = "known.txt"

_IDENTIFIER = b"M001"
_MIN_PARSER_VERSION = "1.0.0"
_IMAGE_PROPERTIES = 2  # union ContentProperties
_NORMALIZATION_OPTIONS = 1  # union ProcessUnitOptions
_RGB = 1  # enum ColorSpaceType
_TENSOR_AXIS_LABELS = 2  # enum AssociatedFileType


def describe_classifier(
    name: str, description: str, *, mean: float, std: float, known: bool = False
) -> bytes:
    """Return the metadata of an image classifier: one RGB picture in, one score a label out.

    Args:
        name: Name of the model.
        description: Description for people.
        mean: Input normalization, the same for the three colours: real = (pixel - mean) / std.
        std: See `mean`.
        known: Whether a second output tells strangers. To other tools it is a classifier with one label.
    """
    import flatbuffers  # noqa: PLC0415 - only where a file is made

    builder = flatbuffers.Builder(1024)
    given = _describe_input(builder, mean, std)
    answers = [_describe_output(builder, "probability", "score of each label", LABELS_FILE)]
    if known:
        text_of_known = "whether the picture shows something of the classes at all"
        answers.append(_describe_output(builder, KNOWN_OUTPUT, text_of_known, KNOWN_LABELS_FILE))
    text = builder.CreateString
    graph = _table(
        builder,
        10,
        {2: ("offset", _vector(builder, [given])), 3: ("offset", _vector(builder, answers))},
    )
    model = _table(
        builder,
        8,
        {
            0: ("offset", text(name)),
            1: ("offset", text(description)),
            3: ("offset", _vector(builder, [graph])),
            7: ("offset", text(_MIN_PARSER_VERSION)),
        },
    )
    builder.Finish(model, _IDENTIFIER)
    return bytes(builder.Output())


def _describe_input(builder: Any, mean: float, std: float) -> int:  # noqa: ANN401 - flatbuffers has no types
    """Write the TensorMetadata of the picture."""
    text, numbers = builder.CreateString, _number_vectors(builder)
    image = _table(builder, 2, {0: ("byte", _RGB)})
    picture = _table(builder, 3, {0: ("byte", _IMAGE_PROPERTIES), 1: ("offset", image)})
    options = _table(builder, 2, {0: ("offset", numbers(mean)), 1: ("offset", numbers(std))})
    unit = _table(builder, 2, {0: ("byte", _NORMALIZATION_OPTIONS), 1: ("offset", options)})
    highest, lowest = numbers((255 - mean) / std), numbers((0 - mean) / std)
    stats = _table(builder, 2, {0: ("offset", highest), 1: ("offset", lowest)})
    return _table(
        builder,
        7,
        {
            0: ("offset", text("image")),
            1: ("offset", text("RGB picture")),
            3: ("offset", picture),
            4: ("offset", _vector(builder, [unit])),
            5: ("offset", stats),
        },
    )


def _describe_output(builder: Any, name: str, description: str, labels_file: str) -> int:  # noqa: ANN401
    """Write the TensorMetadata of an output of scores."""
    text, numbers = builder.CreateString, _number_vectors(builder)
    labels = _table(
        builder,
        5,
        {
            0: ("offset", text(labels_file)),
            1: ("offset", text("label of each score, one a line")),
            2: ("byte", _TENSOR_AXIS_LABELS),
        },
    )
    highest, lowest = numbers(1.0), numbers(0.0)
    stats = _table(builder, 2, {0: ("offset", highest), 1: ("offset", lowest)})
    return _table(
        builder,
        7,
        {
            0: ("offset", text(name)),
            1: ("offset", text(description)),
            5: ("offset", stats),
            6: ("offset", _vector(builder, [labels])),
        },
    )


def append_labels(model: bytes, labels: Sequence[str], *, known: bool = False) -> bytes:
    """Return the file with `labels.txt` behind it, as TFLite Metadata packs files: as a zip, stored.

    The result is a TFLite file to one reader and a zip archive to another.
    """
    file = io.BytesIO(model)
    file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        # Without a time: same labels, same bytes.
        archive.writestr(zipfile.ZipInfo(LABELS_FILE), "".join(f"{label}\n" for label in labels))
        if known:
            archive.writestr(zipfile.ZipInfo(KNOWN_LABELS_FILE), f"{KNOWN_OUTPUT}\n")
    return file.getvalue()


def _number_vectors(builder: Any) -> Callable[[float], int]:  # noqa: ANN401 - flatbuffers has no types
    def write(value: float) -> int:
        builder.StartVector(4, 1, 4)
        builder.PrependFloat32(value)
        return int(builder.EndVector())

    return write


def _vector(builder: Any, offsets: Sequence[int]) -> int:  # noqa: ANN401
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _table(builder: Any, size: int, fields: dict[int, tuple[str, int]]) -> int:  # noqa: ANN401
    """Write a table of `size` field ids; the values that its fields point to are written before it."""
    builder.StartObject(size)
    for slot, (kind, value) in fields.items():
        if kind == "offset":
            builder.PrependUOffsetTRelativeSlot(slot, value, 0)
        else:
            builder.PrependInt8Slot(slot, value, 0)
    return int(builder.EndObject())
