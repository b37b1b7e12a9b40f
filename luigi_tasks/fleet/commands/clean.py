"""`edge-fleet clean`: what no published metadata names any more is removed from the bucket, on request."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from luigi_tasks.fleet.commands.command import Subparsers, new_command, read_settings, to_json

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers, "clean", run, "find files and metadata that nothing published names any more"
    )
    parser.add_argument(
        "--older-than",
        default="30d",
        metavar="TIME",
        help="keep what was written, or published metadata named, within this time (%(default)s)",
    )
    parser.add_argument("--delete", action="store_true", help="remove them; without it they are only counted")


def run(options: argparse.Namespace) -> str:
    """Return what was found, and removed with `--delete`."""
    from luigi_tasks.release.garbage import (  # noqa: PLC0415 - --help needs none of it
        count_kinds,
        find_garbage,
        remove_garbage,
    )
    from luigi_tasks.release.repository import ReleaseRepository  # noqa: PLC0415 - as above
    from luigi_tasks.storage.opening import open_store  # noqa: PLC0415 - as above

    age_s, settings = _read_age(options.older_than), read_settings()
    repository = ReleaseRepository(open_store(settings.store), settings.trust)
    garbage = find_garbage(repository, time.time() - age_s)
    if options.delete:
        remove_garbage(repository.store, garbage)
    counts = count_kinds(garbage.objects)
    if options.json:
        return to_json(
            {
                "deleted": options.delete,
                "counts": counts,
                "size_bytes": garbage.size_bytes,
                "kept": garbage.kept,
                "keys": [one.key for one in garbage.objects],
            }
        )
    size, done = f"{garbage.size_bytes / 1e6:.1f} MB", "removed" if options.delete else "can be removed"
    text = (
        f"{repository.store.url('')}: {counts['release']} files of releases, {counts['pointer']} pointers "
        f"and {counts['metadata']} versions of metadata {done} ({size}); {garbage.kept} objects stay\n"
    )
    return text if options.delete or not garbage.objects else text + "Nothing was removed: give --delete\n"


def _read_age(text: str) -> float:
    from luigi_tasks.release.garbage import LEAST_AGE_S  # noqa: PLC0415 - as above
    from luigi_tasks.settings.rollout import read_duration  # noqa: PLC0415 - as above

    try:
        age_s = read_duration(text)
    except ValueError as e:
        msg = f"--older-than {e}"
        raise InputError(msg) from e
    if age_s < LEAST_AGE_S:
        msg = f"--older-than {text}: at least 1d: devices and publishers may be in the middle of something"
        raise InputError(msg)
    return age_s
