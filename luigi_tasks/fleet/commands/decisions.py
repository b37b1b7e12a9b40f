"""`edge-fleet approve | pause | resume | back | abort`: what a person decides about a channel's rollout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luigi_tasks.fleet.commands.command import Subparsers, new_command, read_settings, to_json
from luigi_tasks.fleet.person import for_history, person
from luigi_tasks.fleet.tables import count

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from luigi_tasks.fleet.records import RolloutRecord

_COMMANDS = {
    "approve": "approve the next stage of a rollout that waits for a person",
    "pause": "pause a rollout: devices keep what they have, and no stage opens",
    "resume": "let a paused rollout go on; what a check found is accepted",
    "back": "send the devices of a rollout back to the steady release; its release is withdrawn",
    "abort": "end a rollout at once; its devices return, and nothing is withdrawn",
}


def add_parser(subparsers: Subparsers) -> None:
    """Add the commands."""
    for name, text in _COMMANDS.items():
        parser = new_command(subparsers, name, run, text)
        parser.add_argument("--channel", default="", help="its channel (default: [release] channel)")
        parser.add_argument("--why", required=True, help="reason, for the rollout's history")
        parser.add_argument("--who", default="", help="name of the person (default: the login name)")
        if name == "approve":
            parser.add_argument("--stage", type=int, default=0, help="stage, from 1 (default: the next)")


def run(options: argparse.Namespace) -> str:
    """Do it; return where the rollout stands then."""
    who, why = for_history(options.who or person(), "--who"), for_history(options.why, "--why")
    settings = read_settings()
    from luigi_tasks.fleet.actions import open_fleet  # noqa: PLC0415 - --help needs none of it

    channel = options.channel or settings.release.channel
    fleet = open_fleet(settings)
    acts: dict[str, Callable[[], RolloutRecord | None]] = {
        "approve": lambda: fleet.approve(channel, who, why, options.stage),
        "pause": lambda: fleet.pause(channel, who, why),
        "resume": lambda: fleet.resume(channel, who, why),
        "back": lambda: fleet.back(channel, who, why),
        "abort": lambda: fleet.abort(channel, who, why),
    }
    record = acts[options.command]()
    if options.json:
        return to_json({"channel": channel, "rollout": record})
    if record is None:
        return f"channel {channel}: its rollout is ended; its record was gone\n"
    stage = record.stages[-1] if record.stages else None
    place = (
        f", stage {stage.number} of {len(record.plan.stages)}, {count(stage.size, 'device')}" if stage else ""
    )
    state = record.state.replace("_", " ")
    return f"channel {channel}: rollout {record.id} of release {record.release}: {state}{place}\n"
