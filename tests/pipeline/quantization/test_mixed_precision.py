"""MobileNetV3 with a channel that drowns the others in int8: the mixed variant holds where int8 collapses."""

from __future__ import annotations

import numpy as np
import pytest

from luigi_tasks.backbone.converters import float_converter, int8_converter
from luigi_tasks.backbone.extractor import FeatureExtractor, to_input
from luigi_tasks.backbone.networks import build_backbone, standardize
from luigi_tasks.progress import ignore_progress
from luigi_tasks.quantization.mixed_precision import convert_mixed
from luigi_tasks.settings.values import ModelSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

V3 = ModelSettings("mobilenet_v3_small", 1.0, 64, 2, "none")
LOUD = 300.0


def make_loud(backbone) -> None:
    """Make one channel of a stage louder and its readers as much deafer: the same network in float."""
    for writer in (3, 4, 5):
        layer = backbone.get_layer(f"expanded_conv_{writer}/project/BatchNorm")
        gamma, beta, mean, variance = layer.get_weights()
        gamma[0] *= LOUD
        beta[0] *= LOUD
        layer.set_weights([gamma, beta, mean, variance])
    for reader in (4, 5, 6):
        layer = backbone.get_layer(f"expanded_conv_{reader}/expand")
        kernel = layer.get_weights()[0]
        kernel[:, :, 0, :] /= LOUD
        layer.set_weights([kernel])


def settle(backbone, pictures) -> None:
    """Give the batch-norm layers the statistics of these pictures, as training would."""
    import tf_keras as keras  # noqa: PLC0415 - TensorFlow

    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    for _ in range(60):  # a layer's statistics count on those before it
        backbone(to_input(pictures), training=True)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """(N, 64, 64, 3) of blocks of random colours, smooth enough to reach the last layers."""
    rng = np.random.default_rng(2)
    blocks = rng.integers(0, 256, (48, 8, 8, 3), np.uint8)
    return blocks.repeat(8, 1).repeat(8, 2)


@pytest.fixture(scope="module")
def variants(pictures) -> dict[str, bytes]:
    backbone = build_backbone(V3, seed=1)
    settle(backbone, pictures)
    make_loud(backbone)
    standardize(backbone, pictures)
    return {
        "float": bytes(float_converter(backbone).convert()),
        "int8": bytes(int8_converter(backbone, pictures, ignore_progress).convert()),
        "mixed": convert_mixed(backbone, pictures, ignore_progress),
    }


def noise(variants, name: str, pictures) -> float:
    """Share of the features' variance that is not the float network's."""
    wanted = FeatureExtractor(variants["float"])(pictures, ignore_progress, "").astype(np.float64)
    extractor = FeatureExtractor(variants[name])
    found = extractor(pictures, ignore_progress, "").astype(np.float64)
    if extractor.quantized:
        found = (found - extractor.zero_point) * extractor.scale
    return float(((found - wanted) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum())


def test_mixed_variant_holds_where_int8_collapses(variants, pictures):
    assert noise(variants, "int8", pictures) > 0.5
    assert noise(variants, "mixed", pictures) < 0.1


def test_mixed_variant_is_still_mostly_int8(variants):
    assert len(variants["int8"]) < len(variants["mixed"]) < 0.4 * len(variants["float"])
