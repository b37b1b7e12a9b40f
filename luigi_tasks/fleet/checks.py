"""Hard checks of a verdict: failures, silence, devices that passed, quorum. Pure functions of a stage's view.

Failures halt where the lower end of their exact interval lies above the limit, at any look, and pass where
the upper end lies below it. Those that began are the denominator of a halt: who fails, fails sooner than
others pass, so that of the devices that have come to an end the first ones are all failures. Those that have
come to an end are the denominator of a pass.

In a small stage no upper end lies below the limit: 0 failures of 10 devices bound the share at 26%. Once all
of its devices have come to an end nothing more can be learned in it, and it passes if the share of failures
itself is not above the limit; the verdict says in words what is not shown.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.errors import InputError
from luigi_tasks.fleet.device_state import BEGAN
from luigi_tasks.fleet.records import (
    FAILURES,
    HALT,
    HARD,
    INCONCLUSIVE,
    PASS,
    PASSED,
    SILENT,
    UNSEEN,
    Check,
)
from luigi_tasks.fleet.stage_view import BROKEN_RESTARTS
from luigi_tasks.fleet.statistics import fisher_p, lower_bound, rounded, upper_bound
from luigi_tasks.fleet.tables import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luigi_tasks.fleet.records import RolloutPlan
    from luigi_tasks.fleet.stage_view import StageView, Vote

# Silence and restarts of the stage are the fleet's own where those of other devices are as common as this ...
COMMON_SHARE, OTHERS_AT_LEAST, FEW = 0.05, 10, 2
# ... unless chance explains the difference less often than this.
UNCOMMON_P = 0.001
# Devices that began and are silent halt, so many at least, where chance explains the difference less often.
# Smaller than for one test: each look is one, and shops switch off all of their devices together.
SILENT_AT_LEAST, SILENCE_P = 3, 0.0001


@dataclasses.dataclass(frozen=True)
class ErrorLimit:
    """How many failures are too many.

    Attributes:
        share: `10%`: a share of the devices, compared with the exact interval; None: not asked.
        devices: `2d`: so many failures, in a stage of which the share is fewer devices (with `10%|2d`: up to
            19 devices); without a share in any stage; None: not asked.
    """

    share: float | None
    devices: int | None

    def is_reached(self, failures: int, began: int, size: int, confidence: float) -> bool:
        """Whether failures halt.

        Args:
            failures: Devices that failed.
            began: Devices that the release has reached.
            size: Devices of the stage.
            confidence: One-sided.
        """
        if self.share is not None and lower_bound(failures, began, confidence) > self.share:
            return True
        if self.devices is None or failures < self.devices:
            return False
        return self.share is None or self.share * size < self.devices

    def allows(self, failures: int, ended: int) -> bool:
        """Whether the failures of a stage, all of whose devices have come to an end, may pass."""
        if self.share is not None:
            return failures <= self.share * ended
        return self.devices is None or failures < self.devices

    @property
    def limit(self) -> float:
        """The share, or 1."""
        return 1.0 if self.share is None else self.share


def error_limit(text: str) -> ErrorLimit:
    """Return the limit of a plan, such as `10%|2d`.

    Raises: InputError.
    """
    share, devices = None, None
    for part in text.replace(" ", "").split("|"):
        try:
            if part.endswith("%"):
                share = float(part[:-1]) / 100
            else:
                devices = int(part.removesuffix("d"))
        except ValueError as e:
            msg = f"errors {text!r}: a share of the devices such as 10%, a number such as 2d, or both: 10%|2d"
            raise InputError(msg) from e
    if (share is not None and not 0 < share < 1) or (devices is not None and devices < 1):
        msg = f"errors {text!r}: a share above 0% and below 100%, such as 10%; a number from 1d"
        raise InputError(msg)
    return ErrorLimit(share, devices)


def hard_checks(view: StageView) -> tuple[Check, ...]:
    """Return the hard checks of a stage."""
    return (failures(view), silence(view), passed(view), quorum(view))


def failed_votes(view: StageView) -> tuple[Vote, ...]:
    """Return the members that failed, each with its reason in its state or its `fault`.

    Silence and restarts that the rest of the fleet shares are no failures of the release.
    """
    is_outage, is_power = is_silence_common(view), are_restarts_common(view)
    return tuple(
        one
        for one in view.members
        if (one.state in FAILURES and not (one.state == SILENT and is_outage))
        or (one.fault and not (one.is_restarting and is_power))
    )


def failures(view: StageView) -> Check:
    """Count devices that failed."""
    plan = view.record.plan
    limit = error_limit(plan.errors)
    hit = failed_votes(view)
    names = {one.device for one in hit}
    good = sum(one.state == PASSED and one.device not in names for one in view.members)
    began, ended = len(view.began), good + len(hit)
    high = upper_bound(len(hit), ended, plan.confidence)
    is_settled = ended == len(view.seen) > 0
    result = INCONCLUSIVE
    if limit.is_reached(len(hit), began, len(view.members), plan.confidence):
        result = HALT
    elif (limit.share is not None and high <= limit.share) or (is_settled and limit.allows(len(hit), ended)):
        result = PASS
    check = Check(
        name="failures",
        kind=HARD,
        result=result,
        value=rounded(len(hit) / ended) if ended else None,
        low=rounded(lower_bound(len(hit), began, plan.confidence)),
        high=rounded(high),
        limit=limit.limit,
        unit="share",
        counted=ended,
    )
    return msgspec.structs.replace(check, words=_words_on_failures(plan, check, len(hit), began))


def _words_on_failures(plan: RolloutPlan, check: Check, failed: int, began: int) -> str:
    """Return what was counted, what limit it broke, and else what the count does not show."""
    if not check.counted:
        return "no device has come to an end; nothing is shown"
    limit = error_limit(plan.errors)
    words = f"{failed} of {count(began, 'device')} failed"
    low, high = check.low or 0.0, 1.0 if check.high is None else check.high
    if check.result == HALT and limit.share is not None and low > limit.share:
        words += f": at least {low:.0%} of the fleet would"
        return f"{words}, and the limit is {limit.share:.0%} (errors {plan.errors})"
    if check.result == HALT:
        return f"{words}, and the limit is {limit.devices} (errors {plan.errors})"
    share = f"up to {math.ceil(high * 100)}% of the fleet may still"
    words = f"{failed} of {count(check.counted, 'device')} failed: {share}"
    if limit.share is None or high <= limit.share:
        return words
    needed = math.ceil(math.log(1 - plan.confidence) / math.log1p(-limit.share))
    return f"{words}. {limit.share:.0%} is not shown: that takes {needed} devices without a failure"


def is_silence_common(view: StageView) -> bool:
    """Whether other devices are silent too, so that silence says nothing about the release.

    Others are those outside of the stage that were heard of since it opened. All that began are compared with
    them: of those that are still being tried, an outage leaves only the silent ones. Where nearly all are in
    the stage, devices that passed before they fell silent take their place. Of fewer than ten, half have to
    be silent.
    """
    under = view.began
    if not any(one.state == SILENT for one in under):
        return False
    quiet = sum(not one.is_heard for one in under)
    control = [one for one in view.control if one.state != UNSEEN]
    if len(control) >= OTHERS_AT_LEAST:
        others = sum(not one.is_heard for one in control)
        is_common = others >= COMMON_SHARE * len(control)
        return is_common and fisher_p(quiet, len(under), others, len(control)) >= UNCOMMON_P
    if _is_half_silent(control):
        return True
    passed_before = [one for one in under if one.state == PASSED]
    if len(passed_before) < OTHERS_AT_LEAST:
        return _is_half_silent(passed_before)
    return sum(not one.is_heard for one in passed_before) >= COMMON_SHARE * len(passed_before)


def _is_half_silent(few: Sequence[Vote]) -> bool:
    """Whether of a few devices, at least two, half or more are silent: no test tells more of so few."""
    return len(few) >= FEW and 2 * sum(not one.is_heard for one in few) >= len(few)


def are_restarts_common(view: StageView) -> bool:
    """Whether devices outside of the stage were started as often since it opened, as in a thunderstorm."""
    hit = sum(one.is_restarting for one in view.members)
    control = [one.row for one in view.control if one.row is not None and one.state != UNSEEN]
    if not hit or len(control) < OTHERS_AT_LEAST:
        return False
    opened, period_s = view.stage.opened_at, view.head.period_s
    others = sum(
        sum(one.restarts for one in row.periods if one.start + period_s > opened) >= BROKEN_RESTARTS
        for row in control
    )
    is_common = others >= COMMON_SHARE * len(control)
    return is_common and fisher_p(hit, len(view.began), others, len(control)) >= UNCOMMON_P


def silence(view: StageView) -> Check:
    """Compare the silence of devices under the release with that of devices outside of the stage."""
    plan = view.record.plan
    under = [one for one in view.members if one.state in BEGAN]
    quiet = sum(not one.is_heard for one in under)
    control = [one for one in view.control if one.state != UNSEEN]
    quiet_control = sum(not one.is_heard for one in control)
    result, words = PASS, f"{quiet} of {count(len(under), 'device')} fell silent under the release"
    value = quiet / len(under) if under else None
    if len(control) >= OTHERS_AT_LEAST:
        words += f", {quiet_control} of {len(control)} outside of the stage"
        excess = quiet / max(len(under), 1) - quiet_control / len(control)
        if (
            quiet >= SILENT_AT_LEAST
            and excess > error_limit(plan.errors).limit
            and fisher_p(quiet, len(under), quiet_control, len(control)) < SILENCE_P
        ):
            result = HALT
            words += f": more than chance explains and errors {plan.errors} allow"
    if is_silence_common(view):
        words += ": an outage, which says nothing about the release"
        result = INCONCLUSIVE
    return Check(
        name="silence",
        kind=HARD,
        result=result,
        value=None if value is None else rounded(value),
        unit="share",
        counted=len(under),
        control=len(control),
        words=words,
    )


def passed(view: StageView) -> Check:
    """Compare the devices that passed with those that have to."""
    plan = view.record.plan
    hit = {one.device for one in failed_votes(view)}
    good = sum(one.state == PASSED and one.device not in hit for one in view.members)
    seen = len(view.seen)
    least = _least_passed(view)
    words = f"{good} of {count(seen, 'device')} passed probation, and {least} must"
    unseen = len(view.members) - seen
    if unseen:
        words += f"; nothing is known of {unseen} more"
    return Check(
        name="passed",
        kind=HARD,
        result=PASS if good >= least else INCONCLUSIVE,
        value=rounded(good / seen) if seen else None,
        limit=plan.success,
        unit="share",
        counted=seen,
        words=words,
    )


def unsigned_passes(view: StageView) -> int:
    """Return the devices that passed and have no key; 0 where those that sign are enough for the stage."""
    hit = {one.device for one in failed_votes(view)}
    good = [one for one in view.members if one.state == PASSED and one.device not in hit]
    signed = sum(bool(one.enrolled.key) for one in good)
    return 0 if signed >= _least_passed(view) else len(good) - signed


def _least_passed(view: StageView) -> int:
    plan = view.record.plan
    share = math.ceil(plan.success * len(view.seen) - 1e-9)
    return max(min(plan.min_passed, len(view.members)), share, 1)


def quorum(view: StageView) -> Check:
    """Compare the registered devices of the stage that are heard of with those that have to be."""
    plan = view.record.plan
    heard, of = sum(one.is_heard for one in view.members), len(view.members)
    least = max(1, math.floor(plan.quorum * of + 1e-9))
    clones = sum(one.device in view.clones for one in view.members)
    doubled = f"; under the ids of {clones} two machines report (`edge-fleet devices`)" if clones else ""
    return Check(
        name="quorum",
        kind=HARD,
        result=PASS if heard >= least else INCONCLUSIVE,
        value=rounded(heard / of) if of else None,
        limit=plan.quorum,
        unit="share",
        counted=of,
        words=f"{heard} of {count(of, 'registered device')} reported lately, and {least} must{doubled}",
    )


def soak(view: StageView) -> Check:
    """Compare the time that the stage was watched, since all else was there, with the soak.

    What happened before the collector listened was not watched.
    """
    soak_s, since = view.record.plan.soak_s, view.stage.soaking_since
    watched_s = view.head.taken_at - max(since, view.head.listening_since) if since else 0.0
    unit, length_s = ("min", 60.0) if soak_s >= 600 else ("s", 1.0)
    times = f"{max(watched_s, 0) / length_s:.0f} of {soak_s / length_s:.0f} {unit}"
    return Check(
        name="soak",
        kind=HARD,
        result=PASS if watched_s >= soak_s else INCONCLUSIVE,
        value=rounded(watched_s),
        limit=rounded(soak_s),
        unit="s",
        words=f"watched for {times} since all else was there",
    )


def counts(votes: tuple[Vote, ...]) -> dict[str, int]:
    """Return the number of devices by state, in a fixed order."""
    return dict(sorted(Counter(one.state for one in votes).items()))
