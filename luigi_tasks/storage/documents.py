"""Keys and limits of JSON documents in the store."""

from __future__ import annotations

import hashlib
import json

DOCUMENT_LIMIT_BYTES = 1 << 30  # of any kind; `limits.py` has the limits of each, which stores apply before


def content_key(*parts: object) -> str:
    """Return 20 hex digits: the digest of all inputs of a result.

    Args:
        parts: JSON values; equal parts give equal keys on every machine.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]
