"""What the input of a model file takes: which size, how many channels, and which values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_client.contract.errors import InputError
from edge_client.contract.release import Normalization
from edge_client.inference.picture_input import ChannelNormalization, channels_of, table_of

if TYPE_CHECKING:
    from edge_client.inference.file_metadata import FileMetadata
    from edge_client.inference.graph import Graph, TensorFacts
    from edge_client.settings.own_model import ModelOptions

_FLEX = "Flex"
_KINDS = ("float32", "float16", "uint8", "int8", "int16")
_CHANNELS = (1, 3)
# (batch, height, width, channels), or grey without the last
_RANK, _GREY_RANK = 4, 3
# Steps of an 8-bit input by which two ways to fill it may differ for their rounding.
_ROUNDING_STEPS = 2
# Share of pixel values that a normalization may push out of the range of an 8-bit input; more contradicts it.
_MOST_SATURATED = 0.05
_SETTINGS = "--mean and --std ([device] mean, std)"


def check_input(graph: Graph) -> None:
    """Check that a file takes one picture, and has operators that the runtime has.

    Raises: InputError that names what was found.
    """
    _check_operators(graph.custom_operators)
    if len(graph.inputs) != 1:
        found = ", ".join(one.in_words() for one in graph.inputs) or "none"
        msg = f"the model has {len(graph.inputs)} inputs ({found}): an image classifier has one"
        raise InputError(msg)
    given = graph.inputs[0]
    shape = given.signature or given.shape
    if given.kind not in _KINDS:
        text = ", as that of a model of text or of tables" if len(shape) < _RANK else ""
        msg = f"its input is {given.in_words()}{text}: an image classifier takes {', '.join(_KINDS)} pixels"
        raise InputError(msg)
    if len(shape) == _RANK and shape[3] not in _CHANNELS and shape[1] in _CHANNELS:
        msg = (
            f"its input is {given.in_words()}, channels first (NCHW), as PyTorch has it: convert it to "
            "channels last (NHWC), with onnx2tf, or with ai_edge_torch.to_channel_last_io"
        )
        raise InputError(msg)
    if not _is_of_pictures(shape):
        msg = (
            f"its input is {given.in_words()}: an image classifier takes (1, height, width, 3), or "
            "1 channel for grey"
        )
        raise InputError(msg)


def _is_of_pictures(shape: tuple[int, ...]) -> bool:
    if len(shape) == _GREY_RANK:  # Keras' digits, whose network adds the channel itself
        return shape[0] in {-1, 1} and 0 not in shape
    return len(shape) == _RANK and shape[3] in _CHANNELS and 0 not in shape


def doubt_of_channels(graph: Graph) -> tuple[str, ...]:
    """Return what is odd about an input without channels: it need not be of pictures."""
    given = graph.inputs[0]
    if len(given.shape) == _RANK:
        return ()
    return (f"its input {given.in_words()} has no channels: it is taken for one of grey pictures",)


def _check_operators(custom: tuple[str, ...]) -> None:
    flex = [name for name in custom if name.startswith(_FLEX)]
    if "edgetpu-custom-op" in custom:
        msg = (
            "compiled for the Edge TPU (edgetpu-custom-op): this client computes on the CPU; give the file "
            "that it was compiled from, without `_edgetpu` in its name"
        )
    elif "TFLite_Detection_PostProcess" in custom:
        msg = "an object detector (TFLite_Detection_PostProcess), which gives boxes: give an image classifier"
    elif flex:
        msg = (
            f"needs TensorFlow operators ({', '.join(flex)}), which no TFLite runtime for devices has: "
            "convert it again with TFLITE_BUILTINS only, without SELECT_TF_OPS"
        )
    elif custom:
        msg = (
            f"has operators of its own ({', '.join(custom)}), which no TFLite runtime has: convert the model "
            "without them"
        )
    else:
        return
    raise InputError(msg)


def choose_input_shape(given: TensorFacts, wanted: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape that the input is to get; None: the one in the file.

    Args:
        given: The input.
        wanted: Side, or height and width; empty: the file's.
    Raises: InputError if nobody says how large the pictures are.
    """
    _, height, width, *channels = given.shape
    shape: tuple[int, ...]
    if wanted:
        shape = (1, wanted[0], wanted[-1], *channels)
    else:
        if 1 in {height, width}:  # how a converter writes an open dimension
            msg = (
                f"its input {given.in_words()} is of any size, so the file does not tell the one that it was "
                "trained for: give --input-size ([device] input_size), such as 224"
            )
            raise InputError(msg)
        shape = (1, height, width, *channels)
    return None if shape == given.shape else shape


