"""Whether a store answers at all, asked once before the first request.

boto3 gives each of its attempts minutes, as an upload may need: a store that is not there would be noticed
after half a minute, and one that says nothing after four.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edge_client.contract.addresses import shown_address
from edge_client.contract.errors import TransportError

if TYPE_CHECKING:
    from urllib.parse import SplitResult

# A store that is just started again is waited for so long.
LIMIT_S = 5.0
# One that did not answer is not asked again for so long: a run asks it for several targets.
SILENT_S = 10.0
_PAUSE_S = 0.5


def check_before_first_request(client: Any) -> None:  # noqa: ANN401 - boto3 makes its classes at run time
    """Let a boto3 client look for its endpoint before the first request.

    That request raises TransportError where the endpoint does not answer within `LIMIT_S`.
    """
    found: set[str] = set()
    silent: dict[str, tuple[float, TransportError]] = {}

    def look(request: Any, **_: object) -> None:  # noqa: ANN401 - botocore's
        url = urlsplit(request.url)
        if url.netloc in found or _has_proxy(url):
            return
        asked, error = silent.get(url.netloc) or (0.0, None)
        if error is not None and time.monotonic() < asked + SILENT_S:
            raise TransportError(str(error))
        try:
            _wait_for(url)
        except TransportError as e:
            silent[url.netloc] = (time.monotonic(), e)
            raise
        found.add(url.netloc)

    client.meta.events.register_first("before-send.s3", look)


def _wait_for(url: SplitResult) -> None:
    deadline = time.monotonic() + LIMIT_S
    while (fault := _ask(url, max(0.1, deadline - time.monotonic()))) is not None:
        if time.monotonic() + _PAUSE_S > deadline:
            address = shown_address(f"{url.scheme}://{url.netloc}")
            msg = (
                f"the store at {address} does not answer ({fault}); check [store] endpoint_url and the "
                "network, then run again"
            )
            raise TransportError(msg)
        time.sleep(_PAUSE_S)


def _ask(url: SplitResult, timeout_s: float) -> str | None:
    """Return why nobody answers; None if anybody does. A wrong answer, or a wrong name, boto3 tells."""
    host, port = url.hostname or "", url.port
    connection = (
        http.client.HTTPSConnection(host, port, timeout=timeout_s, context=ssl._create_unverified_context())  # noqa: S323, SLF001 - nothing is sent
        if url.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=timeout_s)
    )
    try:
        connection.request("HEAD", "/")
        connection.getresponse()
    except (ssl.SSLError, http.client.HTTPException, socket.gaierror):
        return None
    except (OSError, UnicodeError) as e:
        return str(e) or type(e).__name__
    finally:
        connection.close()
    return None


def _has_proxy(url: SplitResult) -> bool:
    """Whether requests go through a proxy, which alone knows the way."""
    host = url.hostname or ""
    return url.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)
