"""Keys of the store: static ones, or temporary ones of AWS IoT's credentials provider.

A device with an X.509 certificate in AWS IoT Core needs no key on its disk: it asks
`https://<endpoint>/role-aliases/<alias>/credentials` over mutual TLS, and gets keys of a role for an hour.
Whoever needs them asks: the child of an update check or an upload, and the commands of a person. They stay in
the memory of that process, and are renewed before they expire. Source: AWS IoT Core Developer Guide,
"Authorizing direct calls to AWS services".
"""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import logging
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

import msgspec
import urllib3

from edge_client.contract.addresses import without_secrets
from edge_client.contract.errors import SettingsError, TransportError
from edge_client.contract.text import excerpt
from edge_client.contract.times import current_time
from edge_client.repository.connections import RETRIES, innermost_reason, open_pool
from edge_client.settings.update import StoreCredentials, read_credentials, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_client.settings.update import StoreSettings

logger = logging.getLogger(__name__)

# An answer has about 1.5 kB.
_ANSWER_BYTES = 65536
# Temporary keys are renewed so long before they expire, or after two thirds of their life if that is short.
_MARGIN_S = 300.0
# After a renewal that failed, while the keys are valid still.
_AGAIN_S = 60.0
# S3's codes for keys that it does not take any more.
_OUTDATED = ("ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired")


class Keys(Protocol):
    """Keys of the store; `StoreCredentials` are such that stay as they are."""

    def current(self) -> StoreCredentials:
        """Return keys that are valid now. Raises: TransportError, SettingsError, DeviceError."""
        ...

    def renew_if_outdated(self, refusal: str) -> bool:
        """Return whether there are new keys, after the store refused the current ones with a reason."""
        ...


class _Credentials(msgspec.Struct, rename="camel"):
    access_key_id: str
    secret_access_key: str
    session_token: str
    expiration: str


class _Answer(msgspec.Struct):
    credentials: _Credentials


