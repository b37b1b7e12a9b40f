"""Training and quantization of small coloured pictures: real TensorFlow, the device's own classifier."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from local_services import free_ports
from luigi_tasks.quantize import quantize

from edge_client.contract.errors import SettingsError, TransportError
from edge_client.contract.release import Normalization
from edge_client.inference.classifier import Classifier
from luigi_tasks.backbones import architecture_name, build_backbone, build_network, weights_digest
from luigi_tasks.conversion import choose_calibration
from luigi_tasks.features import distort
from luigi_tasks.progress import silent
from luigi_tasks.records import Picture, Snapshot
from luigi_tasks.settings import ModelSettings, QuantizationSettings, TrainingSettings
from luigi_tasks.train import train, unpack_weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

COLOURS = {"blue": (30, 40, 210), "green": (30, 200, 50), "red": (220, 30, 40)}
SCRATCH = ModelSettings("mobilenet_v1", 0.25, 32, "none")
TRAINING = TrainingSettings(
    mode="finetune",
    epochs=30,
    batch_size=16,
    learning_rate=0.01,
    augmented_views=1,
    horizontal_flip=True,
    hidden_units=8,
    dropout=0.1,
    label_smoothing=0.05,
    seed=3,
)
INT8 = QuantizationSettings("int8", 30)


@dataclasses.dataclass(frozen=True)
class Coloured:
    """Noisy pictures, each mostly of the colour that it is called."""

    snapshot: Snapshot
    pixels: dict[str, np.ndarray]

    def load(self, pictures, height, width):
        return np.stack([self.pixels[picture.sha256][:height, :width] for picture in pictures])


@pytest.fixture(scope="module")
def coloured() -> Coloured:
    rng = np.random.default_rng(5)
    pictures, pixels = [], {}
    for label, colour in COLOURS.items():
        for number in range(30):
            noise = rng.normal(0, 40, (96, 96, 3))
            digest = hashlib.sha256(f"{label}{number}".encode()).hexdigest()
            pixels[digest] = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            split = "holdout" if number % 5 == 0 else "train"
            pictures.append(Picture(path=f"{label}/{number}", sha256=digest, label=label, split=split))
    pictures.sort(key=lambda picture: picture.sha256)
    snapshot = Snapshot(digest="d", labels=tuple(COLOURS), pictures=tuple(pictures))
    return Coloured(snapshot, pixels)


@pytest.fixture(scope="module")
def from_scratch(coloured):
    return make(coloured, SCRATCH)


@pytest.fixture(scope="module")
def weights_file(coloured, from_scratch, tmp_path_factory):
    """Weights of a backbone that has seen these colours, as Keras saves them."""
    network, _ = build_network(SCRATCH, TRAINING, len(coloured.snapshot.labels))
    unpack_weights(network, from_scratch[0].weights)
    backbone = build_backbone(SCRATCH, seed=1)
    backbone.set_weights(network.get_weights()[: len(backbone.get_weights())])
    path = tmp_path_factory.mktemp("weights") / "mobilenet_2_5_32_tf_no_top.h5"
    backbone.save_weights(path)
    return path


def make(coloured, model, training=TRAINING, quantization=INT8):
    trained = train(coloured.load, coloured.snapshot, model, training, quantization, silent)
    return trained, quantize(
        trained.weights, coloured.load, coloured.snapshot, model, training, quantization, silent
    )


def accuracy(coloured, model: bytes, size: int) -> float:
    classifier = Classifier(model, coloured.snapshot.labels, normalization=Normalization())
    holdout = coloured.snapshot.split("holdout")
    answers = [classifier.classify(pixels).label for pixels in coloured.load(holdout, size, size)]
    return float(np.mean([answer == picture.label for answer, picture in zip(answers, holdout, strict=True)]))


def test_from_scratch_to_int8(coloured, from_scratch):
    trained, first = from_scratch
    assert accuracy(coloured, first.model, 32) >= 0.9
    assert len(first.model) < len(first.float_model) / 2
    assert len(trained.record.history["accuracy"]) == TRAINING.epochs
    assert first.record.operators["CONV_2D"] >= 1
    assert first.record.scheme == "int8"


def test_same_pictures_and_settings_give_the_same_bytes(coloured):
    training = dataclasses.replace(TRAINING, epochs=2)
    (first, model), (second, again) = (make(coloured, SCRATCH, training) for _ in range(2))
    assert first.weights == second.weights
    assert model.model == again.model
    other, _ = make(coloured, SCRATCH, dataclasses.replace(training, seed=4))
    assert other.weights != first.weights


@pytest.mark.parametrize("mode", ["head", "finetune"])
def test_on_top_of_given_weights(coloured, weights_file, mode):
    model = dataclasses.replace(SCRATCH, weights=str(weights_file))
    _, quantized = make(coloured, model, dataclasses.replace(TRAINING, mode=mode))
    assert accuracy(coloured, quantized.model, 32) >= 0.9


@pytest.mark.parametrize("scheme", ["float16", "dynamic"])
def test_other_schemes_answer_as_the_float_model_and_are_smaller(coloured, weights_file, scheme):
    model = dataclasses.replace(SCRATCH, weights=str(weights_file))
    training = dataclasses.replace(TRAINING, mode="head")
    _, quantized = make(coloured, model, training, QuantizationSettings(scheme, 30))
    assert accuracy(coloured, quantized.model, 32) >= 0.9
    assert len(quantized.model) < 0.6 * len(quantized.float_model)
    assert quantized.record.calibration == ()


@pytest.mark.parametrize(
    "model",
    [
        ModelSettings("mobilenet_v2", 0.35, 96, "none"),
        ModelSettings("mobilenet_v3_small", 1.0, 64, "none"),
        ModelSettings("mobilenet_v3_large", 0.75, 64, "none"),
    ],
    ids=architecture_name,
)
def test_every_architecture_becomes_an_int8_file_that_the_device_runs(coloured, model):
    training = dataclasses.replace(TRAINING, epochs=1, augmented_views=0)
    _, quantized = make(coloured, model, training, QuantizationSettings("int8", 10))
    classifier = Classifier(quantized.model, coloured.snapshot.labels, normalization=Normalization())
    answer = classifier.classify(next(iter(coloured.pixels.values())))
    assert answer.label in COLOURS
    assert answer.scores.sum() == pytest.approx(1, abs=0.05)


def test_missing_weights_are_named():
    model = dataclasses.replace(SCRATCH, weights="/nonexistent/weights.h5")
    with pytest.raises(SettingsError, match=r"/nonexistent/weights\.h5: no such file"):
        weights_digest(model)
    with pytest.raises(SettingsError, match="no such file"):
        build_backbone(model, seed=1)


def test_weights_of_another_network_are_named(weights_file):
    model = dataclasses.replace(SCRATCH, alpha=0.5, weights=str(weights_file))
    with pytest.raises(SettingsError, match=r"do not fit mobilenet_v1_0\.5_32"):
        build_backbone(model, seed=1)


def test_weights_that_cannot_be_downloaded_name_the_way_out(monkeypatch, tmp_path):
    dead = f"http://127.0.0.1:{free_ports(1)[0]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, dead)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    model = ModelSettings("mobilenet_v2", 0.35, 96, "imagenet")
    with pytest.raises(TransportError, match=r"could not download.*mobilenet_v2_0\.35_96.*give the path"):
        build_backbone(model, seed=1)


def test_calibration_is_balanced_and_seldom_moves(coloured):
    pictures = coloured.snapshot.split("train")
    chosen = choose_calibration(pictures, 12)
    assert {label: sum(one.label == label for one in chosen) for label in COLOURS} == dict.fromkeys(
        COLOURS, 4
    )
    fewer = choose_calibration(tuple(one for one in pictures if one not in chosen[:1]), 12)
    assert len(set(chosen) & set(fewer)) == 11


def test_a_view_depends_on_its_seed_alone_and_keeps_the_shape(coloured):
    picture = next(iter(coloured.pixels.values()))[:40, :60]
    view = distort(picture, "a/1", flip=True)
    assert view.shape == picture.shape
    assert view.dtype == np.uint8
    assert np.array_equal(view, distort(picture, "a/1", flip=True))
    assert not np.array_equal(view, distort(picture, "a/2", flip=True))
