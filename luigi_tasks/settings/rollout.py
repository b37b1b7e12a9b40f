"""Settings of section [rollout]: the stages of a rollout, shares and durations, as they are written.

`3d` among the stages is a number of devices, and three days where a time is asked for.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

from edge_client.contract.errors import InputError
from edge_client.contract.windows import parse_window

BY = ("device", "site")
APPLY = ("now", "window", "ask")
ON_BREACH = ("back", "pause")
UNSIGNED = APPROVE, COUNT = ("approve", "count")

STAGES_ALLOWED = "devices or shares that grow up to 100%, with commas, such as 1d,3d,10%,50%,100%"
SHARE_ALLOWED = "a share such as 95%, 0% to 100%"
ERRORS_ALLOWED = "a share such as 10%, a number of devices such as 2d, or both with | between"
DURATION_ALLOWED = "a time such as 30m, 2h or 3d (s, m, h, d)"
WINDOW_ALLOWED = "a time of the day such as 01:00-05:00"
# The checks of a verdict that can report only; the soak is a time, and set as one.
CHECKS = (
    "failures",
    "silence",
    "passed",
    "quorum",
    "latency",
    "unsure",
    "failed_frames",
    "restarts",
    "confidence",
    "drift",
    "figures",
)
CONDITION_ALLOWED = "site=NAME, class=NAME, device=ID or tags, with commas"

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")
_DEVICES = re.compile(r"([1-9]\d*)d")
_PACE = re.compile(r"(\d+(?:\.\d+)?)(?:/(min|h))?")
_CONDITION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(=[A-Za-z0-9][A-Za-z0-9._-]{0,63})?")


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """How a release comes to the fleet; texts as they are written."""

    stages: str = ""
    min_passed: int = 1
    success: str = "95%"
    errors: str = "10%|2d"
    quorum: str = "80%"
    soak: str = "2h"
    stage_timeout: str = "3d"
    silent_after: float = 3.0
    approve: str = ""
    only: str = ""
    excluded: str = ""
    by: str = "device"
    apply: str = ""
    window: str = ""
    pace: str = "0"
    on_breach: str = "back"
    unsigned: str = "approve"
    report_only: str = ""
    tolerance: str = "25%"


def split_list(text: str) -> tuple[str, ...]:
    """Split a list at its commas."""
    return tuple(one.strip() for one in text.split(",") if one.strip())


def read_duration(text: str) -> float:
    """Return the seconds of a time such as `2h`; raises ValueError."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        msg = f"{text!r}: give {DURATION_ALLOWED}"
        raise ValueError(msg)
    return float(found[1]) * _SECONDS[found[2]]


def read_share(text: str) -> float:
    """Return a share such as `95%` as 0 to 1; raises ValueError."""
    found = _SHARE.fullmatch(text.strip())
    if found is None or float(found[1]) > 100:
        msg = f"{text!r}: give {SHARE_ALLOWED}"
        raise ValueError(msg)
    return float(found[1]) / 100


def read_count(text: str) -> int | None:
    """Return the number of devices that a text such as `3d` gives; None where it gives none."""
    found = _DEVICES.fullmatch(text.strip())
    return None if found is None else int(found[1])


def devices_of(text: str, devices: int) -> int:
    """Return how many of so many devices `3d` or `10%` are: at least one, rounded up; raises ValueError."""
    count = read_count(text)
    if count is None:
        count = max(math.ceil(read_share(text) * devices - 1e-9), 1)
    return min(count, devices)


def read_stages(text: str) -> tuple[str, ...]:
    """Return the stages; raises ValueError unless they grow, and the last is 100%."""
    stages = split_list(text)
    counts = [read_count(one) for one in stages if read_count(one) is not None]
    shares = [_stage_share(one) for one in stages if read_count(one) is None]
    if stages and (stages[-1] != "100%" or any(read_count(one) for one in stages[len(counts) :])):
        msg = f"{text!r}: give {STAGES_ALLOWED}; numbers first, and 100% last"
        raise ValueError(msg)
    for growing in (counts, shares):
        if any(later <= earlier for earlier, later in itertools.pairwise(growing)):  # type: ignore[operator]
            msg = f"{text!r}: each stage is larger than the one before; give {STAGES_ALLOWED}"
            raise ValueError(msg)
    return stages


def _stage_share(text: str) -> float:
    try:
        share = read_share(text)
    except ValueError:
        share = 0.0
    if share <= 0:
        msg = f"{text!r}: give {STAGES_ALLOWED}"
        raise ValueError(msg)
    return share


