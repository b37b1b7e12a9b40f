"""Where a store may redirect a device to: never to an address that the store alone chose.

A device sits in a network that the store does not see: its router, its cameras. What it would fetch there is
verified, but the request alone may do harm. So a redirect is followed to the store itself, between the hosts
of Amazon S3, and to what `[store] redirect_hosts` lists.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Collection
    from urllib.parse import SplitResult

_DEFAULT_PORTS = {"http": 80, "https": 443}
# S3 redirects to the host of a bucket's region (S3 User Guide, "Request redirection"). The names of VPC
# endpoints and of virtual machines end otherwise; those may lead into a private network.
_S3_HOST = re.compile(r"(?:[a-z0-9.-]+\.)?s3(?:[.-](?:dualstack\.)?[a-z0-9-]+)?\.amazonaws\.com(?:\.cn)?")


def may_redirect(store: str, target: str, hosts: Collection[str] = ()) -> bool:
    """Return whether a redirect from a store is followed.

    Args:
        store: Address that was asked for.
        target: Absolute address that the store answered with.
        hosts: `host` (with the usual port), `host:port`, or `*.domain`, that the settings allow.
    Raises: ValueError if `target` is no address.
    """
    before, after = urlsplit(store), urlsplit(target)
    if after.scheme not in _DEFAULT_PORTS or not after.hostname or "@" in after.netloc:
        return False
    if before.scheme == "https" != after.scheme:
        return False
    if _host(before) == _host(after):
        upgraded = (_port(before), _port(after)) == (80, 443)
        if upgraded or _origin(before) == _origin(after):
            return True
    elif all(_S3_HOST.fullmatch(_host(one)) and _has_usual_port(one) for one in (before, after)):
        return True
    return any(_allows(host.lower(), after) for host in hosts)


def is_same_origin(one: str, other: str) -> bool:
    """Return whether two addresses have scheme, host and port in common."""
    return _origin(urlsplit(one)) == _origin(urlsplit(other))


def _allows(pattern: str, target: SplitResult) -> bool:
    allowed = urlsplit(f"//{pattern}")
    name, port = _host(allowed), allowed.port
    if not (_has_usual_port(target) if port is None else _port(target) == port):
        return False
    if name.startswith("*."):
        return _host(target).endswith(name[1:])
    return _host(target) == name


def _host(address: SplitResult) -> str:
    return (address.hostname or "").rstrip(".").lower()


def _port(address: SplitResult) -> int | None:
    return address.port or _DEFAULT_PORTS.get(address.scheme)


def _has_usual_port(address: SplitResult) -> bool:
    return _port(address) == _DEFAULT_PORTS.get(address.scheme)


def _origin(address: SplitResult) -> tuple[str, str, int | None]:
    return address.scheme, _host(address), _port(address)
