"""Settings of an update check, and the files they name.

Apart from the other settings because a check runs in a child process, which imports these and no more: every
update waits for that import.
"""

from __future__ import annotations

import codecs
import dataclasses
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_client.contract.addresses import shown_address
from edge_client.contract.errors import DeviceError, SettingsError
from edge_client.contract.names import TAG_RULE, is_tag
from edge_client.permissions import way_to_read
from edge_client.settings.checks import (
    Section,
    bad_names,
    failed,
    is_host_pattern,
    is_positive,
    store_url_fault,
)
from edge_client.settings.own_model import ModelOptions
from edge_client.settings.readers import ChannelValues, LabelsOrFile, Size  # noqa: TC001 - read by get_type_hints

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_client.contract.errors import EdgeError

BUNDLE_SCHEME = "bundle:"
_LONGEST_SILENCE_S = 3600
_LONGEST_TOML_BYTES = 1_000_000
# API reference of AWS IoT, CreateRoleAlias.
_ROLE_ALIAS = re.compile(r"[\w=,@-]{1,128}", re.ASCII)
MOST_TAGS = 32
_WITH_ENDPOINT = ("role_alias", "thing_name", "certificate_file", "key_file", "credentials_ca_file")
_FIND_ENDPOINT = "`aws iot describe-endpoint --endpoint-type iot:CredentialProvider` prints"
_TOML_HINT = (
    "texts need quotes (and \\\\ for a \\ in them), true and false are lower case, each setting stands once"
)


@dataclasses.dataclass(frozen=True)
class DeviceSettings(Section):
    """Section [device].

    Attributes:
        id: Name of this device; empty: from the board's serial number.
        fleet: Fleet of this device.
        channel: Main channel, whose releases are installed.
        more_channels: Extra channels, whose releases classify the same frames.
        device_class: Releases made for another class of devices are refused.
        site: Where it is; a rollout may go by sites. Empty: none.
        tags: Words by which rollouts select devices, such as `outdoor` or `line=3`.
        key_file: Private Ed25519 key (PEM) that this device was enrolled with, and signs its reports with;
            empty: they are not signed.
        state_dir: Folder of releases and trusted metadata.
        threads: Threads of the interpreter.
        top: Number of labels in each result.
        latency_budget_ms: Longest time for one frame; a slower release is refused. 0: no limit.
        model: Model file that serves in the place of releases; empty: the channel's releases serve.
        labels: Labels file of `model`, or its labels; empty: the labels in it.
        mean: See `ModelOptions`.
        std: See `ModelOptions`.
        input_size: See `ModelOptions`.
    """

    id: str = ""
    fleet: str = "fleet"
    channel: str = "stable"
    more_channels: tuple[str, ...] = ()
    device_class: str = ""
    site: str = ""
    tags: tuple[str, ...] = ()
    key_file: str = ""
    state_dir: Path = Path("/var/lib/edge-client")
    threads: int = 2
    top: int = 3
    latency_budget_ms: float = 0.0
    model: str = ""
    labels: LabelsOrFile = ""
    mean: ChannelValues = ()
    std: ChannelValues = ()
    input_size: Size = ()

    def model_file(self) -> Path:
        """Return the model file that serves in the place of releases."""
        return Path(self.model)

    def model_options(self) -> ModelOptions:
        """Return what the settings say of the model file."""
        if isinstance(self.labels, str):
            file = Path(self.labels) if self.labels else None
            return ModelOptions(file, self.mean, self.std, self.input_size)
        return ModelOptions(None, self.mean, self.std, self.input_size, self.labels)

    def faults(self) -> tuple[str, ...]:
        """See `Section.faults`."""
        channels = (self.channel, *self.more_channels)
        names = [("id", self.id)] if self.id else []
        names += [("fleet", self.fleet), ("channel", self.channel)]
        names += [("more_channels", name) for name in self.more_channels]
        names += [("device_class", self.device_class)] if self.device_class else []
        names += [("site", self.site)] if self.site else []
        return (
            *_tag_faults(self.tags),
            *failed(
                (1 <= self.threads <= 64, "threads: 1 to 64"),
                (1 <= self.top <= 100, "top: 1 to 100"),
                (self.latency_budget_ms >= 0, "latency_budget_ms: 0 or more"),
                (
                    len(set(channels)) == len(channels),
                    f"channel and more_channels: name each channel once ({', '.join(channels)})",
                ),
            ),
            *failed(
                (
                    not self.model or not self.more_channels,
                    "model: the device serves this file alone; remove more_channels, or model",
                ),
                (
                    bool(self.model) or self.model_options() == ModelOptions(),
                    "labels, mean, std, input_size: only with model; a release has its own",
                ),
            ),
            *self.model_options().faults(),
            *bad_names(names),
        )


