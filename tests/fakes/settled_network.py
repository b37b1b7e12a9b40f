"""Untrained networks whose features tell pictures apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luigi_tasks.inference.features import to_input

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def settle(backbone: Any, pixels: NDArray[np.uint8]) -> None:
    """Give batch-norm layers the statistics of (N, H, W, 3) RGB pictures; without any, signals die."""
    import tf_keras as keras  # noqa: PLC0415 - TensorFlow

    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    backbone(to_input(pixels), training=True)
