"""What verdicts of a rollout cannot see, by its stages and the registry: said before it starts."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from edge_client.contract.rollout import BY_SITE
from luigi_tasks.fleet.stages import members, place, preview

if TYPE_CHECKING:
    from collections.abc import Iterable

    from luigi_tasks.fleet.records import EnrolledDevice, RolloutRecord

# Devices (or sites) of each side below which a figure is reported, and judges nothing.
SIDE_AT_LEAST = 10
# Devices of each side of a group from which a person is asked where it looks worse.
SMALL_AT_LEAST = 3
# Devices of each side that show a change of a few points in the labels (`benchmarks/verdicts.py`).
LABELS_AT_LEAST = 25
CLASSES_AT_MOST = 5


def what_is_not_seen(record: RolloutRecord, enrolled: Iterable[EnrolledDevice]) -> str:
    """Return what the verdicts of a rollout will not show, in a sentence; empty: nothing is known to lack."""
    found = members(record, enrolled)
    if not found:
        return ""
    if not record.from_release:
        return "there is no release before to compare with: failures, restarts and silence are judged"
    what = "sites" if record.plan.by == BY_SITE else "devices"
    units = {_unit(record, one): place(record, one) for one in found}
    inside = [
        sum(one < stage.threshold for one in units.values()) for stage in preview(record, found, now=0.0)
    ]
    side = max((min(one, len(units) - one) for one in inside), default=0)
    if side < SIDE_AT_LEAST:
        return (
            f"no stage has {SIDE_AT_LEAST} {what} inside and as many outside: failures, restarts and silence "
            "are judged; latency, unsure answers and labels are only reported. Look at them before the last "
            "stage (`--approve`)"
        )
    least, clearly = (math.ceil(one * len(units) / side) for one in (SMALL_AT_LEAST, LABELS_AT_LEAST))
    classes = Counter({_unit(record, one): one.device_class for one in found}.values())
    small = sorted(f"{name} ({count})" for name, count in classes.items() if name and count < clearly)
    named = f": of the classes {', '.join(small[:CLASSES_AT_MOST])}" if small else ""
    more = f" and {len(small) - CLASSES_AT_MOST} more" if len(small) > CLASSES_AT_MOST else ""
    return (
        f"what hits a part of fewer than {least} {what} is not seen unless they fail, nor a few points in "
        f"the labels of one of fewer than {clearly}{named}{more}"
    )


def _unit(record: RolloutRecord, device: EnrolledDevice) -> str:
    if record.plan.by == BY_SITE and device.site:
        return f"site/{device.site}"
    return f"device/{device.device}"
