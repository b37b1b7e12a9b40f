"""What an enrolment hands over: bundles, lines for the broker's password file, commands for AWS.

Private keys and passwords are in the bundles and nowhere else: neither in the bucket nor on a screen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from edge_client.contract.file_urls import is_file_url
from edge_client.disk import disk_errors, locked_folder, write_durably
from luigi_tasks.fleet.bundle import SUFFIX, Settings, pack_bundle, read_file
from luigi_tasks.fleet.credentials import (
    CertificateAuthority,
    KeyTexts,
    make_password,
    make_signing_key,
    password_line,
    self_signed,
)
from luigi_tasks.settings.urls import split_bucket_url

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from luigi_tasks.fleet.enrolment import WantedDevice
    from luigi_tasks.settings.values import PipelineSettings, StoreSettings

PASSWORD, CERTIFICATE, NONE = "password", "certificate", "none"
AWS_SCRIPT = "aws-iot.sh"
_AWS_SCRIPT = """\
#!/bin/sh -e
# Registers certificates at AWS IoT Core, each for the thing of its name; those of before are revoked.
# Needs aws-cli with the rights of whoever sets up the account. May be run again.
cd "$(dirname "$0")"
revoke() {{
    for arn in $(aws iot list-thing-principals --thing-name "$1" --query 'principals[]' --output text); do
        [ "$arn" = "$2" ] && continue
        aws iot update-certificate --certificate-id "${{arn##*/}}" --new-status REVOKED
        aws iot detach-thing-principal --thing-name "$1" --principal "$arn"
    done
}}
register() {{
    # A certificate that is registered already keeps its ARN.
    id=$(openssl x509 -in "$1.crt" -outform DER | sha256sum | cut -d ' ' -f 1)
    arn=$(aws iot describe-certificate --certificate-id "$id" \\
        --query certificateDescription.certificateArn --output text 2>/dev/null ||
        aws iot register-certificate-without-ca --certificate-pem "file://$1.crt" --status ACTIVE \\
            --query certificateArn --output text)
    aws iot create-thing --thing-name "$1" >/dev/null
    for policy in {policies}; do
        aws iot attach-policy --policy-name "$policy" --target "$arn"
    done
    aws iot attach-thing-principal --thing-name "$1" --principal "$arn"
    revoke "$1" "$arn"
}}
"""


@dataclasses.dataclass(frozen=True)
class Handover:
    """How bundles are made.

    Attributes:
        folder: Where they are written.
        settings: Settings that all of the devices have, by section and key.
        files: Files that all of them have, by the setting that names the file.
        broker: `password`, `certificate` or `none`: how a device shows the broker who it is.
        authority: Signs certificates; None: each signs its own.
        days: Days for which a certificate is valid.
        is_signing: Whether devices sign their reports.
    """

    folder: Path
    settings: Settings
    files: Mapping[tuple[str, str], bytes]
    broker: str
    authority: CertificateAuthority | None
    days: int
    is_signing: bool = True

    def path(self, device: str) -> Path:
        """Return the bundle of a device."""
        return self.folder / f"{device}{SUFFIX}"

    def certificate(self, device: str) -> Path:
        """Return where the certificate of a device is, for the broker's side."""
        return self.folder / f"{device}.crt"


@dataclasses.dataclass(frozen=True)
class HandedOver:
    """A bundle that was written.

    Attributes:
        device: Id of the device.
        path: The bundle.
        key: Public key of its reports, PEM; empty: it does not sign them.
        password_line: Line for the broker's password file; empty: it has no password.
    """

    device: str
    path: Path
    key: str
    password_line: str


def hand_over_all(how: Handover, devices: Sequence[WantedDevice]) -> Iterator[HandedOver]:
    """Make credentials and bundles of devices; durable once all are made.

    Raises: InputError; DeviceError.
    """
    with disk_errors(how.folder):
        how.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for one in devices:
        yield _hand_over(how, one)
    os.sync()  # once: a sync for each of 10,000 files takes minutes


