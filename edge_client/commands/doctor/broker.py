"""Check the broker: connection, and each topic that the settings will use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from edge_client.contract.broker_tls import broker_doubt, is_aws
from edge_client.contract.errors import DeviceError, SettingsError
from edge_client.contract.names import (
    announcement_topic,
    command_topic,
    online_topic,
    probe_topic,
    report_request_topic,
    report_topic,
    results_topic,
    status_topic,
)
from edge_client.settings.file import of_channels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_client.reporting.broker_trial import Echo, Findings, Probe
    from edge_client.settings.file import Settings


def check_broker(settings: Settings) -> str:
    """Use each topic as the daemon will; return what was found.

    Without a daemon the connection has its id, for brokers whose policy goes by the id; with one it has
    another, since a second connection under the id would end the daemon's.
    """
    if not settings.broker.host:
        if settings.homeassistant.discovery:
            msg = "[homeassistant] discovery needs a broker, and [broker] host is empty"
            raise SettingsError(msg)
        alone = "results stay on this device" if settings.device.model else "this device only polls"
        return f"none ([broker] host is empty): {alone}"
    from edge_client.state_folder import daemon_runs  # noqa: PLC0415

    if daemon_runs(settings.device.state_dir):
        return _check_beside_daemon(settings)
    probes = [*_subscriptions(settings), *_publications(settings)]
    found = _try(settings, settings.device.id, probes, _online(settings))
    return _with_warnings(settings, found)


def _check_beside_daemon(settings: Settings) -> str:
    from edge_client.reporting.broker_trial import RefusedError  # noqa: PLC0415

    device = settings.device
    _check_daemons_word(settings)
    client_id = f"{device.id[:50]}-doctor"
    shown = (
        f"the daemon runs as {device.id} and reports no fault; this was tried as {client_id}, which cannot "
        f"show what the broker allows {device.id}: stop the daemon and run doctor again for that"
    )
    address = f"{settings.broker.host}:{settings.broker.port}"
    try:
        findings, outcome = _run(settings, client_id, list(_subscriptions(settings)), None)
    except RefusedError as e:
        if _are_newer_than_daemon(settings):
            way_out = f"{settings.file} was changed after the daemon started, which knows nothing of it yet"
            msg = f"{e} ({way_out}: systemctl restart edge-client, and run doctor again)"
            raise DeviceError(msg) from e
        return _with_warnings(settings, f"{address}: {shown} ({client_id} may not even connect: {e})")
    _raise_dropped(settings, outcome)
    refused = [use.topic for use in (*findings.denied, *findings.silent)]
    less = f" ({client_id} may not use {', '.join(refused)})" if refused else ""
    return _with_warnings(settings, f"{address}: {shown}{less}")


def _are_newer_than_daemon(settings: Settings) -> bool:
    """Whether the settings were written after the running daemon had read them: its word is of older ones."""
    from edge_client.state_folder import LOCK_FILE  # noqa: PLC0415

    try:
        return settings.file.stat().st_mtime > (settings.device.state_dir / LOCK_FILE).stat().st_mtime
    except OSError:
        return False


def _check_daemons_word(settings: Settings) -> None:
    """Raise DeviceError if the running daemon reports a fault of its broker."""
    from edge_client.reporting.status import STATUS_FILE, read_status  # noqa: PLC0415
    from edge_client.state_folder import refresh_status  # noqa: PLC0415

    state_dir = settings.device.state_dir
    if not refresh_status(state_dir, [state_dir / STATUS_FILE]):
        return
    warning = read_status(state_dir).warning or ""
    if "MQTT broker" in warning:
        msg = f"the daemon, which runs, reports: {warning}"
        raise DeviceError(msg)


def _run(
    settings: Settings, client_id: str, probes: list[Probe], will: Probe | None
) -> tuple[Findings, Echo]:
    from edge_client.reporting.broker_trial import BrokerTrial, Probe  # noqa: PLC0415
    from edge_client.reporting.denials import Act, Use  # noqa: PLC0415

    topic = probe_topic(settings.device.fleet, settings.device.id)
    echo = Probe(Use(Act.PUBLISH, topic), os.urandom(16).hex().encode())
    return BrokerTrial(settings.broker, client_id, will=will).run(probes, echo)


def _try(settings: Settings, client_id: str, probes: list[Probe], will: Probe | None) -> str:
    from edge_client.reporting.broker_trial import Echo  # noqa: PLC0415

    findings, outcome = _run(settings, client_id, probes, will)
    address = f"{settings.broker.host}:{settings.broker.port}"
    _raise_denied(findings, address, client_id)
    _raise_dropped(settings, outcome)
    used = f"{address}: accepts this device and its messages, tried on {len(findings.allowed)} topics"
    if settings.homeassistant.discovery and not is_aws(settings.broker):
        used += "; whether its ACL drops entities of Home Assistant in silence, only Home Assistant shows"
    if outcome is Echo.DENIED:
        topic = probe_topic(settings.device.fleet, settings.device.id)
        used += f"; whether it drops any in silence cannot be shown without {topic}"
    return used


def _raise_dropped(settings: Settings, outcome: Echo) -> None:
    """Raise DeviceError if a message that the broker took did not come back."""
    from edge_client.reporting.broker_trial import Echo  # noqa: PLC0415

    device, broker = settings.device, settings.broker
    if outcome is Echo.DROPPED:
        topic = probe_topic(device.fleet, device.id)
        name = (
            f"the name (CN) in [broker] certificate_file {broker.certificate_file}"
            if broker.certificate_file and not broker.username
            else f"[broker] username (now {broker.username!r})"
        )
        msg = (
            f"{broker.host}:{broker.port}: accepts this device, but a message published on {topic} does not "
            f"come back. With configs/mosquitto.acl {name} must be the device id {device.id}, and may read "
            "and write below edge/+/devices/<id>/"
        )
        raise DeviceError(msg)


def _raise_denied(findings: Findings, address: str, client_id: str) -> None:
    """Raise DeviceError that names each topic that is denied, dropped, or not tried."""
    from edge_client.reporting.refusal import describe_denial  # noqa: PLC0415

    told = [describe_denial(address, client_id, use) for use in findings.denied]
    told += [
        f"{describe_denial(address, client_id, use)} (it drops it in silence)" for use in findings.unseen
    ]
    told += [f"{address}: does not answer on {use.topic}, and stays connected" for use in findings.silent]
    if findings.untried:
        told.append(f"no time was left for {', '.join(use.topic for use in findings.untried)}")
    if told:
        raise DeviceError("; ".join(told))


def _subscriptions(settings: Settings) -> Iterator[Probe]:
    from edge_client.reporting.broker_trial import Probe  # noqa: PLC0415
    from edge_client.reporting.denials import Act, Use  # noqa: PLC0415
    from edge_client.reporting.reporter import wants_reports  # noqa: PLC0415

    device = settings.device
    if wants_reports(settings):
        yield Probe(Use(Act.SUBSCRIBE, report_request_topic(device.fleet)))
    if device.model:
        return  # nobody announces, nor asks for, another one
    for one in of_channels(settings):
        channel = one.device.channel
        yield Probe(Use(Act.SUBSCRIBE, announcement_topic(device.fleet, channel)))
        extra = "" if one is settings else channel
        yield Probe(Use(Act.SUBSCRIBE, command_topic(device.fleet, device.id, extra)))


def _publications(settings: Settings) -> Iterator[Probe]:
    """Yield messages that change nothing: what a stopped daemon left there, or an empty one."""
    from edge_client.reporting.broker_trial import Probe  # noqa: PLC0415
    from edge_client.reporting.denials import Act, Use  # noqa: PLC0415
    from edge_client.reporting.homeassistant import discovery_messages  # noqa: PLC0415
    from edge_client.reporting.reporter import wants_reports  # noqa: PLC0415
    from edge_client.reporting.status import STATUS_FILE  # noqa: PLC0415

    device, home = settings.device, settings.homeassistant
    has_run = (device.state_dir / STATUS_FILE).exists()
    yield _online(settings)
    for one in of_channels(settings):
        extra = "" if one is settings else one.device.channel
        file = one.device.state_dir / STATUS_FILE
        status = file.read_bytes() if file.exists() else b""
        if settings.status.retain:
            yield Probe(Use(Act.PUBLISH, status_topic(device.fleet, device.id, extra)), status, retain=True)
        if wants_reports(settings):
            yield Probe(Use(Act.PUBLISH, report_topic(device.fleet, device.id, extra)))
        if settings.sinks.mqtt:
            yield Probe(Use(Act.PUBLISH, results_topic(device.fleet, device.id, extra)))
        if home.discovery:
            messages = discovery_messages(home.prefix, device.fleet, device.id, extra)
            topic, payload = next(iter(messages.items()))
            yield Probe(Use(Act.PUBLISH, topic), payload if has_run else b"", retain=True)


def _online(settings: Settings) -> Probe:
    from edge_client.reporting.broker_trial import Probe  # noqa: PLC0415
    from edge_client.reporting.denials import Act, Use  # noqa: PLC0415
    from edge_client.reporting.status import STATUS_FILE  # noqa: PLC0415

    device = settings.device
    payload = b"offline" if (device.state_dir / STATUS_FILE).exists() else b""
    return Probe(Use(Act.PUBLISH, online_topic(device.fleet, device.id)), payload, retain=True)


def _with_warnings(settings: Settings, found: str) -> str:
    warnings = [one for one in (broker_doubt(settings.broker), settings.broker.exposure) if one]
    return f"{found}; warning: {'; '.join(warnings)}" if warnings else found
