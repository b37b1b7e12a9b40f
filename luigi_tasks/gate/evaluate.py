"""What a candidate can do: the file itself, through the device's own classifier, on the hold-out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.inference.classifier import Classifier
from luigi_tasks.gate.champion import Champion, _accuracy_within, _measure_champion
from luigi_tasks.gate.measure import _figure_out, measure
from luigi_tasks.gate.records import Evaluation
from luigi_tasks.gate.verdict import judge
from luigi_tasks.training.class_drop import ClassPair

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from luigi_tasks.dataset.pixels import PixelLoader
    from luigi_tasks.dataset.records import Picture
    from luigi_tasks.progress import Progress
    from luigi_tasks.quantization.records import Candidate
    from luigi_tasks.settings.values import GateSettings


def evaluate(
    candidate: Candidate,
    model: bytes,
    float_scores: NDArray[np.float32],
    champion: Champion | None,
    holdout: Sequence[Picture],
    pixels_of: PixelLoader,
    settings: GateSettings,
    progress: Progress,
    at: str,
) -> Evaluation:
    """Measure and judge a candidate.

    Args:
        candidate: Its description.
        model: Its file.
        float_scores: (hold-out, classes) answers of the float network.
        champion: What it must meet, if anything is deployed.
        holdout: Pictures that no training saw.
        pixels_of: Loads them.
        settings: The gate's limits.
        progress: Gets pictures done.
        at: UTC, ISO 8601, for the record.
    Raises: DeviceError if the runtime cannot run a file.
    """
    # The float network's answers come from its features: nothing deploys it, so there is no file of it.
    size, norm = candidate.preprocessing, candidate.preprocessing.normalization
    pixels = pixels_of(holdout, size.height, size.width)

    mine = measure(
        lambda: Classifier(model, candidate.labels, normalization=norm),
        candidate.labels,
        holdout,
        pixels,
        progress,
        "candidate",
    )
    floats = _figure_out(
        candidate.labels,
        holdout,
        [candidate.labels[int(row.argmax())] for row in float_scores],
        [float(row.max()) for row in float_scores],
        [],
        "float",
    )
    theirs, shared, note = _measure_champion(champion, candidate, holdout, pixels_of, progress)
    pair = None
    if theirs is not None:
        pair = (_accuracy_within(mine, holdout, shared), theirs.accuracy)
    return Evaluation(
        release=candidate.release,
        candidate=mine,
        float_model=floats,
        champion=theirs,
        champion_release=champion.document.release if champion is not None else None,
        champion_note=note,
        model_bytes=len(model),
        verdict=judge(
            accuracy=mine.accuracy,
            float_accuracy=floats.accuracy,
            classes=[
                ClassPair(one.label, one.support, one.recall, other.recall)
                for one, other in zip(mine.classes, floats.classes, strict=True)
            ],
            champion=pair,
            model_bytes=len(model),
            settings=settings,
        ),
        at=at,
    )