def _tag_faults(tags: tuple[str, ...]) -> tuple[str, ...]:
    """Return a sentence for each tag that cannot be one."""
    bad = [tag for tag in tags if not is_tag(tag)]
    return failed(
        (len(tags) <= MOST_TAGS, f"tags: at most {MOST_TAGS}"),
        (len(set(tags)) == len(tags), "tags: name each once"),
        (
            not bad,
            f"tags {', '.join(map(repr, bad))[:200]}: {TAG_RULE}",
        ),
    )


@dataclasses.dataclass(frozen=True)
class StoreSettings(Section):
    """Section [store].

    Attributes:
        base_url: Address of the folder of `metadata/` and `targets/`: http(s):// or file:///folder, for which
            the other settings have no effect.
        region: Region of the S3 signatures.
        access_key_file: TOML file with the keys of a private bucket.
        credentials_endpoint: Host of AWS IoT's credentials provider, which gives temporary keys for this
            device's certificate; empty: none.
        role_alias: Role alias of these keys.
        thing_name: Thing in AWS IoT; empty: the device's id.
        certificate_file: This device's certificate; empty: that of [broker].
        key_file: Its private key; empty: that of [broker].
        credentials_ca_file: CA certificate of the credentials provider; empty: the system's.
        ca_file: CA certificate of an https store.
        redirect_hosts: Further hosts that the store may redirect to.
        timeout_s: Longest silence of the store.
        min_bytes_per_s: Slower transfers are aborted.
        max_bytes_per_s: Bandwidth limit; 0: no limit.
    """

    base_url: str = ""
    region: str = "us-east-1"
    access_key_file: str = ""
    credentials_endpoint: str = ""
    role_alias: str = ""
    thing_name: str = ""
    certificate_file: str = ""
    key_file: str = ""
    credentials_ca_file: str = ""
    ca_file: str = ""
    redirect_hosts: tuple[str, ...] = ()
    timeout_s: float = 20.0
    min_bytes_per_s: int = 500
    max_bytes_per_s: int = 0

    def faults(self) -> tuple[str, ...]:
        """See `Section.faults`."""
        return (*self._store_faults(), *self._credentials_faults())

    def _credentials_faults(self) -> tuple[str, ...]:
        """See `faults`: of the temporary keys."""
        endpoint = self.credentials_endpoint
        if not endpoint:
            useless = [name for name in _WITH_ENDPOINT if getattr(self, name)]
            return tuple(f"{name}: give credentials_endpoint, too, or remove it" for name in useless)
        return failed(
            (
                is_host_pattern(endpoint) and not endpoint.startswith("*"),
                f"credentials_endpoint {shown_address(endpoint)!r}: give the host alone, as {_FIND_ENDPOINT}",
            ),
            (
                ".iot." not in endpoint or ".credentials.iot." in endpoint,
                f"credentials_endpoint {endpoint}: is the broker's; give what {_FIND_ENDPOINT}",
            ),
            (bool(self.role_alias), "role_alias: credentials_endpoint needs one (aws iot list-role-aliases)"),
            (
                not self.role_alias or _ROLE_ALIAS.fullmatch(self.role_alias) is not None,
                f"role_alias {self.role_alias!r}: give the name of the alias alone, not an ARN or the role",
            ),
            (not self.access_key_file, "access_key_file and credentials_endpoint: give one of the two"),
            (
                bool(self.certificate_file and self.key_file),
                "certificate_file and key_file: credentials_endpoint needs both, here or in [broker]",
            ),
        )

    def _store_faults(self) -> tuple[str, ...]:
        fault = store_url_fault(self.base_url)
        return failed(
            (not fault, f"base_url {shown_address(self.base_url)!r}: {fault}"),
            (bool(self.region), "region: give one; any works with most stores other than AWS"),
            (
                all(map(is_host_pattern, self.redirect_hosts)),
                (
                    f"redirect_hosts {', '.join(self.redirect_hosts)}: give hosts, as in "
                    "cdn.example.com, *.a.net:8443"
                ),
            ),
            (0 < self.timeout_s <= _LONGEST_SILENCE_S, f"timeout_s: above 0, at most {_LONGEST_SILENCE_S}"),
            (self.min_bytes_per_s >= 0, "min_bytes_per_s: 0 or more"),
            (
                self.max_bytes_per_s == 0 or self.max_bytes_per_s >= 2 * max(self.min_bytes_per_s, 1),
                "max_bytes_per_s: 0, or at least twice min_bytes_per_s",
            ),
        )


