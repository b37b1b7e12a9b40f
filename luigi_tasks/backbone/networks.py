"""Backbones: MobileNet V1, V2 and V3 from Keras applications, as feature extractors.

The features of a picture are the pooled top of the network and, unless `[model] grid` is 0, an earlier layer
averaged over a grid of fields: what is in the picture, and roughly where. On hand signs a linear head on both
gets 0.97, on the top alone 0.93 (docs/decisions/0004-features.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import SettingsError, TransportError
from luigi_tasks.backbone.imagenet import fetch_imagenet, imagenet_file
from luigi_tasks.backbone.tensorflow_runtime import running_tensorflow, start_tensorflow
from luigi_tasks.backbone.weights import IMAGENET, NO_WEIGHTS, weights_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from luigi_tasks.settings.values import ModelSettings

DOWNLOAD_FAILED = "URL fetch failure"  # tf_keras.utils.get_file
# The middle of the blocks that work at 1/32 of the input's resolution.
GRID_LAYERS = {
    "mobilenet_v1": "conv_pw_12_relu",
    "mobilenet_v2": "block_14_add",
    "mobilenet_v3_small": "expanded_conv_9/Add",
    "mobilenet_v3_large": "expanded_conv_13/Add",
}
STANDARD_SUFFIX = "_standard"
QUIET_SHARE = 0.1
# Share of a map's largest value: a map whose channels vary less between pictures is constant.
CONSTANT_SHARE = 1e-3


def architecture_name(model: ModelSettings) -> str:
    """Return e.g. `mobilenet_v2_1.0_160`."""
    return f"{model.architecture}_{model.alpha}_{model.input_size}"


def build_backbone(model: ModelSettings, seed: int) -> Any:  # noqa: ANN401 - Keras has no types
    """Return the extractor: (N, size, size, 3) in [-1, 1] to (N, features).

    Its features are not standardized before `standardize` is called.

    Raises: SettingsError if weights do not fit or Keras has no such size; TransportError if ImageNet
        weights cannot be downloaded.
    """
    _, keras = start_tensorflow(seed)
    base = _open_base(keras, model)
    return keras.Model(base.input, build_features(keras, base.get_layer, base.output, model))


def build_features(keras: Any, get_layer: Any, top: Any, model: ModelSettings) -> Any:  # noqa: ANN401
    """Return the (N, features) tensor on top of a base network.

    Args:
        keras: The module tf_keras.
        get_layer: Returns a layer of the base network by name.
        top: Last feature map of the base network.
        model: The base network, and the number of fields.
    """
    layers = keras.layers
    branches = {"top": layers.GlobalAveragePooling2D(keepdims=True, name="top_average")(top)}
    tap = get_layer(GRID_LAYERS[model.architecture]).output
    side = int(tap.shape[1])
    if model.grid and side >= model.grid:
        # Fields of one size that cover the map; they overlap where it does not divide evenly.
        stride = side // model.grid
        fields = layers.AveragePooling2D(side - stride * (model.grid - 1), stride, name="grid_average")
        branches["grid"] = fields(tap)
    parts = []
    for name, branch in branches.items():
        # A depthwise 1x1 convolution: TFLite quantizes its weights channel by channel.
        standard = layers.DepthwiseConv2D(
            1, depthwise_initializer="ones", trainable=False, name=name + STANDARD_SUFFIX
        )
        parts.append(layers.Flatten(name=f"{name}_features")(standard(branch)))
    return layers.Concatenate(name="features")(parts) if len(parts) > 1 else parts[0]


def standardize(backbone: Any, pixels: NDArray[np.uint8]) -> None:  # noqa: ANN401
    """Standardize each channel of the features to mean 0 and deviation 1 over (N, H, W, 3) RGB pictures.

    So branches of different scale fit into one int8 tensor, and one learning rate suits all features.
    """
    import numpy as np  # noqa: PLC0415

    from luigi_tasks.inference.features import to_input  # noqa: PLC0415

    _, keras = running_tensorflow()
    standards = [layer for layer in backbone.layers if layer.name.endswith(STANDARD_SUFFIX)]
    raw = keras.Model(backbone.input, [layer.input for layer in standards])
    chunks = [raw.predict_on_batch(to_input(pixels[n : n + 32])) for n in range(0, len(pixels), 32)]
    for number, layer in enumerate(standards):
        maps = np.concatenate([chunk[number] if len(standards) > 1 else chunk for chunk in chunks])
        mean, deviation = maps.mean((0, 1, 2)), maps.std((0, 1, 2))  # (channels,)
        if deviation.mean() < CONSTANT_SHARE * np.abs(maps).max():
            # An untrained branch: amplifying differences below one step of int8 would give noise.
            continue
        # Do not amplify nearly constant channels.
        deviation = deviation + QUIET_SHARE * deviation.mean()
        scale = (1 / deviation).astype(np.float32)
        layer.set_weights([scale[None, None, :, None], (-mean * scale).astype(np.float32)])


def _open_base(keras: Any, model: ModelSettings) -> Any:  # noqa: ANN401
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
        weights = str(weights_path(model))
    try:
        if weights == IMAGENET and (known := imagenet_file(model)) is not None:
            weights = str(fetch_imagenet(keras, *known))
        return makers[model.architecture](
            input_shape=(model.input_size, model.input_size, 3),
            alpha=model.alpha,
            include_top=False,
            weights=weights,
            **options,
        )
    except (ValueError, OSError, KeyError) as e:
        raise _explain(model, e) from e
    except Exception as e:
        # Keras raises a bare Exception for a failed download.
        if DOWNLOAD_FAILED not in str(e):
            raise
        raise _explain(model, e) from e


def _explain(model: ModelSettings, error: Exception) -> SettingsError | TransportError:
    """Turn an error of Keras into one that names the way out.

    Args:
        model: The network that was to be built.
        error: Error that Keras raised.
    """
    name = architecture_name(model)
    if model.weights not in {NO_WEIGHTS, IMAGENET}:
        return SettingsError(
            f"[model] weights {model.weights}: do not fit {name} without its top ({error}); "
            "set [model] architecture and alpha to what the file was made for"
        )
    # OSError: no connection, or a file that was cut off.
    if DOWNLOAD_FAILED in str(error) or isinstance(error, OSError):
        return TransportError(
            f"[model] weights imagenet: Keras could not download those of {name} ({error}); "
            "give the path of the no-top .h5 file, or none"
        )
    return SettingsError(f"[model] {name}: Keras refuses it: {error}")
