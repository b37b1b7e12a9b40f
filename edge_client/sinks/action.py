"""Commands that are run when a label comes or goes: a relay, a siren, a mail."""

from __future__ import annotations

import dataclasses
import logging
import math
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
    from edge_client.inference.classifier import Classification

logger = logging.getLogger(__name__)

# Commands that wait while one runs; then the oldest are dropped.
WAITING_AT_MOST = 10
_STOP_S = 2.0
# Where the keys of the store may stand (`settings.read_credentials`): a command is somebody else's program.
_SECRETS = "AWS_"


@dataclasses.dataclass(frozen=True)
class ActionSettings:
    """Section [action].

    Attributes:
        labels: Labels that are watched, with commas between; empty: no action.
        on_command: Run when one of them comes: program and arguments, without a shell.
        off_command: Run when it goes.
        threshold: A label has come once its score is at least this.
        release_below: It has gone once its score is below this.
        hold_off_s: Least time between two changes of a label.
        timeout_s: A command that takes longer is killed.
    """

    labels: str = ""
    on_command: str = ""
    off_command: str = ""
    threshold: float = 0.8
    release_below: float = 0.5
    hold_off_s: float = 5.0
    timeout_s: float = 30.0

    def names(self) -> tuple[str, ...]:
        """Labels that are watched."""
        return tuple(name for part in self.labels.split(",") if (name := part.strip()))

    def faults(self) -> tuple[str, ...]:
        """Say what is wrong with the settings, each with its way out; empty if nothing is."""
        found = []
        if not 0 < self.release_below <= self.threshold <= 1:
            found.append(
                f"threshold {self.threshold} and release_below {self.release_below}: give scores above 0, at "
                "most 1, release_below not above threshold"
            )
        if not (math.isfinite(self.hold_off_s) and self.hold_off_s >= 0):
            found.append(f"hold_off_s {self.hold_off_s}: give seconds, 0 or more")
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            found.append(f"timeout_s {self.timeout_s}: give seconds, above 0")
        if self.names() and not (self.on_command or self.off_command):
            found.append("labels are watched for nothing: give on_command or off_command")
        for name, command in (("on_command", self.on_command), ("off_command", self.off_command)):
            try:
                shlex.split(command)
            except ValueError as e:
                found.append(f"{name} {command!r}: {e}; close each quote")
        return tuple(found)


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

    def write(self, result: Result, answer: Classification | None = None, /) -> None:
        """See `Sink.write`; without the answer, a label outside of the result's best ones scores 0."""
        now = self._clock()
        scores = result.top if answer is None else answer.scores_of(self._labels)
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
