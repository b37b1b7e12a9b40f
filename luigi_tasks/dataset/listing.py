"""Digest of the list of a dataset's pictures."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luigi_tasks.dataset.records import Entry


def listing_digest(entries: tuple[Entry, ...]) -> str:
    """Return 20 hex digits that change when any picture may have changed."""
    text = "".join([f"{entry.path}\0{entry.size}\0{entry.version}\n" for entry in entries])
    return hashlib.sha256(text.encode()).hexdigest()[:20]
