"""What the user wants, by flags and by questions on a terminal, as settings and files to write."""

from __future__ import annotations

import argparse
import codecs
import dataclasses
import getpass
import json
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import tomllib

from installation.places import CAMERA_FOLDER, SETTINGS_FOLDER, InstallError
from installation.settings import Changes, broker_settings, camera_settings, given_setting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

_EXAMPLES = """\
The first time it asks, or takes flags:
  sudo scripts/install-device
  sudo scripts/install-device --yes --base-url https://s3.example.com/edge-models --root root.json \\
      --broker 192.168.1.5:1883 --camera picamera
Of a device that `edge-fleet enroll` let into a fleet:
  sudo scripts/install-device --bundle camera-1.tar --camera picamera
Later: `sudo scripts/install-device` from a newer checkout brings the device up to date; settings and state
stay, and flags change single settings. It may be killed at any moment: the next run completes.

Without a network: fill a folder on a machine that has one (Bookworm: 3.11, Trixie: 3.13):
  pip wheel --no-deps --wheel-dir STICK .
  pip download --dest STICK --only-binary :all: --python-version 3.11 --platform manylinux_2_28_aarch64 \\
      --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 STICK/edge_fleet-*.whl
and then, on the Pi: sudo scripts/install-device --wheels STICK. For a video camera or metrics download
'STICK/edge_fleet-0.1.0-py3-none-any.whl[video,metrics]', for a Pi camera on Bookworm 'numpy<2' as well.

Exit codes: 0 installed and serving; 1 could not install, and what ran before still runs; 2 wrong usage or
settings; 5 installed and started, but doctor found faults, which it names.
"""


@dataclasses.dataclass(frozen=True)
class CopiedFile:
    """A file of the user's that the device gets a copy of.

    Attributes:
        flag: Option that names it.
        place: Name below /etc/edge-client.
        setting: Section and key that name the copy; None: the setting's default does.
        secret: Whether the service alone may read it.
        purpose: Help text.
    """

    flag: str
    place: str
    setting: tuple[str, str] | None
    secret: bool
    purpose: str

    @property
    def name(self) -> str:
        """Return the name of the option's value."""
        return self.flag.removeprefix("--").replace("-", "_")


ROOT = CopiedFile("--root", "root.json", ("trust", "root"), False, "device/root.json of `edge-keys make`")
REPORT_KEY = CopiedFile(
    "--report-key-file",
    "report-key.pem",
    ("device", "key_file"),
    True,
    "key that signs this device's reports",
)
MODEL = CopiedFile(
    "--model",
    "model.tflite",
    ("device", "model"),
    False,
    "a .tflite classifier, in place of releases",
)
PASSWORD = CopiedFile(
    "--broker-password-file", "broker-password", ("broker", "password_file"), True, "password: its first line"
)
ACCESS_KEY = CopiedFile(
    "--access-key-file", "access-key.toml", ("store", "access_key_file"), True,
    "key of a private bucket: TOML, access_key_id and secret_access_key",
)  # fmt: skip
FILES = (
    ROOT,
    MODEL,
    CopiedFile("--labels", "labels.txt", ("device", "labels"), False, "its labels, if they are not in it"),
    PASSWORD,
    ACCESS_KEY,
    CopiedFile("--store-ca-file", "store-ca.pem", ("store", "ca_file"), False, "CA of an https store"),
    CopiedFile("--broker-ca-file", "broker-ca.pem", ("broker", "ca_file"), False, "CA of the broker"),
    CopiedFile(
        "--broker-certificate-file", "device-certificate.pem", ("broker", "certificate_file"), False,
        "this device's certificate (AWS IoT)",
    ),
    CopiedFile("--broker-key-file", "device-key.pem", ("broker", "key_file"), True, "the certificate's key"),
    REPORT_KEY,
)  # fmt: skip
# How a device proves to the broker, and to the collector, who it is.
_PROOFS = tuple(
    kind
    for kind in FILES
    if kind.flag
    in {"--broker-password-file", "--broker-certificate-file", "--broker-key-file", "--report-key-file"}
)
_BUNDLE_SETTINGS = "device.toml"
_BUNDLE_BYTES = 8 << 20


