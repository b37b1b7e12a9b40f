"""Records of quantization: calibration sets, the schemes that were tried, the candidate."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import Document
from edge_client.contract.release import OperatingPoint, Preprocessing  # noqa: TC001 - msgspec resolves it

if TYPE_CHECKING:
    from edge_client.inference.classifier import Classifier
    from luigi_tasks.inference.model_process import ModelFile


class CalibrationSet(msgspec.Struct, frozen=True, kw_only=True):
    """The pictures that set a backbone's scales and int8 ranges.

    Attributes:
        backbone: Key of the backbone that they were chosen for: network, weights and quantization.
        scheme: e.g. `int8`.
        pictures: Content hashes, in the order of calibration.
    """

    backbone: str
    scheme: str
    pictures: tuple[str, ...]


class Calibration(Document, frozen=True, kw_only=True):
    """`calibration.json` of a release: with the pictures, it allows to make the same file again.

    Attributes:
        sets: One set for each scheme that was tried; the last one is the release's.
    """

    sets: tuple[CalibrationSet, ...]


class QuantizationRecord(Document, frozen=True, kw_only=True):
    """Quantization of a candidate.

    Attributes:
        scheme: The chosen scheme, e.g. `int8`.
        calibration: Of each scheme that was tried, in that order.
        operators: Highest version of each operator in the file.
        made_with: Package versions.
    """

    scheme: str
    calibration: tuple[CalibrationSet, ...]
    operators: dict[str, int]
    made_with: dict[str, str]


class CandidateRecord(Document, frozen=True, kw_only=True):
    """`candidate.json`, next to `model.tflite`.

    Attributes:
        release: The id that it would be published under.
        model_sha256: Hex digest of `model.tflite`.
        labels: Label of each output.
        preprocessing: Pixels to input.
        snapshot: Digest of the pictures that made it.
        quantization: How it was quantized.
        operating_point: Which of its predictions are sure; None: all are.
        tells_strangers: Whether the file has the output `known`.
    """

    release: str
    model_sha256: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    snapshot: str
    quantization: QuantizationRecord
    operating_point: OperatingPoint | None = None
    tells_strangers: bool = False


def write_labels(labels: tuple[str, ...]) -> bytes:
    """Return `labels.txt`: the label of each output, one a line."""
    return "".join(f"{label}\n" for label in labels).encode()


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model that may become a release.

    Attributes:
        record: Its description.
        model: `model.tflite`.
        tried: The files of the schemes that lost too much before, in the order in which they were tried.
    """

    record: CandidateRecord
    model: bytes
    tried: tuple[bytes, ...] = ()

    def file(self, model: bytes | None = None) -> ModelFile:
        """Return the file, to be run in a child process: it may have been read from a store.

        Args:
            model: The file of another scheme, from `tried`; None: the candidate's.
        """
        from luigi_tasks.inference.model_process import ModelFile  # noqa: PLC0415 - as below

        return ModelFile(
            self.model if model is None else model,
            f"the candidate {self.record.release}",
            "remove its folder below work/candidates in the store, and run again to assemble it",
            self.record.labels,
            self.record.preprocessing.normalization,
        )

    def open_classifier(self, model: bytes | None = None) -> Classifier:
        """Return the classifier that a device would run, in this process: for a file that you trust.

        Args:
            model: The file of another scheme, from `tried`; None: the candidate's.
        Raises: DeviceError if the runtime cannot run the file.
        """
        from edge_client.inference.classifier import Classifier  # noqa: PLC0415 - records alone need no NumPy

        normalization = self.record.preprocessing.normalization
        return Classifier(model or self.model, self.record.labels, normalization=normalization)
