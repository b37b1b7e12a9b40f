"""Settings of probation, of the shadow comparison and of the alarm of drift."""

from __future__ import annotations

import dataclasses

from edge_client.settings.checks import Section, failed, is_not_negative

# Fewer predictions are no sample for latency and confidence.
LEAST_FRAMES = 20


@dataclasses.dataclass(frozen=True)
class ProbationSettings(Section):
    """Section [probation].

    Attributes:
        frames: Classified frames after which a release has passed; 0: no probation.
        seconds: Seconds after which a release has passed too, if it classified any frame.
        max_slowdown: Largest median latency, in multiples of the previous release's.
        unsure_below: A prediction with less confidence is unsure, whatever the operating points of the two
            releases say: a new operating point must not look like a worse release.
        max_unsure_points: Largest increase of the share of unsure predictions, in percentage points.
    """

    frames: int = 200
    seconds: float = 600.0
    max_slowdown: float = 2.0
    unsure_below: float = 0.5
    max_unsure_points: float = 30.0

    def faults(self) -> tuple[str, ...]:
        """See `Section.faults`."""
        return failed(
            (self.frames == 0 or self.frames >= LEAST_FRAMES, f"frames: 0, or at least {LEAST_FRAMES}"),
            (self.seconds > 0, "seconds: above 0"),
            (self.max_slowdown >= 1, "max_slowdown: at least 1"),
            (0 <= self.unsure_below <= 1, "unsure_below: 0 to 1"),
            (0 <= self.max_unsure_points <= 100, "max_unsure_points: 0 to 100"),
        )


@dataclasses.dataclass(frozen=True)
class ShadowSettings(Section):
    """Section [shadow].

    Attributes:
        seconds: Seconds for which a new release runs as a shadow of the serving one before it serves; 0: it
            serves at once.
        min_agreement_percent: A shadow release that agrees with the serving one on fewer frames is refused.
    """

    seconds: float = 0.0
    min_agreement_percent: float = 50.0

    def faults(self) -> tuple[str, ...]:
        """See `Section.faults`."""
        return failed(
            (is_not_negative(self.seconds), "seconds: 0 or more"),
            (0 <= self.min_agreement_percent <= 100, "min_agreement_percent: 0 to 100"),
        )


@dataclasses.dataclass(frozen=True)
class DriftSettings(Section):
    """Section [drift].

    Attributes:
        alarm: Raise an alarm when the release is less sure of this camera's pictures than of the hold-out's.
        false_alarm_percent: Chance of an alarm in 1,000 predictions of pictures like the hold-out's.
        least_shift_points: Smallest shift for an alarm, in percentage points: by how much fewer than half of
            the camera's predictions are surer than one of the hold-out.
        every_s: Seconds between two predictions of a stream (video, picamera, pipe) that count for the alarm,
            because successive frames show the same; each picture of a folder counts.
    """

    alarm: bool = True
    false_alarm_percent: float = 0.1
    least_shift_points: float = 10.0
    every_s: float = 10.0

    def faults(self) -> tuple[str, ...]:
        """See `Section.faults`."""
        return failed(
            (0.001 <= self.false_alarm_percent <= 10, "false_alarm_percent: 0.001 to 10"),
            (0 <= self.least_shift_points <= 50, "least_shift_points: 0 to 50"),
            (is_not_negative(self.every_s), "every_s: 0 or more"),
        )
