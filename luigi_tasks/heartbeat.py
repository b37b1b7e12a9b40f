"""Tells luigid every few seconds that a worker lives; a process of its own, which ends with its parent.

Run by its path: standard input has one line, address and worker id in JSON, and stays open while the worker
lives.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import select
import sys
import urllib.request
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlencode, urlsplit

if TYPE_CHECKING:
    from typing import TextIO

INTERVAL_S = 10.0


def beat(orders: TextIO) -> None:
    """Ping luigid until the orders end; what it answers, or that it does not, is the worker's to notice."""
    order = json.loads(orders.readline())
    ping = _ping_of(order["url"], order["worker"])
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            urllib.request.urlopen(ping, timeout=INTERVAL_S).close()  # noqa: S310 - http or https
        if select.select([orders], [], [], INTERVAL_S)[0]:
            return


def _ping_of(url: str, worker: str) -> urllib.request.Request:
    """Return the request that luigid knows a worker by."""
    parts = urlsplit(url)
    credentials, _, host = parts.netloc.rpartition("@")
    address = parts._replace(netloc=host, path=f"{parts.path.rstrip('/')}/api/ping").geturl()
    data = urlencode({"data": json.dumps({"worker": worker})}).encode()
    request = urllib.request.Request(address, data)  # noqa: S310 - http or https
    if credentials:
        secret = base64.b64encode(unquote(credentials).encode()).decode()
        request.add_header("Authorization", f"Basic {secret}")
    return request


if __name__ == "__main__":
    beat(sys.stdin)