@dataclasses.dataclass(frozen=True)
class TrustSettings(Section):
    """Section [trust].

    Attributes:
        root: Provisioned root metadata.
    """

    root: Path = Path("/etc/edge-client/root.json")


@dataclasses.dataclass(frozen=True)
class UpdateSettings(Section):
    """Section [update].

    Attributes:
        automatic: Install a release as soon as it is published; else only on request.
        poll_s: Interval of update checks without an announcement.
        spread_s: After an announcement, wait a random part of this before the check.
        check_timeout_s: Longest update check, with all that it downloads.
        self_test_timeout_s: Longest self-test.
        self_test_memory_bytes: Limit on the self-test's memory; 0: none.
        max_release_bytes: Largest release that is installed.
        min_free_bytes: Space that an update leaves free.
    """

    automatic: bool = True
    poll_s: float = 3600.0
    spread_s: float = 0.0
    check_timeout_s: float = 1800.0
    self_test_timeout_s: float = 120.0
    self_test_memory_bytes: int = 1_000_000_000
    max_release_bytes: int = 100_000_000
    min_free_bytes: int = 50_000_000

    def faults(self) -> tuple[str, ...]:
        """See `Section.faults`."""
        return failed(
            (is_positive(self.poll_s), "poll_s: above 0"),
            (self.spread_s >= 0, "spread_s: 0 or more"),
            (is_positive(self.check_timeout_s), "check_timeout_s: above 0"),
            (is_positive(self.self_test_timeout_s), "self_test_timeout_s: above 0"),
            (self.self_test_memory_bytes >= 0, "self_test_memory_bytes: 0 or more"),
            (self.max_release_bytes > 0, "max_release_bytes: above 0"),
            (self.min_free_bytes >= 0, "min_free_bytes: 0 or more"),
        )


@dataclasses.dataclass(frozen=True)
class CheckSettings:
    """Settings that an update check needs."""

    device: DeviceSettings
    store: StoreSettings
    trust: TrustSettings
    update: UpdateSettings


@dataclasses.dataclass(frozen=True)
class StoreCredentials:
    """Keys of a private bucket; never shown."""

    access_key_id: str
    secret_access_key: str = dataclasses.field(repr=False)
    session_token: str = dataclasses.field(default="", repr=False)

    def current(self) -> StoreCredentials:
        """See `repository.keys.Keys.current`: they stay as they are."""
        return self

    def renew_if_outdated(self, refusal: str) -> bool:
        """See `repository.keys.Keys.renew_if_outdated`: there are no others."""
        del refusal
        return False


