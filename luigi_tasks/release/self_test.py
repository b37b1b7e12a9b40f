"""Choice of the signed self-test pictures that a device answers before it activates a release."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edge_client.inference.classifier import Classifier, Prediction
    from luigi_tasks.dataset.records import Picture


# A picture of the release before is asked again only if its answer is no close call.
KNOWN_CONFIDENCE = 0.6


def choose_self_test(
    classifier: Classifier,
    pictures: Sequence[Picture],
    pixels: NDArray[np.uint8],
    count: int,
    known: frozenset[str] = frozenset(),
) -> list[tuple[int, Prediction]]:
    """Return the pictures that a device shall answer before it activates the model.

    Right answers, most confident first, classes in turn: another runtime's rounding must not change
    them, another model's answers should. Among confident ones, those in `known` come first: devices have
    them from the release before.

    Returns: (index into `pictures`, the answer) of up to `count`; fewer if fewer were right.
    """
    by_class: dict[str, list[tuple[bool, float, str, int, Prediction]]] = {}
    for index, picture in enumerate(pictures):
        answer = classifier.classify(pixels[index])
        if answer.label == picture.label:
            new = picture.sha256 not in known or answer.confidence < KNOWN_CONFIDENCE
            row = (new, -answer.confidence, picture.sha256, index, answer)
            by_class.setdefault(picture.label, []).append(row)
    ranked = [
        (rank, *row)
        for rows in by_class.values()
        for rank, row in enumerate(sorted(rows, key=lambda r: r[:3]))
    ]
    ranked.sort(key=lambda row: row[:4])
    return [(row[4], row[5]) for row in ranked[:count]]


@dataclasses.dataclass(frozen=True)
class SelfTestPicture:
    """A hold-out picture with the answer that the candidate gave.

    Attributes:
        png: The picture as the model sees it, lossless.
        label: Its answer.
        confidence: The score of that answer in [0, 1].
        picture: Content hash of the picture.
    """

    png: bytes
    label: str
    confidence: float
    picture: str = ""