def read_errors(text: str) -> str:
    """Return what halts, as it is written; raises ValueError."""
    parts = [one.strip() for one in text.split("|")]
    shares = [read_share(one) for one in parts if _SHARE.fullmatch(one)]
    counts = [one for one in parts if read_count(one) is not None]
    if len(shares) + len(counts) < len(parts) or max(len(shares), len(counts)) > 1:
        msg = f"{text!r}: give {ERRORS_ALLOWED}"
        raise ValueError(msg)
    if any(not 0 < one < 1 for one in shares):
        msg = f"{text!r}: a share above 0% and below 100%, such as 10%; 1d halts at the first failure"
        raise ValueError(msg)
    return "|".join(one.strip() for one in text.split("|"))


def read_approve(text: str, stages: int) -> tuple[int, ...]:
    """Return the numbers of the stages that wait for a person; raises ValueError."""
    numbers = split_list(text)
    if not all(one.isdecimal() and 1 <= int(one) <= stages for one in numbers):
        allowed = f"1 to {stages}" if stages else "none without stages"
        msg = f"{text!r}: give numbers of stages, {allowed}, with commas"
        raise ValueError(msg)
    return tuple(sorted({int(one) for one in numbers}))


def read_pace(text: str) -> float:
    """Return the devices a minute that may move: `2000/min` or `500/h`; 0: no limit; raises ValueError."""
    found = _PACE.fullmatch(text.strip())
    if found is None or (found[2] is None and float(found[1]) != 0):
        msg = f"{text!r}: give devices a minute or an hour, such as 2000/min or 500/h; 0: no limit"
        raise ValueError(msg)
    return float(found[1]) / (60 if found[2] == "h" else 1)


def read_window(text: str, apply: str) -> str:
    """Return a window; raises ValueError, also where `apply` needs one and there is none."""
    if text or apply == "window":
        try:
            parse_window(text)  # as the devices do
        except InputError as e:
            msg = f"{text!r}: give {WINDOW_ALLOWED}, in the local time of the devices"
            raise ValueError(msg) from e
    return text


def read_conditions(text: str) -> tuple[str, ...]:
    """Return the conditions that select devices; raises ValueError."""
    conditions = split_list(text)
    for one in conditions:
        if not _CONDITION.fullmatch(one):
            msg = f"{one!r}: give {CONDITION_ALLOWED}"
            raise ValueError(msg)
    return conditions


def read_checks(text: str) -> tuple[str, ...]:
    """Return names of checks, also of one of a group or label (`latency:class=pi5`); raises ValueError."""
    names = split_list(text)
    for one in names:
        if one.partition(":")[0] not in CHECKS:
            msg = f"{one!r}: give names of checks, with commas: {', '.join(CHECKS)}"
            raise ValueError(msg)
    return names


def find_rollout_faults(settings: RolloutSettings, share_percent: float) -> list[str]:
    """Return one sentence for each setting of [rollout] that cannot work."""
    stages = len(split_list(settings.stages))
    readers = {
        "stages": lambda: read_stages(settings.stages),
        "success": lambda: read_share(settings.success),
        "errors": lambda: read_errors(settings.errors),
        "quorum": lambda: read_share(settings.quorum),
        "soak": lambda: read_duration(settings.soak),
        "stage_timeout": lambda: read_duration(settings.stage_timeout),
        "approve": lambda: read_approve(settings.approve, stages),
        "only": lambda: read_conditions(settings.only),
        "excluded": lambda: read_conditions(settings.excluded),
        "window": lambda: read_window(settings.window, settings.apply),
        "pace": lambda: read_pace(settings.pace),
        "report_only": lambda: read_checks(settings.report_only),
        "tolerance": lambda: read_share(settings.tolerance),
    }
    faults = []
    for name, read in readers.items():
        try:
            read()  # type: ignore[no-untyped-call]
        except ValueError as e:
            faults.append(f"[rollout] {name}: {e}")
    if not faults and read_duration(settings.soak) >= read_duration(settings.stage_timeout):
        faults.append("[rollout] soak: shorter than stage_timeout, or no stage could pass")
    if settings.min_passed < 1:
        faults.append("[rollout] min_passed: at least 1")
    if settings.silent_after < 1:
        faults.append("[rollout] silent_after: at least 1")
    if stages and share_percent < 100:
        faults.append(
            f"[rollout] stages: [release] share_percent is {share_percent:g}, and stages replace it; remove "
            "the line share_percent, or the stages"
        )
    return faults
