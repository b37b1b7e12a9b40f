"""Reads objects from the store over HTTP: plain GET, or signed for S3 (AWS Signature Version 4).

Nothing that arrives here is trusted; `trusted.py` verifies it. This module only limits time, speed and,
through python-tuf, length.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import urllib3
from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError

from edge_client import __version__
from edge_client.contract.addresses import shown_address, shown_below
from edge_client.contract.errors import EdgeError
from edge_client.contract.text import one_line
from edge_client.repository.connections import RETRIES, describe_refusal, innermost_reason, open_pool
from edge_client.repository.fetcher import CHUNK_BYTES, Fetcher
from edge_client.repository.redirects import is_same_origin, may_redirect
from edge_client.repository.sigv4 import sign_get

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_client.repository.keys import Keys
    from edge_client.settings.update import StoreSettings

# Speed is judged only after this time: a first packet over a bad radio link may take seconds.
SPEED_GRACE_S = 20.0
_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")
_MOST_REDIRECTS = 3


class StoreFetcher(Fetcher):
    """HTTP GET with limits; counts the bytes of bodies."""

    def __init__(
        self,
        settings: StoreSettings,
        keys: Keys | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Open no connection yet.

        Args:
            settings: `base_url`, region and limits.
            keys: Sign requests for S3 with them; None reads a public bucket or CDN.
            clock: Seconds that only grow.
            sleep: Waits, where reading is to be slowed down.
        """
        self.bytes_pulled = 0
        self._free_at = 0.0
        self._settings = settings
        self._keys = keys
        self._clock = clock
        self._sleep = sleep
        self._pool: urllib3.PoolManager = open_pool(settings)

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def _fetch(self, url: str) -> Iterator[bytes]:
        """Start one GET; see `FetcherInterface`."""
        return self._chunks(url, self._get(url, {}, {200}))

    def fetch_from(self, url: str, offset: int) -> tuple[int, Iterator[bytes]]:
        """See `Fetcher.fetch_from`: a GET with a range."""
        if offset == 0:
            return 0, self._fetch(url)
        response = self._get(url, {"Range": f"bytes={offset}-"}, {200, 206, 416})
        start = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status == 206 and start and int(start[1]) == offset:
            return offset, self._chunks(url, response)
        if response.status == 200:
            return 0, self._chunks(url, response)
        response.close()
        return 0, self._fetch(url)  # the object is shorter than the offset, or ranges are not supported

    def _get(
        self, url: str, headers: dict[str, str], accepted: set[int]
    ) -> urllib3.response.BaseHTTPResponse:
        response = self._follow(url, headers)
        if response.status in accepted:
            return response
        refusal = describe_refusal(response)
        if self._has_new_keys(refusal):
            response = self._follow(url, headers)
            if response.status in accepted:
                return response
            refusal = describe_refusal(response)
        msg = f"{self._shown(url)}: {refusal}"
        raise DownloadHTTPError(msg, response.status)

    def _has_new_keys(self, refusal: str) -> bool:
        """Return whether a request that the store refused is to be repeated with other keys."""
        try:
            return self._keys is not None and self._keys.renew_if_outdated(refusal)
        except EdgeError as e:
            raise DownloadError(str(e)) from None

    def _follow(self, url: str, headers: dict[str, str]) -> urllib3.response.BaseHTTPResponse:
        """Send a GET, and follow redirects that `may_redirect` allows; credentials go to the store alone."""
        at, sent = url, self._headers(url) | headers
        for _ in range(_MOST_REDIRECTS + 1):
            response = self._request(at, sent)
            if not (location := response.get_redirect_location()):
                return response
            response.close()
            at = self._redirected(at, location)
            if not is_same_origin(url, at):
                sent = self._plain_headers() | headers
        msg = f"{self._shown(url)}: too many redirects"
        raise DownloadError(msg)

    def _redirected(self, url: str, location: str) -> str:
        """Return the address that a redirect leads to. Raises: DownloadError if it must not be followed."""
        try:
            target = urljoin(url, location)
            allowed = may_redirect(url, target, self._settings.redirect_hosts)
        except ValueError as e:
            msg = f"{self._shown(url)}: redirects to {_shown_target(location)}, which is no address"
            raise DownloadError(msg) from e
        if not allowed:
            msg = (
                f"{self._shown(url)}: redirects to {_shown_target(target)}, which is not followed, unless "
                f"[store] redirect_hosts names {_host_and_port(target) or 'it'}"
            )
            raise DownloadError(msg)
        return target

    def _request(self, url: str, headers: dict[str, str]) -> urllib3.response.BaseHTTPResponse:
        limit_s = self._settings.timeout_s
        try:
            return self._pool.request(
                "GET",
                url,
                headers=headers,
                preload_content=False,
                decode_content=False,
                redirect=False,
                timeout=urllib3.Timeout(connect=limit_s, read=limit_s),
                retries=RETRIES,
            )
        except urllib3.exceptions.HTTPError as e:
            msg = f"{self._shown(url)}: {innermost_reason(e)}"
            raise DownloadError(msg) from e

    def _chunks(self, url: str, response: urllib3.response.BaseHTTPResponse) -> Iterator[bytes]:
        started, received = self._clock(), 0
        try:
            while True:
                # read1 returns what has arrived; read would wait for a whole chunk, however slowly it
                # arrives.
                chunk = response.read1(CHUNK_BYTES, decode_content=False)
                if not chunk:
                    return
                received += len(chunk)
                self.bytes_pulled += len(chunk)
                self._check_speed(url, received, self._clock() - started)
                self._keep_to_rate(len(chunk))
                yield chunk
        except urllib3.exceptions.HTTPError as e:
            msg = f"{self._shown(url)}: broke off after {received} bytes: {innermost_reason(e)}"
            raise DownloadError(msg) from e
        except OSError as e:
            msg = f"{self._shown(url)}: broke off after {received} bytes: {e}"
            raise DownloadError(msg) from e
        finally:
            response.close()
            response.release_conn()

    def _check_speed(self, url: str, received: int, seconds: float) -> None:
        floor = self._settings.min_bytes_per_s
        if seconds > SPEED_GRACE_S and received < floor * seconds:
            msg = (
                f"{self._shown(url)}: {received} bytes in {seconds:.0f} s, less than {floor} bytes/s; given "
                "up ([store] min_bytes_per_s)"
            )
            raise SlowRetrievalError(msg)

    def _keep_to_rate(self, size_bytes: int) -> None:
        if rate := self._settings.max_bytes_per_s:
            now = self._clock()
            self._free_at = max(self._free_at, now) + size_bytes / rate
            self._sleep(self._free_at - now)

    def _shown(self, url: str) -> str:
        """Return an address for messages: which object of the store, without what may be secret."""
        base_url = self._settings.base_url.rstrip("/")
        if url.startswith(f"{base_url}/"):
            return shown_below(base_url, url[len(base_url) + 1 :])
        return shown_address(url)

    def _headers(self, url: str) -> dict[str, str]:
        if self._keys is None:
            return self._plain_headers()
        try:
            keys = self._keys.current()
        except EdgeError as e:
            raise DownloadError(str(e)) from None  # python-tuf passes on no other
        return self._plain_headers() | sign_get(url, self._settings.region, keys)

    def _plain_headers(self) -> dict[str, str]:
        # A compressed response could unpack to any size, and signed lengths are those of the plain bytes.
        return {"User-Agent": f"edge-client/{__version__}", "Accept-Encoding": "identity"}


def _shown_target(target: str) -> str:
    """Return what may be shown of where a redirect leads: the store may have signed the address."""
    return one_line(shown_address(target) if "://" in target else target.partition("?")[0])


def _host_and_port(target: str) -> str:
    return one_line(urlsplit(target).netloc.rpartition("@")[2])
