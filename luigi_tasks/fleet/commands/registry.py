"""`edge-fleet enroll | re-enroll | retire | collector-key | registry`: who is in the fleet."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import EdgeError, InputError, SettingsError, TransportError
from edge_client.contract.hosts import is_this_machine
from edge_client.contract.names import check_name
from edge_client.contract.times import utc_now
from luigi_tasks.fleet.commands.command import Subparsers, new_command, read_settings, to_json
from luigi_tasks.fleet.person import person

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from luigi_tasks.fleet.documents import SignedDocuments
    from luigi_tasks.fleet.enrolment import WantedDevice
    from luigi_tasks.fleet.handover import HandedOver, Handover
    from luigi_tasks.fleet.records import EnrolledDevice
    from luigi_tasks.settings.values import PipelineSettings

_FOLDER = Path("enrolled")
_PASSWORDS = "mosquitto-passwords"
_POLICIES = ("edge-aws-iot-policy",)
_SHOWN = 20
# Of so many devices the command tells how far it is.
_MANY = 100


def add_parser(subparsers: Subparsers) -> None:
    """Add the commands."""
    enroll = new_command(
        subparsers,
        "enroll",
        _enroll,
        "let devices into the fleet: keys, broker credentials, settings bundles",
    )
    enroll.add_argument("device", nargs="?", default="", metavar="DEVICE", help="its id")
    enroll.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="CSV with a row for each device: columns device, site, tags, class, channels; all or none",
    )
    _add_facts(enroll)
    _add_handover(enroll)
    again = new_command(
        subparsers, "re-enroll", _re_enroll, "give a device new keys; what the old ones signed counts no more"
    )
    again.add_argument("device", metavar="DEVICE", help="its id; it may have left the fleet")
    _add_facts(again)
    _add_handover(again)
    retire = new_command(
        subparsers, "retire", _retire, "let devices leave the fleet, and remove their retained messages"
    )
    retire.add_argument("devices", nargs="+", metavar="DEVICE")
    retire.add_argument(
        "--password-file", type=Path, metavar="FILE", help="take their lines out of Mosquitto's password_file"
    )
    retire.add_argument(
        "--prefix", default="homeassistant", help="of Home Assistant's discovery; empty: none (%(default)s)"
    )
    collector = new_command(
        subparsers, "collector-key", _collector_key, "make a collector's key, and name it in the registry"
    )
    collector.add_argument("name", nargs="?", metavar="NAME", help="of the collector ([fleet] collector)")
    how = collector.add_mutually_exclusive_group()
    how.add_argument(
        "--out", type=Path, metavar="FILE", help="where its key goes ([fleet] collector_key_file)"
    )
    how.add_argument("--remove", action="store_true", help="its snapshots count no more")
    collector.add_argument(
        "--replace", action="store_true", help="a new key in the place of the one of before"
    )
    registry = new_command(subparsers, "registry", _registry, "check the registry, and count who is in it")
    registry.add_argument(
        "--accept",
        action="store_true",
        help="take what is in the bucket for the newest, after it was restored from a backup",
    )


def _add_facts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--site", metavar="NAME", help="where it is")
    parser.add_argument("--tag", action="append", metavar="TAG", help="such as outdoor or line=3; repeatable")
    parser.add_argument("--class", dest="device_class", metavar="NAME", help="its class of devices")
    parser.add_argument(
        "--channel", action="append", metavar="NAME", help="(stable); the first is its main one"
    )


def _add_handover(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the device gets")
    group.add_argument(
        "--out", type=Path, default=_FOLDER, metavar="FOLDER", help="for bundles: secret (%(default)s/)"
    )
    group.add_argument(
        "--settings",
        type=Path,
        metavar="FILE",
        help="device.toml with what all devices have, such as [source]",
    )
    group.add_argument("--base-url", default="", metavar="URL", help="releases (from [store] of luigi.cfg)")
    group.add_argument("--unsigned", action="store_true", help="no key for its reports: they count for less")
    broker = group.add_mutually_exclusive_group()
    broker.add_argument(
        "--password-file",
        type=Path,
        metavar="FILE",
        help=f"Mosquitto's password_file, to put its line into (FOLDER/{_PASSWORDS})",
    )
    broker.add_argument(
        "--broker-certificate", action="store_true", help="a client certificate in the place of a password"
    )
    broker.add_argument(
        "--aws-iot", action="store_true", help="a certificate, and commands that register it at AWS IoT Core"
    )
    broker.add_argument("--anonymous", action="store_true", help="no credentials for the broker")
    broker.add_argument(
        "--keep-broker", action="store_true", help="nothing: a device that runs already keeps what it has"
    )
    group.add_argument("--ca-certificate", type=Path, metavar="FILE", help="CA that signs certificates, PEM")
    group.add_argument("--ca-key", type=Path, metavar="FILE", help="its private key, PEM")
    group.add_argument("--days", type=int, default=3650, help="a certificate is valid for (%(default)s)")
    group.add_argument(
        "--aws-policy", action="append", metavar="NAME", help=f"policy to attach ({_POLICIES[0]}); repeatable"
    )


# Enrolment


def _enroll(options: argparse.Namespace) -> str:
    from luigi_tasks.fleet.enrolment import enroll_rows  # noqa: PLC0415 - --help needs none of it
    from luigi_tasks.fleet.registry import NoRegistryError, find_devices  # noqa: PLC0415

    wanted = _wanted_devices(options)
    settings, documents = _open()
    with contextlib.suppress(NoRegistryError):  # before many keys are made in vain
        enroll_rows(wanted, find_devices(documents, [one.device for one in wanted]), {}, "", "")

    def rows(known: Mapping[str, EnrolledDevice], keys: Mapping[str, str]) -> tuple[EnrolledDevice, ...]:
        return enroll_rows(wanted, known, keys, utc_now(), person())

    handed = _hand_over(options, settings, documents, wanted, rows)
    return _in_words(options, handed, "in the fleet")


def _re_enroll(options: argparse.Namespace) -> str:
    from luigi_tasks.fleet.enrolment import re_enroll_row  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.registry import find_devices  # noqa: PLC0415

    name = check_name(options.device, "device")
    settings, documents = _open()
    wanted = _with_facts(_known(find_devices(documents, [name]), name), options)

    def rows(known: Mapping[str, EnrolledDevice], keys: Mapping[str, str]) -> tuple[EnrolledDevice, ...]:
        return (re_enroll_row(_known(known, name), wanted, keys[name], utc_now(), person()),)

    handed = _hand_over(options, settings, documents, (wanted,), rows)
    return _in_words(options, handed, "in the fleet with new keys; what the old ones sign counts no more")


def _wanted_devices(options: argparse.Namespace) -> tuple[WantedDevice, ...]:
    from luigi_tasks.fleet.enrolment import WantedDevice, check_device, read_devices  # noqa: PLC0415 - as above

    if bool(options.device) == bool(options.source):
        raise InputError("enroll: give one DEVICE, or --from FILE")
    if not options.source:
        return (check_device(_changed(WantedDevice(options.device), options)),)
    if any((options.site, options.tag, options.device_class, options.channel)):
        raise InputError("enroll: --from FILE has columns for site, tags, class and channels")
    return read_devices(options.source)


def _with_facts(before: EnrolledDevice, options: argparse.Namespace) -> WantedDevice:
    """Return what a device was, with what the options change."""
    from luigi_tasks.fleet.enrolment import WantedDevice, check_device  # noqa: PLC0415 - as above

    was = WantedDevice(before.device, before.site, before.device_class, before.tags, before.channels)
    return check_device(_changed(was, options))


def _changed(wanted: WantedDevice, options: argparse.Namespace) -> WantedDevice:
    given = {
        "site": options.site,
        "device_class": options.device_class,
        "tags": options.tag and tuple(one for one in options.tag if one),
        "channels": options.channel and tuple(options.channel),
    }
    return dataclasses.replace(wanted, **{name: value for name, value in given.items() if value is not None})


def _known(devices: Mapping[str, EnrolledDevice], name: str) -> EnrolledDevice:
    if name not in devices:
        msg = f"{name}: was never enrolled; `edge-fleet enroll {name}` does that"
        raise InputError(msg)
    return devices[name]


def _hand_over(
    options: argparse.Namespace,
    settings: PipelineSettings,
    documents: SignedDocuments,
    wanted: Sequence[WantedDevice],
    rows: Callable[[Mapping[str, EnrolledDevice], Mapping[str, str]], tuple[EnrolledDevice, ...]],
) -> list[HandedOver]:
    """Make credentials and bundles, and then the change of the registry: a device in it has its bundle."""
    from luigi_tasks.fleet.handover import change_passwords, hand_over_all, write_aws_script  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.registry import RegistryChange, change_registry  # noqa: PLC0415

    how = _how(options, settings)
    if options.aws_iot and (dots := [one.device for one in wanted if "." in one.device]):
        msg = f"{', '.join(dots[:_SHOWN])}: names of things in AWS IoT Core have no dots"
        raise InputError(msg)
    try:
        handed = list(_with_progress(hand_over_all(how, wanted), len(wanted)))
        keys = {one.device: one.key for one in handed}
        change_registry(
            documents, keys, lambda known: RegistryChange(rows(known, keys)), who=person(), begin=True
        )
    except TransportError as e:
        msg = f"{e}. If it is said to be enrolled when you try again, the bundles in {how.folder} are good"
        raise TransportError(msg) from e
    except (EdgeError, KeyboardInterrupt):
        for one in wanted:
            how.path(one.device).unlink(missing_ok=True)
            how.certificate(one.device).unlink(missing_ok=True)
        raise
    if lines := {one.device: one.password_line for one in handed if one.password_line}:
        change_passwords(_password_file(options), lines)
    if options.aws_iot:
        write_aws_script(how.folder, [one.device for one in handed], options.aws_policy or _POLICIES)
    return handed


def _with_progress(handed: Iterable[HandedOver], count: int) -> Iterator[HandedOver]:
    """Tell on a terminal how far many bundles are."""
    is_shown = count >= _MANY and sys.stderr.isatty()
    for number, one in enumerate(handed, 1):
        if is_shown and (number % _MANY == 0 or number == count):
            ends = "\n" if number == count else ""
            sys.stderr.write(f"\r{number} of {count} bundles{ends}")
            sys.stderr.flush()
        yield one


def _how(options: argparse.Namespace, settings: PipelineSettings) -> Handover:
    from luigi_tasks.fleet.bundle import check_settings, read_file, read_template  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.credentials import CertificateAuthority  # noqa: PLC0415
    from luigi_tasks.fleet.handover import CERTIFICATE, NONE, PASSWORD, Handover, common_settings  # noqa: PLC0415

    with_certificate = options.broker_certificate or options.aws_iot
    if bool(options.ca_certificate) != bool(options.ca_key):
        raise InputError("--ca-certificate and --ca-key: give both")
    if options.broker_certificate and not options.ca_key:
        raise InputError("--broker-certificate needs the CA that signs it: --ca-certificate and --ca-key")
    if options.ca_key and not with_certificate:
        raise InputError("--ca-key: goes with --broker-certificate or --aws-iot")
    root = read_file(settings.trust.root, "[trust] root")
    common, files = common_settings(settings, root, options.base_url)
    if options.settings:
        template, named = read_template(options.settings)
        files |= named
        for section, values in template.items():
            common[section] = {**common.get(section, {}), **values}
        check_settings(common, options.settings)
    if options.keep_broker:
        common.pop("broker")
        files = {place: data for place, data in files.items() if place[0] != "broker"}
    host = str(common.get("broker", {}).get("host", ""))
    if host and is_this_machine(host):
        sys.stderr.write(
            f"edge-fleet: the bundle names the broker {host}, which is each device itself; give its address "
            "in the network, [broker] host, in --settings FILE\n"
        )
    has_broker = bool(host) and not options.anonymous
    return Handover(
        folder=options.out,
        settings=common,
        files=files,
        broker=CERTIFICATE if with_certificate else PASSWORD if has_broker else NONE,
        authority=CertificateAuthority(options.ca_certificate, options.ca_key) if options.ca_key else None,
        days=options.days,
        is_signing=not options.unsigned,
    )


def _password_file(options: argparse.Namespace) -> Path:
    return Path(options.password_file or options.out / _PASSWORDS)


def _in_words(options: argparse.Namespace, handed: Sequence[HandedOver], what: str) -> str:
    if options.json:
        bundles = {one.device: str(one.path) for one in handed}
        passwords = str(_password_file(options)) if any(one.password_line for one in handed) else ""
        return to_json({"enrolled": bundles, "password_file": passwords})
    names = ", ".join(one.device for one in handed[:_SHOWN])
    more = f" and {len(handed) - _SHOWN} more" if len(handed) > _SHOWN else ""
    bundle = handed[0].path if len(handed) == 1 else options.out / "DEVICE.tar"
    lines = [
        f"{names}{more}: {what}.",
        (
            f"{bundle}: SECRET. Bring it to the device, run `sudo scripts/install-device --bundle "
            f"{bundle.name}` there, and delete it everywhere else"
        ),
    ]
    if any(one.password_line for one in handed):
        where = _password_file(options)
        then = "" if options.password_file else "put its lines into the broker's password_file; "
        lines.append(f"{where}: {then}then let Mosquitto read it again (systemctl reload mosquitto)")
    if options.aws_iot:
        lines.append(f"{options.out / 'aws-iot.sh'}: registers the certificates at AWS IoT Core; run it")
    elif options.broker_certificate:
        lines.append(f"{bundle.with_suffix('.crt')}: the certificate, to revoke it one day")
    return "\n".join(lines) + "\n"


# Retirement


def _retire(options: argparse.Namespace) -> str:
    from luigi_tasks.fleet.enrolment import retire_row  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.handover import change_passwords  # noqa: PLC0415
    from luigi_tasks.fleet.registry import RegistryChange, change_registry  # noqa: PLC0415

    names = list(dict.fromkeys(check_name(one, "device") for one in options.devices))
    settings, documents = _open()
    at = utc_now()

    def leave(known: Mapping[str, EnrolledDevice]) -> RegistryChange:
        return RegistryChange(tuple(retire_row(_known(known, name), at) for name in names))

    rows = change_registry(documents, names, leave, who=person()).devices
    if options.password_file:
        change_passwords(options.password_file, {}, names)
    cleared, online = _clear(options, settings, rows)
    if options.json:
        return to_json({"retired": names, "cleared": cleared, "online": online})
    lines = [f"{', '.join(names)}: not in the fleet any more; {len(cleared)} retained topics were removed"]
    if online:
        lines.append(
            f"{', '.join(online)}: still connected, and will publish again: stop it, then run this again"
        )
    return "\n".join([*lines, _revocation(options, names)]) + "\n"


def _clear(
    options: argparse.Namespace, settings: PipelineSettings, rows: Sequence[EnrolledDevice]
) -> tuple[list[str], list[str]]:
    """Remove retained messages; return their topics, and the devices that are connected."""
    from luigi_tasks.fleet.retained import clear_retained  # noqa: PLC0415 - as above
    from luigi_tasks.release.broker import BrokerClient  # noqa: PLC0415

    broker = BrokerClient(settings.broker)
    if not broker.is_set:
        return [], []
    try:
        cleared = {row.device: clear_retained(broker, row, options.prefix) for row in rows}
    except (TransportError, SettingsError) as e:
        msg = f"left the fleet, but its retained messages are still at the broker. Run this again: {e}"
        raise type(e)(msg) from e
    topics = [topic for one in cleared.values() for topic in one.topics]
    return topics, [name for name, one in cleared.items() if one.was_online]


def _revocation(options: argparse.Namespace, names: Sequence[str]) -> str:
    one = names[0] if len(names) == 1 else "DEVICE"
    password = (
        f"its line is out of {options.password_file}, which Mosquitto reads again after a reload"
        if options.password_file
        else f"`mosquitto_passwd -D FILE {one}` and a reload of Mosquitto, or --password-file FILE here"
    )
    return (
        f"Revoke its credentials: {password}; a certificate: into the crlfile of Mosquitto, or at AWS `aws "
        f"iot list-thing-principals --thing-name {one}`, then `aws iot update-certificate --new-status "
        "REVOKED --certificate-id ID`; keys of the store, if it had any of its own"
    )


# Collectors, and the registry itself


def _collector_key(options: argparse.Namespace) -> str:
    from edge_client.disk import write_durably  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.credentials import make_signing_key  # noqa: PLC0415
    from luigi_tasks.fleet.registry import RegistryChange, change_registry  # noqa: PLC0415

    settings, documents = _open()
    name = check_name(options.name or settings.fleet.collector, "collector")
    if options.remove:
        change_registry(documents, [], lambda _: RegistryChange(collectors={name: ""}), who=person())
        return to_json({"removed": name}) if options.json else f"{name}: its snapshots count no more\n"
    is_own = name == settings.fleet.collector
    own = Path(settings.fleet.collector_key_file if is_own else f"collector-{name}.pem")
    path = (options.out or own).expanduser()
    if path.exists():
        msg = f"{path}: is there already; move it away, or give --out FILE"
        raise InputError(msg)
    key = make_signing_key()
    write_durably(path, key.private, mode=0o600)
    change = RegistryChange(collectors={name: key.public.decode()}, replaces=options.replace)
    try:
        change_registry(documents, [], lambda _: change, who=person(), begin=True)
    except TransportError:
        raise  # it may have come through
    except EdgeError:
        path.unlink(missing_ok=True)
        raise
    if options.json:
        return to_json({"collector": name, "key": str(path)})
    return (
        f"{path}: SECRET, for the machine of this collector alone, with [fleet] collector = {name} and "
        "collector_key_file in its luigi.cfg\n"
    )


def _registry(options: argparse.Namespace) -> str:
    from luigi_tasks.fleet.registry import accept_registry, load_registry  # noqa: PLC0415 - as above

    documents = _open()[1]
    if options.accept:
        accept_registry(documents, person())
    found = load_registry(documents)
    unsigned = sum(not one.key for one in found.devices.values())
    if options.json:
        return to_json(
            {
                "version": found.version,
                "devices": len(found.devices),
                "unsigned": unsigned,
                "retired": len(found.retired),
                "collectors": sorted(found.collectors),
            }
        )
    collectors = ", ".join(sorted(found.collectors)) or "none yet: edge-fleet collector-key NAME"
    return (
        f"Devices in the fleet: {len(found.devices)}, {unsigned} of them without a key for their reports; "
        f"{len(found.retired)} left it\ncollectors: {collectors}\n"
        f"version {found.version}, signed, whole, and none older than this machine has seen\n"
    )


def _open() -> tuple[PipelineSettings, SignedDocuments]:
    from luigi_tasks.fleet.opening import open_documents  # noqa: PLC0415 - as above

    settings = read_settings()
    return settings, open_documents(settings)