def read_credentials(
    store: StoreSettings, environment: Mapping[str, str] = os.environ
) -> StoreCredentials | None:
    """Return the store's keys: from the file, else from AWS_* variables, else None (a public store).

    Raises: SettingsError if the file is not there or lacks a key; DeviceError if it cannot be read.
    """
    if store.access_key_file:
        return _credentials_from_file(Path(store.access_key_file))
    key, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
    if key and secret:
        return StoreCredentials(key, secret, environment.get("AWS_SESSION_TOKEN", ""))
    return None


def read_root(trust: TrustSettings) -> bytes:
    """Return the provisioned root metadata, not judged yet.

    Raises: SettingsError if it is not there; DeviceError if it cannot be read.
    """
    try:
        return trust.root.read_bytes()
    except OSError as e:
        way_out = "copy device/root.json, which `edge-keys make` wrote, to this device"
        raise unreadable(e, trust.root, f"[trust] root {trust.root}", way_out) from e


def unreadable(error: OSError, file: Path, what: str, way_out: str, *, secret: bool = False) -> EdgeError:
    """Return the error for a file of the settings that cannot be read.

    A file that is not there is a faulty setting. Permissions and disks may be mended while the daemon waits.
    """
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return SettingsError(f"{what}: {error.strerror}; {way_out}")
    command = way_to_read(file, secret=secret) if isinstance(error, PermissionError) else None
    mend = f"run `{command}`" if command else "check the disk"
    return DeviceError(f"{what}: {error.strerror or error}; {mend}")


def read_toml(file: Path, way_out: str, *, secret: bool = False) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        file: The file.
        way_out: What to do if it is not there.
        secret: Whether other users of this machine must not read it.
    Raises: SettingsError if it is not there, or not TOML; DeviceError if it cannot be read.
    """
    # Imported here: the child of an update check gets its settings from the daemon.
    if sys.version_info >= (3, 11):
        import tomllib  # noqa: PLC0415
    else:
        import tomli as tomllib  # noqa: PLC0415

    try:
        # A regular file of a sensible size: a device such as /dev/zero never ends.
        with file.open("rb") as opened:
            data = opened.read(_LONGEST_TOML_BYTES + 1)
    except OSError as e:
        raise unreadable(e, file, str(file), way_out, secret=secret) from e
    if len(data) > _LONGEST_TOML_BYTES:
        msg = f"{file}: over {_LONGEST_TOML_BYTES} bytes, so it is no settings file; {way_out}"
        raise SettingsError(msg)
    text = _decode(file, data)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        last = text.count("\n", 0, len(text.rstrip())) + 1
        reason = str(e).replace("(at end of document)", f"(at line {last}, the end)")
        msg = f"{file}: not TOML: {reason}; {_TOML_HINT}"
        raise SettingsError(msg) from e


def _decode(file: Path, data: bytes) -> str:
    """Decode a TOML file. Raises: SettingsError with line and column unless it is UTF-8."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        msg = f"{file}: is UTF-16; save it as UTF-8"
        raise SettingsError(msg)
    try:
        # Editors of Windows put a mark before UTF-8.
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as e:
        before = e.object[: e.start]
        line, column = before.count(b"\n") + 1, e.start - before.rfind(b"\n")
        msg = f"{file}: not UTF-8 (at line {line}, column {column}); save it as UTF-8"
        raise SettingsError(msg) from e


def _credentials_from_file(path: Path) -> StoreCredentials:
    table = read_toml(path, "[store] access_key_file names it", secret=True)
    unknown = set(table) - {field.name for field in dataclasses.fields(StoreCredentials)}
    valid = all(isinstance(value, str) for value in table.values())
    if unknown or not valid or not (table.get("access_key_id") and table.get("secret_access_key")):
        msg = (
            f'{path}: give access_key_id = "…" and secret_access_key = "…" (and session_token = "…" '
            "where there is one), nothing else"
        )
        raise SettingsError(msg)
    return StoreCredentials(**table)
