"""Signs a GET or PUT for S3: AWS Signature Version 4, of which a device needs these two cases.

botocore does it too, for 60 ms of imports at each update check and 80 MB on the SD card. A test holds both
equal. Source: AWS General Reference, "Create a signed AWS API request".
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from edge_client.contract.times import current_time

if TYPE_CHECKING:
    import datetime

    from edge_client.settings.update import StoreCredentials

_ALGORITHM = "AWS4-HMAC-SHA256"
_EMPTY_BODY = hashlib.sha256(b"").hexdigest()
_DEFAULT_PORTS = {"http": 80, "https": 443}


def sign_get(
    url: str, region: str, credentials: StoreCredentials, at: datetime.datetime | None = None
) -> dict[str, str]:
    """Return the headers that sign a GET; see `_sign`."""
    return _sign("GET", url, region, credentials, _EMPTY_BODY, at)


def sign_put(
    url: str,
    region: str,
    credentials: StoreCredentials,
    body: bytes,
    at: datetime.datetime | None = None,
) -> dict[str, str]:
    """Return the headers that sign a PUT of `body`; see `_sign`."""
    return _sign("PUT", url, region, credentials, hashlib.sha256(body).hexdigest(), at)


def _sign(
    method: str,
    url: str,
    region: str,
    credentials: StoreCredentials,
    body_sha256: str,
    at: datetime.datetime | None,
) -> dict[str, str]:
    """Sign a request to an address without a query.

    Args:
        method: Of the request.
        url: http(s)://host/bucket/key.
        region: e.g. `eu-central-1`.
        credentials: Keys, and a session token for temporary ones.
        body_sha256: Hex digest of the body.
        at: UTC; None: now.
    Returns: Headers.
    """
    moment = at or current_time()
    stamp, day = moment.strftime("%Y%m%dT%H%M%SZ"), moment.strftime("%Y%m%d")
    parts = urlsplit(url)
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"  # an IPv6 address, as it stands in the Host header
    if parts.port and parts.port != _DEFAULT_PORTS.get(parts.scheme):
        host = f"{host}:{parts.port}"
    headers = {"x-amz-content-sha256": body_sha256, "x-amz-date": stamp}
    if credentials.session_token:
        headers["x-amz-security-token"] = credentials.session_token
    signed = {"host": host, **headers}
    names = ";".join(sorted(signed))
    path = quote(unquote(parts.path or "/"), safe="/-_.~")
    lines = [f"{name}:{signed[name]}" for name in sorted(signed)]
    request = "\n".join([method, path, "", *lines, "", names, body_sha256])
    scope = f"{day}/{region}/s3/aws4_request"
    text = "\n".join([_ALGORITHM, stamp, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{credentials.secret_access_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"Credential={credentials.access_key_id}/{scope}"
    headers["Authorization"] = f"{_ALGORITHM} {credential}, SignedHeaders={names}, Signature={signature}"
    return headers
