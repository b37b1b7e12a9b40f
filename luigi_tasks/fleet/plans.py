"""A rollout's plan, from the settings of [rollout]."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edge_client.contract.errors import SettingsError
from edge_client.contract.names import check_name
from edge_client.contract.rollout import IN_WINDOW, NOW
from luigi_tasks.fleet.records import RolloutPlan
from luigi_tasks.settings.rollout import (
    read_approve,
    read_checks,
    read_conditions,
    read_duration,
    read_errors,
    read_pace,
    read_share,
    read_stages,
    read_window,
    split_list,
)

if TYPE_CHECKING:
    from luigi_tasks.settings.rollout import RolloutSettings
    from luigi_tasks.settings.values import FleetSettings


# Of all devices together: 100,000 report every hour. A device's own setting is 30 s if nobody changes it.
REPORTS_PER_S = 100_000 / 3600
OWN_HEARTBEAT_S, LONGEST_HEARTBEAT_S = 30.0, 3600.0


def plan_of(settings: RolloutSettings) -> RolloutPlan:
    """Return the plan that settings describe, which were checked.

    Raises: SettingsError without stages.
    """
    stages = read_stages(settings.stages)
    if not stages:
        msg = "[rollout] stages is empty: give --stages, such as 1d,3d,10%,50%,100%"
        raise SettingsError(msg)
    return RolloutPlan(
        stages=stages,
        min_passed=settings.min_passed,
        success=read_share(settings.success),
        errors=read_errors(settings.errors),
        quorum=read_share(settings.quorum),
        soak_s=read_duration(settings.soak),
        stage_timeout_s=read_duration(settings.stage_timeout),
        silent_after=settings.silent_after,
        approve=read_approve(settings.approve, len(stages)),
        only=read_conditions(settings.only),
        excluded=read_conditions(settings.excluded),
        by=settings.by,
        apply=settings.apply or (IN_WINDOW if settings.window else NOW),
        window=read_window(settings.window, settings.apply),
        pace_per_min=read_pace(settings.pace),
        on_breach=settings.on_breach,
        unsigned=settings.unsigned,
        report_only=read_checks(settings.report_only),
        tolerance=read_share(settings.tolerance),
    )


def heartbeat_of(settings: FleetSettings, devices: int) -> float:
    """Return the longest time between two reports of a device that suits a fleet of so many; 0: its own."""
    if settings.heartbeat_s:
        return settings.heartbeat_s
    every_s = float(math.ceil(devices / REPORTS_PER_S))
    return min(every_s, LONGEST_HEARTBEAT_S) if every_s > OWN_HEARTBEAT_S else 0.0


def every(heartbeat_s: float) -> str:
    """Return in words how often devices report."""
    return f"every {heartbeat_s:g} s" if heartbeat_s else "as their own settings say"


def read_variants(text: str) -> dict[str, str]:
    """Return releases by device class, from `zero2w=RELEASE` with commas.

    Raises: SettingsError.
    """
    found = {}
    for one in split_list(text):
        device_class, is_given, release = one.partition("=")
        if not is_given:
            msg = f"variants {one!r}: give CLASS=RELEASE, with commas between"
            raise SettingsError(msg)
        found[check_name(device_class, "device class")] = check_name(release, "release id")
    return found