@dataclasses.dataclass
class Wishes:
    """Settings to change, and files below /etc/edge-client: name -> content, and whether it is secret."""

    changes: Changes = dataclasses.field(default_factory=dict)
    files: dict[str, tuple[bytes, bool]] = dataclasses.field(default_factory=dict)

    def add_file(self, kind: CopiedFile, content: bytes) -> None:
        """Let the device have a file."""
        self.files[kind.place] = (content, kind.secret)
        if kind.setting is not None:
            self.changes[kind.setting] = str(SETTINGS_FOLDER / kind.place)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="install-device",
        description="Bring a Raspberry Pi (64-bit Raspberry Pi OS or Debian, Bookworm or Trixie) from "
        "nothing\nto serving: packages, user, folders, environment, settings, service.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    device = parser.add_argument_group("settings of the device (device.toml has all of them)")
    device.add_argument(
        "--bundle", metavar="FILE", type=Path,
        help="settings, keys and root of trust of `edge-fleet enroll`; other flags here go before it",
    )  # fmt: skip
    device.add_argument(
        "--base-url", metavar="URL", help="address of the releases: bucket, web server or file:///folder"
    )
    device.add_argument("--fleet", metavar="NAME")
    device.add_argument("--channel", metavar="NAME")
    device.add_argument("--device-id", metavar="NAME", help="default: from the board's serial number")
    device.add_argument(
        "--broker", metavar="HOST[:PORT]", help="MQTT broker; `none` (default): the device polls"
    )
    device.add_argument("--broker-user", metavar="NAME")
    device.add_argument(
        "--broker-tls",
        action="store_true",
        help="TLS; the port is then 8883 if none is given; port 8883, a CA and a certificate mean it too",
    )
    device.add_argument(
        "--camera", metavar="FROM",
        help="picamera, /dev/video0, rtsp://…, or a folder that pictures arrive in; also KIND:PATH "
        f"(default {CAMERA_FOLDER})",
    )  # fmt: skip
    device.add_argument(
        "--camera-file", metavar="FILE", type=Path,
        help="its first line is what --camera takes, as an address with a password",
    )  # fmt: skip
    device.add_argument("--metrics-port", metavar="PORT", type=int, help="Prometheus metrics; 0: none")
    for one in FILES:
        device.add_argument(one.flag, metavar="FILE", type=Path, help=one.purpose)
    device.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="any other setting"
    )
    how = parser.add_argument_group("how to install")
    how.add_argument("--yes", action="store_true", help="ask nothing")
    how.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")
    how.add_argument(
        "--from",
        dest="source",
        metavar="SOURCE",
        default="",
        help="wheel, archive or URL (default: this checkout)",
    )
    how.add_argument(
        "--wheels", metavar="FOLDER", type=Path, help="install without a network, from these wheels"
    )
    how.add_argument("--reinstall", action="store_true", help="a new environment even if nothing changed")
    how.add_argument(
        "--uninstall", action="store_true", help="remove service and program; settings and state stay"
    )
    how.add_argument("--purge", action="store_true", help="with --uninstall: settings, state and user too")
    options = parser.parse_args(arguments)
    if options.purge and not options.uninstall:
        parser.error("--purge goes with --uninstall")
    if options.camera and options.camera_file:
        parser.error("give one of --camera and --camera-file")
    if options.wheels is not None and not options.wheels.is_dir():
        parser.error(f"--wheels {options.wheels}: no such folder")
    if options.source and "://" not in options.source and not Path(options.source).exists():
        parser.error(f"--from {options.source}: no such file or folder")
    return options


def read_flags(options: argparse.Namespace) -> Wishes:
    """Turn flags into settings and files. Raises: InstallError."""
    wishes = Wishes()
    if options.bundle is not None:
        read_bundle(options.bundle, wishes)
    for name, setting in (
        ("base_url", ("store", "base_url")),
        ("fleet", ("device", "fleet")),
        ("channel", ("device", "channel")),
        ("device_id", ("device", "id")),
        ("broker_user", ("broker", "username")),
        ("metrics_port", ("metrics", "port")),
    ):
        if (value := getattr(options, name)) is not None:
            wishes.changes[setting] = value
    tls = options.broker_tls or any((options.broker_ca_file, options.broker_certificate_file))
    if options.broker is not None:
        wishes.changes |= broker_settings(options.broker, tls=tls)
    elif tls:
        wishes.changes["broker", "tls"] = True
    if camera := options.camera or (options.camera_file and first_line(options.camera_file)):
        wishes.changes |= camera_settings(camera)
    for kind in FILES:
        if (path := getattr(options, kind.name)) is not None:
            wishes.add_file(kind, checked_file(kind, path))
    for text in options.set:
        setting, value = given_setting(text)
        wishes.changes[setting] = value
    return wishes


