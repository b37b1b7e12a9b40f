"""From small coloured pictures to a file: real TensorFlow, real TFLite, the device's own classifier."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from local_services import free_ports

from edge_client.contract.errors import InputError, SettingsError, TransportError, TrustError
from edge_client.contract.release import Normalization
from edge_client.inference.classifier import Classifier
from luigi_tasks.backbone.converters import float_converter
from luigi_tasks.backbone.extractor import QuantizationParameters, quantization_of
from luigi_tasks.backbone.imagenet import imagenet_file
from luigi_tasks.backbone.networks import STANDARD_SUFFIX, architecture_name, build_backbone, standardize
from luigi_tasks.backbone.tensorflow_runtime import start_tensorflow
from luigi_tasks.backbone.weights import load_tuned, pack_weights, weights_digest
from luigi_tasks.dataset.records import Picture, Snapshot
from luigi_tasks.dataset.splits import ShardSplit
from luigi_tasks.inference.features import FeatureExtractor
from luigi_tasks.progress import ignore_progress
from luigi_tasks.quantization.calibration import choose_calibration
from luigi_tasks.quantization.compose import Dense, compose_classifier
from luigi_tasks.quantization.variants import convert_backbone
from luigi_tasks.settings.values import ModelSettings, Portions, TrainingSettings
from luigi_tasks.training.features import FeatureRows, choose_rows, compute_rows
from luigi_tasks.training.finetune import (
    CUT_LAYERS,
    FineTuningLoop,
    TrainingImages,
    _compute_inputs,
    tune_backbone,
)
from luigi_tasks.training.train import train
from luigi_tasks.training.validation import choose_validation
from tests.fakes.settled_network import settle

if TYPE_CHECKING:
    from luigi_tasks.training.records import TrainedHead

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

COLOURS = {"blue": (30, 40, 210), "green": (30, 200, 50), "red": (220, 30, 40)}
SCRATCH = ModelSettings("mobilenet_v1", 0.25, 32, 2, "none")
TRAINING = TrainingSettings(
    mode="finetune",
    epochs=20,
    batch_size=16,
    learning_rate=0.01,
    augmented_copies=1,
    small_set_copies=1,
    horizontal_flip=True,
    hidden_units=0,
    dropout=0.1,
    weight_decay=0.01,
    label_smoothing=0.05,
    finetune_epochs=4,
    finetune_rate=0.001,
    warm_start=False,
    cluster="",
    seed=3,
)
HOLDOUT_PERCENT = 20.0


@dataclasses.dataclass(frozen=True)
class Coloured:
    """Noisy pictures, each mostly of the colour that it is called."""

    snapshot: Snapshot
    pixels: dict[str, np.ndarray]

    def load(self, pictures, size):
        return np.stack([self.pixels[picture.sha256][:size, :size] for picture in pictures])

    def images(self, size) -> TrainingImages:
        pictures, labels = self.snapshot.split("train"), self.snapshot.labels
        return TrainingImages.of(pictures, labels, lambda some: self.load(some, size))


@dataclasses.dataclass(frozen=True)
class Made:
    """Everything that came of one training."""

    model: bytes
    trained: TrainedHead
    tuned: bytes | None


class Shelf:
    """A checkpoint store in memory."""

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.saved = 0

    def load(self) -> bytes | None:
        return self.data

    def save(self, data: bytes) -> None:
        self.data, self.saved = data, self.saved + 1


@pytest.fixture(scope="module")
def coloured() -> Coloured:
    rng = np.random.default_rng(5)
    pictures, pixels = [], {}
    for label, colour in COLOURS.items():
        for number in range(30):
            noise = rng.normal(0, 40, (96, 96, 3))
            digest = hashlib.sha256(f"{label}{number}".encode()).hexdigest()
            pixels[digest] = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            split = "holdout" if int(digest[:8], 16) / 2**32 * 100 < HOLDOUT_PERCENT else "train"
            pictures.append(Picture(path=f"{label}/{number}", sha256=digest, label=label, split=split))
    pictures.sort(key=lambda picture: picture.sha256)
    return Coloured(Snapshot(digest="d", labels=tuple(COLOURS), pictures=tuple(pictures)), pixels)


@pytest.fixture(scope="module")
def from_scratch(coloured, tmp_path_factory):
    return make(coloured, SCRATCH, tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def weights_file(from_scratch, tmp_path_factory):
    """Weights of a base that has seen these colours, as Keras saves them."""
    import tf_keras as keras  # noqa: PLC0415 - TensorFlow

    backbone = build_backbone(SCRATCH, seed=1)
    load_tuned(backbone, from_scratch.tuned)
    path = tmp_path_factory.mktemp("weights") / "mobilenet_2_5_32_tf_no_top.h5"
    keras.Model(backbone.input, backbone.get_layer("conv_pw_13_relu").output).save_weights(path)
    return path


@pytest.fixture(scope="module")
def upper(coloured, weights_file, tmp_path_factory):
    """A backbone with those weights whose upper part was tuned."""
    model = dataclasses.replace(SCRATCH, weights=str(weights_file))
    return tune(coloured, model, tmp_path_factory.mktemp("upper"))


def tune(coloured, model, folder, training=TRAINING, start=None, shelf=None, progress=ignore_progress):
    shelf = shelf or Shelf()
    return tune_backbone(coloured.images(model.input_size), model, training, start, folder, shelf, progress)


def make(coloured, model, folder, training=TRAINING, scheme="int8", calibration=30, tuned=None) -> Made:
    """Do what the tasks do; `tuned` may be the weights of a backbone that is tuned already."""
    if training.mode == "finetune" and tuned is None:
        tuned = tune(coloured, model, folder, training).weights
    snapshot, size = coloured.snapshot, model.input_size
    chosen = choose_calibration(snapshot.split("train"), calibration)
    variants, _ = convert_backbone(
        model, scheme, coloured.load(chosen, size), tuned, ignore_progress, training.seed
    )
    pictures = [one.sha256 for one in snapshot.pictures]
    rows = compute_rows(
        variants,
        choose_rows(
            pictures, scheme, training.portions(len(pictures)), ShardSplit.of(snapshot.pictures).holdout
        ),
        pictures,
        coloured.load(snapshot.pictures, size),
        {},
        ignore_progress,
        flip=True,
    )
    parameters = quantization_of(variants[scheme])
    trained = train(snapshot, [rows], scheme, parameters, training, ignore_progress)
    layers = [
        Dense(layer.weights, layer.bias, low, high)
        for layer, (low, high) in zip(trained.layers, trained.ranges, strict=True)
    ]
    return Made(compose_classifier(variants[scheme], layers, snapshot.labels, name="x"), trained, tuned)


def accuracy(coloured, model: bytes, size: int) -> float:
    classifier = Classifier(model, coloured.snapshot.labels, normalization=Normalization())
    holdout = coloured.snapshot.split("holdout")
    answers = [classifier.classify(pixels).label for pixels in coloured.load(holdout, size)]
    return float(np.mean([answer == picture.label for answer, picture in zip(answers, holdout, strict=True)]))


def test_from_scratch_to_int8(coloured, from_scratch):
    assert accuracy(coloured, from_scratch.model, 32) >= 0.9
    assert from_scratch.trained.float_scores.shape == (len(coloured.snapshot.split("holdout")), 3)
    assert set(from_scratch.trained.record.history) == {"loss", "accuracy"}, "too few to say when to stop"


def test_another_seed_is_another_network():
    """The same seed in another process gives the same file: tests/end_to_end/test_deploy.py."""
    first, second, other = (pack_weights(build_backbone(SCRATCH, seed)) for seed in (3, 3, 4))
    assert first == second != other


@pytest.mark.parametrize(("mode", "hidden"), [("head", 0), ("head", 8), ("finetune", 8)])
def test_on_top_of_given_weights(coloured, weights_file, tmp_path, request, mode, hidden):
    model = dataclasses.replace(SCRATCH, weights=str(weights_file))
    training = dataclasses.replace(TRAINING, mode=mode, hidden_units=hidden)
    tuned = request.getfixturevalue("upper").weights if mode == "finetune" else None
    made = make(coloured, model, tmp_path, training, tuned=tuned)
    assert accuracy(coloured, made.model, 32) >= 0.9


@pytest.mark.parametrize("scheme", ["float16", "dynamic"])
def test_other_schemes_are_as_right_and_smaller_than_float(coloured, weights_file, tmp_path, scheme):
    model = dataclasses.replace(SCRATCH, weights=str(weights_file))
    training = dataclasses.replace(TRAINING, mode="head")
    made = make(coloured, model, tmp_path, training, scheme)
    assert accuracy(coloured, made.model, 32) >= 0.9
    backbone = build_backbone(model, seed=1)
    assert len(made.model) < 0.6 * 4 * backbone.count_params()


def test_a_head_that_had_to_learn_from_spoiled_features_does_not_hide_the_loss(coloured):
    """Float features tell the classes apart, the int8 ones are noise: the float network is the good one."""
    rng = np.random.default_rng(8)
    pictures = [one.sha256 for one in coloured.snapshot.pictures]
    wanted = choose_rows(pictures, "int8", Portions(0, 1), ShardSplit.of(coloured.snapshot.pictures).holdout)
    labels = {one.sha256: coloured.snapshot.labels.index(one.label) for one in coloured.snapshot.pictures}
    floats = np.stack([3.0 * np.eye(3)[labels[one]] for one in wanted["float_0"]]).astype(np.float16)
    rows = FeatureRows(
        wanted, {"int8_0": rng.integers(-128, 128, (len(pictures), 3), np.int8), "float_0": floats}
    )
    record = train(
        coloured.snapshot, [rows], "int8", QuantizationParameters(0.05, 0), TRAINING, ignore_progress
    ).record
    assert record.float_drop_points > 40
    assert record.class_drop_points > 20


@pytest.mark.parametrize(
    "model",
    [
        ModelSettings("mobilenet_v2", 0.35, 96, 2, "none"),
        ModelSettings("mobilenet_v3_small", 1.0, 64, 2, "none"),
        ModelSettings("mobilenet_v3_large", 0.75, 64, 0, "none"),
    ],
    ids=architecture_name,
)
def test_every_architecture_becomes_an_int8_file_that_the_device_runs(coloured, tmp_path, model):
    training = dataclasses.replace(TRAINING, mode="head", epochs=1, small_set_copies=0)
    backbone = build_backbone(model, seed=1)
    settle(backbone, coloured.load(coloured.snapshot.split("train"), model.input_size))
    made = make(coloured, model, tmp_path, training, calibration=10, tuned=pack_weights(backbone))
    assert CUT_LAYERS[model.architecture] in {layer.name for layer in backbone.layers}
    classifier = Classifier(made.model, coloured.snapshot.labels, normalization=Normalization())
    answer = classifier.classify(next(iter(coloured.pixels.values())))
    assert answer.label in COLOURS
    assert answer.scores.sum() == pytest.approx(1, abs=0.05)


# --- tuning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False], ids=["from scratch", "upper part"])
def test_no_validation_picture_is_ever_shown_to_the_backbone(coloured, weights_file, tmp_path, whole):
    """So it stands for unseen pictures when the head stops, and when its confidence is fitted."""
    pictures = coloured.snapshot.split("train")
    shown: set[str] = set()
    held = {one.sha256 for one, out in zip(pictures, choose_validation(pictures), strict=True) if out}
    assert 0 < len(held) < len(pictures) / 4

    def load(some):
        shown.update(one.sha256 for one in some)
        return coloured.load(some, 32)

    model = SCRATCH if whole else dataclasses.replace(SCRATCH, weights=str(weights_file))
    images = TrainingImages.of(pictures, coloured.snapshot.labels, load)
    training = dataclasses.replace(TRAINING, epochs=1, finetune_epochs=1)
    tune_backbone(images, model, training, None, tmp_path, Shelf(), ignore_progress)
    assert shown == {one.sha256 for one in pictures} - held


class KilledError(Exception):
    """Stands for a machine that went away."""


@pytest.mark.parametrize("whole", [True, False], ids=["from scratch", "upper part"])
def test_killed_run_resumes_after_the_last_epoch_and_gives_the_same_bytes(
    coloured, weights_file, upper, tmp_path, monkeypatch, whole
):
    monkeypatch.setattr("luigi_tasks.training.finetune.CHECKPOINT_INTERVAL_S", 0)
    model = SCRATCH if whole else dataclasses.replace(SCRATCH, weights=str(weights_file))
    training = dataclasses.replace(TRAINING, epochs=4) if whole else TRAINING
    expected = tune(coloured, model, tmp_path, training) if whole else upper
    shelf, seen = Shelf(), []
    shelf.data = b"broken"  # warned of and not loaded: test_checkpoint.py

    def die_in_epoch_3(what, done, total):
        seen.append(what)
        if what.startswith("tuning, epoch 3") and done == total:
            raise KilledError

    with pytest.raises(KilledError):
        tune(coloured, model, tmp_path, training, shelf=shelf, progress=die_in_epoch_3)
    assert shelf.saved == 2
    assert list(tmp_path.iterdir()) == [], "activations are removed also then"
    seen.clear()
    again = tune(
        coloured, model, tmp_path, training, shelf=shelf, progress=lambda what, *_: seen.append(what)
    )
    assert not any("epoch 2" in what for what in seen)
    assert again == expected


@pytest.mark.parametrize("whole", [True, False], ids=["from scratch", "upper part"])
def test_pictures_are_read_in_parts_and_what_is_computed_does_not_depend_on_them(
    coloured, weights_file, tmp_path, monkeypatch, whole
):
    """100,000 pictures would be 7.7 GB."""
    images, asked = coloured.images(32), []
    lower = None
    if not whole:
        import tf_keras as keras  # noqa: PLC0415 - TensorFlow

        backbone = build_backbone(dataclasses.replace(SCRATCH, weights=str(weights_file)), seed=1)
        cut = backbone.get_layer(CUT_LAYERS["mobilenet_v1"]).output
        lower = FeatureExtractor(bytes(float_converter(keras.Model(backbone.input, cut)).convert()))

    def read(rows):
        asked.append(len(rows))
        return images.read(rows)

    def compute_in_parts_of(count):
        monkeypatch.setattr("luigi_tasks.training.finetune.PICTURES_AT_ONCE", count)
        asked.clear()
        recorded = dataclasses.replace(images, read=read)
        shape = (32, 32, 3) if lower is None else lower.shape
        return _compute_inputs(recorded, 2, TRAINING, tmp_path, ignore_progress, lower, shape)

    at_once = compute_in_parts_of(1024)
    assert at_once.std() > 0
    assert asked == [len(images.names)]
    np.testing.assert_array_equal(compute_in_parts_of(32), at_once)
    assert asked == [32, 32, len(images.names) - 64]


class Recorded:
    """Inputs of a training that note which copy of which picture was shown."""

    def __init__(self) -> None:
        self.shown: collections.Counter[tuple[int, int]] = collections.Counter()

    def __getitem__(self, chosen):
        copies, rows = chosen
        self.shown.update(zip(copies.tolist(), rows.tolist(), strict=True))
        return np.ones((len(rows), 4), np.float32)


def test_each_epoch_shows_each_picture_in_another_copy():
    import tf_keras as keras  # noqa: PLC0415 - TensorFlow

    training = dataclasses.replace(TRAINING, small_set_copies=2, finetune_epochs=3)
    images = TrainingImages(np.empty, np.arange(20) % 3, [str(number) for number in range(20)], 3)
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    loop = FineTuningLoop(network, 20, training, None, 1, whole=False)
    inputs = Recorded()
    while loop.epoch < loop.epochs:
        loop.run_epoch(inputs, images.targets, images, ignore_progress)
    assert inputs.shown == {(copy, row): 1 for copy in range(3) for row in range(20)}


def test_warm_start_continues_from_given_weights(coloured, upper, weights_file, tmp_path):
    model = dataclasses.replace(SCRATCH, weights=str(weights_file))
    warm = tune(coloured, model, tmp_path, start=upper.weights)
    assert warm.weights != upper.weights
    assert warm.history["loss"][0] <= upper.history["loss"][0] + 0.05


def test_weights_of_another_backbone_are_no_start(coloured, from_scratch, tmp_path):
    model = dataclasses.replace(SCRATCH, alpha=0.5)
    with pytest.raises(InputError, match="run without"):
        tune(coloured, model, tmp_path, start=from_scratch.tuned)


# --- weights, calibration -----------------------------------------------------------------------


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
    # It keeps the proxies of its first use: neither earlier ones for this test, nor these for later ones.
    monkeypatch.setattr("urllib.request._opener", None)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    model = ModelSettings("mobilenet_v2", 0.35, 96, 2, "imagenet")
    with pytest.raises(TransportError, match=r"could not download.*mobilenet_v2_0\.35_96.*give the path"):
        build_backbone(model, seed=1)


def test_imagenet_weights_that_changed_since_they_were_downloaded_are_refused(monkeypatch, tmp_path):
    """Keras has no digest for those of MobileNet V1 and V2."""
    monkeypatch.setenv("HOME", str(tmp_path))
    model = dataclasses.replace(SCRATCH, weights="imagenet")
    known = imagenet_file(model)
    assert known is not None
    cached = tmp_path / ".keras/models" / known[0]
    cached.parent.mkdir(parents=True)
    _, keras = start_tensorflow(1)
    keras.applications.MobileNet((32, 32, 3), 0.25, include_top=False, weights=None).save_weights(str(cached))
    build_backbone(model, seed=1)
    note = cached.with_name(cached.name + ".sha256")
    assert note.read_text().split() == [hashlib.sha256(cached.read_bytes()).hexdigest(), cached.name]
    cached.write_bytes(cached.read_bytes() + b"x")
    with pytest.raises(TrustError, match=r"not the ImageNet weights that were downloaded first.*remove"):
        build_backbone(model, seed=1)


def test_calibration_is_balanced_and_seldom_moves(coloured):
    pictures = coloured.snapshot.split("train")
    chosen = choose_calibration(pictures, 12)
    assert {label: sum(one.label == label for one in chosen) for label in COLOURS} == dict.fromkeys(
        COLOURS, 4
    )
    fewer = choose_calibration(tuple(one for one in pictures if one not in chosen[:1]), 12)
    assert len(set(chosen) & set(fewer)) == 11


def test_only_what_is_above_the_cut_and_no_batch_norm_learns(coloured, weights_file, upper):
    import tf_keras as keras  # noqa: PLC0415 - TensorFlow

    model = dataclasses.replace(SCRATCH, weights=str(weights_file))
    before = build_backbone(model, seed=1)
    # As the tuning does before its first step.
    standardize(before, coloured.load(coloured.snapshot.split("train"), 32))
    wanted = {layer.name: layer.get_weights() for layer in before.layers}
    after = build_backbone(model, seed=1)
    load_tuned(after, upper.weights)
    cut = [layer.name for layer in after.layers].index(CUT_LAYERS[model.architecture])
    learned = []
    for place, layer in enumerate(after.layers):
        same = all(np.array_equal(a, b) for a, b in zip(layer.get_weights(), wanted[layer.name], strict=True))
        if layer.get_weights() and not layer.name.endswith(STANDARD_SUFFIX):
            learned += [layer.name] * (not same)
            if place <= cut or isinstance(layer, keras.layers.BatchNormalization):
                assert same, layer.name
    assert learned, "the convolutions above the cut do"
