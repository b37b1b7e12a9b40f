"""The reports of this device to its fleet: of each channel, signed with its key if it has one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.reporting.report_key import ReportKeyFile
from edge_client.reporting.reporter import Reported, Reports, wants_reports

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge_client.daemon.follower import Follower
    from edge_client.reporting.broker import BrokerConnection
    from edge_client.settings.file import Settings


class DeviceReports(Reports):
    """Reports over the daemon's broker."""

    def __init__(
        self,
        settings: Settings,
        followers: Mapping[str, Follower],
        broker: Callable[[], BrokerConnection | None],
    ) -> None:
        """Prepare.

        Args:
            settings: Settings of the device.
            followers: What is reported on.
            broker: Returns the connection.
        """
        self._key_file = ReportKeyFile(settings.device.key_file)
        super().__init__(
            settings,
            [_reported(settings, one) for one in followers.values()],
            connected=lambda: (found := broker()) is not None and found.connected,
            send=lambda topic, data: (found := broker()) is not None and found.report(topic, data),
            signer=self._key_file.key,
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with the key, with the way out."""
        return self._key_file.warnings


def open_reports(
    settings: Settings, followers: Mapping[str, Follower], broker: Callable[[], BrokerConnection | None]
) -> DeviceReports | None:
    """Return the reports; None where the settings want none."""
    return DeviceReports(settings, followers, broker) if wants_reports(settings) else None


def _reported(settings: Settings, follower: Follower) -> Reported:
    channel = follower.channel
    extra = "" if not channel or channel == settings.device.channel else channel
    return Reported(
        channel,
        extra,
        follower.board,
        follower.figures,
        lambda: follower.pace.heartbeat_s,
    )
