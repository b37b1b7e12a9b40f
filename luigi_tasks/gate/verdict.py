"""The decision on a candidate. Values in, a verdict out: no clock, no disk, no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from luigi_tasks.gate.records import Check, Verdict
from luigi_tasks.training.class_drop import ClassPair, find_worst_class

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luigi_tasks.settings.values import GateSettings

# Accuracies are shares of a few thousand pictures; what differs by less than this is equal.
EPSILON = 1e-9


def judge(
    *,
    accuracy: float,
    float_accuracy: float,
    classes: Sequence[ClassPair],
    champion: tuple[float, float] | None,
    model_bytes: int,
    settings: GateSettings,
) -> Verdict:
    """Decide whether a candidate may be published. Limits are inclusive.

    Args:
        accuracy: Of the candidate's file on the hold-out, in [0, 1].
        float_accuracy: Of the float network on the same pictures.
        classes: Both by class; int8 may collapse on one class and hide in the mean.
        champion: Accuracy of the candidate and of the deployed model, both on the pictures whose
            class both know; None if there is nothing to compare with.
        model_bytes: Size of the candidate's file.
        settings: The limits.
    """
    checks = [
        _at_least("hold-out accuracy", accuracy, settings.min_accuracy, "[gate] min_accuracy"),
        _at_most(
            "loss against the float model",
            (float_accuracy - accuracy) * 100,
            settings.max_float_drop_points,
            "points",
            "[gate] max_float_drop_points",
        ),
        _worst_class(classes, settings.max_class_drop_points),
        _at_most(
            "model size",
            float(model_bytes),
            float(settings.max_model_bytes),
            "bytes",
            "[gate] max_model_bytes",
        ),
    ]
    if champion is not None:
        candidates, champions = champion
        checks.append(
            _at_most(
                "loss against the deployed model",
                (champions - candidates) * 100,
                settings.max_champion_drop_points,
                "points",
                "[gate] max_champion_drop_points",
            )
        )
    reasons = tuple(check.reason for check in checks if not check.passed)
    return Verdict(passed=not reasons, reasons=reasons, checks=tuple(checks))


def _worst_class(classes: Sequence[ClassPair], limit: float) -> Check:
    drop, label = find_worst_class(classes)
    check = _at_most(
        "loss of a class against the float model", drop, limit, "points", "[gate] max_class_drop_points"
    )
    return check if check.passed else msgspec.structs.replace(check, reason=f"{label!r}: {check.reason}")


def _at_least(name: str, measured: float, limit: float, setting: str) -> Check:
    passed = measured >= limit - EPSILON
    reason = "" if passed else f"{name} {_tell_apart(measured, limit, 4)} is below {setting} {limit:g}"
    return Check(name=name, limit=limit, measured=measured, unit="share", passed=passed, reason=reason)


def _at_most(name: str, measured: float, limit: float, unit: str, setting: str) -> Check:
    passed = measured <= limit + EPSILON
    if unit == "bytes":
        numbers = f"{measured:.0f} {unit} is above {setting} {limit:.0f}"
    else:
        numbers = f"{_tell_apart(measured, limit, 2)} {unit} is above {setting} {limit:g}"
    reason = "" if passed else f"{name} {numbers}"
    return Check(name=name, limit=limit, measured=measured, unit=unit, passed=passed, reason=reason)


def _tell_apart(measured: float, limit: float, digits: int) -> str:
    """Write `measured` with enough digits to differ visibly from the limit."""
    while digits < 10 and round(measured, digits) == round(limit, digits):
        digits += 1
    return f"{measured:.{digits}f}"
