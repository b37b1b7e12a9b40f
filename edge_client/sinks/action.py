"""Commands that are run when a label comes or goes: a relay, a siren, a mail."""

from __future__ import annotations

import logging
import os
import queue
import shlex
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from edge_client.contract.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge_client.contract.messages import Result
    from edge_client.inference.classifier import Prediction
    from edge_client.settings.results import ActionSettings

logger = logging.getLogger(__name__)

# Commands that wait while one runs; then the oldest are dropped.
WAITING_AT_MOST = 10
_STOP_S = 2.0
# Where the keys of the store may stand (`settings.read_credentials`): a command is somebody else's program.
_SECRETS = "AWS_"


class Trigger:
    """Whether one label is there: hysteresis against flicker, hold-off against chatter."""

    def __init__(self, settings: ActionSettings) -> None:
        self._settings = settings
        self._there = False
        self._changed_at = float("-inf")

    def take(self, score: float, now: float) -> bool | None:
        """Take the score of a frame at monotonic seconds `now`.

        Returns: True if the label came, False if it went, None if nothing changed.
        """
        limit = self._settings.release_below if self._there else self._settings.threshold
        there = score >= limit
        if there == self._there or now - self._changed_at < self._settings.hold_off_s:
            return None
        self._there, self._changed_at = there, now
        return there


class ActionSink:
    """Runs the commands one after the other in a thread of its own: inference never waits for one.

    A label is watched on each channel whose release knows it: what others answer says nothing of it.
    """

    def __init__(self, settings: ActionSettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the thread.

        Raises: SettingsError with all faults.
        """
        faults = settings.faults()
        if faults:
            raise SettingsError("; ".join(f"[action] {fault}" for fault in faults))
        self._settings = settings
        self._clock = clock
        self._labels = settings.names()
        self._triggers: dict[tuple[str, str], Trigger] = {}  # by channel and label
        self._commands = {True: shlex.split(settings.on_command), False: shlex.split(settings.off_command)}
        self._waiting: queue.Queue[tuple[list[str], dict[str, str]] | None] = queue.Queue(WAITING_AT_MOST)
        self._thread = threading.Thread(target=self._run, name="actions", daemon=True)
        self._thread.start()

    def write(self, result: Result, prediction: Prediction | None = None, /) -> None:
        """See `Sink.write`; without the prediction, a label outside of the result's best ones scores 0."""
        now = self._clock()
        scores = result.top if prediction is None else prediction.scores_of(self._labels)
        for label in self._labels:
            key = (result.channel, label)
            if label in scores:
                self._triggers.setdefault(key, Trigger(self._settings))
            elif key not in self._triggers:
                continue
            score = scores.get(label, 0.0)  # 0: a new release does not know it any more
            there = self._triggers[key].take(score, now)
            if there is not None and self._commands[there]:
                self._put((self._commands[there], describe(result, label, score, there=there)))

    def close(self) -> None:
        """Let a command that runs end, for a moment; those that wait are dropped."""
        while not self._waiting.empty():
            self._waiting.get_nowait()
        self._waiting.put(None)
        self._thread.join(_STOP_S)

    def _put(self, command: tuple[list[str], dict[str, str]]) -> None:
        if self._waiting.full():
            dropped = self._waiting.get_nowait()
            logger.warning("%s waits for the commands before it; it is dropped", dropped and dropped[0][0])
        self._waiting.put_nowait(command)

    def _run(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            command, variables = waiting
            try:
                subprocess.run(
                    command,
                    env={**without_secrets(os.environ), **variables},
                    stdin=subprocess.DEVNULL,
                    timeout=self._settings.timeout_s,
                    check=True,
                )
            except subprocess.TimeoutExpired:
                logger.warning(
                    "%s took over %g s and was killed ([action] timeout_s)",
                    command[0],
                    self._settings.timeout_s,
                )
            except subprocess.CalledProcessError as e:
                logger.warning("%s ended with code %d", command[0], e.returncode)
            except (OSError, ValueError) as e:
                logger.warning("%s cannot be run: %s; correct [action]", command[0], e)


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a command may see of the daemon's environment."""
    return {name: value for name, value in environment.items() if not name.startswith(_SECRETS)}


def describe(result: Result, label: str, score: float, *, there: bool) -> dict[str, str]:
    """Return what a command finds in its environment."""
    return {
        "EDGE_LABEL": label,
        "EDGE_STATE": "on" if there else "off",
        "EDGE_SCORE": f"{score:.4f}",
        "EDGE_CHANNEL": result.channel,
        "EDGE_SOURCE": result.source,
        "EDGE_DEVICE": result.device,
        "EDGE_AT": result.at,
    }
