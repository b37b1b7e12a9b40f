"""Faults of section [board]: what would let in others than its owner means."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edge_client.contract.addresses import shown_address

if TYPE_CHECKING:
    from luigi_tasks.settings.values import BoardSettings

_HEADER = re.compile(r"[A-Za-z0-9-]+")
_PATH = re.compile(r"[A-Za-z0-9._~/-]*")


def find_board_faults(board: BoardSettings) -> list[str]:
    """Return one sentence for each setting that cannot work."""
    lists = [name for name in ("operators", "labellers", "viewers") if getattr(board, name).strip()]
    faults = [*_find_url_faults(board.url), *_find_proxy_faults(board.trusted_proxies)]
    faults += [
        f"[board] hosts {host!r}: give names alone, such as board.example.org"
        for host in (one.strip() for one in board.hosts.split(","))
        if set(host) & set("/:*@ ")
    ]
    for name in ("proxy_user_header", "proxy_groups_header"):
        header = getattr(board, name)
        if header and not _HEADER.fullmatch(header):
            faults.append(f"[board] {name} {header!r}: give the name of a header, such as X-Forwarded-User")
    if board.proxy_user_header and not board.trusted_proxies.strip():
        faults.append(
            "[board] proxy_user_header counts only from [board] trusted_proxies: name the proxy's address"
        )
    if not board.proxy_user_header and (lists or board.proxy_groups_header):
        given = ", ".join(lists) or "proxy_groups_header"
        faults.append(
            f"[board] {given}: whom a proxy names in [board] proxy_user_header, which is empty; "
            "without such a proxy people have tokens: edge-fleet board-token"
        )
    return faults


def _find_url_faults(url: str) -> list[str]:
    if not url:
        return []
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return [f"[board] url {shown_address(url)!r}: give http:// or https://, the host and a path"]
    if (
        not is_address
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
        or not _PATH.fullmatch(parts.path)
    ):
        return [f"[board] url {shown_address(url)!r}: give http:// or https://, the host and a path"]
    return []


def _find_proxy_faults(networks: str) -> list[str]:
    faults = []
    for one in filter(None, (part.strip() for part in networks.split(","))):
        try:
            network = ipaddress.ip_network(one)
        except ValueError as e:
            faults.append(f"[board] trusted_proxies {one!r}: {e}; give addresses or networks, with commas")
            continue
        if network.prefixlen == 0:
            faults.append(
                f"[board] trusted_proxies {one}: that is everybody: who reaches the board could say who he is"
            )
    return faults
