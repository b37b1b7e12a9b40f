"""`edge-fleet rollouts`: the rollouts of a channel, and one of them with all that happened to it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError, TrustError
from edge_client.contract.times import seconds_until
from luigi_tasks.fleet.commands.command import Subparsers, finish_with, new_command, read_settings, to_json
from luigi_tasks.fleet.person import person
from luigi_tasks.fleet.records import APPROVAL, DONE, ENDED, HALTED, PAUSED, ROLLOUT_STATES
from luigi_tasks.fleet.tables import age_in_words, clock_in_words, count, shown, table

if TYPE_CHECKING:
    import argparse

    from luigi_tasks.fleet.records import RolloutRecord, VerdictRecord
    from luigi_tasks.fleet.rollouts import Rollouts
    from luigi_tasks.fleet.view import FleetView
    from luigi_tasks.settings.values import PipelineSettings

_WORDS = 300
_LIMIT = 20


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers, "rollouts", run, "list rollouts, or show one with its events and verdict"
    )
    parser.add_argument("rollout", nargs="?", default="", help="id of a rollout, or `current`")
    parser.add_argument("--channel", default="", help="only this channel (default: all; for one: [release])")
    parser.add_argument(
        "--state",
        action="append",
        default=[],
        choices=ROLLOUT_STATES,
        metavar="STATE",
        help=f"only rollouts in this state; repeatable: {', '.join(ROLLOUT_STATES)}",
    )
    parser.add_argument("--release", default="", help="only rollouts of this release")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="make the last verdict of a rollout again from the snapshots that it names, and compare",
    )
    parser.add_argument(
        "--accept",
        action="store_true",
        help="after a theft of the key: end what ran, and sign again what this machine saw of its records",
    )
    parser.add_argument(
        "--limit", type=int, default=_LIMIT, help=f"at most so many (default {_LIMIT}); 0: all"
    )


def run(options: argparse.Namespace) -> str:
    """Return the table, or the page of one rollout."""
    from luigi_tasks.fleet.opening import open_documents  # noqa: PLC0415 - --help needs none of it
    from luigi_tasks.fleet.reading import find_channels  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.rollouts import Rollouts  # noqa: PLC0415 - as above

    settings = read_settings()
    if options.accept:
        return _accept(options, settings)
    rollouts = Rollouts(open_documents(settings))
    if options.verify and not options.rollout:
        msg = "--verify: name a rollout, or `current`"
        raise InputError(msg)
    if options.rollout:
        return _show_one(options, rollouts, settings)
    channels = [options.channel] if options.channel else find_channels(rollouts.documents.store)
    faults: list[str] = []
    found = [
        record
        for channel in channels
        for record in rollouts.find_all(channel, faults)
        if (not options.state or record.state in options.state)
        and (not options.release or record.release == options.release)
    ]
    found.sort(key=lambda record: record.created_at, reverse=True)
    shown_ones = found[: options.limit] if options.limit > 0 else found
    if options.json:
        return finish_with(faults, to_json({"total": len(found), "rollouts": shown_ones}))
    if not found:
        is_chosen = options.state or options.release
        return finish_with(faults, "no rollout matches\n" if is_chosen else "no rollout was started yet\n")
    columns = ("rollout", "channel", "release", "from", "state", "stage", "started", "by", "last")
    text = table(columns, [_row(record) for record in shown_ones])
    return finish_with(faults, f"{text}{len(shown_ones)} of {len(found)}\n")


def _accept(options: argparse.Namespace, settings: PipelineSettings) -> str:
    """Return what became of each channel's rollouts."""
    from luigi_tasks.fleet.actions import open_fleet  # noqa: PLC0415 - --help needs none of it
    from luigi_tasks.fleet.reading import find_channels  # noqa: PLC0415 - as above

    fleet = open_fleet(settings)
    channels = [options.channel] if options.channel else find_channels(fleet.documents.store)
    words = [fleet.accept(channel, person()) for channel in channels]
    return to_json({"accepted": words}) if options.json else "".join(f"{one}\n" for one in words)


def rollout_in_words(view: FleetView, record: RolloutRecord) -> str:
    """Return where a rollout stands, and what it waits for."""
    text = f"rollout {record.id}: release {record.release}, {_state(record)}"
    if record.stages:
        stage = record.stages[-1]
        plan = record.plan.stages[stage.number - 1] if stage.number <= len(record.plan.stages) else ""
        text += f", stage {stage.number} of {len(record.plan.stages)} ({plan}): "
        text += f"{count(stage.size, 'device')}, open {age_in_words(view.now - stage.opened_at)}"
    text += "\n"
    if record.events:
        last = record.events[-1]
        text += f"last: {last.what} {age_in_words(-seconds_until(last.at))} by {shown(last.who) or 'nobody'}"
        text += f": {shown(last.why, _WORDS)}\n" if last.why else "\n"
    if record.skipped:
        text += f"{count(len(record.skipped), 'device')} left out: they cannot run it\n"
    if record.state == APPROVAL:
        text += f"to go on: edge-fleet approve --channel {record.channel} --why WHY\n"
    elif record.state == PAUSED:
        text += f"to go on: edge-fleet resume --channel {record.channel} --why WHY; to end it: back\n"
    elif record.state == HALTED:
        text += (
            f"to send its devices back: edge-fleet back --channel {record.channel} --why WHY; resume accepts "
            "what halted it\n"
        )
    return text


