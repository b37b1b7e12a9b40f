"""The device's own key, which signs its reports: Ed25519, in a PEM file that its enrolment made."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import logging
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import EdgeError, SettingsError
from edge_client.permissions import user_name
from edge_client.settings.update import unreadable

if TYPE_CHECKING:
    from edge_client.reporting.ed25519 import Ed25519Key

logger = logging.getLogger(__name__)

_LIMIT_BYTES = 10_000
# PKCS #8 of an Ed25519 key up to the key itself: RFC 8410, section 7.
_PREFIX = bytes.fromhex("302e020100300506032b657004220420")
_KEY_BYTES = 32
_BEGIN, _END = "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"
_WAY_OUT = (
    "give the file that `edge-fleet enroll` made, or one of `openssl genpkey -algorithm ed25519`, without a "
    "passphrase"
)


@dataclasses.dataclass(frozen=True)
class ReportSignature:
    """A signature.

    Attributes:
        keyid: Id of the public key, as securesystemslib derives it.
        signature: Hex.
    """

    keyid: str
    signature: str


class ReportKey:
    """A device's key."""

    def __init__(self, key: Ed25519Key) -> None:
        self._key = key
        # Canonical JSON of the public key, as securesystemslib writes it.
        public = f'{{"public":"{key.public.hex()}"}}'
        described = f'{{"keytype":"ed25519","keyval":{public},"scheme":"ed25519"}}'
        self.keyid = hashlib.sha256(described.encode()).hexdigest()

    def sign(self, payload: bytes) -> ReportSignature:
        """Return the signature of a payload."""
        return ReportSignature(self.keyid, self._key.sign(payload).hex())


class ReportKeyFile:
    """The key in a file, which may come, be mended or exchanged while the daemon runs.

    Attributes:
        warnings: What is wrong with the file, with the way out; empty: nothing.
    """

    def __init__(self, file: str) -> None:
        """Read the file.

        Args:
            file: [device] key_file; empty: the device has no key.
        """
        self._file = Path(file) if file else None
        self._key: ReportKey | None = None
        self._stamp: tuple[int, ...] | None = None
        self.warnings: tuple[str, ...] = ()
        self.key()

    def key(self) -> ReportKey | None:
        """Return the key; None without one, or while it cannot be read: reports are not signed then.

        A file that is gone, or cannot be read any more, leaves the key that was in it.
        """
        if self._file is None:
            return None
        stamp = _stamp(self._file)
        if self._key is not None and stamp == self._stamp:
            return self._key
        self._stamp = stamp
        before = self.warnings
        try:
            self._key = read_report_key(self._file)
            self.warnings = tuple(filter(None, [find_exposure(self._file)]))
        except EdgeError as e:
            outcome = "are not signed until then, and a fleet does not count them"
            if self._key is not None:
                outcome = "are signed with the key that was in it"
            self.warnings = (f"{e}; reports {outcome}",)
        for one in self.warnings:
            if one not in before:
                logger.warning("%s", one)
        return self._key


def read_report_key(file: Path) -> ReportKey:
    """Return the key of a file.

    Raises: SettingsError if it is not there, or no such key; DeviceError if it cannot be read.
    """
    what = f"[device] key_file {file}"
    try:
        with file.open("rb") as opened:
            text = opened.read(_LIMIT_BYTES).decode("ascii", "replace")
    except OSError as e:
        raise unreadable(e, file, what, _WAY_OUT, secret=True) from e
    if (seed := _seed(text)) is None:
        msg = f"{what}: is no private Ed25519 key in PEM (PKCS #8); {_WAY_OUT}"
        raise SettingsError(msg)
    from edge_client.reporting.ed25519 import load_ed25519  # noqa: PLC0415 - most devices have no key

    return ReportKey(load_ed25519(seed))


def find_exposure(file: Path) -> str | None:
    """Return the warning that others on this machine may use a key; None if they may not."""
    try:
        found = file.stat()
    except OSError:
        return None
    if not found.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        return None
    return (
        f"[device] key_file {file}: every user of this machine may read it, and speak for this device: run "
        f"`sudo chmod o= {file}` (it belongs to {user_name(found.st_uid)})"
    )


def _stamp(file: Path) -> tuple[int, ...] | None:
    """Return what tells two states of a file apart; None if it is not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _seed(text: str) -> bytes | None:
    """Return the 32 bytes of an Ed25519 key in PEM; None if it is another file."""
    _, begin, rest = text.partition(_BEGIN)
    inner, end, _ = rest.partition(_END)
    if not begin or not end:
        return None
    try:
        der = base64.b64decode("".join(inner.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
    return der[len(_PREFIX) :] if der[:-_KEY_BYTES] == _PREFIX else None
