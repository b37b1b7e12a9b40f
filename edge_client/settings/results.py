"""Settings of sinks for results, and of commands that labels trigger."""

from __future__ import annotations

import dataclasses
import shlex

from edge_client.settings.checks import Section, failed, is_not_negative, is_positive, wrong_choice
from edge_client.settings.readers import Command  # noqa: TC001 - read by get_type_hints

# Values of `when_unsure`.
WAIT, OFF, ACT = "wait", "off", "act"
# Two files of this size hold about 60,000 results.
DEFAULT_MAX_BYTES = 10_000_000
_SMALLEST_MAX_BYTES = 10_000
# About 50,000 results.
DEFAULT_UNSENT_MAX_BYTES = 20_000_000


@dataclasses.dataclass(frozen=True)
class SinkSettings(Section):
    """Section [sinks].

    Attributes:
        mqtt: Publish results on the device's results topic.
        on_change: Publish over MQTT only results whose label, `sure` or release differs from the last
            published one's.
        heartbeat_s: With `on_change`, a result like the last one is published once that is so old; 0: never.
        min_interval_s: Publish over MQTT at most one result of a channel in this time; 0: no limit.
        json_lines: Append each result to this file; `-`: standard output, empty: no file.
        json_lines_max_bytes: The file is rotated to `<name>.1` before it grows beyond this size, so both
            files together never take more than twice as much.
        unsent_max_bytes: Limit on the results that wait for the broker below `<state_dir>/unsent/`, beyond
            those in memory; 0: none are kept there.
    """

    mqtt: bool = True
    on_change: bool = False
    heartbeat_s: float = 300.0
    min_interval_s: float = 0.0
    json_lines: str = ""
    json_lines_max_bytes: int = DEFAULT_MAX_BYTES
    unsent_max_bytes: int = DEFAULT_UNSENT_MAX_BYTES

    @property
    def thins(self) -> bool:
        """Whether not every result is published over MQTT."""
        return self.on_change or self.min_interval_s > 0

    def faults(self) -> tuple[str, ...]:
        """See `Section.faults`."""
        return failed(
            (
                self.json_lines_max_bytes >= _SMALLEST_MAX_BYTES,
                f"json_lines_max_bytes {self.json_lines_max_bytes}: give {_SMALLEST_MAX_BYTES} or more",
            ),
            (self.unsent_max_bytes >= 0, "unsent_max_bytes: 0 or more"),
            (
                is_not_negative(self.heartbeat_s),
                f"heartbeat_s {self.heartbeat_s}: give seconds, or 0",
            ),
            (
                is_not_negative(self.min_interval_s),
                f"min_interval_s {self.min_interval_s}: give seconds, 0 or more",
            ),
        )


@dataclasses.dataclass(frozen=True)
class ActionSettings(Section):
    """Section [action].

    Attributes:
        labels: Labels to watch; empty: no action.
        on_command: Run when a label switches on: program and arguments, without a shell.
        off_command: Run when a label switches off.
        threshold: A label switches on once its score is at least this.
        release_below: A label switches off once its score is below this.
        when_unsure: What a frame does that the release is not sure of, see `OperatingPoint`. `wait`: nothing
            switches. `off`: labels may switch off, none switches on. `act`: the score alone decides.
        hold_off_s: Shortest time between two switches of a label.
        timeout_s: A command that takes longer is killed.
    """

    labels: tuple[str, ...] = ()
    on_command: Command = ""
    off_command: Command = ""
    threshold: float = 0.8
    release_below: float = 0.5
    when_unsure: str = WAIT
    hold_off_s: float = 5.0
    timeout_s: float = 30.0

    def faults(self) -> tuple[str, ...]:
        """See `Section.faults`."""
        choice = wrong_choice("when_unsure", self.when_unsure, (WAIT, OFF, ACT))
        return choice + failed(
            (
                0 < self.release_below <= self.threshold <= 1,
                (
                    f"threshold {self.threshold}, release_below {self.release_below}: give scores with "
                    "0 < release_below <= threshold <= 1"
                ),
            ),
            (is_not_negative(self.hold_off_s), f"hold_off_s {self.hold_off_s}: give seconds, 0 or more"),
            (is_positive(self.timeout_s), f"timeout_s {self.timeout_s}: give seconds, above 0"),
            (
                not self.labels or bool(self.on_command or self.off_command),
                "labels are watched but no command is set: give on_command or off_command",
            ),
            *_quoting_checks("on_command", self.on_command),
            *_quoting_checks("off_command", self.off_command),
        )


def _quoting_checks(name: str, command: str) -> tuple[tuple[bool, str], ...]:
    """Return the check that `shlex` can split a command, failed with its reason."""
    try:
        shlex.split(command)
    except ValueError as e:
        return ((False, f"{name} {command!r}: {e}; close each quote"),)
    return ()
