"""The mixed variant: it holds where a channel that drowns the others makes int8 collapse, and it is int8."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from luigi_tasks.backbone.converters import float_converter, int8_converter
from luigi_tasks.backbone.networks import build_backbone
from luigi_tasks.backbone.tensorflow_runtime import start_tensorflow
from luigi_tasks.inference.features import FeatureExtractor
from luigi_tasks.progress import ignore_progress
from luigi_tasks.quantization.mixed_precision import TOTAL_NOISE_SHARE, convert_mixed
from luigi_tasks.settings.values import ModelSettings
from tests.fakes.settled_network import settle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LOUD = 300.0
READERS = 64
OPERATOR = schema.BuiltinOperator


def loud_network() -> Any:
    """A network of four convolutions; one channel between them is `LOUD` times louder than its neighbours.

    Its reader is as much deafer, so that the channel means no more than others in float, while a step of
    int8 is as large as all that the others say: what MobileNetV3 does to int8, without its 69 operators.
    """
    _, keras = start_tensorflow(1)
    layers = keras.layers
    picture = keras.Input((16, 16, 3))
    first = layers.Conv2D(32, 3, strides=2, activation="relu6")(picture)
    loud = layers.Conv2D(16, 1)
    reader = layers.Conv2D(READERS, 1, activation="relu")
    last = layers.Conv2D(READERS, 3, activation="relu")(reader(loud(first)))
    network = keras.Model(picture, layers.GlobalAveragePooling2D()(last))
    for layer, axis, factor in ((loud, 3, LOUD), (reader, 2, 1 / LOUD)):
        kernel, bias = layer.get_weights()
        np.moveaxis(kernel, axis, 0)[0] *= factor
        layer.set_weights([kernel, bias])
    return network


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """(N, 16, 16, 3) of blocks of random colours."""
    rng = np.random.default_rng(2)
    return rng.integers(0, 256, (48, 4, 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)


@pytest.fixture(scope="module")
def variants(pictures) -> dict[str, bytes]:
    network = loud_network()
    return {
        "float": bytes(float_converter(network).convert()),
        "int8": bytes(int8_converter(network, pictures, ignore_progress).convert()),
        "mixed": convert_mixed(network, pictures, ignore_progress),
    }


def noise(variants, name: str, pictures) -> float:
    """Share of the features' variance that is not the float network's."""
    wanted = FeatureExtractor(variants["float"])(pictures, ignore_progress, "").astype(np.float64)
    extractor = FeatureExtractor(variants[name])
    found = extractor(pictures, ignore_progress, "").astype(np.float64)
    if extractor.quantized:
        found = (found - extractor.zero_point) * extractor.scale
    return float(((found - wanted) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum())


def int8_operators(model: bytes) -> set[int]:
    """Return the builtin codes of operators with an int8 output."""
    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    [graph] = tree.subgraphs
    return {
        max(code.builtinCode, code.deprecatedBuiltinCode)
        for one in graph.operators
        if graph.tensors[one.outputs[0]].type == schema.TensorType.INT8
        and (code := tree.operatorCodes[one.opcodeIndex])
    }


def test_mixed_variant_holds_where_int8_collapses(variants, pictures):
    assert noise(variants, "int8", pictures) > 0.5
    assert noise(variants, "mixed", pictures) < 0.1


def test_mixed_variant_is_still_mostly_int8(variants):
    assert len(variants["int8"]) < len(variants["mixed"]) < 0.4 * len(variants["float"])


def test_operators_of_mobilenet_v3_become_int8_in_the_mixed_variant():
    """Hard-swish and squeeze-excite; the extractor runs the file in the device's interpreter."""
    pictures = np.random.default_rng(2).integers(0, 256, (10, 4, 4, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    network = build_backbone(ModelSettings("mobilenet_v3_small", 0.75, 32, 0, "none"), seed=1)
    settle(network, pictures)
    made = {
        "float": bytes(float_converter(network).convert()),
        "mixed": convert_mixed(network, pictures, ignore_progress),
    }
    assert noise(made, "mixed", pictures) < TOTAL_NOISE_SHARE
    assert len(made["mixed"]) < 0.4 * len(made["float"])
    assert int8_operators(made["mixed"]) >= {OPERATOR.HARD_SWISH, OPERATOR.MUL, OPERATOR.MEAN}
