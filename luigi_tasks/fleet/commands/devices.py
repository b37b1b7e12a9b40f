"""`edge-fleet devices`: what each device reported last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luigi_tasks.fleet.commands.command import Subparsers, finish, new_command, read_settings, to_json
from luigi_tasks.fleet.commands.selection import add_filters, add_page, choose, cut
from luigi_tasks.fleet.tables import UNKNOWN, age_in_words, table

if TYPE_CHECKING:
    import argparse

    from luigi_tasks.fleet.view import FleetView, ShownDevice

_ONLINE = {True: "yes", False: "no", None: UNKNOWN}


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(subparsers, "devices", run, "list devices with what they reported last")
    add_filters(parser)
    add_page(parser)


def run(options: argparse.Namespace) -> str:
    """Return the table of devices."""
    from luigi_tasks.fleet.reading import read_view  # noqa: PLC0415 - --help needs none of it
    from luigi_tasks.fleet.view import snapshot_in_words  # noqa: PLC0415 - as above

    view = read_view(read_settings())
    page = cut(choose(view.devices(), options), options)
    if options.json:
        from luigi_tasks.fleet.commands.told import told_snapshot  # noqa: PLC0415 - as above

        told = [to_dict(view, one) for one in page.devices]
        content = {
            "snapshot": told_snapshot(view),
            "total": page.total,
            "offset": page.offset,
            "devices": told,
        }
        return finish(view, to_json(content))
    columns = (
        "device",
        "channel",
        "site",
        "class",
        "release",
        "heard",
        "rollout",
        "online",
        "last seen",
        "note",
    )
    text = table(columns, [_row(view, one) for one in page.devices]) if page.devices else ""
    return finish(view, f"{text}{page.in_words()}. {snapshot_in_words(view)}\n")


def to_dict(view: FleetView, one: ShownDevice) -> dict[str, Any]:
    """Return a device for machines; times are seconds since 1970 by the collector's clock."""
    return {
        "device": one.device,
        "channel": one.channel,
        "enrolled": one.enrolled is not None,
        "site": one.member.site,
        "class": one.member.device_class,
        "tags": one.member.tags,
        "release": one.release,
        "heard": one.heard,
        "rollout_state": one.rollout_state,
        "expected": view.expected(one.channel, one.member).release,
        "online": one.row.online if one.row else None,
        "is_signed": one.row.is_signed if one.row else None,
        "last_seen": one.row.last_seen if one.row and one.report else None,
        "clones": one.row.clones if one.row else (),
        "report": one.report,
    }


def _row(view: FleetView, one: ShownDevice) -> tuple[str, ...]:
    seen = age_in_words(view.now - one.row.last_seen) if one.row is not None and one.report else "never"
    return (
        one.device,
        one.channel,
        one.member.site,
        one.member.device_class,
        one.release,
        one.heard,
        one.rollout_state,
        _ONLINE[one.row.online if one.row else None],
        seen if one.heard != UNKNOWN else UNKNOWN,
        "; ".join(notes_of(one)),
    )


def notes_of(one: ShownDevice) -> list[str]:
    """Return what is odd about a device, the worst first."""
    notes = []
    report = one.report
    if one.enrolled is None:
        notes.append("not enrolled, votes for nothing")
    if one.row is not None and one.row.clones:
        notes.append(f"{len(one.row.clones)} machines report under this id")
    if (
        one.enrolled is not None
        and one.enrolled.key
        and one.row is not None
        and report
        and not one.row.is_signed
    ):
        notes.append("report not signed with its key")
    if report is None:
        return notes
    if one.differs:
        notes.append("site, class or tags differ from the registry")
    if report.drift_alarm:
        notes.append("drift alarm")
    notes += [text for text in (report.warning, report.last_error) if text]
    return notes
