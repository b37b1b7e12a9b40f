"""`edge-client classify`: classify picture files with any TFLite image classifier, without a fleet."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import TYPE_CHECKING, TextIO

import numpy as np

from edge_client.contract.errors import DeviceError, EdgeError, InputError
from edge_client.contract.names import RELEASE_FILE
from edge_client.contract.preprocessing import decode_picture
from edge_client.contract.text import one_line, printable_json
from edge_client.inference.classifier import Classifier, Prediction
from edge_client.inference.runtime import load_interpreter
from edge_client.releases import read_release

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge_client.contract.release import OperatingPoint

# Label of the additional first output of many ImageNet models.
_BACKGROUND = "background"


def classify_files(
    model: Path,
    labels: Path,
    pictures: Sequence[Path],
    *,
    threads: int,
    top: int,
    as_json: bool,
    out: TextIO,
) -> int:
    """Classify picture files and print the predictions; a bad picture does not stop the others.

    Args:
        model: A `.tflite` file. An 8-bit input takes the pixels, a float input [-1, 1].
        labels: One label a line, with or without a first line `background`.
        pictures: Picture files.
        threads: Threads of the interpreter.
        top: Number of labels to print for each picture.
        as_json: One JSON object a line instead of text.
        out: Receives the predictions; messages about bad pictures go to standard error.
    Returns: Exit code: 0, or 1 if a picture could not be classified.
    Raises: InputError or DeviceError if model or labels cannot be used.
    """
    classifier = load_classifier(model, labels, threads)
    failed = False
    for picture in pictures:
        try:
            prediction = classifier.classify(decode_picture(picture))
        except InputError as e:
            sys.stderr.write(f"{one_line(str(e))}\n")
            failed = True
            continue
        out.write(_as_json(picture, prediction, top) if as_json else _as_text(picture, prediction, top))
    return int(failed)


def load_classifier(model: Path, labels: Path, threads: int) -> Classifier:
    """Load and warm a classifier from a model file and a labels file.

    The operating point of a `release.json` next to the model decides which predictions are sure.

    Raises: InputError if a file cannot be read or model and labels do not fit; DeviceError if the runtime
        cannot run the model.
    """
    content = _read(model, "model")
    lines = _read_labels(labels)
    try:
        outputs = int(np.prod(load_interpreter(content).get_output_details()[0]["shape"]))
        fitted = _fit_background(lines, outputs)
        point = _operating_point(model.with_name(RELEASE_FILE), content, fitted)
        classifier = Classifier(content, fitted, normalization=None, threads=threads, operating_point=point)
    except DeviceError as e:
        msg = f"{model}: {e}"
        raise DeviceError(msg) from e
    except InputError as e:
        msg = f"{model} with {labels}: {e}"
        raise InputError(msg) from e
    classifier.warm()
    return classifier


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        msg = f"{path}: the {what} file cannot be read: {e.strerror or e}; check the path"
        raise InputError(msg) from e


def _read_labels(path: Path) -> list[str]:
    try:
        text = _read(path, "labels").decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as e:
        msg = f"{path}: not UTF-8 text: {e}; give a file with one label a line"
        raise InputError(msg) from e
    lines = [line.strip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _fit_background(labels: list[str], outputs: int) -> list[str]:
    """Add or drop the label `background` where that makes the labels fit the outputs."""
    has_background = bool(labels) and labels[0].casefold() == _BACKGROUND
    if has_background and len(labels) == outputs + 1:
        return labels[1:]
    if not has_background and len(labels) == outputs - 1:
        return [_BACKGROUND, *labels]
    return labels


def _operating_point(path: Path, model: bytes, labels: list[str]) -> OperatingPoint | None:
    """Return the operating point in a model's release document; None if it is of another model."""
    if not path.exists():
        return None
    try:
        document = read_release(path.parent)
    except EdgeError as e:
        sys.stderr.write(f"{one_line(str(e))}; without it, every prediction counts as sure\n")
        return None
    same = document.model_sha256 == hashlib.sha256(model).hexdigest() and list(document.labels) == labels
    return document.operating_point if same else None


def _as_json(picture: Path, prediction: Prediction, top: int) -> str:
    record = {
        "file": str(picture),
        "label": prediction.label,
        "confidence": round(prediction.confidence, 6),
        "sure": prediction.sure,
        "known": None if prediction.known is None else round(prediction.known, 6),
        "top": {label: round(score, 6) for label, score in prediction.top(top).items()},
        "latency_ms": round(prediction.latency_ms, 3),
    }
    return printable_json(json.dumps(record, ensure_ascii=False)) + "\n"


def _as_text(picture: Path, prediction: Prediction, top: int) -> str:
    known = "" if prediction.known is None else f", known {prediction.known:.2f}"
    name = one_line(str(picture))
    lines = [f"{name}  ({prediction.latency_ms:.1f} ms{known}){'' if prediction.sure else '  not sure'}"]
    lines += [f"  {score:6.1%}  {one_line(label)}" for label, score in prediction.top(top).items()]
    return "\n".join(lines) + "\n"
