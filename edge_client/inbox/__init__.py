"""Frames worth labelling: kept on the device within limits, and brought to the store's inbox."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge_client.contract.messages import Result
    from edge_client.inference.classifier import Classification

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


@dataclasses.dataclass(frozen=True)
class View:
    """What one channel's releases say of a frame.

    Attributes:
        answer: Of the release that serves.
        result: The same for the outside.
        beside: Answer of the release beside it, which does not serve yet; None if there is none.
    """

    answer: Classification
    result: Result
    beside: Classification | None = None

    @property
    def answers(self) -> tuple[Classification, ...]:
        """All of them."""
        return (self.answer,) if self.beside is None else (self.answer, self.beside)

    @property
    def disagrees(self) -> bool:
        """Whether the release beside the serving one says something else."""
        return self.beside is not None and self.beside.label != self.answer.label


def why_keep(settings: InboxSettings, views: Sequence[View]) -> tuple[str, View] | None:
    """Return why a frame is worth labelling, and the view that says so; None if it is not to be kept.

    What one release takes for private is private, whatever the others see.

    Args:
        settings: What is wanted.
        views: One for each channel.
    """
    if _shows_private(settings.private_labels(), views):
        return None
    if settings.disagreements and (view := next((view for view in views if view.disagrees), None)):
        return DISAGREEMENT, view
    unsure = [view for view in views if view.answer.confidence < settings.unsure_below]
    return (UNSURE, min(unsure, key=lambda view: view.answer.confidence)) if unsure else None


def is_needed(settings: InboxSettings, folder: Path) -> bool:
    """Whether frames are kept, or some are there from a time when they were: these must go by `keep_days`."""
    try:
        return settings.keeps or any(folder.iterdir())
    except FileNotFoundError:
        return False
    except OSError:
        return True  # it says what is wrong


def _shows_private(private: frozenset[str], views: Sequence[View]) -> bool:
    return bool(private) and any(
        score >= _TRACE
        for view in views
        for answer in view.answers
        for score in answer.scores_of(private).values()
    )


def _is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
