"""Which devices of a rollout can run its release, before the first stage opens.

A device refuses by itself what it cannot run; that costs it a download, and a rollout a failure that was no
news. Here the same is told from what devices reported. Each device is in one of three groups, and unknown is
one of them: a device that never told its runtime is not counted among those that can.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edge_client import __version__
from edge_client.contract.release import PREPROCESSING_ID, ReleaseDocument
from edge_client.contract.rollout import selects
from luigi_tasks.fleet.runtimes import find_missing
from luigi_tasks.fleet.tables import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edge_client.contract.report import DeviceReport
    from luigi_tasks.fleet.records import DeviceRow, EnrolledDevice

# During an update the old model and the new one are both in memory.
_MODELS_IN_MEMORY = 2
_LISTED = 10
_OLD_CLIENT = (
    "its client knows no rollouts: it passes no stage, and gets the release when the channel moves; "
    "upgrade it first (scripts/install-device)"
)


@dataclasses.dataclass(frozen=True)
class Compatibility:
    """Registered devices of a rollout, by whether they can run what it has for them.

    Attributes:
        compatible: Ids of those that can, as far as is told before they try.
        incompatible: Those that cannot, with the reason.
        unknown: Those of which it is not known, with the reason.
    """

    compatible: tuple[str, ...]
    incompatible: dict[str, str]
    unknown: dict[str, str]

    def in_words(self) -> str:
        """Return the counts, and the devices that cannot, grouped by reason, in a paragraph."""
        total = len(self.compatible) + len(self.incompatible) + len(self.unknown)
        text = f"{len(self.compatible)} of {total} devices can run it"
        if self.incompatible:
            text += f"; {len(self.incompatible)} cannot: {_by_reason(self.incompatible)}"
        if self.unknown:
            text += f"; of {len(self.unknown)} it is unknown: {_by_reason(self.unknown)}"
        return text


def find_incompatible(
    release: ReleaseDocument,
    enrolled: Iterable[EnrolledDevice],
    rows: Sequence[DeviceRow],
    *,
    channel: str = "stable",
    variants: Mapping[str, ReleaseDocument] | None = None,
    only: tuple[str, ...] = (),
    excluded: tuple[str, ...] = (),
) -> Compatibility:
    """Return which devices of a rollout can run its release, or the variant for their class.

    Args:
        release: The release that is rolled out.
        enrolled: The registry.
        rows: A snapshot.
        channel: The channel of the rollout.
        variants: Release by device class.
        only: See `edge_client.contract.rollout.selects`.
        excluded: See `edge_client.contract.rollout.selects`.
    """
    reports = {row.device: row.report for row in rows if row.channel == channel and row.report is not None}
    members = [
        one
        for one in enrolled
        if not one.retired_at and channel in one.channels and selects(only, excluded, one.member)
    ]
    proven = _find_proven({one.device for one in members}, reports)
    compatible, incompatible, unknown = [], {}, {}
    for one in members:
        report = reports.get(one.device)
        told = report if report is not None and report.knows_rollouts else one
        device_class = told.device_class
        wanted = (variants or {}).get(device_class, release)
        if faults := _find_faults(wanted, device_class, report, proven):
            incompatible[one.device] = "; ".join(faults)
        elif doubts := _find_doubts(wanted, report, proven):
            unknown[one.device] = "; ".join(doubts)
        else:
            compatible.append(one.device)
    return Compatibility(tuple(compatible), incompatible, unknown)


def _find_proven(members: set[str], reports: Mapping[str, DeviceReport]) -> dict[str, dict[str, int]]:
    """Return the highest version of each operator that ran, by runtime; only registered devices count."""
    proven: dict[str, dict[str, int]] = {}
    for device in members & reports.keys():
        report = reports[device]
        seen = proven.setdefault(report.runtime, {})
        for operator, version in report.operators.items():
            seen[operator] = max(seen.get(operator, 0), version)
    return proven


def _find_faults(
    release: ReleaseDocument,
    device_class: str,
    report: DeviceReport | None,
    proven: Mapping[str, Mapping[str, int]],
) -> list[str]:
    """Return why a device cannot run a release."""
    faults = []
    if release.device_class and release.device_class != device_class:
        own = f"class {shown(device_class)}" if device_class else "none"
        faults.append(f"the release is for class {release.device_class}, the device has {own}")
    if report is None:
        return faults
    lacking, _ = find_missing(report.runtime, release.operators, _own_proof(report, proven))
    if report.runtime and lacking:
        faults.append(f"{shown(report.runtime)} has no {', '.join(lacking)}")
    memory = report.machine.memory_bytes
    if 0 < memory < release.model_bytes * _MODELS_IN_MEMORY:
        faults.append(
            f"model of {release.model_bytes / 1e6:.0f} MB, twice during an update, and "
            f"{memory / 1e6:.0f} MB of memory"
        )
    if release.preprocessing.id != PREPROCESSING_ID and report.client == __version__:
        faults.append(f"client {report.client} does not know preprocessing {release.preprocessing.id}")
    return faults


def _find_doubts(
    release: ReleaseDocument, report: DeviceReport | None, proven: Mapping[str, Mapping[str, int]]
) -> list[str]:
    """Return why it is unknown whether a device can run a release."""
    if report is None:
        return ["never reported"]
    if not report.knows_rollouts:
        return [_OLD_CLIENT]
    if not report.runtime:
        return ["never reported its runtime"]
    doubts = []
    _, unknown = find_missing(report.runtime, release.operators, _own_proof(report, proven))
    if unknown:
        doubts.append(f"whether {shown(report.runtime)} has {', '.join(unknown)}")
    if release.preprocessing.id != PREPROCESSING_ID and report.client != __version__:
        doubts.append(
            f"whether client {shown(report.client) or 'of unknown version'} knows preprocessing "
            f"{release.preprocessing.id}"
        )
    return doubts


def _own_proof(report: DeviceReport, proven: Mapping[str, Mapping[str, int]]) -> Mapping[str, int]:
    return proven.get(report.runtime, report.operators)


def _by_reason(devices: Mapping[str, str]) -> str:
    """Return the devices grouped by reason, the largest group first, each with its first devices."""
    groups: dict[str, list[str]] = {}
    for device, reason in devices.items():
        groups.setdefault(reason, []).append(device)
    texts = []
    for reason, found in sorted(groups.items(), key=lambda item: -len(item[1])):
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        texts.append(f"{reason} ({', '.join(sorted(found)[:_LISTED])}{more})")
    return "; ".join(texts)
