"""Frames worth labelling: kept on the device within limits, and brought to the store's inbox."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge_client.contract.messages import Result
    from edge_client.inference.classifier import Classification
    from edge_client.settings.frames import InboxSettings

# Below the state folder.
INBOX_DIR = "inbox"
UNSURE, DISAGREEMENT = "unsure", "disagreement"
# With this score a label may well be in the picture, whatever else is.
_TRACE = 0.05


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
