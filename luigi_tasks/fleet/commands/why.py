"""`edge-fleet why DEVICE`: why a device serves what it serves, from what is signed to what it said last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from luigi_tasks.fleet.commands.command import Subparsers, finish, new_command, read_settings, to_json
from luigi_tasks.fleet.tables import UNKNOWN, age_in_words, shown

if TYPE_CHECKING:
    import argparse

    from edge_client.contract.report import DeviceReport
    from luigi_tasks.fleet.view import Expectation, FleetView, ShownDevice

_WORDS = 400
# Reasons of the collector for which the reports of a device without its newest bundle do not count.
_REJECTED = ("unsigned", "bad signature")
# Codes of a report in words; others are shown as they are.
_DECISIONS = {
    "serves": "serves what it ought to",
    "not_in_share": "is outside the share",
    "held": "holds the release back",
    "refused": "refused the release",
    "taking": "takes the release",
}


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(subparsers, "why", run, "explain why a device serves what it serves")
    parser.add_argument("device", help="device id")
    parser.add_argument("--channel", default="", help="only this channel (default: all of the device)")


def run(options: argparse.Namespace) -> str:
    """Return the explanation."""
    from luigi_tasks.fleet.commands.devices import to_dict  # noqa: PLC0415 - --help needs none of it
    from luigi_tasks.fleet.commands.told import told_snapshot  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.reading import read_view  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.view import snapshot_in_words  # noqa: PLC0415 - as above

    view = read_view(read_settings())
    found = [
        one for one in view.devices() if one.device == options.device and options.channel in {"", one.channel}
    ]
    if not found:
        raise InputError(_explain_missing(view, options.device, options.channel))
    explained = {one.channel: explain(view, one) for one in found}
    if options.json:
        told = [{**to_dict(view, one), "why": explained[one.channel]} for one in found]
        return finish(view, to_json({"snapshot": told_snapshot(view), "channels": told}))
    text = ""
    for one in found:
        text += f"{shown(one.device)} on channel {one.channel}\n"
        text += "".join(f"  {shown(line, _WORDS)}\n" for line in explained[one.channel])
    return finish(view, f"{text}{snapshot_in_words(view)}\n")


def explain(view: FleetView, one: ShownDevice) -> list[str]:
    """Return the explanation of one channel of a device: the conclusion, then each fact that it stands on."""
    expectation = view.expected(one.channel, one.member)
    return [
        _conclude(view, one, expectation),
        *_of_registry(view, one),
        *expectation.words,
        *_of_report(view, one),
    ]


def _explain_missing(view: FleetView, device: str, channel: str) -> str:
    where = f" on channel {channel}" if channel else ""
    if view.registry is not None and device in view.registry.retired:
        gone = view.registry.retired[device]
        return f"device {device}: left the fleet at {gone.retired_at}; `edge-fleet re-enroll` takes it back"
    return (
        f"device {device[:80]}{where}: it is not in the registry, and no snapshot has heard of it. "
        "`edge-fleet devices` lists all; ids are compared letter by letter"
    )


def _conclude(view: FleetView, one: ShownDevice, expectation: Expectation) -> str:
    report, wanted = one.report, expectation.release
    if view.head is None or report is None:
        why = "it never reported" if view.head is not None else "there is no snapshot"
        ought = f"It ought to have {wanted}" if wanted else "Nothing says what it ought to have"
        return f"what it serves is unknown: {why}. {ought}"
    serves = report.release or "nothing"
    if wanted is None or wanted == report.release:
        return f"serves {serves}, as it ought to"
    return f"serves {serves}, and ought to have {wanted}: {_explain_lag(one, report, wanted)}"


def _explain_lag(one: ShownDevice, report: DeviceReport, wanted: str) -> str:
    """Return why a device does not serve what it ought to, as far as it told."""
    figures = report.figures(wanted)
    why = report.last_error or f"its decision was: {report.decision or UNKNOWN}"
    if figures is not None and figures.reason:
        verb = "sent it back" if figures.probation == "sent_back" else "refused it"
        why = f"it {verb}: {figures.reason}"
    elif not report.knows_rollouts:
        why = "its client knows no rollouts, and waits until the channel moves; upgrade it"
    elif report.offered != wanted:
        why = (
            f"when it reported last it was offered {report.offered or 'nothing'}, and did not know of it yet"
        )
    elif report.waits_for:
        why = f"it waits for: {report.waits_for}"
    elif report.retry_at:
        why = f"a try failed, the next one is at {report.retry_at} by its clock: {report.last_error}"
    elif report.stage:
        why = f"the update is under way, in stage {report.stage}"
    return f"{why}; it owes reports since" if one.heard == "quiet" else why


def _of_registry(view: FleetView, one: ShownDevice) -> list[str]:
    entry = one.enrolled
    if view.registry is not None and one.device in view.registry.retired:
        at = view.registry.retired[one.device].retired_at
        return [f"registry: it left the fleet at {at}, and votes for nothing (`edge-fleet re-enroll`)"]
    if entry is None:
        return ["registry: not in it; it is shown, and votes for nothing (`edge-fleet enroll`)"]
    tags = ", ".join(entry.tags) or "none"
    line = f"registry: site {entry.site or 'none'}, class {entry.device_class or 'none'}, tags {tags}"
    enrolled = f"enrolled {entry.enrolled_at or UNKNOWN} by {entry.enrolled_by or UNKNOWN}"
    lines = [f"{line}; {enrolled}, epoch {entry.epoch}"]
    rejected = view.head.rejected if view.head is not None else {}
    if entry.key and one.heard != "heard" and any(reason in rejected for reason in _REJECTED):
        lines.append(
            "reports were rejected that the key of the last `enroll` or `re-enroll` did not sign, maybe "
            "this device's: is that bundle installed on it?"
        )
    member = one.member
    if one.differs:
        own = f"site {member.site or 'none'}, class {member.device_class or 'none'}"
        lines.append(
            f"its own settings differ, and it decides by them: {own}, tags {', '.join(member.tags) or 'none'}"
        )
    record = view.running(one.channel)
    if record is not None and one.device in record.skipped:
        lines.append(f"rollout {record.id} skips it: {record.skipped[one.device]}")
    return lines


def _of_report(view: FleetView, one: ShownDevice) -> list[str]:
    report, row = one.report, one.row
    if report is None or row is None:
        return []
    signed = "signed" if row.is_signed else "not signed"
    online = {True: "online", False: "offline", None: "online or not is unknown"}[row.online]
    client = f"client {report.client or 'of an earlier version'}, {report.runtime or 'runtime unknown'}"
    every = f"every {report.interval_s:g} s" if report.interval_s else "at changes"
    decision = _DECISIONS.get(report.decision, report.decision or UNKNOWN)
    seen = f"{age_in_words(view.now - row.last_seen)}, {signed}, {one.heard}, {online}"
    said = f"serves {report.release or 'nothing'}, state {report.state or UNKNOWN}; {decision}"
    lines = [
        f"report: {seen}; {every}; {client}",
        f"it said: {said}; offered {report.offered or 'nothing'}",
        f"it knew: steady {report.steady or 'nothing'}, rollout {report.rollout or 'none'}",
    ]
    if one.rollout_state:
        lines.append(f"in the rollout it counts as: {one.rollout_state}")
    lines += [
        f"{'sent back' if one_release.probation == 'sent_back' else 'refused'} {one_release.release}: "
        f"{one_release.reason} ({one_release.reason_code})"
        for one_release in report.releases
        if one_release.reason
    ]
    lines += [f"last error: {report.last_error}"] if report.last_error else []
    lines += [f"warning: {report.warning}"] if report.warning else []
    lines += ["the drift alarm is raised"] if report.drift_alarm else []
    if row.clones:
        lines.append(
            f"{len(row.clones)} machines report under this id; it votes for nothing until one is left"
        )
    return lines
