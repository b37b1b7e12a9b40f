"""The release document, the channel document and the self-test they carry."""

from __future__ import annotations

import hashlib
from typing import ClassVar

from edge_client.contract.documents import Document

# Schema of a release whose model has a second output, which tells strangers. Older clients refuse such a
# release before they download its model, and say so; after an update of the client they install it.
TWO_OUTPUTS_SCHEMA = 2
# The algorithm of `preprocessing.py`; defined here so that comparing it needs no NumPy.
PREPROCESSING_ID = "area-bilinear-1"
RELEASE_LIMIT_BYTES = 1 << 20
CHANNEL_LIMIT_BYTES = 65536
CONFIDENCE_BINS = 10
SELF_TEST_TOLERANCE = 0.15  # int8 kernels of two runtimes differ by a few steps of 1/256


class Normalization(Document, frozen=True, kw_only=True):
    """real = (pixel - mean) / std, for all three colour channels (Keras' MobileNets: 127.5, 127.5)."""

    mean: float = 127.5
    std: float = 127.5


class Preprocessing(Document, frozen=True, kw_only=True):
    """Preprocessing of a picture to the model's input.

    Attributes:
        id: Algorithm, see `PREPROCESSING_ID`; a device refuses one that it does not know.
        height: Model input, pixels.
        width: Model input, pixels.
        normalization: Applied to RGB values 0-255.
    """

    id: str
    height: int
    width: int
    normalization: Normalization


class SelfTestCase(Document, frozen=True, kw_only=True):
    """Signed picture with the prediction that the pipeline's own `Classifier` made.

    Attributes:
        file: Name within the release.
        label: Expected best label.
        confidence: Expected score of that label in [0, 1].
        picture: Content hash of the dataset's picture that the file was made from.
    """

    file: str
    label: str
    confidence: float
    picture: str = ""


class HoldOut(Document, frozen=True, kw_only=True):
    """Distribution of a release's predictions on the hold-out, the reference for drift on the device.

    Attributes:
        labels: How often each label was predicted, in the order of the release's labels.
        confidence: Number of predictions in each of `CONFIDENCE_BINS` equal parts of [0, 1].
    """

    labels: tuple[int, ...]
    confidence: tuple[int, ...]


