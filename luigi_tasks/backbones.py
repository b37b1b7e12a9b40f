"""The networks: MobileNet V1, V2 and V3 from Keras applications, with a classifier's head on top."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import SettingsError, TransportError
from luigi_tasks.tensorflow_runtime import start_tensorflow

if TYPE_CHECKING:
    from luigi_tasks.settings import ModelSettings, TrainingSettings

NO_WEIGHTS, IMAGENET = "none", "imagenet"
DOWNLOAD_FAILED = "URL fetch failure"  # tf_keras.utils.get_file
# Keras' default of 0.99 needs hundreds of steps before the moving averages mean anything.
SCRATCH_BATCH_NORM_MOMENTUM = 0.9


def architecture_name(model: ModelSettings) -> str:
    """Return e.g. `mobilenet_v2_1.0_160`."""
    return f"{model.architecture}_{model.alpha}_{model.input_size}"


def weights_digest(model: ModelSettings) -> str:
    """Return what names the initial weights: their file's SHA-256, `imagenet` or `none`.

    Raises: SettingsError if the file is missing.
    """
    if model.weights in {NO_WEIGHTS, IMAGENET}:
        return model.weights
    path = _weights_path(model)
    with path.open("rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def build_backbone(model: ModelSettings, seed: int) -> Any:  # noqa: ANN401 - Keras has no types
    """Return the network without its top: (N, size, size, 3) in [-1, 1] to (N, features).

    Raises: SettingsError if weights do not fit or Keras has no such size; TransportError if ImageNet
        weights cannot be downloaded.
    """
    _, keras = start_tensorflow(seed)
    makers = {
        "mobilenet_v1": keras.applications.MobileNet,
        "mobilenet_v2": keras.applications.MobileNetV2,
        "mobilenet_v3_small": keras.applications.MobileNetV3Small,
        "mobilenet_v3_large": keras.applications.MobileNetV3Large,
    }
    options: dict[str, Any] = {}
    if model.architecture.startswith("mobilenet_v3"):
        options["include_preprocessing"] = False  # pixels come in [-1, 1], as for V1 and V2
        options["minimalistic"] = False
    weights = None if model.weights == NO_WEIGHTS else IMAGENET
    if weights is not None and model.weights != IMAGENET:
        weights = str(_weights_path(model))
    try:
        return makers[model.architecture](
            input_shape=(model.input_size, model.input_size, 3),
            alpha=model.alpha,
            include_top=False,
            weights=weights,
            pooling="avg",
            **options,
        )
    except (ValueError, OSError, KeyError) as e:
        raise _explain(model, weights, e) from e
    except Exception as e:
        # Keras raises a bare Exception for a failed download, and no other kind for it.
        if DOWNLOAD_FAILED not in str(e):
            raise
        raise _explain(model, weights, e) from e


def build_network(model: ModelSettings, training: TrainingSettings, classes: int) -> tuple[Any, Any]:
    """Return the whole network, (N, size, size, 3) in [-1, 1] to (N, classes), and its head alone."""
    backbone = build_backbone(model, training.seed)
    _, keras = start_tensorflow_again()
    head = build_head(keras, int(backbone.output_shape[-1]), training, classes)
    return keras.Model(backbone.input, head(backbone.output)), head


def start_tensorflow_again() -> tuple[Any, Any]:
    """Return TensorFlow and tf_keras where `start_tensorflow` ran already."""
    import tensorflow as tf  # noqa: PLC0415
    import tf_keras  # noqa: PLC0415

    return tf, tf_keras


def build_head(keras: Any, features: int, training: TrainingSettings, classes: int) -> Any:  # noqa: ANN401
    """Return the classifier on pooled features: (N, features) to (N, classes), softmax."""
    layers = keras.layers
    parts = [layers.Input((features,))]
    if training.hidden_units:
        parts += [
            layers.Dropout(training.dropout, seed=training.seed),
            layers.Dense(training.hidden_units, activation="relu", name="hidden"),
        ]
    parts += [
        layers.Dropout(training.dropout, seed=training.seed + 1),
        layers.Dense(classes, activation="softmax", name="classes"),
    ]
    return keras.Sequential(parts, name="head")


def _weights_path(model: ModelSettings) -> Path:
    path = Path(model.weights).expanduser()
    if not path.is_file():
        msg = f"[model] weights {model.weights}: no such file; give none, imagenet or a no-top .h5 of Keras"
        raise SettingsError(msg)
    return path


def _explain(model: ModelSettings, weights: str | None, error: Exception) -> SettingsError | TransportError:
    """Turn what Keras raised into what to do about it.

    Args:
        model: What was asked for.
        weights: As given to Keras: None, `imagenet` or a path.
        error: What it raised.
    """
    name = architecture_name(model)
    if weights not in {None, IMAGENET}:
        return SettingsError(
            f"[model] weights {model.weights}: do not fit {name} without its top ({error}); "
            "set [model] architecture and alpha to what the file was made for"
        )
    # OSError: no connection, or a file that came half.
    if DOWNLOAD_FAILED in str(error) or isinstance(error, OSError):
        return TransportError(
            f"[model] weights imagenet: Keras could not download those of {name} ({error}); "
            "give the path of the no-top .h5 file, or none"
        )
    return SettingsError(f"[model] {name}: Keras refuses it: {error}")
