"""Which output of a model file has the scores, what its values are, and which labels they have."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import InputError
from edge_client.contract.names import KNOWN_OUTPUT
from edge_client.inference.file_metadata import OutputFacts, read_associated
from edge_client.inference.graph import Ending
from edge_client.inference.label_file import (
    BACKGROUND,
    fits_exactly,
    read_embedded_labels,
    read_labels,
    read_two_labels,
)
from edge_client.inference.score_output import Scoring, may_be_scores, real_values

if TYPE_CHECKING:
    from pathlib import Path

    from edge_client.inference.file_metadata import FileMetadata
    from edge_client.inference.graph import Graph, TensorFacts
    from edge_client.settings.own_model import ModelOptions

_KINDS = ("float32", "float16", "uint8", "int8", "int16")
# A file of all species of a continent has some hundred kilobytes.
_LARGEST_LABELS_BYTES = 16 << 20
# Outputs from which no list of scores can be made.
_NO_SCORES = {
    Ending.CLASS_NUMBER: "answers with the number of a class (ARG_MAX), without scores",
    Ending.BEST_ONLY: "answers with the best few classes alone (TOPK_V2)",
}
# Least end of the range of 8-bit scores: 255/256, give or take.
_LARGEST_OF_SCORES = 0.98
# Outputs of ImageNet's models whose first class is the background, which their labels files leave out.
_IMAGENET_WITH_BACKGROUND = 1001
_LABELS_OPTION = "--labels ([device] labels)"


@dataclasses.dataclass(frozen=True)
class ChosenOutput:
    """The output of scores.

    Attributes:
        place: Its place among the outputs.
        known: Place of the output that tells strangers; None without.
        labels: Label of each score.
        facts: The output itself.
        ending: What its values are, by the graph.
        highest: Largest value of scores.
        last_operator: What makes it.
        described: What the metadata say of it.
        notes: What was assumed in choosing it and its labels.
    """

    place: int
    known: int | None
    labels: tuple[str, ...]
    facts: TensorFacts
    ending: Ending
    highest: float
    last_operator: str
    described: OutputFacts
    notes: tuple[str, ...] = ()

    def settle(self, details: list[dict[str, Any]]) -> tuple[dict[str, Any], Scoring, tuple[str, ...]]:
        """Return the details of the loaded output, how its values become scores, and what is doubtful.

        Raises: InputError if the loaded output has another number of values than the file says.
        """
        answer = details[self.place]
        count = math.prod(int(n) for n in answer["shape"])
        if count != _count(self.facts):
            msg = (
                f"with an input of that size its output is {tuple(int(n) for n in answer['shape'])}, "
                f"{count} values instead of {_count(self.facts)}; give the size that it was made for"
            )
            raise InputError(msg)
        scores, doubts = self._gives_scores(answer)
        doubts = (*self.notes, *doubts)
        if count == 1:
            return answer, Scoring.ONE_AS_IS if scores else Scoring.ONE_SIGMOID, doubts
        return answer, Scoring.AS_IS if scores else Scoring.SOFTMAX, doubts

    def _gives_scores(self, answer: dict[str, Any]) -> tuple[bool, tuple[str, ...]]:
        """Whether the values are scores: by the graph, else by the range of 8 bits, else by the metadata.

        Logits of a dull set of pictures may have a small range; that of scores, which end at 1, has a reason.
        """
        values = real_values(answer)
        if self.ending is Ending.SCORES:
            return True, ()
        if values is not None:
            ends_at_one = float(values.max()) > _LARGEST_OF_SCORES
            return may_be_scores(values) and (self.ending is Ending.UNKNOWN or ends_at_one), ()
        if self.ending is Ending.UNKNOWN:
            scores = self.described.says_scores
            taken = "scores, as its metadata say" if scores else "logits"
            doubt = (
                f"whether its output {self.facts.name} is scores or logits is not clear from "
                f"{self.last_operator}, which makes it: it is taken for {taken}"
            )
            return scores, (doubt,)
        return False, ()


def choose_output(model: bytes, graph: Graph, metadata: FileMetadata, options: ModelOptions) -> ChosenOutput:
    """Return the output that has the scores, with its labels.

    Raises: InputError if the file is another kind of model, or labels and outputs do not fit.
    """
    graph = dataclasses.replace(graph, outputs=_of_one_picture(graph))
    known = _known(graph.outputs)
    _check_kind(graph, known)
    usable = [place for place, one in enumerate(graph.outputs) if _is_vector(one) and place != known]
    described = metadata.outputs if len(metadata.outputs) == len(graph.outputs) else ()
    facts = {place: described[place] if described else OutputFacts() for place in usable}
    file = json.dumps(options.names).encode() if options.names else None
    if options.labels is not None:
        file = _read(options.labels)
    place = _only_one(graph, usable, facts, file)
    _check_ending(graph, place)
    count = _count(graph.outputs[place])
    labels = _labels(model, facts[place].labels_file, file, count)
    _check_labels(labels, count)
    notes = () if file is None else _doubt_of_background(file, labels)
    return ChosenOutput(
        place,
        known,
        labels,
        graph.outputs[place],
        graph.endings[place],
        graph.highest[place],
        graph.last_operators[place],
        facts[place],
        notes,
    )


def _doubt_of_background(file: bytes, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Return the warning where a label was added, which may as well be one that the file lacks elsewhere."""
    count = len(labels)
    added = labels[0] == BACKGROUND and not fits_exactly(file, count)
    if not added or count == _IMAGENET_WITH_BACKGROUND:
        return ()
    doubt = (
        f"{count - 1} labels for {count} outputs: the first output is taken for {BACKGROUND!r}; if another "
        f"label is missing, all are wrong: complete {_LABELS_OPTION}"
    )
    return (doubt,)


