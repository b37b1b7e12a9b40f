"""Names of hosts, as settings give them."""

from __future__ import annotations

import ipaddress


def is_this_machine(host: str) -> bool:
    """Whether what is sent to a host stays on this machine: `localhost`, or a loopback address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() in {"localhost", "localhost.", "ip6-localhost"}
