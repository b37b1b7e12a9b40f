"""Frames worth labelling: kept on the device within limits, and brought to the store's inbox."""

from __future__ import annotations

import dataclasses
import math
from urllib.parse import urlsplit

# Below the state folder.
INBOX_DIR = "inbox"
UNSURE, DISAGREEMENT = "unsure", "disagreement"
# With this score a label may well be in the picture, whatever else is.
_TRACE = 0.05
_SMALLEST_MAX_BYTES = 100_000
_SMALLEST_SIDE = 32


@dataclasses.dataclass(frozen=True)
class InboxSettings:
    """Section [inbox].

    Attributes:
        unsure_below: Frames whose answer has less confidence are kept; 0: none is.
        disagreements: Keep frames on which a release beside the serving one says something else.
        per_hour: At most so many are kept, evenly spread.
        max_bytes: Of all that is kept; the oldest go first.
        keep_days: What is older is deleted.
        longest_side: Frames are scaled down to so many pixels.
        never_labels: Frames in which one of these may be seen are never kept; with commas between.
        upload: Bring them to the store.
        upload_s: Time between uploads.
        base_url: Address of the inbox; empty: the store's.
    """

    unsure_below: float = 0.0
    disagreements: bool = False
    per_hour: float = 20.0
    max_bytes: int = 50_000_000
    keep_days: float = 14.0
    longest_side: int = 640
    never_labels: str = ""
    upload: bool = False
    upload_s: float = 900.0
    base_url: str = ""

    @property
    def keeps(self) -> bool:
        """Whether any frame is ever kept."""
        return self.unsure_below > 0 or self.disagreements

    def private_labels(self) -> frozenset[str]:
        """Labels that must not be seen in a frame that is kept."""
        return frozenset(name for part in self.never_labels.split(",") if (name := part.strip()))

    def faults(self) -> tuple[str, ...]:
        """Say what is wrong with the settings; empty if nothing is."""
        url = urlsplit(self.base_url)
        checks = [
            (0 <= self.unsure_below <= 1, "unsure_below: 0 to 1"),
            (_is_positive(self.per_hour), "per_hour: above 0"),
            (self.max_bytes >= _SMALLEST_MAX_BYTES, f"max_bytes: {_SMALLEST_MAX_BYTES} or more"),
            (_is_positive(self.keep_days), "keep_days: above 0"),
            (self.longest_side >= _SMALLEST_SIDE, f"longest_side: {_SMALLEST_SIDE} or more"),
            (_is_positive(self.upload_s), "upload_s: above 0"),
            (
                not self.base_url or (url.scheme in {"http", "https"} and bool(url.hostname)),
                f"base_url {self.base_url!r}: give http(s)://host/bucket/prefix, or nothing",
            ),
        ]
        return tuple(message for holds, message in checks if not holds)


def why_keep(
    settings: InboxSettings, scores: dict[str, float], confidence: float, *, disagreed: bool
) -> str | None:
    """Return why a frame is worth labelling; None if it is not, or must not be kept.

    Args:
        settings: What is wanted.
        scores: Score of every label.
        confidence: The best of them.
        disagreed: Whether a release beside the serving one says something else.
    """
    if any(scores.get(name, 0.0) >= _TRACE for name in settings.private_labels()):
        return None
    if settings.disagreements and disagreed:
        return DISAGREEMENT
    return UNSURE if confidence < settings.unsure_below else None


def _is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