def _hand_over(how: Handover, wanted: WantedDevice) -> HandedOver:
    settings = {section: dict(values) for section, values in how.settings.items()}
    settings.setdefault("device", {}).update(_device_settings(wanted))
    broker = settings.get("broker", {})
    files = dict(how.files)
    key = make_signing_key() if how.is_signing else KeyTexts(b"", b"")
    if key.private:
        files["device", "key_file"] = key.private
    line = ""
    if how.broker == PASSWORD:
        password = make_password()
        broker["username"] = wanted.device
        files["broker", "password_file"] = f"{password}\n".encode()
        line = password_line(wanted.device, password)
    elif how.broker == CERTIFICATE:
        pair = (
            how.authority.certify(wanted.device, how.days)
            if how.authority
            else self_signed(wanted.device, how.days)
        )
        broker["tls"] = True
        files["broker", "certificate_file"], files["broker", "key_file"] = pair.public, pair.private
        _write(how.certificate(wanted.device), pair.public, mode=0o644)
    _write(how.path(wanted.device), pack_bundle(settings, files), mode=0o600)
    return HandedOver(wanted.device, how.path(wanted.device), key.public.decode(), line)


def _write(path: Path, data: bytes, *, mode: int) -> None:
    """Replace a file, whose content is never readable by more than its mode says."""
    with disk_errors(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, mode)
                file.write(data)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _device_settings(wanted: WantedDevice) -> dict[str, object]:
    # Empty ones too: where a device is enrolled again, they take the place of what it had.
    return {
        "id": wanted.device,
        "channel": wanted.channels[0],
        "more_channels": list(wanted.channels[1:]),
        "site": wanted.site,
        "device_class": wanted.device_class,
        "tags": list(wanted.tags),
    }


def common_settings(
    settings: PipelineSettings, root: bytes, base_url: str
) -> tuple[Settings, dict[tuple[str, str], bytes]]:
    """Return the settings of devices that follow from the pipeline's, and the files that they name."""
    broker = settings.broker
    files = {("trust", "root"): root}
    named: dict[str, object] = {"host": broker.host, "port": broker.port, "tls": broker.tls}
    if broker.alpn:
        named["alpn"] = broker.alpn
    if broker.ca_file:
        files["broker", "ca_file"] = read_file(Path(broker.ca_file), "[broker] ca_file")
    store: dict[str, object] = {"base_url": base_url or device_address(settings.store)}
    if settings.store.region:
        store["region"] = settings.store.region
    if settings.store.ca_file:
        files["store", "ca_file"] = read_file(Path(settings.store.ca_file), "[store] ca_file")
    return {"device": {"fleet": broker.fleet}, "store": store, "broker": named}, files


def device_address(store: StoreSettings) -> str:
    """Return the address at which devices find the store of the pipeline; raises InputError."""
    if is_file_url(store.url):
        return store.url
    found = split_bucket_url(store.url)
    if found is None:
        msg = f"[store] url {store.url}: give --base-url, the address at which devices find it"
        raise InputError(msg)
    bucket, prefix = found
    endpoint = store.endpoint_url or f"https://s3.{store.region}.amazonaws.com"
    escaped = "".join(
        {"?": "%3F", "#": "%23", "%": "%25", " ": "%20"}.get(c, c) for c in f"{bucket}/{prefix}"
    )
    return f"{endpoint.rstrip('/')}/{escaped}".rstrip("/")


def change_passwords(path: Path, lines: Mapping[str, str], gone: Collection[str] = ()) -> None:
    """Put lines into Mosquitto's password file, and take others out, one process after the other.

    Args:
        path: The file; its owner and mode stay.
        lines: Lines by user.
        gone: Users who leave.
    Raises: InputError if the file is none; DeviceError.
    """
    with _locked(path.parent), disk_errors(path):
        known = path.stat() if path.exists() else None
        try:
            before = path.read_text(encoding="utf-8").splitlines() if known else []
        except UnicodeDecodeError as e:
            msg = f"{path}: is no password file of Mosquitto; correct --password-file"
            raise InputError(msg) from e
        if wrong := [number for number, line in enumerate(before, 1) if line.strip() and ":$" not in line]:
            msg = f"{path}: line {wrong[0]} is none of mosquitto_passwd; correct --password-file"
            raise InputError(msg)
        kept = [line for line in before if line.partition(":")[0] not in {*lines, *gone}]
        text = "".join(f"{line}\n" for line in (*kept, *lines.values()))
        write_durably(path, text.encode(), mode=known.st_mode & 0o777 if known else 0o600)
        if known is not None and os.geteuid() == 0:
            os.chown(path, known.st_uid, known.st_gid)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder):
        yield


def write_aws_script(folder: Path, devices: Collection[str], policies: Collection[str]) -> Path:
    """Write the commands that make certificates known to AWS IoT Core."""
    text = _AWS_SCRIPT.format(policies=" ".join(policies))
    path = folder / AWS_SCRIPT
    write_durably(path, (text + "".join(f"register {device}\n" for device in devices)).encode(), mode=0o755)
    return path