def _of_one_picture(graph: Graph) -> tuple[TensorFacts, ...]:
    """Return the outputs as they are for one picture, whatever batch the file was made for."""
    batch = graph.inputs[0].shape[0]
    if batch <= 1:
        return graph.outputs
    return tuple(
        dataclasses.replace(one, shape=(1, *one.shape[1:])) if one.shape[:1] == (batch,) else one
        for one in graph.outputs
    )


def _known(outputs: tuple[TensorFacts, ...]) -> int | None:
    """Return the place of the output that tells strangers, as this project's models have it."""
    has_one = len(outputs) == 2 and outputs[1].name == KNOWN_OUTPUT and _count(outputs[1]) == 1
    return 1 if has_one else None


def _check_kind(graph: Graph, known: int | None) -> None:
    """Raise InputError for a model of another kind, by the shapes and types of its outputs."""
    outputs = [one for place, one in enumerate(graph.outputs) if place != known]
    found = "; ".join(one.in_words() for one in outputs)
    kinds = [kind for one in outputs if (kind := _other_kind(one, len(outputs)))]
    if all(ending in _NO_SCORES for ending in graph.endings):
        kinds = [_NO_SCORES[graph.endings[0]]]
    if kinds:
        msg = f"{kinds[0]} (outputs: {found}): give an image classifier, with one score a label"
        raise InputError(msg)
    if not any(map(_is_vector, outputs)):
        msg = (
            f"no output has one score a label (outputs: {found or 'none'}): an image classifier gives "
            f"(1, classes) in {', '.join(_KINDS)}"
        )
        raise InputError(msg)


def _other_kind(output: TensorFacts, outputs: int) -> str:
    """Return what a model with such an output is, if it is no classifier; else an empty text."""
    sizes = [size for size in output.shape if size != 1]
    last = output.shape[-1] if output.shape else 0
    if outputs > 1 and last == 4 and len(output.shape) == 3:
        return "looks like an object detector, as SSD: one output has boxes of 4 numbers"
    if len(output.shape) == 4 and output.shape[1] > 1 and output.shape[2] > 1:
        return "looks like a segmentation or another model that answers with a map, as DeepLab"
    if len(sizes) == 2 and output.kind in {"int64", "int32"}:
        return "looks like a segmentation: one class number a pixel"
    if len(sizes) == 2 and len(output.shape) == 3 and output.shape[0] == 1:
        return "looks like an object detector, as YOLO: one output has rows of boxes and scores"
    return ""


