"""Selection of frames worth labelling."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge_client.contract.messages import Result
    from edge_client.inference.classifier import Prediction
    from edge_client.settings.frames import InboxSettings

# Below the state folder.
INBOX_DIR = "inbox"
UNSURE, DISAGREEMENT = "unsure", "disagreement"
# From this score on a private label may be in the picture, whatever the best label is.
_TRACE = 0.05


@dataclasses.dataclass(frozen=True)
class ChannelAnswer:
    """What the releases of one channel predict for a frame.

    Attributes:
        prediction: Of the serving release.
        result: The message made from it.
        shadow: Prediction of the shadow release; None if there is none.
    """

    prediction: Prediction
    result: Result
    shadow: Prediction | None = None

    @property
    def predictions(self) -> tuple[Prediction, ...]:
        """Predictions of the serving and of the shadow release."""
        return (self.prediction,) if self.shadow is None else (self.prediction, self.shadow)

    @property
    def disagrees(self) -> bool:
        """Whether the shadow release predicts another label than the serving one."""
        return self.shadow is not None and self.shadow.label != self.prediction.label


def why_keep(settings: InboxSettings, answers: Sequence[ChannelAnswer]) -> tuple[str, ChannelAnswer] | None:
    """Return why a frame is worth labelling, and the answer that is the reason; None: do not keep it.

    A frame in which one release sees a private label is private, whatever the other releases see.

    Args:
        settings: Which frames are wanted.
        answers: One for each channel.
    """
    if _shows_private(settings.private_labels(), answers):
        return None
    if settings.disagreements and (found := next((one for one in answers if one.disagrees), None)):
        return DISAGREEMENT, found
    unsure = [one for one in answers if _is_unsure(settings, one.prediction)]
    return (UNSURE, min(unsure, key=lambda one: one.prediction.confidence)) if unsure else None


def is_needed(settings: InboxSettings, folder: Path) -> bool:
    """Whether frames are kept, or kept ones are left from earlier settings, to be deleted by `keep_days`."""
    try:
        return settings.keeps or any(folder.iterdir())
    except FileNotFoundError:
        return False
    except OSError:
        return True  # the keeper reports the fault


def _is_unsure(settings: InboxSettings, prediction: Prediction) -> bool:
    """Whether a prediction has too low a score by the settings, or by the release's own operating point."""
    unsure_to_release = settings.unsure_frames and not prediction.sure
    return unsure_to_release or prediction.confidence < settings.unsure_below


def _shows_private(private: frozenset[str], answers: Sequence[ChannelAnswer]) -> bool:
    return bool(private) and any(
        score >= _TRACE
        for answer in answers
        for prediction in answer.predictions
        for score in prediction.scores_of(private).values()
    )
