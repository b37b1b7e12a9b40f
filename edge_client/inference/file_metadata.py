"""Standard TFLite Metadata of a file, as far as it decides about predictions: normalization and labels.

Source: metadata_schema.fbs of TensorFlow Lite; the numbers are the field ids of its tables. The files that
it names lie behind the model, as a zip archive. MediaPipe's ImageClassifier reads the same.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
import zlib
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from edge_client.inference.flatbuffer import root_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_client.inference.flatbuffer import Table

# Union ProcessUnitOptions.
_NORMALIZATION, _SCORE_CALIBRATION, _SCORE_THRESHOLDING = 1, 2, 3
# Enum AssociatedFileType.
_AXIS_LABELS, _VALUE_LABELS = 2, 3
# A label file of ImageNet has 10 KB; one of all species of a continent has some hundred.
_LARGEST_FILE_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class OutputFacts:
    """What the metadata say of one output.

    Attributes:
        labels_file: Name of its labels file; empty without.
        lowest: Smallest value of the output; None where it is not told.
        highest: Largest value.
    """

    labels_file: str = ""
    lowest: float | None = None
    highest: float | None = None

    @property
    def says_scores(self) -> bool:
        """Whether the metadata say that the values lie in [0, 1]."""
        return (self.lowest, self.highest) == (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class FileMetadata:
    """What the metadata of a file say.

    Attributes:
        mean: Mean of the input normalization, one for each channel or one for all; empty without.
        std: Standard deviation; real = (pixel - mean) / std.
        outputs: One for each output that is described.
        not_applied: What is asked for and not done, for people.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    outputs: tuple[OutputFacts, ...] = ()
    not_applied: tuple[str, ...] = ()


def read_metadata(content: bytes) -> FileMetadata:
    """Read the metadata of a file with one input; none give no facts.

    Raises: InputError if they are damaged.
    """
    if not content:
        return FileMetadata()
    try:
        graphs = root_table(content).tables(3)
        inputs = graphs[0].tables(2) if graphs else []
        outputs = graphs[0].tables(3) if graphs else []
        mean, std = _read_normalization(inputs[0]) if inputs else ((), ())
        facts = tuple(map(_read_output, outputs))
        missing = tuple(dict.fromkeys(text for output in outputs for text in _not_applied(output)))
    except InputError as e:
        msg = f"its TFLite Metadata are damaged: {e}; download or convert it again"
        raise InputError(msg) from e
    return FileMetadata(mean, std, facts, missing)


def read_associated(model: bytes, name: str) -> bytes:
    """Return a file that the metadata name.

    Raises: InputError if it is not there, damaged or too large.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(model)) as archive, archive.open(name) as file:
            content = file.read(_LARGEST_FILE_BYTES + 1)
    except KeyError as e:
        msg = f"its TFLite Metadata name {name!r}, which is not in the file"
        raise InputError(msg) from e
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, RuntimeError, EOFError) as e:
        # RuntimeError: encrypted, or compressed in a way that Python lacks.
        msg = f"{name!r} in it cannot be read ({e or type(e).__name__})"
        raise InputError(msg) from e
    if len(content) > _LARGEST_FILE_BYTES:
        msg = f"{name!r} in it has more than {_LARGEST_FILE_BYTES} bytes, which are no labels"
        raise InputError(msg)
    return content


def _read_normalization(tensor: Table) -> tuple[tuple[float, ...], tuple[float, ...]]:
    for options in _options(tensor, _NORMALIZATION):
        return options.numbers(0, "f"), options.numbers(1, "f")
    return (), ()


def _read_output(tensor: Table) -> OutputFacts:
    files = [(file.integer(2, "b"), file.text(0)) for file in tensor.tables(6)]
    # The first, as MediaPipe chooses; further ones are the same labels in other languages.
    by_kind = (name for kind in (_AXIS_LABELS, _VALUE_LABELS) for found, name in files if found == kind)
    stats = tensor.table(5)
    highest, lowest = ((), ()) if stats is None else (stats.numbers(0, "f"), stats.numbers(1, "f"))
    return OutputFacts(next(by_kind, ""), lowest[0] if lowest else None, highest[0] if highest else None)


def _not_applied(tensor: Table) -> Iterator[str]:
    if any(True for _ in _options(tensor, _SCORE_CALIBRATION)):
        yield "a calibration of scores"
    if any(options.number(0, "f") > 0 for options in _options(tensor, _SCORE_THRESHOLDING)):
        yield "a threshold of scores ([inbox] and the consumer of results have their own)"


def _options(tensor: Table, kind: int) -> Iterator[Table]:
    """Yield the options of a tensor's process units of one kind."""
    for unit in tensor.tables(4):
        options = unit.table(1)
        if unit.integer(0, "B") == kind and options is not None:
            yield options
