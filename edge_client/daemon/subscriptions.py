"""What the daemon listens to at the broker: announcements of channels, requests to update and to report."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from edge_client.contract.names import announcement_topic, command_topic, report_request_topic
from edge_client.daemon.channel import ChannelFollower
from edge_client.reporting.homeassistant import INSTALL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from edge_client.daemon.follower import Follower
    from edge_client.daemon.reports import DeviceReports
    from edge_client.settings.update import DeviceSettings


def announcement_handlers(
    device: DeviceSettings, followers: Iterable[Follower]
) -> dict[str, Callable[[bytes], None]]:
    """Return who gets the announcements of each topic."""
    return {
        announcement_topic(device.fleet, one.channel): one.triggers.announce for one in _channels(followers)
    }


def command_handlers(
    device: DeviceSettings, followers: Iterable[Follower], reports: DeviceReports | None
) -> dict[str, Callable[[bytes], None]]:
    """Return who gets the requests of each topic; that of the main channel has no name in its topic."""
    handlers: dict[str, Callable[[bytes], None]] = {
        command_topic(device.fleet, device.id, "" if one.channel == device.channel else one.channel): (
            functools.partial(_on_update_command, one)
        )
        for one in _channels(followers)
    }
    if reports is not None:
        handlers[report_request_topic(device.fleet)] = reports.request
    return handlers


def _channels(followers: Iterable[Follower]) -> list[ChannelFollower]:
    return [one for one in followers if isinstance(one, ChannelFollower)]


def _on_update_command(follower: ChannelFollower, payload: bytes) -> None:
    """Install the channel's release on request, whoever sent it: only what is signed is installed."""
    if payload == INSTALL:
        follower.request_update()
