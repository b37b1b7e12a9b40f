"""A model file of one's own, for those who want only a daemon: no store, no keys, no channel, no updates.

The file is tried in a process of its own, then loaded, once. A file that changes while the daemon runs is not
loaded: whoever replaces it restarts the daemon, and until then the status says so.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from edge_client.contract.messages import DeviceStatus
from edge_client.contract.times import utc_now
from edge_client.daemon.follower import Follower
from edge_client.daemon.software import find_runtime
from edge_client.reporting.figures import Held
from edge_client.reporting.status import STATUS_FILE, StatusBoard
from edge_client.serving.held import HeldLabels
from edge_client.serving.model_trial import open_tried

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edge_client.inbox.selection import ChannelAnswer
    from edge_client.inference.classifier import Prediction
    from edge_client.settings.file import Settings
    from edge_client.sources.source import Frame

logger = logging.getLogger(__name__)

# Between two looks at the file.
LOOK_S = 2.0
_WHY = "[device] model names its file"


class ModelFollower(Follower):
    """Serves one model file."""

    def __init__(
        self,
        settings: Settings,
        stop: threading.Event,
        may_serve: threading.Event,
        *,
        publish_status: Callable[[bytes], bool],
        live_fields: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        """Load the file.

        Args:
            settings: Settings of the device.
            stop: Set when the daemon ends.
            may_serve: Set here.
            publish_status: Sends one retained payload; False if it could not go out now.
            live_fields: More status fields that are read at the time of sending.
        Raises: SettingsError, DeviceError.
        """
        super().__init__(settings)
        self._stop = stop
        self._file = settings.device.model_file()
        self._stamp = _stamp(self._file)
        self._model = open_tried(settings)
        self._changed = False
        for note in self._model.notes:
            logger.warning("%s: %s", self._file, note)
        may_serve.set()
        self._since = utc_now()
        self.board = StatusBoard(
            DeviceStatus(
                device=settings.device.id,
                channel=self.channel,
                state="starting",
                model=str(self._file),
                model_sha256=self._model.sha256,
                release=self._model.classifier.release,
                why=_WHY,
                runtime=find_runtime(),
                serving_since=self._since,
                changed_at=utc_now(),
            ),
            file=settings.device.state_dir / STATUS_FILE,
            publish=publish_status,
            interval_s=settings.status.interval_s,
            live_fields=lambda: self._with_warnings(live_fields()),
        )

    @property
    def serves(self) -> bool:
        """Always: it is loaded before anything else."""
        return True

    @property
    def release(self) -> str | None:
        """Name of the model."""
        return self._model.classifier.release

    @property
    def has_release(self) -> bool:
        """Always."""
        return True

    @property
    def channel(self) -> str:
        """None."""
        return ""

    @property
    def labels(self) -> HeldLabels:
        """Labels of the model."""
        return HeldLabels(self._model.classifier.labels, ())

    def describe(self) -> str:
        """Return the file and its digest."""
        return f"serving {self._file} (SHA-256 {self._model.sha256}), no channel"

    def predict(self, pixels: NDArray[np.uint8]) -> tuple[Prediction, str | None]:
        """Return the model's prediction."""
        return self._model.classifier.classify(pixels), self._model.classifier.release

    def compare(self, _frame: Frame, _answer: ChannelAnswer) -> Prediction | None:
        """Nothing is in shadow mode."""
        return None

    def follow(self) -> None:
        """Watch whether the file changes, until the daemon ends."""
        while not self._stop.wait(LOOK_S):
            changed = _stamp(self._file) != self._stamp
            if changed and not self._changed:
                logger.warning("%s", self._change_in_words())
            if changed != self._changed:
                self._changed = changed
                self.board.change(why=f"{_WHY}; {self._change_in_words()}" if changed else _WHY)

    def show_releases(self, **changes: object) -> None:
        """Show that the file serves."""
        held = Held(serving=self.release or "", since=self._since, runtime=self.board.plain.runtime)
        self.figures.show(held)
        self.board.change(state="serving", **changes)

    def request_update(self, *, forgiving: bool = False) -> None:
        """Nothing is newer than the file."""

    def wake(self) -> None:
        """No bundle is meant for a model file."""

    def keep_drift(self) -> None:
        """No document promises anything of the predictions."""

    def end(self) -> None:
        """`follow` ends with the daemon."""

    def _change_in_words(self) -> str:
        return (
            f"{self._file} has changed, or is gone; the one that was loaded serves on, until a restart "
            "(`systemctl restart edge-client`)"
        )

    def _with_warnings(self, fields: dict[str, Any]) -> dict[str, Any]:
        warnings = [*self._model.notes, fields.get("warning")]
        return {**fields, "warning": "; ".join(filter(None, warnings)) or None}


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Return what tells two states of a file apart; None if it is not there."""
    with contextlib.suppress(OSError):
        found = file.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None
