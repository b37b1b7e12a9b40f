"""Check the frames kept for labelling: their labels, and where they are uploaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.commands.doctor.machine import check_makeable
from edge_client.commands.doctor.model import labels_of_channels
from edge_client.contract.addresses import shown_address
from edge_client.contract.errors import DeviceError, SettingsError
from edge_client.contract.file_urls import folder_of_url, is_file_url
from edge_client.contract.names import inbox_key
from edge_client.settings.labels import unknown_private

if TYPE_CHECKING:
    from edge_client.settings.file import Settings


def check_inbox(settings: Settings) -> str:
    from edge_client.inbox.keeper import kept_records  # noqa: PLC0415
    from edge_client.inbox.selection import INBOX_DIR  # noqa: PLC0415
    from edge_client.inbox.upload_child import check_inbox_folder  # noqa: PLC0415
    from edge_client.repository.keys import open_keys  # noqa: PLC0415

    inbox = settings.inbox
    if not inbox.keeps:
        return "no frames are kept for labelling"
    where = inbox.base_url or settings.store.base_url
    shown = shown_address(where)
    if inbox.upload and is_file_url(where):
        check_inbox_folder(folder_of_url(where))
        check_makeable(folder_of_url(where) / inbox_key(settings.device.id, "x"))
    elif inbox.upload and open_keys(settings.store) is None:
        msg = "[inbox] upload: needs keys that may write there; name them in [store] access_key_file"
        raise DeviceError(msg)
    known = labels_of_channels(settings)
    if known is not None and (warning := unknown_private(inbox, known)) is not None:
        raise SettingsError(warning)
    waiting = len(kept_records(settings.device.state_dir / INBOX_DIR))
    return f"{waiting} frames are kept and {f'uploaded to {shown}' if inbox.upload else 'not uploaded'}"
