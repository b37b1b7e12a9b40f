"""`edge-fleet releases`: the signed releases, and what the channels say of them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edge_client.contract.times import seconds_until
from luigi_tasks.fleet.commands.command import Subparsers, finish, new_command, read_settings, to_json
from luigi_tasks.fleet.commands.told import told_snapshot
from luigi_tasks.fleet.tables import UNKNOWN, age_in_words, table

if TYPE_CHECKING:
    import argparse

    from luigi_tasks.fleet.view import FleetView
    from luigi_tasks.release.published import RepositoryState

_LIMIT = 20


@dataclasses.dataclass(frozen=True)
class ListedRelease:
    """A release as the command shows it.

    Attributes:
        release: Its id.
        created_at: UTC, ISO 8601.
        accuracy: On the hold-out, 0 to 1.
        model_bytes: Size of its model.
        quantization: Scheme.
        device_class: Devices that it is for; empty: all.
        channels: What each channel says of it: `steady` or `withdrawn`.
    """

    release: str
    created_at: str
    accuracy: float
    model_bytes: int
    quantization: str
    device_class: str
    channels: dict[str, str]


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(subparsers, "releases", run, "list the signed releases, newest first")
    parser.add_argument("--limit", type=int, default=_LIMIT, help=f"at most so many (default {_LIMIT})")


def run(options: argparse.Namespace) -> str:
    """Return the table of releases."""
    from luigi_tasks.fleet.reading import read_view  # noqa: PLC0415 - --help needs none of it
    from luigi_tasks.fleet.view import count_releases, snapshot_in_words  # noqa: PLC0415 - as above
    from luigi_tasks.release.repository import ReleaseRepository  # noqa: PLC0415 - as above
    from luigi_tasks.storage.opening import open_store  # noqa: PLC0415 - as above

    settings = read_settings()
    state = ReleaseRepository(open_store(settings.store), settings.trust).look()
    view = read_view(settings)
    serving = count_releases([*view.devices()])
    listed = list_releases(state, options.limit)
    signed = len(state.releases())
    if options.json:
        told = [{**dataclasses.asdict(one), "devices": _serving(view, serving, one)} for one in listed]
        return finish(view, to_json({"snapshot": told_snapshot(view), "signed": signed, "releases": told}))
    if not listed:
        return f"{settings.store.url}: no release is signed here yet\n"
    rows = [
        (
            one.release,
            age_in_words(-seconds_until(one.created_at)) if one.created_at else UNKNOWN,
            f"{one.accuracy:.1%}",
            f"{one.model_bytes / 1e3:.0f} kB",
            one.quantization,
            one.device_class or "all",
            UNKNOWN if (number := _serving(view, serving, one)) is None else str(number),
            ", ".join(f"{channel}: {word}" for channel, word in one.channels.items()),
        )
        for one in listed
    ]
    text = table(("release", "made", "hold-out", "model", "scheme", "for", "devices", "channels"), rows)
    return finish(view, f"{text}{len(listed)} of {signed} signed releases. {snapshot_in_words(view)}\n")


def _serving(view: FleetView, serving: dict[str, int], one: ListedRelease) -> int | None:
    """Return how many registered devices reported a release; None: unknown, there is no snapshot."""
    return None if view.head is None else serving.get(one.release, 0)


def list_releases(state: RepositoryState, limit: int) -> list[ListedRelease]:
    """Return the newest releases of the repository, newest first."""
    words = _words_of_channels(state)
    listed = []
    for release in reversed(state.releases()[-limit:] if limit > 0 else state.releases()):
        document = state.release(release)
        if document is None:
            continue
        listed.append(
            ListedRelease(
                release=release,
                created_at=document.created_at,
                accuracy=document.accuracy,
                model_bytes=document.model_bytes,
                quantization=document.quantization,
                device_class=document.device_class,
                channels=words.get(release, {}),
            )
        )
    return listed


def _words_of_channels(state: RepositoryState) -> dict[str, dict[str, str]]:
    """Return what each channel says of the releases that it names, by release."""
    words: dict[str, dict[str, str]] = {}
    for path in state.files:
        folder, _, name = path.partition("/")
        pointer = state.channel(name.removesuffix(".json")) if folder == "channels" else None
        if pointer is None:
            continue
        for release in pointer.withdrawn:
            words.setdefault(release, {})[pointer.channel] = "withdrawn"
        words.setdefault(pointer.release, {})[pointer.channel] = "steady"
    return words