def choose_normalization(
    source: dict[str, Any], graph: Graph, metadata: FileMetadata, options: ModelOptions
) -> tuple[Normalization | ChannelNormalization | None, tuple[str, ...]]:
    """Return how pixels become values of the input, and what was assumed; None: an 8-bit input takes pixels.

    Args:
        source: Details of the loaded input.
        graph: What the file says.
        metadata: What its metadata say.
        options: What a person says; it counts first.
    Raises: InputError if what counts cannot be applied.
    """
    channels, kind = channels_of(source), graph.inputs[0].kind
    quantized = source["quantization"][0] > 0
    if options.mean:
        if kind in {"uint8", "int8", "int16"} and not quantized:
            msg = f"its {kind} input has no quantization, so {_SETTINGS} cannot be applied; leave them out"
            raise InputError(msg)
        return _normalization(options.mean, options.std, channels, _SETTINGS), ()
    told = None
    if metadata.mean or metadata.std:
        told = _normalization(metadata.mean, metadata.std, channels, "its metadata")
    if kind in {"int8", "int16"} and not quantized:
        msg = f"model input of type {kind} without quantization; convert it again"
        raise InputError(msg)
    if kind == "uint8" or (kind == "int8" and told is None):
        return None, _doubts_of_pixels(source, told)
    if kind == "int8" and told is not None and _saturates(source, told):
        doubt = (
            "its metadata's mean and std do not fit the range of its input: it gets the pixels instead; "
            f"{_SETTINGS} change that"
        )
        return None, (doubt,)
    return (told, ()) if told is not None else (Normalization(), (_assumption(graph),))


def _assumption(graph: Graph) -> str:
    """Return the warning for a float model that does not say which values it takes.

    Converters fold a scaling of the pixels into the first weights where they can, so that it need not show.
    """
    hint = ": 0 and 255 for [0, 1], 0 and 1 for pixels as they are (a Rescaling layer inside)"
    if graph.scales_pixels:
        hint = (
            "; it begins with arithmetic on its input, so it may scale the pixels itself: "
            "try --mean 0 --std 1"
        )
    return (
        f"the model does not say which values its {graph.inputs[0].kind} input takes: [-1, 1] is assumed "
        f"(mean 127.5, std 127.5), and answers are wrong if it was trained on others; give {_SETTINGS}{hint}"
    )


def _normalization(
    mean: tuple[float, ...], std: tuple[float, ...], channels: int, whose: str
) -> Normalization | ChannelNormalization:
    """Return a normalization of one pair, or of one for each channel.

    Raises: InputError if there are other numbers of them, or a std of 0.
    """
    counts = {len(mean), len(std)}
    if counts - {1, channels} or not np.isfinite([*mean, *std]).all() or 0 in std:
        msg = (
            f"{whose} give mean {_shown(mean)} and std {_shown(std)} for {channels} channels: one number "
            f"each is needed, or one a channel, and no std of 0; give {_SETTINGS}"
        )
        raise InputError(msg)
    if counts == {1}:
        return Normalization(mean=mean[0], std=std[0])
    wide = max(counts)
    return ChannelNormalization(mean * (wide // len(mean)), std * (wide // len(std)))


def _shown(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:g}" for number in numbers) or "none"


def _saturates(source: dict[str, Any], told: Normalization | ChannelNormalization) -> bool:
    """Whether an 8-bit input cannot express many values of a normalization."""
    scale, zero_point = source["quantization"]
    limits = np.iinfo(np.dtype(source["dtype"]))
    wide = table_of({"dtype": np.float32, "quantization": (0.0, 0)}, told).astype(np.float64)
    steps = wide / scale + zero_point
    outside = (steps < limits.min - _ROUNDING_STEPS) | (steps > limits.max + _ROUNDING_STEPS)
    return bool(outside.mean() > _MOST_SATURATED)


def _doubts_of_pixels(
    source: dict[str, Any], told: Normalization | ChannelNormalization | None
) -> tuple[str, ...]:
    """Return what is odd about an 8-bit input that takes the pixels as they are, as MediaPipe gives them."""
    if told is None or not source["quantization"][0] > 0:
        return ()
    pixels = table_of(source, None).astype(np.int32)
    meant = table_of(source, told).astype(np.int32)
    distance = np.abs(meant - (pixels if meant.ndim == 1 else pixels[:, None])).max()
    if distance <= _ROUNDING_STEPS:
        return ()
    doubt = (
        "its metadata's mean and std would give its 8-bit input other values than the pixels themselves, "
        f"which it gets, as MediaPipe does it; {_SETTINGS} change that"
    )
    return (doubt,)
