"""Heads that are hard to quantize, against the converter; backbones and heads that cannot be composed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edge_client.contract.errors import InputError
from luigi_tasks.progress import ignore_progress
from luigi_tasks.quantization.compose import Dense, choose_scale, compose_classifier, quantize_dense
from tests.fakes.written_model import dense_layers, infer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FEATURES = 24


class Converter:
    """The TFLite converter over one tiny backbone, with any head."""

    def __init__(self) -> None:
        from luigi_tasks.backbone.tensorflow_runtime import start_tensorflow  # noqa: PLC0415 - TensorFlow

        self._tf, self._keras = start_tensorflow(3)
        layers = self._keras.layers
        self.pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)
        picture = self._keras.Input((8, 8, 3))
        features = layers.GlobalAveragePooling2D()(layers.Conv2D(FEATURES, 3)(picture))
        self.backbone = self._keras.Model(picture, features)

    def under(self, head: list[tuple[np.ndarray, np.ndarray]], scheme: str = "int8") -> bytes:
        """Return the whole network's file; the head's (weights, bias) with ReLU between."""
        outputs = self.backbone.output
        for number, (weights, bias) in enumerate(head):
            last = number == len(head) - 1
            layer = self._keras.layers.Dense(len(bias), activation="softmax" if last else "relu")
            outputs = layer(outputs)
            layer.set_weights([weights, bias])
        network = self._keras.Model(self.backbone.input, outputs)
        return self._convert(network, scheme, self._tf.uint8)

    def alone(self, scheme: str = "int8", **ends: str) -> bytes:
        """Return the backbone's file; `ends` sets the types of its input and output."""
        types = {name: getattr(self._tf, kind) for name, kind in ends.items()}
        return self._convert(self.backbone, scheme, types.get("output", self._tf.int8), types.get("input"))

    def with_outputs(self, *, map_only: bool) -> bytes:
        """Return a file that gives the last map, or a map and features."""
        maps = self.backbone.layers[1].output
        outputs = maps if map_only else [maps, self.backbone.output]
        network = self._keras.Model(self.backbone.input, outputs)
        return self._convert(network, "float", None)

    def _convert(self, network, scheme, output_type, input_type=None) -> bytes:
        from luigi_tasks.backbone.converters import float_converter, int8_converter  # noqa: PLC0415

        if scheme == "int8":
            converter = int8_converter(network, self.pixels, ignore_progress)
            converter.inference_output_type = output_type
            if input_type is not None:
                converter.inference_input_type = input_type
            return bytes(converter.convert())
        converter = float_converter(network)
        if scheme != "float":
            converter.optimizations = [self._tf.lite.Optimize.DEFAULT]
        if scheme == "float16":
            converter.target_spec.supported_types = [self._tf.float16]
        return bytes(converter.convert())


@pytest.fixture(scope="module")
def converter():
    return Converter()


def draw(seed: int, units: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(FEATURES, units)).astype(np.float32)
    return weights, rng.normal(size=units).astype(np.float32)


