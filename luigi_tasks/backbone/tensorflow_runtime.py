"""Start of TensorFlow, quiet and deterministic. No module imports TensorFlow at its top."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any


def start_tensorflow(seed: int) -> tuple[Any, Any]:
    """Import TensorFlow and tf_keras, and fix all sources of randomness.

    tf_keras (Keras 2), not Keras 3: see docs/decisions/0001-tf-keras.md.

    Args:
        seed: The same seed, pictures and settings give the same model.
    Returns: The modules `tensorflow` and `tf_keras`.
    """
    if not logging.root.handlers:
        # Otherwise TensorFlow's first message sets up the root logger, and Luigi's lines are logged twice.
        logging.root.addHandler(logging.NullHandler())
    set_environment()
    import tensorflow as tf  # noqa: PLC0415 - takes 5 s
    import tf_keras  # noqa: PLC0415

    tf.get_logger().setLevel("ERROR")
    warnings.filterwarnings("ignore", message="Statistics for quantized inputs", category=UserWarning)
    tf.config.experimental.enable_op_determinism()
    if not tf.distribute.has_strategy():  # or its scope would go too
        tf_keras.backend.clear_session()
    tf_keras.utils.set_random_seed(seed)
    return tf, tf_keras


def running_tensorflow() -> tuple[Any, Any]:
    """Return the modules `tensorflow` and `tf_keras` after `start_tensorflow` was called."""
    import tensorflow as tf  # noqa: PLC0415 - loaded already
    import tf_keras  # noqa: PLC0415

    return tf, tf_keras


def set_environment() -> None:
    """Set the variables that TensorFlow reads when it is imported: few messages, and Keras 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
