"""Settings of what happens with results: sinks, and commands on labels."""

from __future__ import annotations

import dataclasses
import math
import shlex

# Two files of this size hold about 60,000 results.
DEFAULT_MAX_BYTES = 10_000_000


_SMALLEST_MAX_BYTES = 10_000


@dataclasses.dataclass(frozen=True)
class SinkSettings:
    """Which sinks.

    Attributes:
        mqtt: Publish each result on the device's results topic.
        json_lines: Append each result to this file; `-` means standard output, empty none.
        json_lines_max_bytes: The file is set aside as `<name>.1` when it would grow beyond this, so that
            both together never take more than twice as much of the disk.
    """

    mqtt: bool = True
    json_lines: str = ""
    json_lines_max_bytes: int = DEFAULT_MAX_BYTES

    def faults(self) -> tuple[str, ...]:
        """Say what is wrong with the settings, each with its way out; empty if nothing is."""
        if self.json_lines_max_bytes < _SMALLEST_MAX_BYTES:
            return (f"json_lines_max_bytes {self.json_lines_max_bytes}: give {_SMALLEST_MAX_BYTES} or more",)
        return ()


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
