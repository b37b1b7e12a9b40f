"""Check the frames kept for labelling: their labels, and where they are uploaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.commands.doctor.machine import check_makeable
from edge_client.commands.doctor.model import current_slot
from edge_client.contract.addresses import shown_address
from edge_client.contract.errors import DeviceError, SettingsError
from edge_client.contract.file_urls import folder_of_url, is_file_url
from edge_client.contract.names import inbox_key
from edge_client.releases import read_release
from edge_client.settings.file import of_channels

if TYPE_CHECKING:
    from edge_client.settings.file import Settings

# A model may have a thousand.
_LABELS_SHOWN = 20


def check_inbox(settings: Settings) -> str:
    from edge_client.inbox.keeper import kept_records  # noqa: PLC0415
    from edge_client.inbox.selection import INBOX_DIR  # noqa: PLC0415
    from edge_client.inbox.upload_child import check_inbox_folder  # noqa: PLC0415
    from edge_client.settings.update import read_credentials  # noqa: PLC0415

    inbox = settings.inbox
    if not inbox.keeps:
        return "no frames are kept for labelling"
    where = inbox.base_url or settings.store.base_url
    shown = shown_address(where)
    if inbox.upload and is_file_url(where):
        check_inbox_folder(folder_of_url(where))
        check_makeable(folder_of_url(where) / inbox_key(settings.device.id, "x"))
    elif inbox.upload and read_credentials(settings.store) is None:
        msg = "[inbox] upload: needs keys that may write there; name them in [store] access_key_file"
        raise DeviceError(msg)
    _check_private_labels(settings)
    waiting = len(kept_records(settings.device.state_dir / INBOX_DIR))
    return f"{waiting} frames are kept and {f'uploaded to {shown}' if inbox.upload else 'not uploaded'}"


def _check_private_labels(settings: Settings) -> None:
    """Raise SettingsError if no release has one of the [inbox] never_labels."""
    folders = [folder for one in of_channels(settings) if (folder := current_slot(one)) is not None]
    known = {label for folder in folders for label in read_release(folder).labels}
    if folders and (unknown := settings.inbox.private_labels() - known):
        msg = (
            f"[inbox] never_labels: no release here has {', '.join(sorted(unknown))}, so frames that "
            f"show it are kept; there are {', '.join(sorted(known)[:_LABELS_SHOWN])}"
        )
        raise SettingsError(msg)
