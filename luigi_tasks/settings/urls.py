"""Addresses in settings: their scheme, and the bucket and prefix of s3://bucket/prefix."""

from __future__ import annotations

import re

S3_SCHEME = "s3"
# A key may have any character: # ? % and spaces in a prefix stand for themselves, as in every S3 client.
_BUCKET = re.compile(r"s3://([^/@:?#]+)(?:/(.*))?", re.IGNORECASE | re.DOTALL)
# At least two letters: C:\pictures is no address.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")


def scheme_of(url: str) -> str:
    """Return the scheme of an address in small letters; "" of a path."""
    found = _SCHEME.match(url)
    return found[1].lower() if found else ""


def split_bucket_url(url: str) -> tuple[str, str] | None:
    """Return bucket and prefix ("" or ending in /) as they are written; None for any other address."""
    found = _BUCKET.fullmatch(url)
    if found is None:
        return None
    prefix = (found[2] or "").strip("/")
    return found[1], f"{prefix}/" if prefix else ""