class OperatingPoint(Document, frozen=True, kw_only=True):
    """Scores from which on the predictions of a release are sure.

    They are chosen on the calibration pictures, which nothing learned from.

    Attributes:
        precision: Share of the sure predictions of each label that was asked to be right, in (0, 1].
        thresholds: Score for each label, in order of the labels, from which on its prediction is sure; None:
            no score gives that precision, so a prediction of this label is never sure.
        coverage: Share of the calibration pictures whose prediction is sure, in [0, 1].
        least_known: Value of the model's output `known` from which on a prediction can be sure; None: the
            model does not tell strangers.
    """

    precision: float
    thresholds: tuple[float | None, ...]
    coverage: float
    least_known: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that are no shares; raises ValueError, an InputError of `decode_document`."""
        if not 0 < self.precision <= 1 or not 0 <= self.coverage <= 1:
            msg = f"operating point with precision {self.precision}, coverage {self.coverage}: 0 to 1 each"
            raise ValueError(msg)
        for threshold in self.thresholds:
            if threshold is not None and not 0 <= threshold <= 1:
                msg = f"operating point with threshold {threshold}: a score is 0 to 1, or null for never"
                raise ValueError(msg)
        if self.least_known is not None and not 0 <= self.least_known <= 1:
            msg = f"operating point with least_known {self.least_known}: 0 to 1, or null"
            raise ValueError(msg)

    def is_sure(self, index: int, confidence: float, known: float | None = None) -> bool:
        """Whether a prediction of label number `index` with this score is sure.

        Args:
            index: Number of the label.
            confidence: Score of the label.
            known: The model's output `known`; None: it has none.
        """
        threshold = self.thresholds[index]
        if threshold is None or confidence < threshold:
            return False
        return known is None or self.least_known is None or known >= self.least_known


class ReleaseDocument(Document, frozen=True, kw_only=True):
    """`release.json`: how to run the model, and how it was made.

    Attributes:
        release: Release id, see `release_id`.
        model_sha256: Hex digest of `model.tflite`.
        model_bytes: Its size.
        labels: Label of each output, in order; `labels.txt` has the same.
        preprocessing: Pixels to input.
        quantization: Scheme, e.g. `int8`.
        operators: Highest version of each TFLite operator used, e.g. {"CONV_2D": 3}.
        self_test: Run on the device before activation.
        self_test_tolerance: Largest accepted difference of a confidence.
        parent: Release that the channel pointed to when this one was judged.
        snapshot: Digest of the pictures that made it.
        architecture: e.g. `mobilenet_v2_1.0_160`.
        accuracy: Hold-out accuracy of the file itself, in [0, 1].
        hold_out: Distribution of the file's own predictions there; None if unknown.
        holdout_percent: Hold-out share used for this release; None if unknown.
        device_class: Only devices of this class install it; empty: all do.
        calibration: Hex SHA-256 over the content hashes of the pictures that set the int8 ranges; it stays
            the same as long as the backbone does.
        operating_point: Which of its predictions are sure; None: all are.
        evidence: What is thin about the evidence that it was published on, in a sentence; empty: nothing.
        made_with: Package and code versions.
        settings: The settings that made it, flat, e.g. {"training.epochs": "20"}.
        created_at: UTC, ISO 8601.
    """

    release: str
    model_sha256: str
    model_bytes: int
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    quantization: str
    operators: dict[str, int]
    self_test: tuple[SelfTestCase, ...]
    self_test_tolerance: float = SELF_TEST_TOLERANCE
    parent: str | None = None
    snapshot: str = ""
    architecture: str = ""
    accuracy: float = 0.0
    hold_out: HoldOut | None = None
    holdout_percent: float | None = None
    device_class: str = ""
    calibration: str = ""
    operating_point: OperatingPoint | None = None
    evidence: str = ""
    made_with: dict[str, str] = {}
    settings: dict[str, str] = {}
    created_at: str = ""

    newest_schema: ClassVar[int] = TWO_OUTPUTS_SCHEMA

    def __post_init__(self) -> None:
        """Refuse an operating point of other labels; raises ValueError, see `OperatingPoint`."""
        point = self.operating_point
        if point is not None and len(point.thresholds) != len(self.labels):
            msg = f"operating point with {len(point.thresholds)} thresholds for {len(self.labels)} labels"
            raise ValueError(msg)


class ChannelDocument(Document, frozen=True, kw_only=True):
    """`channels/<name>.json`: the signed pointer.

    Attributes:
        channel: The channel's name.
        release: Release that it points to.
        share_percent: Share of devices that may install it, 0-100; the others keep their release.
        withdrawn: Releases rolled back by an operator; the pipeline never points to them again by itself.
        moved_at: UTC, ISO 8601.
        retry_since: UTC, ISO 8601; empty: never. A device forgets the refusals that it recorded before it
            knew this time, and tries the channel's release again. A later time does so once more.
    """

    channel: str
    release: str
    share_percent: float = 100.0
    withdrawn: tuple[str, ...] = ()
    moved_at: str = ""
    retry_since: str = ""


def release_id(
    model: bytes,
    labels: tuple[str, ...],
    preprocessing: Preprocessing,
    device_class: str = "",
    operating_point: OperatingPoint | None = None,
) -> str:
    """Return the id of a release: 20 hex digits over all that determines its predictions and its devices.

    The same candidate always gets the same id, so publishing twice is publishing once. For another device
    class or with another operating point it is another release: the content signed under an id never
    changes, and a device installs what is not the release that it has. Without these two the id is the same
    as before they existed.
    """
    model_digest = hashlib.sha256(model).digest()
    return _release_id(model_digest, labels, preprocessing, device_class, operating_point)


def is_named_after_content(document: ReleaseDocument) -> bool:
    """Return whether the release id is the one of the content, if the model has the document's digest.

    A signed channel names the id; so a document of that name makes the predictions that were signed,
    whatever else of it was changed.
    """
    try:
        model = bytes.fromhex(document.model_sha256)
    except ValueError:
        return False
    return document.release == _release_id(
        model, document.labels, document.preprocessing, document.device_class, document.operating_point
    )


def _release_id(
    model_digest: bytes,
    labels: tuple[str, ...],
    preprocessing: Preprocessing,
    device_class: str,
    operating_point: OperatingPoint | None,
) -> str:
    digest = hashlib.sha256(model_digest)
    parts = ["\n".join(labels).encode(), repr(preprocessing).encode()]
    if device_class:
        parts.append(device_class.encode())
    if operating_point is not None:
        point: tuple[object, ...]
        point = (operating_point.precision, operating_point.thresholds, operating_point.coverage)
        if operating_point.least_known is not None:
            point = (*point, operating_point.least_known)
        parts.append(f"operating point {point!r}".encode())
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:20]


def in_rollout(device_id: str, release: str, share_percent: float) -> bool:
    """Whether a device belongs to the share that may install a release.

    Stable per device and release; a growing share only ever adds devices.
    """
    digest = hashlib.sha256(f"{release}/{device_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * 100 < share_percent
