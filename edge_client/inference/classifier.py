"""Image classifier for TFLite models, shared by the gate, the self-test and the device."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_client.contract import names
from edge_client.contract.errors import DeviceError, InputError
from edge_client.contract.names import KNOWN_OUTPUT
from edge_client.contract.preprocessing import PREPROCESSING_ID, fit_pixels
from edge_client.contract.release import is_named_after_content
from edge_client.disk import disk_errors
from edge_client.inference.graph import read_graph
from edge_client.inference.picture_input import BYTE_TYPES, PictureInput
from edge_client.inference.runtime import load_interpreter
from edge_client.inference.score_output import ScoreOutput, find_scoring, real_numbers, real_values
from edge_client.releases import read_release_and_digest

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_client.contract.release import Normalization, OperatingPoint, ReleaseDocument
    from edge_client.inference.runtime import Interpreter


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """Prediction of a model for one picture.

    Attributes:
        label: Best label.
        index: Index of the best label.
        confidence: Score of the best label in [0, 1].
        scores: (classes,) float32 in [0, 1], in the order of the labels.
        latency_ms: Duration of preprocessing and inference.
        labels: Label of each score.
        sure: Whether the score is one to act on, see `OperatingPoint`; true for a model without one.
        known: How much the picture resembles those of the classes, in [0, 1]: strangers have the lowest
            values. None for a model that does not tell.
    """

    label: str
    index: int
    confidence: float
    scores: NDArray[np.float32]
    latency_ms: float
    labels: tuple[str, ...] = dataclasses.field(repr=False)
    sure: bool = True
    known: float | None = None

    def top(self, count: int) -> dict[str, float]:
        """Return the best `count` labels with their scores, best first; equal scores in label order.

        Some public label files list a label twice (ImageNet's two cranes): the better score counts.
        """
        best: dict[str, float] = {}
        for i in np.argsort(-self.scores, kind="stable"):
            if len(best) == count:
                break
            best.setdefault(self.labels[i], float(self.scores[i]))
        return best

    def scores_of(self, names: Collection[str]) -> dict[str, float]:
        """Return the score of each of `names` that is a label; for a label listed twice, the better score."""
        found: dict[str, float] = {}
        for name, score in zip(self.labels, self.scores.tolist(), strict=True):
            if name in names:
                found[name] = max(score, found.get(name, 0.0))
        return found


class PictureClassifier:
    """A loaded model, with what its input takes, what its output means, and its labels.

    Not thread-safe: it owns one interpreter and its buffers. Use one classifier for each thread.

    Attributes:
        labels: Label of each score.
        release: Id of what is loaded, for reports; None without one.
        document_sha256: Hex digest of the release document that it was loaded by; empty without one.
        is_named_after_content: Whether the release id is the digest of all that decides about predictions.
    """

    def __init__(
        self,
        interpreter: Interpreter,
        taken: PictureInput,
        told: ScoreOutput,
        labels: Sequence[str],
        *,
        known: dict[str, Any] | None = None,
        release: str | None = None,
        operating_point: OperatingPoint | None = None,
    ) -> None:
        """Take a loaded model.

        Args:
            interpreter: Holds the model, with its tensors allocated.
            taken: Its input.
            told: Its output of scores.
            labels: Label of each score.
            known: Details of the output that tells strangers, if there is one.
            release: Id of what is loaded, for reports.
            operating_point: Which predictions are sure, with one threshold for each label; None: all are.
        """
        self.labels = tuple(labels)
        self.release = release
        self.document_sha256 = ""
        self.is_named_after_content = False
        self._operating_point = operating_point
        self._interpreter = interpreter
        self._taken, self._told = taken, told
        self._known = None if known is None else int(known["index"])
        self._real_known = None if known is None else real_values(known)

    @property
    def input_height(self) -> int:
        """Rows of pixels that the model takes."""
        return self._taken.height

    @property
    def input_width(self) -> int:
        """Columns of pixels that the model takes."""
        return self._taken.width

    @property
    def tells_strangers(self) -> bool:
        """Whether predictions have a `known`."""
        return self._known is not None

    def classify(self, pixels: NDArray[np.uint8]) -> Prediction:
        """Classify one picture.

        Args:
            pixels: (H, W, 3) uint8 RGB of any size.
        Raises: InputError on another shape or type; DeviceError if the runtime fails.
        """
        started = time.perf_counter()
        fitted = fit_pixels(pixels, self.input_height, self.input_width)  # (height, width, 3)
        scores = self._told.scores(self._infer(self._taken.fill(fitted)))
        index = int(scores.argmax())
        confidence, point = float(scores[index]), self._operating_point
        known = self._read_known()
        sure = point is None or point.is_sure(index, confidence, known)
        latency_ms = (time.perf_counter() - started) * 1000
        return Prediction(self.labels[index], index, confidence, scores, latency_ms, self.labels, sure, known)

    def warm(self) -> None:
        """Classify a grey picture, so that lazy initialization does not delay the first frame."""
        grey = np.full((self.input_height, self.input_width, 3), 128, np.uint8)
        self.classify(grey)

    def _infer(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        try:
            self._interpreter.set_tensor(self._taken.index, values)
            self._interpreter.invoke()
            return self._interpreter.get_tensor(self._told.index)
        except (ValueError, RuntimeError) as e:
            msg = f"the TFLite runtime failed on a picture: {e}; see `edge-client doctor`"
            raise DeviceError(msg) from e

    def _read_known(self) -> float | None:
        """Return the second output of the last inference; None if the model has none."""
        if self._known is None:
            return None
        raw = self._interpreter.get_tensor(self._known).reshape(-1)
        known = float(real_numbers(raw, self._real_known)[0])
        if not math.isfinite(known):
            msg = f"the model's output `{KNOWN_OUTPUT}` is NaN or infinity; train or convert the model again"
            raise DeviceError(msg)
        return min(1.0, max(0.0, known))


class Classifier(PictureClassifier):
    """A model of the kind that this project's releases have."""

    def __init__(
        self,
        model: bytes,
        labels: Sequence[str],
        *,
        normalization: Normalization | None,
        threads: int = 1,
        release: str | None = None,
        operating_point: OperatingPoint | None = None,
    ) -> None:
        """Load a model.

        Args:
            model: Content of a `.tflite` file with one (1, H, W, 3) input and one output of scores
                or logits, each float32, uint8 or int8; a second output may be named `known`.
            labels: Label of each output.
            normalization: See `input_table`.
            threads: Threads of the interpreter.
            release: Release id, for reports.
            operating_point: Which predictions are sure, with one threshold for each label; None: all are.
        Raises: InputError if the model is not an image classifier or the labels do not fit;
            DeviceError if the runtime cannot run the model.
        """
        interpreter = load_interpreter(model, threads)
        source = _only(interpreter.get_input_details(), "input")
        answer, known = _outputs(interpreter.get_output_details())
        _check_input(source)
        _check_labels(answer, tuple(labels))
        super().__init__(
            interpreter,
            PictureInput(source, normalization),
            ScoreOutput(answer, find_scoring(answer, lambda: read_graph(model).endings[0])),
            labels,
            known=known,
            release=release,
            operating_point=operating_point,
        )


def classifier_from_release(folder: Path, threads: int = 1) -> Classifier:
    """Load the release in `folder`, after checking that it is complete and unchanged.

    Args:
        folder: Holds `release.json`, `model.tflite` and `labels.txt`.
        threads: Threads of the interpreter.
    Raises: InputError if a document is malformed; DeviceError if a file is missing or changed, or
        if the preprocessing is unknown to this version.
    """
    document, digest = read_release_and_digest(folder)
    preprocessing = document.preprocessing
    if preprocessing.id != PREPROCESSING_ID:
        msg = (
            f"{folder}: the release needs preprocessing {preprocessing.id!r}, this version has "
            f"{PREPROCESSING_ID!r}; update edge-client"
        )
        raise DeviceError(msg)
    model = _read_model(folder / names.MODEL_FILE, document.model_sha256)
    _check_labels_file(folder / names.LABELS_FILE, document.labels)
    classifier = Classifier(
        model,
        document.labels,
        normalization=preprocessing.normalization,
        threads=threads,
        release=document.release,
        operating_point=document.operating_point,
    )
    classifier.document_sha256 = digest
    classifier.is_named_after_content = is_named_after_content(document)
    _check_promises(folder, classifier, document)
    return classifier


def _check_promises(folder: Path, classifier: Classifier, document: ReleaseDocument) -> None:
    """Raise InputError if the model lacks what its release document says of it."""
    size, point = document.preprocessing, document.operating_point
    if (classifier.input_height, classifier.input_width) != (size.height, size.width):
        msg = (
            f"{folder}: the model takes {classifier.input_height}x{classifier.input_width} pixels, its "
            f"release document {size.height}x{size.width}; publish the release again"
        )
        raise InputError(msg)
    if point is not None and point.least_known is not None and not classifier.tells_strangers:
        msg = (
            f"{folder}: the release document has a threshold for the output {KNOWN_OUTPUT!r}, which the "
            "model lacks, so strangers would be sure; publish the release again"
        )
        raise InputError(msg)


def _read_model(path: Path, sha256: str) -> bytes:
    model = _read(path)
    if hashlib.sha256(model).hexdigest() != sha256:
        msg = f"{path}: changed since it was signed; the next update check replaces it"
        raise DeviceError(msg)
    return model


def _read(path: Path) -> bytes:
    with disk_errors(path):
        return path.read_bytes()


def _check_labels_file(path: Path, labels: tuple[str, ...]) -> None:
    try:
        lines = _read(path).decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as e:
        msg = f"{path}: not UTF-8 text: {e}; publish the release again"
        raise InputError(msg) from e
    if tuple(lines) != labels:
        msg = f"{path}: differs from the labels of {names.RELEASE_FILE}; publish the release again"
        raise InputError(msg)


def _only(details: list[dict[str, Any]], what: str) -> dict[str, Any]:
    if len(details) != 1:
        msg = f"the model has {len(details)} {what}s: an image classifier has one"
        raise InputError(msg)
    return details[0]


def _outputs(details: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the scores, and the second output that tells strangers, if the model has one.

    Raises: InputError for any other number or kind of outputs.
    """
    if len(details) == 1:
        return details[0], None
    known = details[-1]
    if len(details) != 2 or known["name"] != KNOWN_OUTPUT or int(np.prod(known["shape"])) != 1:
        names = ", ".join(str(one["name"]) for one in details)
        msg = (
            f"the model has {len(details)} outputs ({names}): an image classifier has one, or a second one "
            f"named {KNOWN_OUTPUT!r} with one value; convert it with one output"
        )
        raise InputError(msg)
    return details[0], known


def _check_input(source: dict[str, Any]) -> None:
    shape = tuple(int(n) for n in source["shape"])
    if len(shape) != 4 or shape[0] != 1 or shape[3] != 3 or min(shape) < 1:
        msg = f"model input of shape {shape}: an image classifier takes (1, height, width, 3)"
        raise InputError(msg)
    dtype = np.dtype(source["dtype"])
    if dtype != np.float32 and dtype not in BYTE_TYPES:
        msg = f"model input of type {dtype}: float32, uint8 and int8 are supported"
        raise InputError(msg)
    if dtype in BYTE_TYPES and not source["quantization"][0] > 0:
        msg = f"model input of type {dtype} without quantization; convert it again"
        raise InputError(msg)


def _check_labels(answer: dict[str, Any], labels: tuple[str, ...]) -> None:
    shape = tuple(int(n) for n in answer["shape"])
    outputs = int(np.prod(shape))
    if not shape or shape[-1] != outputs:
        msg = f"model output of shape {shape}: an image classifier gives (1, classes)"
        raise InputError(msg)
    if len(labels) != outputs:
        msg = f"{len(labels)} labels for a model with {outputs} outputs: give the labels made with it"
        raise InputError(msg)
