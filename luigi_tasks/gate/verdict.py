"""The decision on a candidate. Values in, a verdict out: no clock, no disk, no model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from luigi_tasks.gate.evidence import (
    Ask,
    Rival,
    check_champion,
    check_class_sizes,
    check_constant,
    check_kept_classes,
    check_recalls,
)
from luigi_tasks.gate.limits import check_limits
from luigi_tasks.gate.records import PASSED, REFUSED, THIN, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from luigi_tasks.gate.records import Check, Measurement
    from luigi_tasks.settings.values import GateSettings


@dataclasses.dataclass(frozen=True)
class Facts:
    """What was measured of a candidate.

    Attributes:
        candidate: Its file on the hold-out.
        float_model: The float network on the same pictures.
        model_bytes: Size of its file.
        constant: The candidate against always answering the hold-out's largest class.
        champion: The candidate against the deployed model, on the pictures whose class both know; None if
            there is nothing to compare with.
        deployed_classes: Classes of the deployed release; empty: nothing is deployed.
        holdout_percent: Share of the pictures that comes into the hold-out, for what is asked for.
        set_aside: Classes of the deployed release whose pictures were left out of the snapshot, with the
            reason.
    """

    candidate: Measurement
    float_model: Measurement
    model_bytes: int
    constant: Rival
    champion: Rival | None
    deployed_classes: Sequence[str]
    holdout_percent: float
    set_aside: Mapping[str, str] = dataclasses.field(default_factory=dict)


def judge(facts: Facts, settings: GateSettings) -> Verdict:
    """Decide whether a candidate may be published: passed, refused, or not enough evidence."""
    ask = Ask.of(facts.candidate, facts.holdout_percent)
    checks = check_limits(facts.candidate, facts.float_model, facts.model_bytes, settings)
    checks += [
        check_constant(facts.constant, ask),
        check_class_sizes(facts.candidate, settings, ask),
        check_recalls(facts.candidate, settings, ask),
    ]
    if facts.deployed_classes:
        kept = len(set(facts.deployed_classes) & set(facts.candidate.labels))
        may_replace = settings.replace_classes
        checks.append(
            check_kept_classes(facts.deployed_classes, kept, facts.set_aside, may_replace=may_replace)
        )
    if facts.champion is not None:
        checks.append(check_champion(facts.champion, settings, ask))
    return _decide(checks, settings.thin_evidence, replaces=bool(facts.deployed_classes))


def _decide(checks: Sequence[Check], thin_evidence: str, *, replaces: bool) -> Verdict:
    refused = tuple(check.reason for check in checks if check.outcome == REFUSED)
    thin = tuple(check.reason for check in checks if check.outcome == THIN)
    is_held = bool(thin) and (thin_evidence == "hold" or (replaces and thin_evidence == "hold_replacement"))
    reasons = refused or (thin if is_held else ())
    return Verdict(
        passed=not reasons,
        reasons=reasons,
        checks=tuple(checks),
        outcome=REFUSED if refused else THIN if thin else PASSED,
        thin=thin,
    )
