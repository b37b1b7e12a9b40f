"""Handover of a bundle to the daemon, and of the result back."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from typing import TYPE_CHECKING

from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import DeviceError, EdgeError
from edge_client.disk import disk_errors, write_durably
from edge_client.settings.update import BUNDLE_SCHEME

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from edge_client.settings.file import Settings

# Where a running daemon finds a bundle to import.
BUNDLE_FILE = "bundle.tar"
# Where `edge-client import` finds the result.
RESULT_FILE = "bundle.result.json"
RESULT_LIMIT_BYTES = 65536


class BundleResult(Document, frozen=True, kw_only=True):
    """Result of importing a bundle.

    Attributes:
        message: In a sentence, for people.
        error: Kind of the error, see `check_process.error_kind`; empty without one.
    """

    message: str
    error: str = ""


def of_bundle(settings: Settings, bundle: Path) -> Settings:
    """Return the settings with a bundle as the store."""
    return dataclasses.replace(
        settings, store=dataclasses.replace(settings.store, base_url=f"{BUNDLE_SCHEME}{bundle.absolute()}")
    )


def hand_over(bundle: BinaryIO, state_dir: Path, min_free_bytes: int = 0) -> Path:
    """Copy a bundle to where the daemon reads it, atomically; return the copy's path.

    Args:
        bundle: The opened file.
        state_dir: State folder of the channel.
        min_free_bytes: Space to leave free.
    Raises: DeviceError.
    """
    place = state_dir / BUNDLE_FILE
    partial = place.with_name(f".{BUNDLE_FILE}.partial")
    with disk_errors(place):
        state_dir.mkdir(parents=True, exist_ok=True)
        (state_dir / RESULT_FILE).unlink(missing_ok=True)  # of an earlier bundle
        partial.unlink(missing_ok=True)  # of an import that was killed
        _check_space(bundle, state_dir, min_free_bytes)
        try:
            bundle.seek(0)
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copy:
                shutil.copyfileobj(bundle, copy)
            partial.replace(place)
        except OSError:
            partial.unlink(missing_ok=True)  # the disk may be full: free the space
            raise
    return place


def _check_space(bundle: BinaryIO, folder: Path, min_free_bytes: int) -> None:
    free, size_bytes = shutil.disk_usage(folder).free, os.fstat(bundle.fileno()).st_size
    if free < size_bytes + min_free_bytes:
        msg = (
            f"{folder}: {free} bytes free, {size_bytes + min_free_bytes} needed ({size_bytes} for a copy of "
            "the bundle, the rest is [update] min_free_bytes); free some space"
        )
        raise DeviceError(msg)


def forget_bundle(state_dir: Path) -> None:
    """Remove a bundle that was read; never fails."""
    with contextlib.suppress(OSError):
        (state_dir / BUNDLE_FILE).unlink()


def close_bundle(state_dir: Path, result: BundleResult) -> None:
    """Remove a bundle that was read, and write the result; never fails."""
    forget_bundle(state_dir)  # first: it may be filling the disk
    with contextlib.suppress(EdgeError):  # `import` then reports that the result is missing
        write_durably(state_dir / RESULT_FILE, encode_document(result))


def claim_result(state_dir: Path) -> BundleResult | None:
    """Read and remove the result; None if there is none (yet)."""
    file = state_dir / RESULT_FILE
    try:
        data = file.read_bytes()
        file.unlink()
        return decode_document(BundleResult, data, source=str(file), limit_bytes=RESULT_LIMIT_BYTES)
    except (OSError, EdgeError):
        return None
