"""Settings of MQTT, status, Home Assistant and Prometheus."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from edge_client.contract.broker_tls import broker_doubt, find_broker_faults
from edge_client.contract.errors import SettingsError
from edge_client.contract.hosts import is_this_machine
from edge_client.settings.checks import Section, bad_names, failed, is_positive
from edge_client.settings.update import unreadable

# A device that says nothing for longer than a day is not told from one that is gone.
_LONGEST_S = 86400


@dataclasses.dataclass(frozen=True)
class BrokerSettings(Section):
    """Section [broker].

    Attributes:
        host: MQTT broker; empty: no broker, the device then only polls.
        port: Port of the broker.
        username: Empty: anonymous.
        password_file: File whose first line is the password.
        tls: MQTT over TLS.
        ca_file: CA certificate; empty: the system's.
        certificate_file: This device's client certificate, for brokers that require one.
        key_file: Private key of the client certificate, without a passphrase.
        alpn: Names of the protocol that TLS offers (ALPN); empty: none.
        keepalive_s: MQTT keep-alive; the broker publishes the last will after 1.5 times as long a silence.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    username: str = ""
    password_file: str = ""
    tls: bool = False
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    alpn: tuple[str, ...] = ()
    keepalive_s: int = 30

    @property
    def exposure(self) -> str | None:
        """Warning that the password can be read on the way; None if it cannot."""
        if self.tls or not self.host or not self.password_file or is_this_machine(self.host):
            return None
        return (
            f"[broker] tls = false: the password of {self.username or 'this device'} and all results go to "
            f"{self.host} in the clear; set tls = true"
        )

    @property
    def doubt(self) -> str | None:
        """Warning of settings that hardly any broker fits; None without one."""
        return broker_doubt(self)

    def faults(self) -> tuple[str, ...]:
        """See `Section.faults`."""
        return (
            *find_broker_faults(self),
            *failed((5 <= self.keepalive_s <= 3600, "keepalive_s: 5 to 3600")),
        )


@dataclasses.dataclass(frozen=True)
class StatusSettings(Section):
    """Section [status].

    Attributes:
        interval_s: Shortest time between two updates of frame count and latency.
        retain: Publish the status at the broker, retained, for people and dashboards.
        report_interval_s: Longest time between two reports to the fleet's collector, unless the fleet's
            rollout document gives another; 0: no reports.
    """

    interval_s: float = 30.0
    retain: bool = True
    report_interval_s: float = 30.0

    def faults(self) -> tuple[str, ...]:
        """See `Section.faults`."""
        return failed(
            (is_positive(self.interval_s), "interval_s: above 0"),
            (0 <= self.report_interval_s <= _LONGEST_S, f"report_interval_s: 0 to {_LONGEST_S}, 0: none"),
        )


@dataclasses.dataclass(frozen=True)
class HomeAssistantSettings(Section):
    """Section [homeassistant].

    Attributes:
        discovery: Publish Home Assistant's MQTT discovery messages.
        prefix: Discovery prefix: first part of the topics.
    """

    discovery: bool = False
    prefix: str = "homeassistant"

    def faults(self) -> tuple[str, ...]:
        """See `Section.faults`."""
        return bad_names([("prefix", self.prefix)])


@dataclasses.dataclass(frozen=True)
class MetricsSettings(Section):
    """Section [metrics].

    Attributes:
        port: Metrics are at http://<host>:<port>/metrics; 0: no metrics.
        host: Address to listen on.
    """

    port: int = 0
    host: str = "127.0.0.1"

    def faults(self) -> tuple[str, ...]:
        """See `Section.faults`."""
        return failed((0 <= self.port <= 65535, "port: 1 to 65535, or 0 for none"))


def read_password(broker: BrokerSettings) -> str | None:
    """Return the broker's password; None without a password file.

    Raises: SettingsError if it is not there or has no text; DeviceError if it cannot be read.
    """
    if not broker.password_file:
        return None
    what, way_out = f"[broker] password_file {broker.password_file}", "its first line is the password"
    try:
        lines = Path(broker.password_file).read_text(encoding="utf-8-sig").splitlines()
    except OSError as e:
        raise unreadable(e, Path(broker.password_file), what, way_out, secret=True) from e
    except UnicodeDecodeError as e:
        msg = f"{what}: is not UTF-8; save it as UTF-8: {way_out}"
        raise SettingsError(msg) from e
    if not lines or not lines[0]:
        msg = f"{what}: has nothing in its first line; {way_out}"
        raise SettingsError(msg)
    return lines[0]
