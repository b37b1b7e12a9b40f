"""A bundle on its way to the daemon, and what came of it; `bundle.py` reads it, in the child that looks."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from typing import TYPE_CHECKING

from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import EdgeError
from edge_client.disk import disk_errors, write_durably
from edge_client.settings.update import BUNDLE_SCHEME

if TYPE_CHECKING:
    from pathlib import Path

    from edge_client.settings.file import Settings

# Where a running daemon finds a bundle that it shall take.
BUNDLE_FILE = "bundle.tar"
# Where whoever left it finds what came of it.
RESULT_FILE = "bundle.result.json"
RESULT_LIMIT_BYTES = 65536


class BundleResult(Document, frozen=True, kw_only=True):
    """What came of a bundle.

    Attributes:
        message: In a sentence, for people.
        error: Kind of the error, see `look.name_of`; empty if there was none.
    """

    message: str
    error: str = ""


def of_bundle(settings: Settings, bundle: Path) -> Settings:
    """Return settings of a device whose store is a bundle."""
    return dataclasses.replace(
        settings, store=dataclasses.replace(settings.store, base_url=f"{BUNDLE_SCHEME}{bundle}")
    )


def hand_over(bundle: Path, state_dir: Path) -> Path:
    """Copy a bundle to where the daemon looks for one, whole or not at all; returns its place there.

    Raises: DeviceError.
    """
    place = state_dir / BUNDLE_FILE
    partial = place.with_name(f".{BUNDLE_FILE}.partial")
    with disk_errors(place):
        state_dir.mkdir(parents=True, exist_ok=True)
        (state_dir / RESULT_FILE).unlink(missing_ok=True)  # of another bundle
        try:
            shutil.copyfile(bundle, partial)
            partial.replace(place)
        except OSError:
            partial.unlink(missing_ok=True)  # the disk may be full: it must not stay so
            raise
    return place


def forget_bundle(state_dir: Path) -> None:
    """Remove a bundle that was dealt with; never fails."""
    with contextlib.suppress(OSError):
        (state_dir / BUNDLE_FILE).unlink()


def close_bundle(state_dir: Path, result: BundleResult) -> None:
    """Remove a bundle that was dealt with, and say what came of it; never fails."""
    forget_bundle(state_dir)  # first: it may be what fills the disk
    with contextlib.suppress(EdgeError):  # whoever waits for it says then that it is not known
        write_durably(state_dir / RESULT_FILE, encode_document(result))


def take_result(state_dir: Path) -> BundleResult | None:
    """Return what came of the bundle and remove that; None if it is not told (yet)."""
    file = state_dir / RESULT_FILE
    try:
        data = file.read_bytes()
        file.unlink()
        return decode_document(BundleResult, data, source=str(file), limit_bytes=RESULT_LIMIT_BYTES)
    except (OSError, EdgeError):
        return None
