"""Run commands when a label switches on or off: a relay, a siren, a mail."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shlex
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from edge_client.contract.errors import SettingsError
from edge_client.contract.messages import SinkMetrics
from edge_client.settings.results import ACT, OFF, WAIT
from edge_client.sinks.sink import nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge_client.contract.messages import Result
    from edge_client.inference.classifier import Prediction
    from edge_client.settings.results import ActionSettings

logger = logging.getLogger(__name__)

# Commands that may wait while one runs; beyond, the oldest are dropped.
MAX_WAITING = 10
_STOP_S = 2.0
# Prefix of the variables that may hold the store's keys (`read_credentials`): a command need not be trusted.
_SECRETS = "AWS_"


class LabelSwitch:
    """On/off state of one label: hysteresis against flicker, hold-off time against chatter."""

    def __init__(self, settings: ActionSettings) -> None:
        self._settings = settings
        self._on = False
        self._changed_at = float("-inf")

    @property
    def on(self) -> bool:
        """Whether the label is on."""
        return self._on

    def update(self, score: float, now: float) -> bool | None:
        """Update the state with the score of a frame at `now`, monotonic seconds.

        Returns: True if the label switched on, False if it switched off, None if nothing changed.
        """
        limit = self._settings.release_below if self._on else self._settings.threshold
        on = score >= limit
        if on == self._on or now - self._changed_at < self._settings.hold_off_s:
            return None
        self._on, self._changed_at = on, now
        return on


class ActionSink:
    """Runs the commands one after the other in a thread of its own: inference never waits for a command.

    A label is watched on each channel whose release has it, separately. Its counts are of commands.
    """

    name = "action"
    keeps = False

    def __init__(self, settings: ActionSettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the thread.

        Raises: SettingsError with all faults.
        """
        faults = settings.faults()
        if faults:
            raise SettingsError("; ".join(f"[action] {fault}" for fault in faults))
        self._settings = settings
        self._clock = clock
        self._labels = settings.labels
        self._switches: dict[tuple[str, str], LabelSwitch] = {}  # by channel and label
        self._commands = {True: shlex.split(settings.on_command), False: shlex.split(settings.off_command)}
        self._waiting: queue.Queue[tuple[list[str], dict[str, str]] | None] = queue.Queue(MAX_WAITING)
        self._written = self._dropped = 0
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, name="actions", daemon=True)
        self._thread.start()

    def write(
        self,
        result: Result,
        prediction: Prediction | None = None,
        _safe: Callable[[], None] = nothing,
        /,
    ) -> None:
        """See `Sink.write`; without the prediction, a label that is not among the result's best scores 0."""
        mode = ACT if result.sure else self._settings.when_unsure
        if mode == WAIT:
            return
        now = self._clock()
        scores = result.top if prediction is None else prediction.scores_of(self._labels)
        for label in self._labels:
            key = (result.channel, label)
            if label in scores:
                self._switches.setdefault(key, LabelSwitch(self._settings))
            elif key not in self._switches:
                continue
            switch = self._switches[key]
            if mode == OFF and not switch.on:
                continue
            score = scores.get(label, 0.0)  # 0: a new release may lack the label
            on = switch.update(score, now)
            if on is not None and self._commands[on]:
                self._put((self._commands[on], describe(result, label, score, on=on)))

    def metrics(self) -> SinkMetrics:
        """See `Sink.metrics`."""
        return SinkMetrics(
            written=self._written,
            unsent=sum(one is not None for one in list(self._waiting.queue)),
            dropped=self._dropped,
            error=self._error if self._waiting.full() else None,
        )

    def reopen(self) -> None:
        """Do nothing: there is no file."""

    def close(self) -> None:
        """Drop the waiting commands; give a running one 2 s to end."""
        dropped = 0
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
                dropped += 1
        if dropped:
            self._dropped += dropped
            logger.warning("%d commands that waited are dropped ([action])", dropped)
        self._waiting.put(None)
        self._thread.join(_STOP_S)

    def _put(self, command: tuple[list[str], dict[str, str]]) -> None:
        if self._waiting.full():
            dropped = self._waiting.get_nowait()
            self._dropped += 1
            if self._error is None:
                logger.warning("%s is dropped: too many commands wait ([action])", dropped and dropped[0][0])
            self._error = f"{MAX_WAITING} commands wait; the oldest are dropped ([action])"
        elif self._error is not None:
            self._error = None
            logger.warning("commands are run again; %d were dropped since the start", self._dropped)
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
                self._written += 1
            except subprocess.TimeoutExpired:
                logger.warning(
                    "%s took over %g s and was killed ([action] timeout_s)",
                    command[0],
                    self._settings.timeout_s,
                )
            except subprocess.CalledProcessError as e:
                logger.warning("%s ended with exit code %d", command[0], e.returncode)
            except (OSError, ValueError) as e:
                logger.warning("%s cannot be run: %s; correct [action]", command[0], e)


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables that may hold keys."""
    return {name: value for name, value in environment.items() if not name.startswith(_SECRETS)}


def describe(result: Result, label: str, score: float, *, on: bool) -> dict[str, str]:
    """Return the environment variables that describe a switch to its command."""
    return {
        "EDGE_LABEL": label,
        "EDGE_STATE": "on" if on else "off",
        "EDGE_SCORE": f"{score:.4f}",
        "EDGE_CHANNEL": result.channel,
        "EDGE_SOURCE": result.source,
        "EDGE_DEVICE": result.device,
        "EDGE_AT": result.at,
    }