def draw_ties(seed: int, units: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights half-way between two steps."""
    rng = np.random.default_rng(seed)
    halves = rng.integers(-254, 255, (FEATURES, units))
    halves[0] = 254
    weights = (halves * np.float32(0.5) * rng.uniform(1e-3, 0.1, units)).astype(np.float32)
    return weights, draw(seed, units)[1]


def draw_wide(seed: int, units: int) -> tuple[np.ndarray, np.ndarray]:
    """From units that are next to dead to ones whose bias drowns all else; some all zero."""
    rng = np.random.default_rng(seed)
    weights, bias = draw(seed, units)
    weights = (weights * 10 ** rng.uniform(-10, 3, units)).astype(np.float32)
    bias = (bias * 10 ** rng.uniform(-9, 4, units)).astype(np.float32)
    weights[:, rng.random(units) < 0.1] = 0
    bias[rng.random(units) < 0.1] = 0
    return weights, bias


@pytest.mark.parametrize("make", [draw, draw_ties, draw_wide])
def test_quantized_head_has_the_same_integers_as_the_converters_file(converter, make):
    weights, bias = make(5, 300)
    [theirs] = dense_layers(converter.under([(weights, bias)]))
    ours = quantize_dense(Dense(weights, bias, 0.0, 1.0), theirs.input_scale)
    np.testing.assert_array_equal(ours.weights.ravel(), np.frombuffer(theirs.weights, np.int8))
    np.testing.assert_array_equal(ours.bias, np.frombuffer(theirs.bias, np.int32))
    np.testing.assert_array_equal(ours.weight_scales, np.array(theirs.weight_scales, np.float32))
    np.testing.assert_array_equal(ours.bias_scales, np.array(theirs.bias_scales, np.float32))


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (-3, 5),
        (0, 6),
        (2, 6),
        (-4, -1),
        (-1, 1),
        (0, 1e-7),
        (-2.5006397, 0.15076622),
        (-3.4707758, 17.755783),
    ],
)
def test_the_scale_of_the_logits_is_the_one_that_the_converter_chooses(converter, low, high):
    # Without weights the logits are the bias, so their range is known to the last digit.
    bias = np.array([low, high], np.float32)
    [theirs] = dense_layers(converter.under([(np.zeros((FEATURES, 2), np.float32), bias)]))
    assert choose_scale(float(bias[0]), float(bias[1])) == (theirs.scale, theirs.zero_point)


def test_unit_next_to_dead_keeps_its_bias(converter):
    weights, bias = draw(1, 16)
    weights[:, :3] *= np.float32(1e-7)
    bias[:3] = 0.9, 2.0, -1.0
    head = [
        (weights, bias),
        (np.random.default_rng(2).normal(size=(16, 3)).astype(np.float32), draw(3, 3)[1]),
    ]
    whole = converter.under(head)
    layers = [
        # The range that the converter measured is in its scales.
        Dense(*numbers, (-128 - one.zero_point) * one.scale, (127 - one.zero_point) * one.scale)
        for numbers, one in zip(head, dense_layers(whole), strict=True)
    ]
    ours = compose_classifier(converter.alone(), layers, "abc", name="tiny")
    first = dense_layers(ours)[0]
    np.testing.assert_allclose(first.real_bias()[:3], bias[:3], rtol=1e-6)
    for picture in converter.pixels:
        np.testing.assert_array_equal(infer(ours, picture), infer(whole, picture))


@pytest.mark.parametrize("scheme", ["float16", "dynamic"])
def test_small_float_backbone_answers_as_the_converters_file(converter, scheme):
    weights, bias = draw(1, 5)
    whole = converter.under([(weights, bias)], scheme)
    ours = compose_classifier(converter.alone(scheme), [Dense(weights, bias, -9, 9)], "abcde", name="tiny")
    assert ours != whole
    for picture in converter.pixels:
        # Our head stays float32; the converter's has 11 bits in float16.
        np.testing.assert_allclose(infer(ours, picture), infer(whole, picture), atol=2e-3)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda _converter: b"", "not a TFLite file"),
        (lambda _converter: np.random.default_rng(0).bytes(4000), "not a TFLite file"),
        (lambda converter: converter.alone()[:1400], "broken TFLite file"),
        (lambda converter: converter.alone(output="uint8"), "to int8"),
        (lambda converter: converter.alone(output="float32"), "to int8"),
        (lambda converter: converter.alone(input="float32"), "to int8"),
        (lambda converter: converter.with_outputs(map_only=True), r"\(1, features\)"),
        (lambda converter: converter.with_outputs(map_only=False), "one input and one output"),
    ],
)
def test_backbone_that_cannot_be_composed_is_refused(converter, make, complaint):
    with pytest.raises(InputError, match=complaint):
        compose_classifier(make(converter), [Dense(*draw(1, 3), -9, 9)], "abc", name="tiny")


@pytest.mark.parametrize(
    ("layers", "complaint"),
    [
        ([], "no layers"),
        ([Dense(draw(1, 3)[0][:, 0], draw(1, 3)[1], -9, 9)], "train it on this backbone"),
        ([Dense(*draw(1, 3), 9, -9)], "swap them"),
    ],
)
def test_head_without_sense_is_refused(converter, layers, complaint):
    with pytest.raises(InputError, match=complaint):
        compose_classifier(converter.alone(), layers, "abc", name="tiny")


def test_composing_loads_no_tensorflow(converter, tmp_path):
    backbone = tmp_path / "backbone.tflite"
    backbone.write_bytes(converter.alone())
    script = (
        "import pathlib, sys, numpy as np\n"
        "from luigi_tasks.quantization.compose import Dense, compose_classifier\n"
        f"layer = Dense(np.ones(({FEATURES}, 2), 'f4'), np.zeros(2, 'f4'), -9, 9)\n"
        "compose_classifier(pathlib.Path(sys.argv[1]).read_bytes(), [layer], 'ab', name='tiny')\n"
        "print(*(name for name in ('tensorflow', 'tf_keras') if name in sys.modules))\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, backbone], check=True, capture_output=True, text=True
    ).stdout
    assert told.strip() == ""
