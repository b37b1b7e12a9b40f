"""Check the root of trust and the store with the device's channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.contract.addresses import shown_address
from edge_client.contract.errors import DeviceError
from edge_client.settings.file import of_channels

if TYPE_CHECKING:
    from edge_client.settings.file import Settings

# S3 answers RequestTimeTooSkewed beyond.
_S3_CLOCK_SLACK_S = 900.0


def check_root(settings: Settings) -> str:
    from edge_client.repository.trusted import describe_root  # noqa: PLC0415 - imports python-tuf
    from edge_client.settings.update import read_root  # noqa: PLC0415

    return describe_root(read_root(settings.trust), str(settings.trust.root))


def check_store(settings: Settings) -> str:
    from edge_client.repository.opening import open_repository  # noqa: PLC0415 - imports python-tuf

    with open_repository(settings, remember=False) as repository:
        repository.refresh()
        channels = [repository.channel(one.device.channel) for one in of_channels(settings)]
    found = ", ".join(f"channel {one.channel} points to release {one.release}" for one in channels)
    return f"{shown_address(settings.store.base_url)}: {found}"


def check_keys(settings: Settings) -> str:
    """Fetch temporary keys of the store."""
    from edge_client.repository.keys import TemporaryKeys  # noqa: PLC0415

    store, keys = settings.store, TemporaryKeys(settings.store)
    keys.current()
    if abs(behind_s := keys.clock_behind_s) > _S3_CLOCK_SLACK_S:
        msg = (
            f"this device's clock is {abs(behind_s) / 3600:.1f} hours {'behind' if behind_s > 0 else 'ahead'}"
            ": Amazon S3 refuses what it signs; connect it to a time server (timedatectl set-ntp true)"
        )
        raise DeviceError(msg)
    return (
        f"temporary ones of role alias {store.role_alias} for thing {store.thing_name}, "
        f"for {keys.life_s / 60:.0f} minutes"
    )
