"""Listing of a dataset: its digest, and a short memory so that Luigi's second question costs nothing."""

from __future__ import annotations

import hashlib
import math
import time
from typing import TYPE_CHECKING

from luigi_tasks.dataset.sources import open_source

if TYPE_CHECKING:
    from luigi_tasks.dataset.records import Entry
    from luigi_tasks.settings.values import PipelineSettings

# The listing that named the last task, so that making its plan lists no bucket again; and when.
_listed: dict[str, tuple[float, str, tuple[Entry, ...]]] = {}


# Luigi asks for a new task's parameters twice, at once one after the other.
ASKED_AGAIN_S = 1.0


def _list_once(settings: PipelineSettings) -> str:
    url = settings.dataset.url
    at, digest, _ = _listed.get(url, (-math.inf, "", ()))
    if time.monotonic() - at > ASKED_AGAIN_S:
        listing = open_source(settings.dataset, settings.store).listing()
        digest = listing_digest(listing)
        _listed.clear()
        _listed[url] = (time.monotonic(), digest, listing)
    return digest


def _recall_listing(url: str, digest: str) -> tuple[Entry, ...]:
    _, known, listing = _listed.get(url, (0.0, "", ()))
    return listing if known == digest else ()


def listing_digest(entries: tuple[Entry, ...]) -> str:
    """Return 20 hex digits that change when any picture may have changed."""
    text = "".join([f"{entry.path}\0{entry.size}\0{entry.version}\n" for entry in entries])
    return hashlib.sha256(text.encode()).hexdigest()[:20]
