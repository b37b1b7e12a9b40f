"""Records of the gate: measurements, checks, verdict."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import Document
from edge_client.contract.release import HoldOut  # noqa: TC001 - msgspec resolves it
from luigi_tasks.training.records import Reliability  # noqa: TC001 - msgspec resolves it

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Outcomes of a check and of a verdict. `thin`: not enough evidence for either of the others.
PASSED, REFUSED, THIN = "passed", "refused", "thin"
HELD = "held: not enough evidence:"


class Check(Document, frozen=True, kw_only=True):
    """One measurement of a candidate, compared with its limit.

    Attributes:
        name: Quantity that is checked.
        limit: The setting's value.
        measured: The candidate's value.
        unit: Unit of limit and measured value.
        passed: Whether the candidate is within the limit, and that is shown.
        reason: One sentence for a person if it is not, else empty.
        outcome: `passed`, `refused` or `thin`; empty in records from before there were three.
        interval: Interval of the measured value at 95 %, in its unit; None where there is none.
        note: What was counted, for the report.
    """

    name: str
    limit: float
    measured: float
    unit: str
    passed: bool
    reason: str = ""
    outcome: str = ""
    interval: tuple[float, float] | None = None
    note: str = ""


class Verdict(Document, frozen=True, kw_only=True):
    """The decision, with every check behind it.

    Attributes:
        passed: Whether the candidate may be published.
        reasons: Why not: each limit that was missed, or all that is not enough evidence.
        checks: Every check.
        outcome: `passed`, `refused` or `thin`: not enough evidence for either of the others; empty in
            records from before there were three.
        thin: What is not enough evidence, with how many more pictures would do; also where it is published.
    """

    passed: bool
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    outcome: str = ""
    thin: tuple[str, ...] = ()

    def in_words(self) -> str:
        """Return e.g. `passed`, or `refused: ` and every reason."""
        if self.outcome == THIN:
            reasons = "; ".join(self.thin)
            return f"passed on thin evidence: {reasons}" if self.passed else f"{HELD} {reasons}"
        return "passed" if self.passed else f"refused: {'; '.join(self.reasons)}"


class ClassMetrics(Document, frozen=True, kw_only=True):
    """Metrics of one class on the hold-out.

    Attributes:
        label: The class.
        support: Its pictures.
        precision: Share of the answers with this class that were right; 0 where it is never predicted.
        recall: Share of its pictures that were found.
        groups: Groups of its pictures; 0 in records from before there were groups.
        effective: Number of independent pictures that they are worth.
        interval: Interval of the recall at 95 %.
    """

    label: str
    support: int
    precision: float
    recall: float
    groups: int = 0
    effective: float = 0.0
    interval: tuple[float, float] | None = None


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
        groups: Groups of the pictures: bursts and near-duplicates are one; 0 in records from before.
        effective: Number of independent pictures that they are worth.
        interval: Interval of the accuracy at 95 %, for so many.
        strangers: How many of the pictures the model calls strangers, wrongly; None: it does not tell.
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
    groups: int = 0
    effective: float = 0.0
    interval: tuple[float, float] | None = None
    strangers: int | None = None

    def in_words(self) -> str:
        """Return e.g. `accuracy 0.9512 (0.9312 to 0.9667)`."""
        between = f" ({self.interval[0]:.4f} to {self.interval[1]:.4f})" if self.interval else ""
        return f"accuracy {self.accuracy:.4f}{between}"


class SchemeResult(Document, frozen=True, kw_only=True):
    """One quantization scheme that was tried, measured on the hold-out.

    Attributes:
        scheme: Its name.
        accuracy: Of its file, 0-1.
        float_drop_points: What it loses against float.
        class_drop_points: What the class loses that loses most, one picture forgiven.
        model_bytes: Size of its file.
        latency_ms_p50: Preprocessing and inference, one thread.
        interval: Interval of the accuracy at 95 %.
    """

    scheme: str
    accuracy: float
    float_drop_points: float
    class_drop_points: float
    model_bytes: int
    latency_ms_p50: float | None
    interval: tuple[float, float] | None = None


class ErrorRates(Document, frozen=True, kw_only=True):
    """What the gate does with equal models, and with models that are worse by the margin.

    Attributes:
        units: Size of the hold-out, in groups.
        apart: Share of the hold-out that exactly one of two models answers right.
        worse_points: By how much the worse model is worse, percentage points.
        equal_refused: Share of equal models that are refused.
        equal_held: Share of equal models for which there is not enough evidence.
        worse_passed: Share of worse models that pass.
        worse_refused: Share of worse models that are refused.
    """

    units: int
    apart: float
    worse_points: float
    equal_refused: float
    equal_held: float
    worse_passed: float
    worse_refused: float

    def in_words(self) -> str:
        """Return one sentence for a report."""
        return (
            f"With {self.units} hold-out groups, of which two models tell {self.apart:.1%} apart: an equal "
            f"model is refused in {self.equal_refused:.1%} of comparisons and held in {self.equal_held:.1%}; "
            f"one that is {self.worse_points:g} points worse passes in {self.worse_passed:.1%}."
        )


class ClassSureness(Document, frozen=True, kw_only=True):
    """Sure answers of one class on the hold-out.

    Attributes:
        label: The class.
        threshold: Score from which on an answer is sure; None: none is.
        answers: How often the class was the answer.
        sure: How often it was a sure one.
        right: How often a sure one was right.
    """

    label: str
    threshold: float | None
    answers: int
    sure: int
    right: int


class Confidence(Document, frozen=True, kw_only=True):
    """How far the scores of the candidate's file can be trusted, on the hold-out.

    Attributes:
        temperature: What the logits were divided by.
        before: Reliability without that; None where it is not on record.
        after: Reliability of the file's scores.
        wanted_precision: `[release] precision`; None: every answer is sure.
        precision: Share of the sure answers that are right; None: none is sure.
        coverage: Share of the answers that are sure.
        classes: Each class.
    """

    temperature: float
    before: Reliability | None
    after: Reliability
    wanted_precision: float | None
    precision: float | None
    coverage: float
    classes: tuple[ClassSureness, ...]


class SourceResult(Document, frozen=True, kw_only=True):
    """Accuracy on the hold-out groups of one source.

    Attributes:
        source: What joined the groups, one of `dataset/records.py`; empty: pictures that are alone.
        groups: Number of groups.
        pictures: Pictures in them.
        effective: Pictures that would tell as much if each were alone (Kish).
        accuracy: Share of right answers among the pictures.
    """

    source: str
    pictures: int
    accuracy: float
    groups: int = 0
    effective: float = 0.0


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
        error_rates: How often the comparison with the champion errs on a hold-out of this size, simulated;
            None in records from before.
        confidence: How far its scores can be trusted; None in records from before.
        sources: Accuracy by what joined the groups; empty in records from before.
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
    error_rates: ErrorRates | None = None
    confidence: Confidence | None = None
    sources: tuple[SourceResult, ...] = ()

    def in_words(self) -> str:
        """Return what becomes of the release, e.g. `Release 1a2b is not published, the gate refused: ...`."""
        if self.verdict.passed:
            return f"Release {self.release} {self.verdict.in_words()}"
        return f"Release {self.release} is not published, the gate {self.verdict.in_words()}"


def without_pictures(evaluation: Evaluation) -> Evaluation:
    """Return a record as it is published with a release: nothing in it names a picture of the hold-out.

    Of the models beside the candidate, the confusions are left out too: they are never shown.
    """
    champion = evaluation.champion
    return msgspec.structs.replace(
        evaluation,
        candidate=msgspec.structs.replace(evaluation.candidate, mistakes=()),
        float_model=msgspec.structs.replace(evaluation.float_model, mistakes=(), confusion=()),
        champion=champion and msgspec.structs.replace(champion, mistakes=(), confusion=()),
    )


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
