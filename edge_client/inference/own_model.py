"""A model file of whoever runs the device: any TFLite image classifier, without a release around it.

What the file does not say of itself, `ModelOptions` says; what neither says is assumed, and told in `notes`.
What cannot be an image classifier is refused by its name. Load a file that nobody vouches for in another
process first (`serving.model_trial`): a damaged one can crash the runtime.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError, EdgeError, InputError
from edge_client.contract.names import RELEASE_FILE
from edge_client.inference.classifier import PictureClassifier
from edge_client.inference.file_metadata import read_metadata
from edge_client.inference.graph import read_graph
from edge_client.inference.model_input import (
    check_input,
    choose_input_shape,
    choose_normalization,
    doubt_of_channels,
)
from edge_client.inference.model_output import choose_output
from edge_client.inference.other_formats import is_tflite, read_model_file
from edge_client.inference.picture_input import PictureInput
from edge_client.inference.runtime import load_interpreter
from edge_client.inference.score_output import ScoreOutput
from edge_client.releases import read_release

if TYPE_CHECKING:
    from pathlib import Path

    from edge_client.contract.release import OperatingPoint
    from edge_client.inference.runtime import Interpreter
    from edge_client.settings.own_model import ModelOptions


@dataclasses.dataclass(frozen=True)
class OwnModel:
    """A loaded model file.

    Attributes:
        classifier: The model; its `release` is `model-` and the first digits of the digest.
        sha256: Hex digest of the file.
        notes: What was assumed, and what the file asks for and does not get; sentences for people.
    """

    classifier: PictureClassifier
    sha256: str
    notes: tuple[str, ...]


def open_own_model(path: Path, options: ModelOptions, threads: int = 1) -> OwnModel:
    """Load and warm a model file.

    The operating point of a `release.json` next to the model decides which predictions are sure.

    Args:
        path: A `.tflite` image classifier.
        options: What the file does not say, or says wrongly.
        threads: Threads of the interpreter.
    Raises: InputError if the file is no image classifier, or options and file do not fit; DeviceError if
        the runtime cannot run it.
    """
    content = read_model_file(path)
    where = f"{path} with {options.labels}" if options.labels else str(path)
    try:
        if not is_tflite(content):
            load_interpreter(content, threads)  # says what it is not
        return _open(path, content, options, threads)
    except DeviceError as e:
        msg = f"{path}: {e}"
        raise DeviceError(msg) from e
    except InputError as e:
        msg = f"{where}: {e}"
        raise InputError(msg) from e


def _open(path: Path, content: bytes, options: ModelOptions, threads: int) -> OwnModel:
    graph = read_graph(content)
    metadata = read_metadata(graph.metadata)
    check_input(graph)
    output = choose_output(content, graph, metadata, options)
    made_for = graph.inputs[0].shape[1:3]
    shape = choose_input_shape(graph.inputs[0], options.input_size)
    interpreter = _load(content, threads, shape, graph.inputs[0].in_words())
    source = interpreter.get_input_details()[0]
    normalization, assumed = choose_normalization(source, graph, metadata, options)
    answers = interpreter.get_output_details()
    told, scoring, doubts = output.settle(answers)
    sha256 = hashlib.sha256(content).hexdigest()
    point, problem = _operating_point(path.with_name(RELEASE_FILE), sha256, output.labels)
    classifier = PictureClassifier(
        interpreter,
        PictureInput(source, normalization),
        ScoreOutput(told, scoring, output.highest),
        output.labels,
        known=None if output.known is None else answers[output.known],
        release=f"model-{sha256[:12]}",
        operating_point=point,
    )
    _warm(classifier, graph.inputs[0].in_words(), shape)
    missing = tuple(f"its metadata ask for {one}, which is not applied" for one in metadata.not_applied)
    if shape is not None and -1 not in graph.inputs[0].signature[1:3] and shape[1:3] != made_for:
        doubts = (
            *doubts,
            f"it was made for {made_for[0]}x{made_for[1]} pixels, and gets {shape[1]}x{shape[2]}",
        )
    notes = (*doubt_of_channels(graph), *assumed, *doubts, *missing, *problem)
    return OwnModel(classifier, sha256, notes)


def _load(content: bytes, threads: int, shape: tuple[int, ...] | None, given: str) -> Interpreter:
    """Load a model, with another input size where one is wanted.

    Raises: InputError if it does not work with that size; DeviceError.
    """
    if shape is None:
        return load_interpreter(content, threads)
    try:
        return load_interpreter(content, threads, shape)
    except DeviceError as e:
        raise _not_of_size(given, shape, e) from e


def _warm(classifier: PictureClassifier, given: str, shape: tuple[int, ...] | None) -> None:
    """Classify a grey picture.

    Raises: InputError if the model does not work with its new input size; DeviceError.
    """
    try:
        classifier.warm()
    except DeviceError as e:
        if shape is None:
            raise
        raise _not_of_size(given, shape, e) from e


def _not_of_size(given: str, shape: tuple[int, ...], error: DeviceError) -> InputError:
    way_out = "give the size that the model was made for, or a model that was converted for one picture"
    return InputError(f"its input {given} cannot be made {shape}: {error}; {way_out}")


def _operating_point(
    path: Path, sha256: str, labels: tuple[str, ...]
) -> tuple[OperatingPoint | None, tuple[str, ...]]:
    """Return the operating point in a model's release document, None if it is of another; and why not."""
    if not path.exists():
        return None, ()
    try:
        document = read_release(path.parent)
    except EdgeError as e:
        return None, (f"{e}; without it, every prediction counts as sure",)
    same = document.model_sha256 == sha256 and document.labels == labels
    return (document.operating_point if same else None), ()
