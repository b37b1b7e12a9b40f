"""Check the machine of this device: clock, state folder, and the rights to the settings' files."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError
from edge_client.disk import disk_errors
from edge_client.permissions import user_name, way_to_read

if TYPE_CHECKING:
    import datetime

    from edge_client.settings.file import Settings


def check_clock_set(now: datetime.datetime) -> str:
    from edge_client.repository.clock import check_clock  # noqa: PLC0415

    check_clock(now)
    return now.isoformat(timespec="seconds")


def check_state(settings: Settings) -> str:
    folder, update = settings.device.state_dir, settings.update
    with disk_errors(folder):
        if folder.is_symlink() and not folder.exists():
            raise FileExistsError(errno.EEXIST, f"a link to {folder.readlink()}, which is not there")
        found = _probe(folder) if folder.exists() else check_makeable(folder)
        free = shutil.disk_usage(folder if folder.exists() else _above(folder)).free
    wanted = update.min_free_bytes + update.max_release_bytes
    if settings.device.model:  # no release is ever installed
        wanted = 0
    if free < wanted:
        msg = (
            f"{folder}: {free // 1_000_000} MB free; the largest release and the reserve need "
            f"{wanted // 1_000_000} MB ([update] max_release_bytes, min_free_bytes); make room"
        )
        raise DeviceError(msg)
    return f"{folder}: {found}, {free // 1_000_000} MB free"


def check_files(settings: Settings) -> str:
    """Check that this user may read the settings' files. Raises: DeviceError with the commands that help."""
    store, broker, user = settings.store, settings.broker, user_name(os.geteuid())
    device = settings.device
    labels = device.labels if isinstance(device.labels, str) else ""
    served = [device.model, labels] if device.model else [str(settings.trust.root)]
    public = [str(settings.file), *served, store.ca_file, broker.ca_file, broker.certificate_file]
    public += [store.certificate_file, store.credentials_ca_file]
    secret = [store.access_key_file, store.key_file, broker.password_file, broker.key_file]
    secret += [device.key_file]
    told = [
        f"{file}: run `{command}`"
        for files in (public, secret)
        for file in files
        if file and (command := way_to_read(Path(file), secret=files is secret)) is not None
    ]
    if told:
        msg = f"{user} may not read {'; '.join(told)}"
        raise DeviceError(msg)
    return f"{user} may read all that the settings name"


def _probe(folder: Path) -> str:
    """Write and delete a temporary file. Raises: OSError."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"probe")
        os.fsync(probe.fileno())
    return "writable"


def check_makeable(path: Path) -> str:
    """Check, without creating anything, that this user may create a file or folder and its parents.

    Raises: DeviceError.
    """
    above = _above(path)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        msg = f"{path}: cannot be created: {above} is not writable for this user; change owner or setting"
        raise DeviceError(msg)
    return "not there yet, `edge-client run` creates it"


def _above(path: Path) -> Path:
    """Return the nearest existing folder above a path."""
    return next(folder for folder in path.parents if folder.exists())