def read_bundle(path: Path, wishes: Wishes) -> None:
    """Take what `edge-fleet enroll` made for this device.

    A setting that names a file of the bundle names its copy below /etc/edge-client. What a device had from an
    earlier bundle, and this one does not have, is switched off: two ways to prove who it is contradict. A
    bundle that says nothing of the broker leaves that as it is.
    Raises: InstallError.
    """
    contents = _unpacked(path)
    try:
        tables = tomllib.loads(contents.pop(_BUNDLE_SETTINGS, b"").decode())
    except ValueError as e:
        msg = f"{path}: its {_BUNDLE_SETTINGS} is no TOML ({_place_only(e)}); have the bundle made again"
        raise InstallError(msg, 2) from None
    if not isinstance(tables.get("device"), dict) or not tables["device"].get("id"):
        msg = f"{path}: names no device; give a file that `edge-fleet enroll` wrote"
        raise InstallError(msg, 2)
    for kind in _PROOFS:
        if kind.setting is not None and kind.setting[0] in tables:
            wishes.changes[kind.setting] = ""
    if "broker" in tables:
        wishes.changes["broker", "username"] = ""
    wishes.changes |= {
        (section, key): value
        for section, values in tables.items()
        if isinstance(values, dict)
        for key, value in values.items()
    }
    if not _is_root(contents.get(ROOT.place, b"")):
        msg = f"{path}: has no root of trust; have `edge-fleet enroll` make it again"
        raise InstallError(msg, 2)
    for kind in FILES:
        if kind.place in contents:
            wishes.add_file(kind, contents[kind.place])


def _unpacked(path: Path) -> dict[str, bytes]:
    """Return the files of a bundle by name; nothing of it touches the disk. Raises: InstallError."""
    known = {_BUNDLE_SETTINGS, *(kind.place for kind in FILES)}
    contents = {}
    try:
        if path.stat().st_size > _BUNDLE_BYTES:
            msg = f"{path}: larger than {_BUNDLE_BYTES} bytes; give a file that `edge-fleet enroll` wrote"
            raise InstallError(msg, 2)
        with tarfile.open(path, mode="r:") as tar:
            for entry in tar:
                is_known = entry.isreg() and entry.name in known and entry.name not in contents
                file = tar.extractfile(entry) if is_known and entry.size <= _BUNDLE_BYTES else None
                if file is None:
                    msg = f"{path}: {entry.name[:80]!r} does not belong into a bundle of `edge-fleet enroll`"
                    raise InstallError(msg, 2)
                contents[entry.name] = file.read()
    except tarfile.TarError as e:
        msg = f"{path}: damaged, or no bundle of `edge-fleet enroll` ({e}); copy it again"
        raise InstallError(msg, 2) from e
    except OSError as e:
        msg = f"{path}: {e.strerror or e}; name a file that root may read"
        raise InstallError(msg, 2) from e
    return contents


def checked_file(kind: CopiedFile, path: Path) -> bytes:
    """Read a file of the user's, and look whether it is what it should be. Raises: InstallError."""
    if kind is PASSWORD:
        return f"{first_line(path)}\n".encode()
    content = _read(path).removeprefix(codecs.BOM_UTF8)  # of an editor of Windows
    if kind is ROOT and not _is_root(content):
        msg = f"{path} is no root of trust: give device/root.json, which `edge-keys make` wrote"
        raise InstallError(msg, 2)
    if kind is ACCESS_KEY:
        try:
            tomllib.loads(content.decode())
        except ValueError as e:
            needed = 'access_key_id = "…" and secret_access_key = "…"'
            msg = f"{path} is no TOML ({_place_only(e)}): it needs {needed}"
            raise InstallError(msg, 2) from None
    return content


