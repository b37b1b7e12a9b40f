"""Where a request comes from: address, scheme and host as the person's browser has them.

Behind a reverse proxy they stand in `X-Forwarded-*`, which anybody can write: they count only from an address
of `[board] trusted_proxies`.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from tornado.httputil import HTTPHeaders, HTTPServerRequest

    from luigi_tasks.settings.values import BoardSettings

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_WITH_PORT = re.compile(r"\[(?P<v6>[^\]]+)\](?::\d+)?|(?P<v4>[0-9.]+):\d+")
_PORTS = {"http": "80", "https": "443"}
# An attacker has a whole network of IPv6 addresses; this much of one is one customer's.
_IPV6_CUSTOMER_BITS = 64


@dataclasses.dataclass(frozen=True)
class Client:
    """Who is at the other end.

    Attributes:
        address: IP address of the person's machine, as far as it can be believed.
        scheme: `http` or `https`, as the browser wrote it.
        host: Host as the browser wrote it, with its port if it wrote one.
        is_proxied: Whether a trusted proxy sent the request.
    """

    address: str
    scheme: str
    host: str
    is_proxied: bool

    @property
    def network(self) -> str:
        """Whose attempts are counted together: an address of IPv4, a customer's network of IPv6."""
        address = parse_address(self.address)
        if isinstance(address, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((int(address), _IPV6_CUSTOMER_BITS), strict=False))
        return self.address

    @property
    def origin(self) -> str:
        """Origin of the pages that this browser shows."""
        return origin_of(f"{self.scheme}://{self.host}")


class Clients:
    """Reads who sends a request.

    Args:
        settings: Section [board].
    """

    def __init__(self, settings: BoardSettings) -> None:
        self._trusted = read_networks(settings.trusted_proxies)
        self._url = urlsplit(settings.url)

    def of(self, request: HTTPServerRequest) -> Client:
        """Return who sends a request."""
        peer = parse_address(request.remote_ip or "")
        address = str(peer) if peer is not None else request.remote_ip or ""
        host = request.headers.get("Host", "")
        if peer is None or not self._is_trusted(peer):
            return Client(address, self._scheme(request.protocol, host), host, is_proxied=False)
        seen = last_of(request.headers, "X-Forwarded-Host") or host
        scheme = last_of(request.headers, "X-Forwarded-Proto").lower()
        if scheme not in _PORTS:
            scheme = self._scheme(request.protocol, seen)
        return Client(self._behind(request.headers, address), scheme, seen, is_proxied=True)

    def _scheme(self, own: str, host: str) -> str:
        """Return the scheme: a proxy that says nothing speaks for `[board] url`."""
        return self._url.scheme if self._url.netloc and self._url.netloc == host else own

    def _behind(self, headers: HTTPHeaders, address: str) -> str:
        """Return the address that the outermost trusted proxy saw."""
        for one in reversed(",".join(headers.get_list("X-Forwarded-For")).split(",")):
            text = one.strip()
            if found := _WITH_PORT.fullmatch(text):
                text = found["v6"] or found["v4"]
            seen = parse_address(text)
            if seen is None:
                break
            address = str(seen)
            if not self._is_trusted(seen):
                break
        return address

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def parse_address(text: str) -> Address | None:
    """Return an IP address, one of IPv4 also where it is written as IPv6; None if it is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def read_networks(text: str) -> tuple[Network, ...]:
    """Return networks and addresses, written with commas.

    Raises: ValueError if one is none, or is every address there is.
    """
    networks = tuple(ipaddress.ip_network(one.strip()) for one in text.split(",") if one.strip())
    for one in networks:
        if one.prefixlen == 0:
            msg = f"{one} is every address: whoever reaches the board could say who he is"
            raise ValueError(msg)
    return networks


def split_host(host: str) -> tuple[str, str] | None:
    """Return name, in small letters and without brackets, and port of a `Host`; None if it is none."""
    found = _HOST.fullmatch(host)
    if found is None:
        return None
    return found["name"].strip("[]").rstrip(".").lower(), found["port"] or ""


def origin_of(url: str) -> str:
    """Return the origin of an address, without the scheme's own port; "" if it has none."""
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    split = split_host(re.split(r"[/?#]", rest, maxsplit=1)[0])
    if not separator or split is None:
        return ""
    name, port = split
    shown = f"[{name}]" if ":" in name else name
    return f"{scheme}://{shown}" + (f":{port}" if port and port != _PORTS.get(scheme) else "")


def last_of(headers: HTTPHeaders, name: str) -> str:
    """Return the last value of a header: what the nearest proxy appended."""
    return ",".join(headers.get_list(name)).rpartition(",")[2].strip()
