"""Settings of probation and of the shadow comparison."""

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
