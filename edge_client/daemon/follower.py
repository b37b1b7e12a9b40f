"""What answers the frames of the daemon under one status: a channel with its releases, or a model file.

The daemon's frames thread calls `classify` and `compare`; `follow` runs in a thread of its own, and so does
sending the status.
"""

from __future__ import annotations

import abc
import logging
from typing import TYPE_CHECKING

from edge_client.contract.errors import EdgeError
from edge_client.contract.messages import Result
from edge_client.contract.times import utc_now
from edge_client.daemon.fleet_pace import PACE_FILE, FleetPace
from edge_client.inbox.selection import ChannelAnswer
from edge_client.reporting.figures import FIGURES_FILE, Figures
from edge_client.reporting.reporter import wants_reports

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_client.inference.classifier import Prediction
    from edge_client.reporting.status import StatusBoard
    from edge_client.serving.held import HeldLabels
    from edge_client.settings.file import Settings
    from edge_client.sources.source import Frame

logger = logging.getLogger(__name__)


class Follower(abc.ABC):
    """Answers frames, and shows in a status how that goes.

    Attributes:
        board: The status.
        figures: Figures of the releases.
        pace: How fast the fleet may come, and how often it wants reports.
    """

    board: StatusBoard

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        file = settings.device.state_dir / FIGURES_FILE
        self.figures = Figures(file if wants_reports(settings) else None)
        self.pace = FleetPace(settings.device.state_dir / PACE_FILE)
        self._source_fault: str | None = None
        self._failing = False

    @property
    @abc.abstractmethod
    def serves(self) -> bool:
        """Whether frames are answered."""

    @property
    @abc.abstractmethod
    def release(self) -> str | None:
        """What answers frames; None if nothing does."""

    @property
    @abc.abstractmethod
    def has_release(self) -> bool:
        """Whether something serves, or is on the disk and may serve once this machine can run it."""

    @property
    @abc.abstractmethod
    def channel(self) -> str:
        """Channel in results; empty for a model file."""

    @property
    @abc.abstractmethod
    def labels(self) -> HeldLabels | None:
        """Labels of what serves; None while nothing does."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Return what serves, for the log."""

    @abc.abstractmethod
    def predict(self, pixels: NDArray[np.uint8]) -> tuple[Prediction, str | None] | None:
        """Return a prediction for (H, W, 3) uint8 RGB, and whose it is; None if nothing serves yet.

        Raises: InputError, DeviceError if it fails on this frame.
        """

    @abc.abstractmethod
    def compare(self, frame: Frame, answer: ChannelAnswer) -> Prediction | None:
        """Let a shadow release predict too, if there is one and time for it."""

    @abc.abstractmethod
    def follow(self) -> None:
        """Do what is due besides frames, until closed."""

    @abc.abstractmethod
    def show_releases(self, **changes: object) -> None:
        """Show what serves, and whatever else changed."""

    @abc.abstractmethod
    def request_update(self, *, forgiving: bool = False) -> None:
        """Install what is newest now."""

    @abc.abstractmethod
    def wake(self) -> None:
        """Let `follow` look at what was left for it on the disk."""

    @abc.abstractmethod
    def keep_drift(self) -> None:
        """Keep the watch of drift for a restart now and then; not in the thread of the frames."""

    @abc.abstractmethod
    def end(self) -> None:
        """End `follow`."""

    def close(self) -> None:
        """Record that the daemon ends on request; once `follow` has ended, or was never started."""
        self.figures.close()

    def show_source_fault(self, fault: str) -> None:
        """Show why no frames come, until one does."""
        if fault != self._source_fault:
            self.board.change(last_error=fault)
        self._source_fault = fault

    def classify(self, frame: Frame) -> ChannelAnswer | None:
        """Predict; None if nothing serves yet, or it failed on this frame."""
        try:
            found = self.predict(frame.pixels)
        except EdgeError as e:
            self.figures.count_failed(self.release)
            if not self._failing:
                logger.error("%s: %s", frame.source, e)  # noqa: TRY400 - one line, no traceback
                self.board.change(last_error=f"{frame.source}: {e}")
            self._failing = True
            return None
        if found is None:
            return None
        if self._failing:
            self.board.change(last_error=None)
        self._failing = False
        prediction, release = found
        self.board.count(prediction.latency_ms)
        confidence = prediction.confidence
        unsure = not prediction.sure or confidence < self._settings.probation.unsure_below
        self.figures.count(release, prediction.latency_ms, confidence, prediction.label, unsure=unsure)
        return ChannelAnswer(prediction, self._result(frame, prediction, release))

    def results_published(self, _answer: ChannelAnswer) -> None:
        """Note that the result was handed to all sinks."""
        if self._source_fault is not None:
            self._source_fault = None
            self.board.change(last_error=None)

    def _result(self, frame: Frame, prediction: Prediction, release: str | None) -> Result:
        device = self._settings.device
        return Result(
            device=device.id,
            source=frame.source,
            frame=self.board.frames,
            label=prediction.label,
            confidence=prediction.confidence,
            sure=prediction.sure,
            known=prediction.known,
            top=prediction.top(device.top),
            release=release,
            channel=self.channel,
            latency_ms=prediction.latency_ms,
            at=utc_now(),
        )
