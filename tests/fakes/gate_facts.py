"""Settings and facts of the gate, for tests of what it decides."""

from __future__ import annotations

from luigi_tasks.gate.evidence import Rival
from luigi_tasks.gate.paired import Paired
from luigi_tasks.gate.records import ClassMetrics, Measurement
from luigi_tasks.gate.statistics import wilson_interval
from luigi_tasks.gate.verdict import Facts
from luigi_tasks.settings.values import GateSettings

LIMITS = GateSettings(
    min_accuracy=0.8,
    max_float_drop_points=2.0,
    max_class_drop_points=10.0,
    max_champion_drop_points=0.5,
    champion_margin_points=3.0,
    min_class_recall=0.3,
    min_class_holdout=4,
    thin_evidence="hold_replacement",
    replace_classes=False,
    max_model_bytes=1_000_000,
)


def measured(accuracy: float, *classes: ClassMetrics, pictures: int = 400, groups: int = 0) -> Measurement:
    """Metrics of a model with this accuracy; without classes, of two that are both found so often."""
    labels = tuple(one.label for one in classes) or ("cat", "dog")
    size = float(groups or pictures)
    return Measurement(
        accuracy=accuracy,
        pictures=pictures,
        labels=labels,
        classes=classes or tuple(found(label, pictures // 2, accuracy) for label in labels),
        confusion=tuple(tuple(int(a == b) for b in labels) for a in labels),
        latency_ms_p50=None,
        latency_ms_p90=None,
        runtime="",
        mistakes=(),
        groups=groups or pictures,
        effective=size,
        interval=wilson_interval(accuracy, size),
    )


def found(label: str, support: int, recall: float, groups: int = 0) -> ClassMetrics:
    """A class of which this share is found."""
    size = groups or support
    return ClassMetrics(
        label=label,
        support=support,
        precision=1.0,
        recall=recall,
        groups=size,
        effective=float(size),
        interval=wilson_interval(recall, size),
    )


def rival(
    lost: float = 0, gained: float = 0, units: float = 400, *, label: str = "", accuracy: float = 0.9
) -> Rival:
    """A rival of this accuracy, to which so many groups are lost and of which so many are won."""
    return Rival(label, accuracy, accuracy + (gained - lost) / units, Paired(units, lost, gained))


def facts(
    candidate: Measurement,
    float_model: Measurement | None = None,
    champion: Rival | None = None,
    constant: Rival | None = None,
    deployed: tuple[str, ...] = (),
    model_bytes: int = 1000,
) -> Facts:
    """Facts of a candidate that is well in all that is not said."""
    return Facts(
        candidate=candidate,
        float_model=float_model or candidate,
        model_bytes=model_bytes,
        constant=constant or rival(10, 190, label="cat", accuracy=0.5),
        champion=champion,
        deployed_classes=deployed or (("cat", "dog") if champion is not None else ()),
        holdout_percent=20.0,
    )
