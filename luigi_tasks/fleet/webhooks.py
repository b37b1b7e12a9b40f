"""Signed webhooks by the Standard Webhooks specification, version 1: one POST for each event.

A receiver verifies three headers with any library of the specification: `webhook-id` is the same at every
attempt, so that an event that comes twice is known; `webhook-timestamp` is the time of the attempt;
`webhook-signature` is `v1,` and the base64 of HMAC-SHA256 over "id.timestamp.body". No redirect is followed,
nothing of an answer but its status is read, and of an address only scheme, host and port are ever shown.
Source: github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import hmac
import logging
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edge_client.contract.addresses import shown_address
from edge_client.contract.errors import SettingsError, TransportError
from edge_client.contract.hosts import is_this_machine

if TYPE_CHECKING:
    from collections.abc import Callable

    import urllib3

SECRET_PREFIX = "whsec_"  # noqa: S105 - no secret
# Bytes of a secret, by the specification.
_SECRET_BYTES = range(24, 65)
_RECEIVERS_AT_MOST = 10
_ATTEMPTS, _TIMEOUT_S, _PAUSE_S = 2, 5.0, 1.0


@dataclasses.dataclass(frozen=True)
class Webhook:
    """A receiver.

    Attributes:
        address: Where events go; it may hold a secret of the receiver's.
        secret: Key of the signature.
    """

    address: str = dataclasses.field(repr=False)
    secret: bytes = dataclasses.field(repr=False)

    @property
    def name(self) -> str:
        """Names the receiver in records; tells nothing of its address."""
        return f"webhook-{hashlib.sha256(self.address.encode()).hexdigest()[:12]}"

    @property
    def shown(self) -> str:
        """The address, for messages."""
        return shown_address(self.address)


def read_webhooks(path: str) -> tuple[Webhook, ...]:
    """Return the receivers of a file; none for an empty path.

    Raises: SettingsError that names the line, and nothing that stands in it.
    """
    if not path:
        return ()
    what = f"[fleet] webhooks_file {path}"
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except OSError as e:
        msg = f"{what}: cannot be read ({e.strerror or e}); correct the path, or its owner"
        raise SettingsError(msg) from e
    except UnicodeDecodeError as e:
        msg = f"{what}: is not UTF-8; save it as UTF-8"
        raise SettingsError(msg) from e
    found = [
        _read_line(line.split(), f"{what}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if len(found) > _RECEIVERS_AT_MOST or len({one.address for one in found}) < len(found):
        msg = f"{what}: name each receiver once, and at most {_RECEIVERS_AT_MOST}"
        raise SettingsError(msg)
    return tuple(found)


def _read_line(words: list[str], place: str) -> Webhook:
    if len(words) != 2:
        msg = f"{place}: write an address, a blank and its secret ({SECRET_PREFIX}...)"
        raise SettingsError(msg)
    address, secret = words
    try:
        parts = urlsplit(address)
        is_address = bool(parts.hostname) and parts.port != 0 and not parts.fragment
    except ValueError:
        is_address, parts = False, urlsplit("")
    if not is_address or parts.username or parts.password is not None:
        msg = f"{place}: give an https:// address with a host, without a user"
        raise SettingsError(msg)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_this_machine(parts.hostname or "")):
        msg = f"{place}: {shown_address(address)}: give https://, or http:// on this machine"
        raise SettingsError(msg)
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or len(key) not in _SECRET_BYTES:
        msg = (
            f"{place}: the secret is {SECRET_PREFIX} and the base64 of {_SECRET_BYTES.start} to "
            f"{_SECRET_BYTES.stop - 1} bytes, as the receiver gave it, or: "
            f'echo "{SECRET_PREFIX}$(openssl rand -base64 32)"'
        )
        raise SettingsError(msg)
    return Webhook(address, key)


def sign_webhook(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of `webhook-signature`."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def send_webhook(
    webhook: Webhook,
    message_id: str,
    body: bytes,
    *,
    pool: urllib3.PoolManager,
    clock: Callable[[], float] = time.time,
) -> None:
    """Send one event, a few times until the receiver takes it.

    Args:
        webhook: The receiver.
        message_id: Id of the event.
        body: JSON.
        pool: Connections, see `open_webhook_pool`.
        clock: Seconds since 1970.
    Raises: TransportError if it does not take it.
    """
    fault = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(random.uniform(0, _PAUSE_S * attempt))  # noqa: S311 - no secret
        fault = _post(webhook, message_id, body, pool, int(clock()))
        if not fault:
            return
    msg = f"webhook {webhook.shown}: {fault}; tried {_ATTEMPTS} times, the next look tries again"
    raise TransportError(msg)


def open_webhook_pool() -> urllib3.PoolManager:
    """Return connections that verify certificates; proxies of the environment are not used."""
    import urllib3  # noqa: PLC0415 - a fleet without webhooks does without

    # It logs the path of each request, where a receiver's token may be.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.WARNING)
    return urllib3.PoolManager(
        num_pools=_RECEIVERS_AT_MOST,
        retries=False,
        timeout=urllib3.Timeout(connect=_TIMEOUT_S, read=_TIMEOUT_S, total=2 * _TIMEOUT_S),
    )


def _post(webhook: Webhook, message_id: str, body: bytes, pool: urllib3.PoolManager, timestamp: int) -> str:
    """Return why the receiver did not take an event; empty: it did."""
    from urllib3.exceptions import HTTPError  # noqa: PLC0415 - as above

    headers = {
        "content-type": "application/json",
        "user-agent": "edge-fleet",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign_webhook(webhook.secret, message_id, timestamp, body),
    }
    try:
        # A body of any size may follow the status; nothing of it is read.
        answer = pool.request(
            "POST", webhook.address, body=body, headers=headers, redirect=False, preload_content=False
        )
        answer.close()
    except (HTTPError, OSError, ValueError) as e:
        return f"cannot be reached ({type(e).__name__})"
    return "" if 200 <= answer.status < 300 else f"answered {answer.status}"