class TemporaryKeys:
    """Keys of AWS IoT's credentials provider; fetched when they are first needed.

    Attributes:
        clock_behind_s: By how much this device's time of day is behind the provider's, as of the last fetch.
    """

    def __init__(self, store: StoreSettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Touch no network yet.

        Args:
            store: Section [store], with `credentials_endpoint`.
            clock: Seconds that only grow: this device's time of day may be wrong.
        """
        self._store = store
        self._clock = clock
        self._keys: StoreCredentials | None = None
        self._renew_at = self._expires_at = float("-inf")
        self.clock_behind_s = 0.0

    @property
    def life_s(self) -> float:
        """Seconds for which the keys are valid."""
        return max(self._expires_at - self._clock(), 0.0)

    def current(self) -> StoreCredentials:
        """See `Keys.current`."""
        if self._keys is not None and self._clock() < self._renew_at:
            return self._keys
        try:
            return self._renew()
        except TransportError as e:
            if self._keys is None or self.life_s == 0:
                raise
            logger.warning("%s", e)
            self._renew_at = self._clock() + _AGAIN_S
            return self._keys

    def renew_if_outdated(self, refusal: str) -> bool:
        """See `Keys.renew_if_outdated`."""
        if not any(code in refusal for code in _OUTDATED):
            return False
        self._renew()
        return True

    def _renew(self) -> StoreCredentials:
        asked_at = self._clock()
        answer, life_s = self._fetch()
        self._expires_at = asked_at + life_s
        self._renew_at = self._expires_at - min(_MARGIN_S, life_s / 3)
        self._keys = answer
        return answer

    @property
    def _address(self) -> str:
        return f"https://{self._store.credentials_endpoint}"

    def _fetch(self) -> tuple[StoreCredentials, float]:
        """Return new keys, and for how many seconds they are valid.

        Raises: TransportError; SettingsError or DeviceError if certificate or key cannot be used.
        """
        limit_s = self._store.timeout_s
        here = dataclasses.replace(self._store, base_url=self._address)
        pool = open_pool(here, ssl_context=open_context(self._store))
        try:
            response = pool.request(
                "GET",
                f"{self._address}/role-aliases/{quote(self._store.role_alias, safe='')}/credentials",
                headers={"x-amzn-iot-thingname": self._store.thing_name},
                redirect=False,
                retries=RETRIES,
                timeout=urllib3.Timeout(connect=limit_s, read=limit_s),
                preload_content=False,
            )
            body = response.read(_ANSWER_BYTES)
        except (urllib3.exceptions.HTTPError, OSError) as e:
            reason = innermost_reason(e)
            way_out = _UNVERIFIED if "CERTIFICATE_VERIFY_FAILED" in reason else _NO_CONNECTION
            raise self._error(reason, way_out) from e
        finally:
            pool.clear()
        if response.status != 200:
            reason = f"{response.status} {_message(body, response.reason)}"
            raise self._error(reason, self._way(response.status))
        return self._read(body, response.headers.get("Date"))

    def _read(self, body: bytes, date: str | None) -> tuple[StoreCredentials, float]:
        """Decode an answer. Its own time of day counts, not this device's."""
        try:
            found = msgspec.json.decode(body, type=_Answer).credentials
            expires = datetime.datetime.fromisoformat(found.expiration.replace("Z", "+00:00"))
            now = email.utils.parsedate_to_datetime(date) if date else current_time()
            life_s = (expires - now).total_seconds()
            self.clock_behind_s = (now - current_time()).total_seconds()
        except (msgspec.DecodeError, ValueError, TypeError) as e:
            reason = f"not an answer of the credentials provider ({type(e).__name__})"
            raise self._error(reason, _ENDPOINT) from e
        if life_s <= 0:
            raise self._error("sent keys that have expired", "set this device's clock (timedatectl)")
        return StoreCredentials(found.access_key_id, found.secret_access_key, found.session_token), life_s

    def _way(self, status: int) -> str:
        alias, thing = self._store.role_alias, self._store.thing_name
        if status in {400, 401, 403}:
            return (
                f"the certificate must be active and attached to the thing {thing}, its policy allow "
                f"iot:AssumeRoleWithCertificate on the role alias {alias}, and the role trust "
                "credentials.iot.amazonaws.com (docs/store-credentials.md)"
            )
        if status == 404:
            return f"is there a role alias {alias} (aws iot list-role-aliases)? Then {_ENDPOINT}"
        return "AWS IoT's credentials provider cannot answer now"

    def _error(self, reason: str, way_out: str) -> TransportError:
        where = f"{self._address}: no temporary keys of role alias {self._store.role_alias}"
        return TransportError(f"{without_secrets(f'{where}: {reason}')}; {way_out}. It will be tried again")


_ENDPOINT = (
    "[store] credentials_endpoint must be what `aws iot describe-endpoint --endpoint-type "
    "iot:CredentialProvider` prints"
)
_UNVERIFIED = (
    "[store] credentials_ca_file (empty: the CAs of this system) must have the CA of that host, and the "
    "clock must be right (timedatectl)"
)
_NO_CONNECTION = (
    f"is the network up, the certificate active in AWS IoT, and this device's clock right? {_ENDPOINT}"
)


def open_keys(store: StoreSettings) -> Keys | None:
    """Return the store's keys; None for a public store.

    Raises: SettingsError if a file of keys is not there or lacks one; DeviceError if it cannot be read.
    """
    if store.credentials_endpoint:
        return TemporaryKeys(store)
    return read_credentials(store)


def open_context(store: StoreSettings) -> ssl.SSLContext:
    """Return the context of a connection with this device's certificate.

    Raises: SettingsError that names the file which does not do; DeviceError if one cannot be read.
    """
    for setting in ("certificate_file", "key_file", "credentials_ca_file"):
        if name := getattr(store, setting):
            _check_readable(Path(name), f"[store] {setting} {name}", secret=setting == "key_file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if store.credentials_ca_file:
            context.load_verify_locations(store.credentials_ca_file)
        else:
            context.load_default_certs()
    except (ssl.SSLError, OSError) as e:
        msg = f"[store] credentials_ca_file {store.credentials_ca_file}: no certificate in PEM ({e})"
        raise SettingsError(msg) from e
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(store.certificate_file, store.key_file, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as e:
        msg = (
            f"[store] certificate_file {store.certificate_file}, key_file {store.key_file}: {e}; give the "
            "certificate and its private key in PEM, the key without a passphrase"
        )
        raise SettingsError(msg) from e
    return context


def _check_readable(file: Path, what: str, *, secret: bool) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as e:
        raise unreadable(e, file, what, "copy it to this device", secret=secret) from e


def _message(body: bytes, reason: str | None) -> str:
    """Return what the credentials provider says of a refusal."""
    try:
        return excerpt(str(msgspec.json.decode(body)["message"]))
    except (msgspec.DecodeError, LookupError, TypeError):
        return reason or ""
