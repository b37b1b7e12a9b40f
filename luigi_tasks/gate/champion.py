"""Comparison with the champion: the deployed model, on the same pictures."""

from __future__ import annotations

import collections
import dataclasses
import unicodedata
from typing import TYPE_CHECKING

from edge_client.contract.preprocessing import PREPROCESSING_ID
from luigi_tasks.dataset.left_out import EMPTY_CLASS, SMALL_CLASS
from luigi_tasks.dataset.pixels import LazyPixels
from luigi_tasks.dataset.splits import is_learned_from
from luigi_tasks.gate.evidence import Rival
from luigi_tasks.gate.measure import classify_all, measure, right_answers
from luigi_tasks.gate.paired import Paired, count_pairs
from luigi_tasks.inference.model_process import ModelFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edge_client.contract.release import ReleaseDocument
    from luigi_tasks.dataset.pixels import PixelLoader
    from luigi_tasks.dataset.records import LeftOut, Picture
    from luigi_tasks.gate.records import Measurement
    from luigi_tasks.progress import Progress
    from luigi_tasks.quantization.records import CandidateRecord


@dataclasses.dataclass(frozen=True)
class Champion:
    """The deployed model.

    Attributes:
        document: Its signed description.
        model: Its file.
        holdout_percent: Share of the pictures that was kept from it; None: as today.
        split_groups: Whether the groups of today were kept together then.
    """

    document: ReleaseDocument
    model: bytes
    holdout_percent: float | None = None
    split_groups: bool = True

    @property
    def file(self) -> ModelFile:
        """Its file, to be run in a child process."""
        return ModelFile(
            self.model,
            f"the deployed release {self.document.release}",
            "roll back to an earlier release (luigi RollBack), or publish on another channel",
            self.document.labels,
            self.document.preprocessing.normalization,
        )

    def learned_from(self, picture: Picture, holdout_percent: float, *, alone: bool) -> bool:
        """Whether the model may have learned from a picture that is in the hold-out today.

        Args:
            picture: The picture.
            holdout_percent: Share of the hold-out today.
            alone: Whether its own hash decides its side: no other picture belongs to its group, and the
                group has no name.
        """
        share = holdout_percent if self.holdout_percent is None else self.holdout_percent
        if not (self.split_groups or alone):
            return is_learned_from(picture.sha256, share)
        return share < holdout_percent and is_learned_from(picture.group_id, share)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison with the champion on the hold-out.

    Attributes:
        measurement: Its metrics; None where nothing can be compared.
        rival: The candidate against it on the same pictures; None where nothing can be compared.
        note: How the comparison was made, or why there is none.
    """

    measurement: Measurement | None
    rival: Rival | None
    note: str


def compare_with_champion(
    champion: Champion | None,
    candidate: CandidateRecord,
    right: NDArray[np.bool_],
    holdout: Sequence[Picture],
    pixels_of: PixelLoader,
    progress: Progress,
    holdout_percent: float,
) -> Comparison:
    """Measure the champion on the hold-out pictures whose class it knows, and that it did not learn from.

    Args:
        champion: The deployed model, if there is one.
        candidate: The candidate.
        right: (N,) whether the candidate answers each hold-out picture right.
        holdout: The N pictures.
        pixels_of: Loads them.
        progress: Gets pictures done.
        holdout_percent: Share of the hold-out today.
    """
    if champion is None:
        return Comparison(None, None, "Nothing is deployed on this channel yet.")
    if champion.document.preprocessing.id != PREPROCESSING_ID:
        note = (
            f"The deployed model needs preprocessing {champion.document.preprocessing.id!r}, not known here."
        )
        return Comparison(None, None, note)
    known = set(champion.document.labels)
    shared = [index for index, picture in enumerate(holdout) if picture.label in known]
    gone = sorted(known - set(candidate.labels))
    new = sorted(set(candidate.labels) - known)
    renamed = _find_renamed(champion, holdout, new, gone, pixels_of, progress) if new and gone else ""
    if not shared:
        note = "The deployed model knows none of these classes; nothing can be compared."
        return Comparison(None, None, note + renamed)
    note = f"Compared on the same {len(shared)} hold-out pictures."
    if gone or new:
        changes = [f"new: {', '.join(new)}"] * bool(new) + [f"gone: {', '.join(gone)}"] * bool(gone)
        note = (
            f"The classes changed ({'; '.join(changes)}); compared on the {len(shared)} of {len(holdout)} "
            "hold-out pictures whose class both models know."
        )
        note += renamed
    seen = _find_seen_groups(champion, holdout, holdout_percent)
    unseen = [index for index in shared if holdout[index].group_id not in seen]
    if len(unseen) < len(shared):
        note += (
            f" The deployed model may have learned from {len(shared) - len(unseen)} of them (its hold-out "
            "was smaller, or other pictures were kept together): those do not count."
        )
    if not unseen:
        return Comparison(None, Rival("", 0.0, 0.0, Paired(0, 0, 0)), note)
    shared = unseen
    size = champion.document.preprocessing
    pictures = [holdout[index] for index in shared]
    measurement, answers = measure(
        champion.file,
        sorted(known & set(candidate.labels)),
        pictures,
        LazyPixels(pictures, pixels_of, size.height, size.width),
        progress,
        "deployed model",
    )
    own, other = right[shared], right_answers(champion.document.labels, pictures, answers.scores)
    paired = count_pairs(own, other, [one.group_id for one in pictures])
    return Comparison(measurement, Rival("", measurement.accuracy, float(own.mean()), paired), note)


def _find_seen_groups(champion: Champion, holdout: Sequence[Picture], holdout_percent: float) -> set[str]:
    """Return the groups of which the champion may have learned from a picture."""
    sizes = collections.Counter(one.group_id for one in holdout)
    alone = {one.sha256 for one in holdout if sizes[one.sha256] == 1 and one.group_id == one.sha256}
    return {
        one.group_id
        for one in holdout
        if champion.learned_from(one, holdout_percent, alone=one.sha256 in alone)
    }


def find_set_aside(classes: Sequence[str], left_out: Sequence[LeftOut]) -> dict[str, str]:
    """Return the classes of the deployed release whose folder is there, but whose pictures were left out.

    Args:
        classes: Classes of the deployed release that the candidate does not have.
        left_out: What the snapshot left out.
    Returns: The reason of each of them.
    """
    reasons: dict[str, str] = {}
    for one in left_out:
        if one.reason in {SMALL_CLASS, EMPTY_CLASS}:
            for folder in one.path.split("/")[:-1]:
                reasons.setdefault(unicodedata.normalize("NFC", folder).strip(), one.words)
    return {label: reasons[label] for label in classes if label in reasons}


def _find_renamed(
    champion: Champion,
    holdout: Sequence[Picture],
    new: Sequence[str],
    gone: Sequence[str],
    pixels_of: PixelLoader,
    progress: Progress,
) -> str:
    """Return a sentence for each new class whose pictures the champion classifies as a removed class."""
    size = champion.document.preprocessing
    pictures = [one for one in holdout if one.label in new]
    answers = classify_all(
        champion.file,
        LazyPixels(pictures, pixels_of, size.height, size.width),
        progress,
        "searching for renamed classes",
    )
    note = ""
    for label in new:
        found = [one for one, picture in zip(answers, pictures, strict=True) if picture.label == label]
        likely, count = collections.Counter(found).most_common(1)[0] if found else ("", 0)
        if likely in gone and count > len(found) / 2:
            note += (
                f" {label!r} looks like {likely!r} renamed: the deployed model predicts it for "
                f"{count} of its {len(found)} hold-out pictures."
            )
    return note
