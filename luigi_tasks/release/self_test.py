"""Choice of the signed self-test pictures that a device answers before it activates a release."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from luigi_tasks.dataset.pixels import to_png

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from luigi_tasks.dataset.pixels import PixelLoader
    from luigi_tasks.dataset.records import Picture
    from luigi_tasks.quantization.records import CandidateRecord

# A self-test picture of the release before is taken again only if its answer is no close call.
KNOWN_CONFIDENCE = 0.6


@dataclasses.dataclass(frozen=True)
class SelfTestPicture:
    """A hold-out picture with the answer that the candidate gave.

    Attributes:
        png: The picture as the model sees it, lossless.
        label: The answer.
        confidence: The score of that answer in [0, 1].
        picture: Content hash of the picture.
    """

    png: bytes
    label: str
    confidence: float
    picture: str = ""


def make_self_test(
    candidate: CandidateRecord,
    holdout: Sequence[Picture],
    scores: NDArray[np.float32],
    pixels_of: PixelLoader,
    count: int,
    known: frozenset[str] = frozenset(),
) -> list[SelfTestPicture]:
    """Return up to `count` self-test pictures with their answers.

    Args:
        candidate: The candidate.
        holdout: Pictures that no training saw.
        scores: (hold-out, classes) scores of the candidate's file, as the gate measured them.
        pixels_of: Loads pictures.
        count: How many pictures.
        known: Content hashes of pictures that devices have from the release before.
    Raises: InputError if the candidate answers no picture right.
    """
    chosen = choose_self_test(holdout, candidate.labels, scores, count, known)
    if not chosen:
        msg = (
            f"release {candidate.release}: not one hold-out picture is answered right, so no device could "
            "test it; raise [gate] min_accuracy above 0"
        )
        raise InputError(msg)
    size = candidate.preprocessing
    pixels = pixels_of([holdout[index] for index in chosen], size.height, size.width)
    return [
        SelfTestPicture(
            png=to_png(shown),
            label=holdout[index].label,
            confidence=float(scores[index].max()),
            picture=holdout[index].sha256,
        )
        for index, shown in zip(chosen, pixels, strict=True)
    ]


def choose_self_test(
    holdout: Sequence[Picture],
    labels: Sequence[str],
    scores: NDArray[np.float32],
    count: int,
    known: frozenset[str] = frozenset(),
) -> list[int]:
    """Return the positions in the hold-out of the pictures that a device answers before activation.

    Right answers, most confident first, classes in turn: another runtime's rounding must not change
    them, another model's answers should. Among confident ones, those in `known` come first: devices have
    them from the release before.

    Returns: Up to `count` positions; fewer if fewer answers were right.
    """
    by_class: dict[str, list[tuple[bool, float, str, int]]] = {}
    for index, (picture, row) in enumerate(zip(holdout, scores, strict=True)):
        if labels[int(row.argmax())] == picture.label:
            confidence = float(row.max())
            new = picture.sha256 not in known or confidence < KNOWN_CONFIDENCE
            by_class.setdefault(picture.label, []).append((new, -confidence, picture.sha256, index))
    ranked = [(rank, *row) for rows in by_class.values() for rank, row in enumerate(sorted(rows))]
    return [row[-1] for row in sorted(ranked)[:count]]
