"""Initial weights of the small network that the tests use, made in seconds and the same each time.

The network has learned nothing: it is a random and nearly linear projection, whose batch-norm layers have
seen pictures, so that signals reach its end. A head on such features tells digits and colours apart. Run as
a program, because what TensorFlow keeps in a process concerns no test.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# Keras reads the network from the name of a file without the top.
NAME = "mobilenet_2_5_32_tf_no_top.h5"
# Of ReLU6's range: signals around it pass nearly unchanged, through all the layers.
MIDDLE = 3.0
ROUNDS = 15  # a layer's statistics depend on those of the layers before it


def make_small_weights(folder: Path) -> Path:
    """Write weights of MobileNetV1 0.25 for pictures of 32 pixels and return the file."""
    path = folder / NAME
    subprocess.run([sys.executable, __file__, path], check=True, cwd=REPOSITORY, capture_output=True)
    return path


def _main(path: str) -> None:
    sys.path.insert(0, str(REPOSITORY))
    import numpy as np  # noqa: PLC0415 - of the child alone, as TensorFlow

    from luigi_tasks.backbone.tensorflow_runtime import start_tensorflow  # noqa: PLC0415
    from luigi_tasks.inference.features import to_input  # noqa: PLC0415

    _, keras = start_tensorflow(1)
    base = keras.applications.MobileNet((32, 32, 3), alpha=0.25, include_top=False, weights=None)
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
            layer.beta.assign(keras.backend.zeros_like(layer.beta) + MIDDLE)
    rng = np.random.default_rng(0)
    # Blocks of colours, from coarse to fine, so that no layer sees the same everywhere.
    pictures = np.concatenate(
        [
            rng.integers(0, 256, (16, 32 // side, 32 // side, 3), np.uint8).repeat(side, 1).repeat(side, 2)
            for side in (4, 8, 16)
        ]
    )
    for _ in range(ROUNDS):
        base(to_input(pictures), training=True)
    base.save_weights(path)


if __name__ == "__main__":
    _main(sys.argv[1])