def _only_one(graph: Graph, usable: list[int], facts: dict[int, OutputFacts], file: bytes | None) -> int:
    """Return the place of the only output that can have the scores.

    Raises: InputError if there are several, or none.
    """
    if len(usable) == 1 and len(graph.outputs) <= 2:
        return usable[0]
    described = [place for place in usable if facts[place].labels_file]
    counts = {place: max(_count(graph.outputs[place]), 2) for place in usable}
    fitting = [place for place, count in counts.items() if file is not None and fits_exactly(file, count)]
    # The same twice: logits, and the scores that are made of them.
    scores = [place for place in fitting if graph.endings[place] is Ending.SCORES]
    for places in (fitting, described, scores, usable):
        if len(places) == 1:
            return places[0]
    names = ", ".join(one.name for one in graph.outputs)
    found = "; ".join(one.in_words() for one in graph.outputs)
    msg = (
        f"the model has {len(graph.outputs)} outputs ({names}): an image classifier has one, or a second one "
        f"named {KNOWN_OUTPUT!r} with one value. Which has the scores is told by the number of labels, and "
        f"it is not one alone that fits ({found}); give the labels of that one, {_LABELS_OPTION}, or "
        "convert it with one output"
    )
    raise InputError(msg)


def _check_ending(graph: Graph, place: int) -> None:
    """Raise InputError for an output whose values cannot be scores."""
    ending, found = graph.endings[place], graph.outputs[place].in_words()
    if ending is Ending.FEATURES:
        msg = (
            f"its output {found} has features of unit length (L2_NORMALIZATION), an embedding: give an image "
            "classifier, with one score a label"
        )
        raise InputError(msg)
    if ending is Ending.ONE_SOFTMAX:
        msg = (
            f"its output {found} is a softmax of one value, which is 1 for every picture: train it with a "
            "sigmoid, or with two outputs"
        )
        raise InputError(msg)
    if ending in _NO_SCORES:
        msg = f"{_NO_SCORES[ending]} (output {found}): convert it without that operator"
        raise InputError(msg)


def _labels(model: bytes, name: str, file: bytes | None, count: int) -> tuple[str, ...]:
    if file is not None:
        return read_two_labels(file) if count == 1 else read_labels(file, count)
    if name:
        try:
            labels = read_embedded_labels(read_associated(model, name))
        except InputError as e:
            msg = f"{e}; {_LABELS_OPTION} replaces what is inside"
            raise InputError(msg) from e
        return (f"not {labels[0]}", *labels) if count == 1 and len(labels) == 1 else labels
    outputs = "1 output" if count == 1 else f"{count} outputs"
    msg = f"no labels: there are none inside, and it has {outputs}; give {_LABELS_OPTION}"
    raise InputError(msg)


def _check_labels(labels: tuple[str, ...], count: int) -> None:
    if count == 1 and len(labels) != 2:
        msg = (
            f"{len(labels)} labels for a model with 1 output: one output needs two labels, that of a low "
            "value first, or the label of a high value alone"
        )
        raise InputError(msg)
    if count != 1 and len(labels) != count:
        msg = (
            f"{len(labels)} labels for a model with {count} outputs: give the labels made with it, "
            f"{_LABELS_OPTION}; where there are none, it may give features (an embedding), no classes"
        )
        raise InputError(msg)


def _is_vector(output: TensorFacts) -> bool:
    """Whether an output has one value a class."""
    large = [size for size in output.shape if size != 1]
    return output.kind in _KINDS and len(large) <= 1 and 0 not in output.shape and bool(output.shape)


def _count(output: TensorFacts) -> int:
    return math.prod(output.shape)


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        msg = f"{path}: not a file; give a labels file, with one label a line"
        raise InputError(msg)
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_LABELS_BYTES + 1)
    except OSError as e:
        msg = f"{path}: the labels file cannot be read: {e.strerror or e}; check the path"
        raise InputError(msg) from e
    if len(content) > _LARGEST_LABELS_BYTES:
        msg = f"{path}: more than {_LARGEST_LABELS_BYTES} bytes, which are no labels; give a labels file"
        raise InputError(msg)
    return content
