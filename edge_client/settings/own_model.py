"""What a person says of a model file of their own, by settings or options of a command."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from edge_client.settings.checks import failed

if TYPE_CHECKING:
    from pathlib import Path

# Pixels of a side; a picture classifier takes a few hundred.
LARGEST_SIDE = 4096


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """What a model file does not say of itself, or says wrongly.

    Attributes:
        labels: Labels file; None: `names`, else the labels in the model file.
        mean: Mean of the pixels 0-255, one for all channels or one for each; empty: the file's.
        std: Their standard deviation: the model gets (pixel - mean) / std.
        input_size: Side of the input in pixels, or its height and width; empty: the file's.
        names: The labels themselves.
    """

    labels: Path | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    input_size: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    def faults(self) -> tuple[str, ...]:
        """Return a sentence for each option that cannot work; empty if all can."""
        return failed(
            (bool(self.mean) == bool(self.std), "mean and std: give both, or neither"),
            (_is_for_channels(self.mean), "mean: one number, or three for red, green and blue"),
            (_is_for_channels(self.std), "std: one number, or three for red, green and blue"),
            (all(value != 0 for value in self.std), "std: not 0"),
            (
                len(self.input_size) <= 2 and all(1 <= side <= LARGEST_SIDE for side in self.input_size),
                f"input_size: one side, or height and width, of 1 to {LARGEST_SIDE} pixels",
            ),
        )


def _is_for_channels(numbers: tuple[float, ...]) -> bool:
    return len(numbers) in {0, 1, 3} and all(map(math.isfinite, numbers))
