"""The last look at a candidate, by the process that signs it: the very bytes, once more on the hold-out."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from luigi_tasks.dataset.pixels import LazyPixels
from luigi_tasks.gate.evaluate import compare_with_constant, measure_file
from luigi_tasks.gate.measure import right_answers
from luigi_tasks.gate.verdict import Facts, judge

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from luigi_tasks.dataset.pixels import PixelLoader
    from luigi_tasks.dataset.records import Picture
    from luigi_tasks.gate.records import Evaluated
    from luigi_tasks.progress import Progress
    from luigi_tasks.quantization.records import Candidate
    from luigi_tasks.settings.values import GateSettings

# Another processor rounds otherwise: a close call may go the other way, of a hundred at most one.
OTHER_ANSWERS_SHARE = 0.01


def confirm_candidate(
    candidate: Candidate,
    evaluated: Evaluated,
    holdout: Sequence[Picture],
    pixels_of: PixelLoader,
    settings: GateSettings,
    progress: Progress,
    holdout_percent: float,
) -> None:
    """Check that the bytes to be signed are the candidate's, and answer as the gate saw them answer.

    Args:
        candidate: The candidate.
        evaluated: The gate's decision on it.
        holdout: Pictures that no training saw, in the order of the gate's scores.
        pixels_of: Loads them.
        settings: The gate's limits.
        progress: Gets pictures done.
        holdout_percent: Share of the pictures that comes into the hold-out.
    Raises: InputError if not, or if the limits are not met any more; DeviceError if the runtime cannot run
        the file.
    """
    record, gate = candidate.record, evaluated.record
    if hashlib.sha256(candidate.model).hexdigest() != record.model_sha256:
        raise _refuse(record.release, "model.tflite is not the file that candidate.json names")
    pixels = LazyPixels(holdout, pixels_of, record.preprocessing.height, record.preprocessing.width)
    measured, answers = measure_file(
        candidate, candidate.model, "candidate before it is signed", holdout, pixels, progress
    )
    differing = _count_differing(answers.scores, evaluated.scores)
    if differing > max(1, int(len(holdout) * OTHER_ANSWERS_SHARE)):
        reason = (
            f"{differing} of {len(holdout)} answers on the hold-out are not those of the evaluation "
            f"(accuracy {measured.accuracy:.4f}, the evaluation has {gate.candidate.accuracy:.4f})"
        )
        raise _refuse(record.release, reason)
    right = right_answers(record.labels, holdout, answers.scores)
    # The comparison with the champion stands: it was made on answers that were found equal above.
    facts = Facts(
        candidate=measured,
        float_model=gate.float_model,
        model_bytes=len(candidate.model),
        constant=compare_with_constant(right, holdout),
        champion=None,
        deployed_classes=(),
        holdout_percent=holdout_percent,
    )
    verdict = judge(facts, settings)
    if not verdict.passed:
        raise _refuse(record.release, f"measured once more, the gate {verdict.in_words()}")


def _count_differing(found: NDArray[np.float32], signed: NDArray[np.float32]) -> int:
    """Return how many of the best labels differ; all of them where the scores have another shape."""
    if found.shape != signed.shape or found.ndim != 2:
        return len(found) + 1
    return int((found.argmax(axis=1) != signed.argmax(axis=1)).sum())


def _refuse(release: str, reason: str) -> InputError:
    return InputError(
        f"release {release}: not signed: {reason}. Run Deploy on the machine that evaluates, or remove the "
        "candidate and its evaluation from work/ to have both made again"
    )
