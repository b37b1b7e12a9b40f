"""Two machines under one device id: a card that was copied, or a bundle that was used twice.

A run is one life of a daemon: (fingerprint of the machine, boot, number of the start). A run that was
followed by another one has ended. If it reports again, with a higher sequence than before, both may be alive.
A report that was late looks like two such returns (it, and the run that goes on); three are no accident. A
board that was replaced, or a state folder that was put back, takes over once and is no clone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from edge_client.contract.report import DeviceReport

# Runs that are kept of a device: two clones that restart now and then.
_RUNS = 6
_RETURNS = 3
WINDOW_S = 86400.0


class DeviceRun(msgspec.Struct, frozen=True, kw_only=True):
    """One life of a daemon.

    Attributes:
        fingerprint: Of the machine.
        boot_id: Of this boot of the machine.
        start: Number of the start.
        sequence: The highest one that was heard.
        heard_at: When, seconds since 1970, the collector's clock.
    """

    fingerprint: str
    boot_id: str
    start: int
    sequence: int
    heard_at: float


class RunHistory(msgspec.Struct, frozen=True, kw_only=True):
    """The last runs of a device, newest last.

    Attributes:
        runs: The runs.
        returns: When a run reported again although another had followed it, seconds since 1970.
    """

    runs: tuple[DeviceRun, ...] = ()
    returns: tuple[float, ...] = ()


def note_run(history: RunHistory, report: DeviceReport, heard_at: float) -> RunHistory:
    """Return the history with a report.

    Args:
        history: The runs of a device.
        report: Its report; a report of each channel of the device may be given.
        heard_at: When it came, seconds since 1970, the collector's clock.
    """
    run = DeviceRun(
        fingerprint=report.machine.fingerprint,
        boot_id=report.boot_id,
        start=report.start,
        sequence=report.sequence,
        heard_at=heard_at,
    )
    known = next((one for one in history.runs if _is_same(one, run)), None)
    if known is not None and run.sequence <= known.sequence:
        return history  # repeated, or late
    returns = history.returns
    if known is not None and not _is_same(history.runs[-1], run):
        returns = (*(at for at in returns if at > heard_at - WINDOW_S), heard_at)[-_RETURNS:]
    others = tuple(one for one in history.runs if one is not known)
    return RunHistory(runs=(*others, run)[-_RUNS:], returns=returns)


def find_clones(history: RunHistory, now: float) -> tuple[str, ...]:
    """Return the machines that are alive under one id, if there is more than one; else nothing.

    Args:
        history: The runs of a device.
        now: Seconds since 1970, the collector's clock.
    Returns: Fingerprints; where two have the same one, also the boot.
    """
    if sum(at > now - WINDOW_S for at in history.returns) < _RETURNS:
        return ()
    since = min(history.returns)
    alive = [run for run in history.runs if run.heard_at >= since]
    fingerprints = sorted({run.fingerprint for run in alive})
    if len(fingerprints) > 1:
        return tuple(fingerprints)
    return tuple(sorted({f"{run.fingerprint} boot {run.boot_id} start {run.start}" for run in alive}))


def _is_same(one: DeviceRun, other: DeviceRun) -> bool:
    return (one.fingerprint, one.boot_id, one.start) == (other.fingerprint, other.boot_id, other.start)