def ended_in_words(record: RolloutRecord) -> str:
    """Return how the last rollout of a channel ended, and why."""
    text = f"the last, {record.id} of release {record.release}, is {_state(record)}"
    if record.events:
        text += f", {age_in_words(-seconds_until(record.events[-1].at))}"
    decided = [one for one in record.events if one.what in {"halted", "paused"}]
    reason = (decided or list(record.events))[-1:]
    told = f"stage {reason[0].stage}: {shown(reason[0].why, _WORDS)}" if reason and reason[0].why else ""
    return f"{text}; {told}\n" if told and record.state != DONE else f"{text}\n"


def _show_one(options: argparse.Namespace, rollouts: Rollouts, settings: PipelineSettings) -> str:
    channel = options.channel or settings.release.channel
    name = options.rollout
    if name == "current":
        current = rollouts.current(channel)
        name = current.document.rollout or current.document.last if current is not None else ""
        if not name:
            msg = f"channel {channel}: no rollout was started yet"
            raise InputError(msg)
    found = rollouts.find(channel, name)
    if found is None:
        msg = f"channel {channel}: no rollout {name[:80]}; `edge-fleet rollouts` lists them"
        raise InputError(msg)
    record = found.document
    keys = [one.verdict for one in record.events if one.verdict]
    faults: list[str] = []
    verdict = _find_verdict(rollouts, keys[-1], faults) if keys else None
    verified = _verify(rollouts, settings, record, verdict) if options.verify else ""
    if options.json:
        return finish_with(faults, to_json({"rollout": record, "verdict": verdict, "verified": verified}))
    rows = [
        (
            f"{one.number} ({record.plan.stages[one.number - 1]})"
            if one.number <= len(record.plan.stages)
            else "",
            str(one.size),
            clock_in_words(one.opened_at),
            str(one.looks),
        )
        for one in record.stages
    ]
    text = f"rollout {record.id} of channel {record.channel}: release {record.release}"
    text += f", from {record.from_release or 'nothing'}; {_state(record)}\n"
    if rows:
        text += "\n" + table(("stage", "devices", "opened", "looks"), rows)
    events = [
        (one.at[:19], one.what, shown(one.who), str(one.stage or ""), shown(one.why, _WORDS))
        for one in record.events
    ]
    text += "\n" + table(("at", "what", "who", "stage", "why"), events, _WORDS)
    text += _verdict_in_words(verdict, time.time()) if verdict is not None else ""
    return finish_with(faults, text + (f"\nverified: {verified}\n" if verified else ""))


def _find_verdict(rollouts: Rollouts, key: str, faults: list[str]) -> VerdictRecord | None:
    try:
        return rollouts.verdict(key)
    except TrustError as e:
        faults.append(str(e))
        return None


def _verify(
    rollouts: Rollouts, settings: PipelineSettings, record: RolloutRecord, verdict: VerdictRecord | None
) -> str:
    from luigi_tasks.fleet.verification import verify_verdict  # noqa: PLC0415 - for this alone

    if verdict is None:
        msg = f"rollout {record.id}: nothing was decided by a verdict yet; nothing to verify"
        raise InputError(msg)
    return verify_verdict(rollouts.documents, settings.broker.fleet, record, verdict)


def _verdict_in_words(verdict: VerdictRecord, now: float) -> str:
    text = f"\nverdict of stage {verdict.stage}, look {verdict.look}, {age_in_words(now - verdict.at)}: "
    text += f"{verdict.result}. {shown(verdict.words, _WORDS)}\n"
    checks = [
        (one.name, one.kind, one.result, str(one.counted), shown(one.words, _WORDS)) for one in verdict.checks
    ]
    if checks:
        text += table(("check", "kind", "result", "devices", "in words"), checks, _WORDS)
    if verdict.common:
        rows = [
            (one.fact, f"{one.hit} of {one.hit_of}", f"{one.others} of {one.others_of}")
            for one in verdict.common
        ]
        text += "\n" + table(("in common", "hit devices", "others"), rows)
    if verdict.examples:
        examples = [
            (one.device, one.state, one.site, one.device_class, one.reason) for one in verdict.examples
        ]
        text += "\n" + table(("device", "state", "site", "class", "reason"), examples, _WORDS)
    return text


def _state(record: RolloutRecord) -> str:
    return record.state.replace("_", " ")


def _row(record: RolloutRecord) -> tuple[str, ...]:
    last = record.events[-1] if record.events else None
    stage = record.stages[-1].number if record.stages else 0
    return (
        record.id,
        record.channel,
        record.release,
        record.from_release or "nothing",
        _state(record) if record.state in ENDED else f"{_state(record)} (runs)",
        f"{stage} of {len(record.plan.stages)}",
        age_in_words(-seconds_until(record.created_at)),
        record.created_by,
        f"{last.what}: {last.why}" if last and last.why else last.what if last else "",
    )
