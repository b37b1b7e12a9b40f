"""The peer of retrain.py: the recipe of TensorFlow's transfer-learning guide, as a program of its own.

MobileNetV2 160, ImageNet weights. Ten epochs of the head with the frozen base inside `fit` at 1e-3,
behind random flips and rotations; then ten epochs from layer 100 on at 1e-4. Prints one JSON object.

    python benchmarks/transfer_learning_guide.py PICTURES WEIGHTS SPLIT [--frozen-only]

PICTURES holds one folder a class, SPLIT is a JSON list of the hold-out's paths below it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import tensorflow as tf
import tf_keras as keras

SIZE, BATCH, EPOCHS, FINETUNE_FROM = 160, 32, 10, 100


def main() -> None:
    """Train, measure, print."""
    folder, weights, split = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    holdout = set(json.loads(split.read_text()))
    labels = sorted(one.name for one in folder.iterdir() if one.is_dir())
    paths = sorted(str(one.relative_to(folder)) for one in folder.glob("*/*"))
    train = load(folder, [one for one in paths if one not in holdout], labels)
    test = load(folder, [one for one in paths if one in holdout], labels).batch(BATCH).cache()
    train = train.cache().shuffle(4096, seed=1).batch(BATCH).prefetch(tf.data.AUTOTUNE)

    keras.utils.set_random_seed(1)
    layers = keras.layers
    base = keras.applications.MobileNetV2(input_shape=(SIZE, SIZE, 3), include_top=False, weights=weights)
    base.trainable = False
    given = keras.Input((SIZE, SIZE, 3))
    seen = layers.RandomRotation(0.2)(layers.RandomFlip("horizontal")(given))
    seen = base(keras.applications.mobilenet_v2.preprocess_input(seen), training=False)
    seen = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(seen))
    network = keras.Model(given, layers.Dense(len(labels))(seen))

    frozen_s = fit(network, train, keras.optimizers.Adam(1e-3))
    found: dict[str, Any] = {
        "frozen_seconds": frozen_s,
        "frozen_accuracy": network.evaluate(test, verbose=0)[1],
    }
    if "--frozen-only" not in sys.argv:
        base.trainable = True
        for layer in base.layers[:FINETUNE_FROM]:
            layer.trainable = False
        found["finetune_seconds"] = fit(network, train, keras.optimizers.RMSprop(1e-4))
        found["accuracy"] = network.evaluate(test, verbose=0)[1]
    print(json.dumps(found))


def load(folder: Path, paths: list[str], labels: list[str]) -> Any:  # noqa: ANN401 - TensorFlow has no types
    """Return a dataset of decoded, resized pictures and class numbers."""

    def read(path: Any, number: Any) -> Any:  # noqa: ANN401
        picture = tf.image.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        return tf.image.resize(picture, (SIZE, SIZE)), number

    names = [str(folder / one) for one in paths]
    numbers = [labels.index(one.split("/")[0]) for one in paths]
    return tf.data.Dataset.from_tensor_slices((names, numbers)).map(read, num_parallel_calls=tf.data.AUTOTUNE)


def fit(network: Any, train: Any, optimizer: Any) -> float:  # noqa: ANN401
    """Train; return the seconds of `fit` alone."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(optimizer, loss, metrics=["accuracy"])
    started = time.perf_counter()
    network.fit(train, epochs=EPOCHS, verbose=0)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
