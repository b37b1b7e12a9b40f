"""Records of quantization: calibration sets, the schemes that were tried, the candidate."""

from __future__ import annotations

import msgspec

from edge_client.contract.documents import Document
from edge_client.contract.release import Preprocessing  # noqa: TC001 - msgspec resolves it


class CalibrationSet(msgspec.Struct, frozen=True, kw_only=True):
    """The pictures that set a backbone's scales and int8 ranges.

    Attributes:
        backbone: Key of what they were chosen for: the network, its weights, how it is quantized.
        scheme: e.g. `int8`.
        pictures: Content hashes, in the order in which they were shown.
    """

    backbone: str
    scheme: str
    pictures: tuple[str, ...]


class Calibration(Document, frozen=True, kw_only=True):
    """`calibration.json` of a release: who has the pictures can make the same file again.

    Attributes:
        sets: One for each scheme that was tried; the last is that of the release.
    """

    sets: tuple[CalibrationSet, ...]


class SchemeResult(Document, frozen=True, kw_only=True):
    """One scheme that was tried, on the hold-out.

    Attributes:
        scheme: Its name.
        accuracy: Of its file, 0-1.
        float_drop_points: What it loses against float.
        class_drop_points: What the class loses that loses most, one picture forgiven.
        model_bytes: Size of its file.
        latency_ms_p50: Preprocessing and inference, one thread.
    """

    scheme: str
    accuracy: float
    float_drop_points: float
    class_drop_points: float
    model_bytes: int
    latency_ms_p50: float | None


class QuantizationRecord(Document, frozen=True, kw_only=True):
    """How the file was made.

    Attributes:
        scheme: The one that was taken, e.g. `int8`.
        calibration: Of each scheme that was tried, in that order.
        operators: Highest version of each operator in the file.
        made_with: Package versions.
        rungs: All schemes that were tried, where the first one lost too much.
    """

    scheme: str
    calibration: tuple[CalibrationSet, ...]
    operators: dict[str, int]
    made_with: dict[str, str]
    rungs: tuple[SchemeResult, ...] = ()


class Candidate(Document, frozen=True, kw_only=True):
    """`candidate.json`, beside `model.tflite`.

    Attributes:
        release: The id that it would be published under.
        model_sha256: Hex digest of `model.tflite`.
        labels: Label of each output.
        preprocessing: Pixels to input.
        snapshot: Digest of the pictures that made it.
        quantization: How it was quantized.
    """

    release: str
    model_sha256: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    snapshot: str
    quantization: QuantizationRecord
