"""Records of the gate: measurements, checks, verdict."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edge_client.contract.documents import Document
from edge_client.contract.release import HoldOut  # noqa: TC001 - msgspec resolves it

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Outcomes of a check and of a verdict. `thin`: not enough evidence for either of the others.
PASSED, REFUSED, THIN = "passed", "refused", "thin"


class Check(Document, frozen=True, kw_only=True):
    """One measurement of a candidate, compared with its limit.

    Attributes:
        name: Quantity that is checked.
        limit: The setting's value.
        measured: The candidate's value.
        unit: Unit of limit and measured value.
        passed: Whether the candidate is within the limit.
        reason: One sentence for a person if it is not, else empty.
    """

    name: str
    limit: float
    measured: float
    unit: str
    passed: bool
    reason: str = ""


class Verdict(Document, frozen=True, kw_only=True):
    """The decision, with every check behind it."""

    passed: bool
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]

    def in_words(self) -> str:
        """Return e.g. `passed`, or `refused: ` and every reason."""
        return "passed" if self.passed else f"refused: {'; '.join(self.reasons)}"


class ClassMetrics(Document, frozen=True, kw_only=True):
    """Metrics of one class on the hold-out; precision is 0 where the class is never predicted."""

    label: str
    support: int
    precision: float
    recall: float


class Mistake(Document, frozen=True, kw_only=True):
    """Misclassified picture."""

    path: str
    sha256: str
    truth: str
    predicted: str
    confidence: float


class Measurement(Document, frozen=True, kw_only=True):
    """One model on one list of pictures.

    Attributes:
        accuracy: Share of right answers, 0-1.
        pictures: How many were shown.
        labels: The classes, in the order of rows and columns.
        classes: Precision and recall of each.
        confusion: Counts; rows are truths, columns answers.
        latency_ms_p50: Preprocessing and inference, one thread, pictures one after another; None where
            no file was run.
        latency_ms_p90: 90th percentile.
        runtime: What ran it.
        mistakes: The most confident wrong answers, worst first.
        hold_out: How often each label was the answer, and how sure; None in records from before there
            was one.
    """

    accuracy: float
    pictures: int
    labels: tuple[str, ...]
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    latency_ms_p50: float | None
    latency_ms_p90: float | None
    runtime: str
    mistakes: tuple[Mistake, ...]
    hold_out: HoldOut | None = None


class SchemeResult(Document, frozen=True, kw_only=True):
    """One quantization scheme that was tried, measured on the hold-out.

    Attributes:
        scheme: Its name.
        accuracy: Of its file, 0-1.
        float_drop_points: What it loses against float.
        class_drop_points: What the class loses that loses most, one picture forgiven.
        model_bytes: Size of its file.
        latency_ms_p50: Preprocessing and inference, one thread.
    """

    scheme: str
    accuracy: float
    float_drop_points: float
    class_drop_points: float
    model_bytes: int
    latency_ms_p50: float | None


class Evaluation(Document, frozen=True, kw_only=True):
    """The gate's record of a candidate.

    Attributes:
        release: The id that the candidate would be published under.
        candidate: The candidate's file.
        float_model: The float network, same pictures.
        champion: The deployed model on the pictures whose class it knows; None if there is none.
        champion_release: Its id.
        champion_note: How the comparison was made, or why there is none.
        model_bytes: Size of the candidate's file.
        verdict: The decision.
        at: UTC, ISO 8601.
        schemes: All schemes that were tried, where the first one lost too much.
    """

    release: str
    candidate: Measurement
    float_model: Measurement
    champion: Measurement | None
    champion_release: str | None
    champion_note: str
    model_bytes: int
    verdict: Verdict
    at: str
    schemes: tuple[SchemeResult, ...] = ()


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The gate's decision on a candidate.

    Attributes:
        record: Measurements and verdict.
        report: The HTML page.
        scores: (hold-out, classes) float32 scores of the candidate's file, in the snapshot's order.
    """

    record: Evaluation
    report: str
    scores: NDArray[np.float32]
