"""Checks of a measured value against a setting: the value itself decides, whatever its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from luigi_tasks.gate.records import PASSED, REFUSED, Check
from luigi_tasks.training.class_drop import ClassPair, find_worst_class

if TYPE_CHECKING:
    from luigi_tasks.gate.records import Measurement
    from luigi_tasks.settings.values import GateSettings

# Accuracies are shares of a few thousand pictures; what differs by less than this is equal.
EPSILON = 1e-9


def check_limits(
    candidate: Measurement, float_model: Measurement, model_bytes: int, settings: GateSettings
) -> list[Check]:
    """Check accuracy, losses against the float network and size. Limits are inclusive.

    Args:
        candidate: The candidate's file on the hold-out.
        float_model: The float network on the same pictures.
        model_bytes: Size of the candidate's file.
        settings: The limits.
    """
    accuracy = candidate.accuracy
    return [
        msgspec.structs.replace(
            _at_least("hold-out accuracy", accuracy, settings.min_accuracy, "[gate] min_accuracy"),
            interval=candidate.interval,
        ),
        _at_most(
            "loss against the float model",
            (float_model.accuracy - accuracy) * 100,
            settings.max_float_drop_points,
            "points",
            "[gate] max_float_drop_points",
        ),
        _worst_class(candidate, float_model, settings.max_class_drop_points),
        _at_most(
            "model size",
            float(model_bytes),
            float(settings.max_model_bytes),
            "bytes",
            "[gate] max_model_bytes",
        ),
    ]


def _worst_class(candidate: Measurement, float_model: Measurement, limit: float) -> Check:
    """Check the class that loses most: int8 may collapse on one class and hide in the mean."""
    pairs = [
        ClassPair(one.label, one.support, one.recall, other.recall)
        for one, other in zip(candidate.classes, float_model.classes, strict=True)
    ]
    drop, label = find_worst_class(pairs)
    check = _at_most(
        "loss of a class against the float model", drop, limit, "points", "[gate] max_class_drop_points"
    )
    return check if check.passed else msgspec.structs.replace(check, reason=f"{label!r}: {check.reason}")


def _at_least(name: str, measured: float, limit: float, setting: str) -> Check:
    passed = measured >= limit - EPSILON
    reason = "" if passed else f"{name} {_tell_apart(measured, limit, 4)} is below {setting} {limit:g}"
    return _decided(name, measured, limit, "share", reason)


def _at_most(name: str, measured: float, limit: float, unit: str, setting: str) -> Check:
    passed = measured <= limit + EPSILON
    if unit == "bytes":
        numbers = f"{measured:.0f} {unit} is above {setting} {limit:.0f}"
    else:
        numbers = f"{_tell_apart(measured, limit, 2)} {unit} is above {setting} {limit:g}"
    return _decided(name, measured, limit, unit, "" if passed else f"{name} {numbers}")


def _decided(name: str, measured: float, limit: float, unit: str, reason: str) -> Check:
    return Check(
        name=name,
        limit=limit,
        measured=measured,
        unit=unit,
        passed=not reason,
        reason=reason,
        outcome=REFUSED if reason else PASSED,
    )


def _tell_apart(measured: float, limit: float, digits: int) -> str:
    """Write `measured` with enough digits to differ visibly from the limit."""
    while digits < 10 and round(measured, digits) == round(limit, digits):
        digits += 1
    return f"{measured:.{digits}f}"
