"""`edge-client classify`: classify picture files with any TFLite image classifier, without a fleet."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, TextIO

from edge_client.contract.errors import InputError
from edge_client.contract.preprocessing import decode_picture
from edge_client.contract.text import one_line, printable_json
from edge_client.inference.own_model import open_own_model
from edge_client.settings.own_model import ModelOptions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge_client.inference.classifier import PictureClassifier, Prediction


def classify_files(
    model: Path,
    labels: Path | None,
    pictures: Sequence[Path],
    *,
    threads: int,
    top: int,
    as_json: bool,
    out: TextIO,
    options: ModelOptions | None = None,
) -> int:
    """Classify picture files and print the predictions; a bad picture does not stop the others.

    Args:
        model: A `.tflite` file.
        labels: Labels file; None: the labels inside the model.
        pictures: Picture files.
        threads: Threads of the interpreter.
        top: Number of labels to print for each picture.
        as_json: One JSON object a line instead of text.
        out: Receives the predictions; what is assumed of the model, and messages about bad pictures, go to
            standard error.
        options: What the model does not say of itself, besides its labels.
    Returns: Exit code: 0, or 1 if a picture could not be classified.
    Raises: InputError or DeviceError if model or labels cannot be used.
    """
    options = options or ModelOptions(labels)
    classifier = load_classifier(model, options, threads)
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


def load_classifier(model: Path, options: ModelOptions, threads: int) -> PictureClassifier:
    """Load and warm a classifier from a model file; what is assumed of it goes to standard error.

    Raises: InputError if a file cannot be read or model and options do not fit; DeviceError if the runtime
        cannot run the model.
    """
    opened = open_own_model(model, options, threads)
    for note in opened.notes:
        sys.stderr.write(f"{one_line(f'{model}: {note}')}\n")
    return opened.classifier


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