def first_line(path: Path) -> str:
    """Return the first line of a file. Raises: InstallError if it has none."""
    try:
        lines = _read(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        msg = f"{path}: is not UTF-8; save it as UTF-8"
        raise InstallError(msg, 2) from e
    if not lines or not lines[0].strip():
        msg = f"{path}: its first line is empty"
        raise InstallError(msg, 2)
    return lines[0].strip()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        msg = f"{path}: {e.strerror}; name a file that root may read"
        raise InstallError(msg, 2) from e


def _place_only(error: ValueError) -> str:
    """Return where a parser stopped, without the text that it read, which is secret."""
    _, found, place = str(error).rpartition("(at ")
    return f"at {place.rstrip(')')}" if found else "not UTF-8"


def _is_root(content: bytes) -> bool:
    try:
        return bool(json.loads(content)["signed"]["_type"] == "root")
    except (ValueError, KeyError, TypeError):
        return False


def ask_questions(wishes: Wishes) -> None:
    """Ask for what a first installation needs and no flag gave."""
    print("Press Enter for what stands in brackets. Everything can be changed later in device.toml.")
    changes = wishes.changes
    if MODEL.place not in wishes.files and ("store", "base_url") not in changes:
        changes["store", "base_url"] = _answer(
            "Address of the releases (https://… or file:///…)", "", _address
        )
        if _answer("Is the bucket private? (yes/no)", "no", _yes_or_no):
            wishes.add_file(ACCESS_KEY, _asked_keys())
    if MODEL.place not in wishes.files and ROOT.place not in wishes.files:
        wishes.add_file(ROOT, _answer("Root of trust (root.json of `edge-keys make`)", "root.json", _root))
    for setting, question, default in (
        (("device", "fleet"), "Fleet", "fleet"),
        (("device", "channel"), "Channel", "stable"),
    ):
        if setting not in changes:
            changes[setting] = _answer(question, default, str)
    if ("broker", "host") not in changes:
        tls = ("broker", "tls") in changes
        changes |= _answer(
            "MQTT broker, HOST or HOST:PORT", "none", lambda text: broker_settings(text, tls=tls)
        )
        if changes["broker", "host"] and ("broker", "username") not in changes:
            _ask_broker_user(wishes)
    if ("source", "kind") not in changes:
        question = "Camera: picamera, /dev/video0, rtsp://… or a folder"
        changes |= _answer(question, str(CAMERA_FOLDER), camera_settings)


def _ask_broker_user(wishes: Wishes) -> None:
    name = _answer("User name at the broker (none: anonymous)", "none", str)
    if name != "none":
        wishes.changes["broker", "username"] = name
        wishes.add_file(PASSWORD, f"{getpass.getpass('Password at the broker: ')}\n".encode())


def _asked_keys() -> bytes:
    identity = _answer("Access key id", "", str)
    secret = getpass.getpass("Secret access key: ")
    return f"access_key_id = {json.dumps(identity)}\nsecret_access_key = {json.dumps(secret)}\n".encode()


def _answer(question: str, default: str, convert: Callable[[str], T]) -> T:
    while True:
        text = input(f"{question}{f' [{default}]' if default else ''}: ").strip() or default
        try:
            if text:
                return convert(text)
        except InstallError as e:
            print(e)


def _address(text: str) -> str:
    if not text.startswith(("http://", "https://", "file:///")):
        msg = f"{text!r}: give http(s)://host/bucket/prefix or file:///folder"
        raise InstallError(msg, 2)
    return text


def _yes_or_no(text: str) -> bool:
    if text.lower() not in {"y", "yes", "n", "no"}:
        raise InstallError("yes or no?", 2)
    return text.lower().startswith("y")


def _root(text: str) -> bytes:
    return checked_file(ROOT, Path(text).expanduser())


def is_complete(wishes: Wishes) -> None:
    """Raise InstallError unless a first installation has what no default can give."""
    if MODEL.place in wishes.files:
        return  # it needs no store and no keys
    missing = [
        flag
        for flag, given in (
            ("--base-url", ("store", "base_url") in wishes.changes),
            ("--root", ROOT.place in wishes.files or (SETTINGS_FOLDER / ROOT.place).exists()),
        )
        if not given
    ]
    if missing:
        msg = f"a first installation needs {' and '.join(missing)}; on a terminal it asks; see --help"
        raise InstallError(msg, 2)


def on_terminal() -> bool:
    """Return whether there is somebody to ask."""
    return sys.stdin.isatty() and sys.stdout.isatty()
