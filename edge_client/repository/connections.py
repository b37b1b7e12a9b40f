"""HTTP connections of the device: proxy, certificates, what is tried again, and why a request failed."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from edge_client.contract.addresses import without_secrets
from edge_client.contract.errors import SettingsError
from edge_client.repository.refusals import find_way_out
from edge_client.settings.update import unreadable

if TYPE_CHECKING:
    import ssl
    from types import TracebackType
    from typing import Self

    from edge_client.settings.update import StoreSettings

# S3 answers errors in XML well below this.
_ERROR_BODY_BYTES = 4096
# Before the reason, urllib3 names the connection, an object of Python.
_CONNECTION = re.compile(r"^(?:HTTPS?Connection\w*\([^)]*\): |\(<HTTPS?Connection.*?>, ['\"])+")


class _Retry(urllib3.Retry):
    """Connects again after a reset, which is safe for GET, but not after what stays as it is.

    That is as long a silence as is allowed, and a certificate that one of the sides does not take.
    """

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: urllib3.response.BaseHTTPResponse | None = None,
        error: Exception | None = None,
        _pool: urllib3.connectionpool.ConnectionPool | None = None,
        _stacktrace: TracebackType | None = None,
    ) -> Self:
        """See `urllib3.Retry.increment`."""
        if error is not None and (_is_silence(error) or _is_about_certificates(error)):
            raise error
        return super().increment(method, url, response, error, _pool, _stacktrace)


# A transfer that broke off is left to the updater's retry.
RETRIES = _Retry(total=3, connect=2, read=1, status=0, backoff_factor=0.3)
# For a PUT that never overwrites.
PUT_RETRIES = _Retry(total=2, redirect=0, status=0, backoff_factor=0.3)


def open_pool(settings: StoreSettings, ssl_context: ssl.SSLContext | None = None) -> urllib3.PoolManager:
    """Return a pool through the proxy that the environment names, if it names one.

    Args:
        settings: `base_url`, and `ca_file` where there is no context.
        ssl_context: With a certificate of this device; None: no such.
    Raises: SettingsError if `ca_file` does not do; DeviceError if it cannot be read.
    """
    if settings.ca_file and ssl_context is None:
        _check_authority(Path(settings.ca_file))
    parts = urlsplit(settings.base_url)
    proxy = getproxies().get(parts.scheme)
    ca_certs = (settings.ca_file or None) if ssl_context is None else None
    if proxy and not proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy, maxsize=1, ca_certs=ca_certs, ssl_context=ssl_context)
    return urllib3.PoolManager(maxsize=1, ca_certs=ca_certs, ssl_context=ssl_context)


def _check_authority(file: Path) -> None:
    """Check a CA certificate before it is needed: urllib3 names no file."""
    import ssl  # noqa: PLC0415 - most stores need none

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError as e:
        msg = (
            f"[store] ca_file {file}: no certificate in PEM ({e.reason or e}); give that of the store's CA, "
            "or leave it empty for the system's"
        )
        raise SettingsError(msg) from e
    except OSError as e:
        raise unreadable(e, file, f"[store] ca_file {file}", "copy the CA's certificate there") from e


def describe_refusal(response: urllib3.response.BaseHTTPResponse) -> str:
    """Return status and S3's error code, e.g. `403 AccessDenied`, and the way out where one is known."""
    body = b""
    with contextlib.suppress(urllib3.exceptions.HTTPError, OSError):
        body = response.read1(_ERROR_BODY_BYTES, decode_content=False)
    response.close()
    found = re.search(rb"<Code>([A-Za-z0-9.]{1,64})</Code>", body)
    code = found[1].decode() if found else ""
    way_out = find_way_out(code)
    said = f"{response.status} {code or response.reason or ''}".strip()
    return f"{said} ({way_out})" if way_out else said


def innermost_reason(error: BaseException) -> str:
    """Return the innermost reason: urllib3 wraps it in its retries."""
    inner = getattr(error, "reason", None)
    if isinstance(inner, BaseException):
        return innermost_reason(inner)
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return "no answer in time ([store] timeout_s)"
    if _is_silence(error):
        return "no connection in time ([store] timeout_s)"
    return without_secrets(_CONNECTION.sub("", str(error))) or type(error).__name__


def _is_about_certificates(error: BaseException) -> bool:
    is_tls = isinstance(error, urllib3.exceptions.SSLError)
    return is_tls and any(word in str(error).upper() for word in ("CERTIFICATE", "ALERT"))


def _is_silence(error: BaseException) -> bool:
    """Whether nothing came in time; urllib3 calls a refused connection a timeout, too."""
    refused = isinstance(error, urllib3.exceptions.NewConnectionError)
    return isinstance(error, urllib3.exceptions.TimeoutError) and not refused
