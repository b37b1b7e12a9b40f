"""The tasks that the board may start, with the options that each may have; no other text is an argument."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.addresses import shown_address
from edge_client.contract.errors import InputError, SettingsError
from edge_client.contract.names import check_name
from edge_client.contract.text import excerpt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from luigi_tasks.settings.values import PipelineSettings

NO_TENSORFLOW = (
    "TensorFlow is not installed where the board runs: pip install 'edge-fleet[pipeline]' there, "
    "or start the run where the pipeline lives: luigi --module luigi_tasks {task}"
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A task that may be started.

    Attributes:
        task: Its name for Luigi.
        title: What it does, in a few words.
        trains: Whether it needs TensorFlow.
        flags: Options without a value.
        values: Options with one, each with what checks it: given the value and the board's folder, it
            returns the value, or raises InputError.
        is_alone: Whether one at a time is enough, whatever its options.
        is_offered: Whether a person starts it on the page Pipeline; others are started by another page.
    """

    task: str
    title: str
    trains: bool = False
    flags: tuple[str, ...] = ()
    values: dict[str, Callable[[str, Path], str]] = dataclasses.field(default_factory=dict)
    is_alone: bool = True
    is_offered: bool = True


def _channel(name: str, folder: Path) -> str:  # noqa: ARG001 - as all checks of options
    return check_name(name, "channel")


def _own_file(path: str, folder: Path) -> str:
    """Return the path of a file that the board wrote itself."""
    full = Path(path).resolve()
    if not full.is_relative_to(folder.resolve()) or not full.is_file():
        msg = f"{excerpt(path)!r}: no file of the board; only what lies in {folder} may be named"
        raise InputError(msg)
    return str(full)


KINDS = {
    one.task: one
    for one in (
        Kind("Deploy", "Train, prove, publish", trains=True, flags=("--replace-classes",)),
        Kind("DoubtfulLabels", "List labels that are probably wrong", trains=True),
        Kind("AdvanceRollout", "Look at the rollout", values={"--channel": _channel}),
        Kind("RefreshMetadata", "Renew signatures"),
        Kind(
            "TakeLabelled",
            "Take labelled pictures into the dataset",
            flags=("--new-labels",),
            values={"--labels": _own_file},
            is_alone=False,
            is_offered=False,
        ),
    )
}
# What a task cannot be without.
_NEEDED = {"TakeLabelled": ("--labels",)}


def check_arguments(arguments: Sequence[str], folder: Path) -> tuple[Kind, tuple[str, ...]]:
    """Return the task and its options, each as it is given to Luigi.

    Args:
        arguments: Task, then options: `["TakeLabelled", "--labels", "/…/labels.csv", "--new-labels"]`.
        folder: The board's.
    Raises: InputError for what is not in the table; SettingsError without TensorFlow, where it is needed.
    """
    task, *options = arguments or [""]
    kind = KINDS.get(task)
    if kind is None:
        msg = f"{excerpt(task)!r}: the board starts no such task; it starts {', '.join(KINDS)}"
        raise InputError(msg)
    checked: list[str] = []
    given = iter(options)
    for option in given:
        if option in checked or option not in {*kind.flags, *kind.values}:
            may = ", ".join((*kind.flags, *kind.values)) or "none"
            msg = f"{task}: option {excerpt(option)!r} cannot be given (again); there are: {may}"
            raise InputError(msg)
        checked.append(option)
        if option in kind.values:
            checked.append(kind.values[option](next(given, ""), folder))
    for option in _NEEDED.get(task, ()):
        if option not in checked:
            msg = f"{task} needs {option}"
            raise InputError(msg)
    if (why := why_not(kind)) is not None:
        raise SettingsError(why)
    return kind, tuple(checked)


def why_not(kind: Kind) -> str | None:
    """Return why a task cannot be run here, with the way out; None if it can."""
    if kind.trains and importlib.util.find_spec("tensorflow") is None:
        return NO_TENSORFLOW.format(task=kind.task)
    return None


def describe(kind: Kind, settings: PipelineSettings) -> list[str]:
    """Return what a run will do under these settings, in sentences: what a person confirms."""
    channel = settings.release.channel
    store = shown_place(settings.store.url) or "the store ([store] url is empty)"
    pictures = shown_place(settings.dataset.url) or "[dataset] url is empty: there are none"
    if kind.task == "Deploy":
        stages = settings.rollout.stages
        after = (
            f"A release that passes the gate is signed in {store}, and a rollout on channel {channel} "
            f"begins in stages {stages}."
            if stages
            else f"A release that passes the gate is signed in {store}, and channel {channel} points to it: "
            "every device takes it at its next look."
        )
        return [
            f"Lists the pictures ({pictures}) and trains only where something is new.",
            "Measures the candidate against the deployed release; one that the gate refuses goes nowhere.",
            after,
        ]
    return {
        "DoubtfulLabels": [
            f"Compares every label of the dataset ({pictures}) with what a frozen network sees.",
            "Lists what probably stands in the wrong class; it changes no label.",
        ],
        "AdvanceRollout": [
            f"Looks at the rollout of channel {channel} once: opens the next stage, waits, or halts it.",
            "It is what cron runs every ten minutes; a rollout that goes badly is sent back at once.",
        ],
        "RefreshMetadata": [
            f"Signs again what is half expired in {store}, as far as its keys are on this machine.",
        ],
        "TakeLabelled": [f"Moves labelled frames from the inbox into the dataset ({pictures})."],
    }[kind.task]


def shown_place(url: str) -> str:
    """Return an address without what may be a secret in it; buckets and folders as they are."""
    return shown_address(url) if url.startswith(("http:", "https:")) else excerpt(url)
