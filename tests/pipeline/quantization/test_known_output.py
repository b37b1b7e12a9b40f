"""The second output of a composed file against NumPy, in int8 and in float, and what it changes."""

from __future__ import annotations

import dataclasses
import io
import zipfile

import bsdiff4
import msgspec
import numpy as np
import pytest

from edge_client.contract.release import Normalization
from edge_client.inference.classifier import Classifier
from edge_client.inference.runtime import load_interpreter
from luigi_tasks.backbone.records import Backbone, BackboneRecord
from luigi_tasks.quantization.candidate import make_candidate
from luigi_tasks.quantization.compose import Dense, compose_classifier
from luigi_tasks.quantization.operators import read_operators
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.training.head import Layer
from luigi_tasks.training.records import Familiarity, UnseenScores
from luigi_tasks.training.strangers import measure_known
from tests.fakes.heads import head_with
from tests.fakes.tiny_model import tiny_model
from tests.fakes.written_model import infer

LABELS = ("a", "b", "c", "d", "e")
FAMILIARITY = Familiarity(margin=0.4, length=0.2, bias=-0.3)
# Of float32 operators of tflite-runtime 2.14, and of int8 ones in front of them.
VERSIONS = {"DEQUANTIZE": 2, "FULLY_CONNECTED": 4, "MEAN": 2, "SOFTMAX": 2}
KINDS = pytest.mark.parametrize("kind", ["int8", "float32"])


def backbone(kind):
    """A file whose eight outputs, in [-6, 6], stand for features."""
    return tiny_model(labels=8, kind=kind, softmax=False)


def head(seed=0):
    rng = np.random.default_rng(seed)
    weights, bias = rng.normal(size=(8, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    return Dense(weights, bias, -35.0 - seed, 35.0)


def compose(kind, familiarity, seed=0):
    return compose_classifier(backbone(kind), [head(seed)], LABELS, name="tiny", familiarity=familiarity)


@pytest.fixture(scope="module")
def pictures():
    """Flat colours: the model sees the mean."""
    colours = np.random.default_rng(0).integers(0, 256, (60, 1, 1, 3), np.uint8)
    return np.broadcast_to(colours, (60, 32, 32, 3))


def features_of(kind, picture):
    interpreter = load_interpreter(backbone(kind))
    told = interpreter.get_output_details()[0]
    if kind == "float32":
        return infer(backbone(kind), picture)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], (picture ^ 128).view(np.int8)[None])
    interpreter.invoke()
    scale, zero_point = told["quantization"]
    return (interpreter.get_tensor(told["index"])[0].astype(np.float32) - zero_point) * np.float32(scale)


@KINDS
def test_known_is_what_numpy_computes_from_the_features(pictures, kind):
    classifier = Classifier(compose(kind, FAMILIARITY), LABELS, normalization=Normalization())
    features = np.stack([features_of(kind, one) for one in pictures])
    logits = features @ head().weights + head().bias
    expected = measure_known(FAMILIARITY, logits, np.linalg.norm(features, axis=1))
    found = np.array([classifier.classify(one).known for one in pictures], np.float64)
    assert expected.max() - expected.min() > 0.5, "or the test would show little"
    # A step of the logits is 70 / 255; of the weights, 1 / 127 of the largest.
    np.testing.assert_allclose(found, expected, atol=0.03 if kind == "int8" else 1e-5)


@KINDS
def test_scores_are_those_of_the_file_without_it(pictures, kind):
    told, plain = (
        Classifier(compose(kind, one), LABELS, normalization=Normalization()) for one in (FAMILIARITY, None)
    )
    for picture in pictures[:10]:
        np.testing.assert_array_equal(told.classify(picture).scores, plain.classify(picture).scores)


@KINDS
def test_runtimes_of_devices_have_its_operators(kind):
    found = read_operators(compose(kind, FAMILIARITY))
    assert found == {name: VERSIONS[name] if kind == "int8" and name in VERSIONS else 1 for name in found}


@KINDS
def test_file_describes_both_outputs(kind):
    for familiarity, files in ((FAMILIARITY, ["labels.txt", "known.txt"]), (None, ["labels.txt"])):
        with zipfile.ZipFile(io.BytesIO(compose(kind, familiarity))) as archive:
            assert archive.namelist() == files
    with zipfile.ZipFile(io.BytesIO(compose(kind, FAMILIARITY))) as archive:
        assert archive.read("known.txt") == b"known\n"


def test_next_release_is_a_patch_of_a_few_bytes_more():
    other = Familiarity(margin=0.41, length=0.19, bias=-0.33)
    told = compose("int8", FAMILIARITY), compose("int8", other, seed=1)
    plain = compose("int8", None), compose("int8", None, seed=1)
    assert len(told[0]) == len(told[1])
    differing = [sum(one != two for one, two in zip(*pair, strict=True)) for pair in (told, plain)]
    assert differing[0] - differing[1] <= 4 * 4, "three weights and a bias"
    assert len(bsdiff4.diff(*told)) - len(bsdiff4.diff(*plain)) < 200
    assert compose("int8", FAMILIARITY) == told[0]


def candidate_with(*, strangers):
    """The candidate of a head that tells strangers, and three out-of-fold predictions, one of a stranger."""
    files, layer, settings = {"int8": backbone("int8")}, head(), load_settings()
    record = BackboneRecord(variants={}, width=8, calibration=(), made_with={})
    scores = np.eye(5, dtype=np.float32)[[0, 1, 2]]
    plain = head_with(scores)
    told = dataclasses.replace(
        plain,
        layers=(Layer(layer.weights, layer.bias),),
        ranges=((layer.low, layer.high),),
        unseen=UnseenScores(scores, np.array([0, 1, 2]), np.array([0.9, 0.5, 0.49], np.float32)),
        record=msgspec.structs.replace(plain.record, familiarity=FAMILIARITY),
    )
    release = dataclasses.replace(settings.release, strangers=strangers)
    made = Backbone(record, files, "int8", "key")
    return make_candidate("snapshot", LABELS, [made], [told], settings.model, release)


def test_setting_decides_whether_a_release_tells_strangers():
    told, plain = candidate_with(strangers=True), candidate_with(strangers=False)
    assert (told.record.tells_strangers, plain.record.tells_strangers) == (True, False)
    assert [one.open_classifier().tells_strangers for one in (told, plain)] == [True, False]
    assert told.record.release != plain.record.release
    points = [one.record.operating_point for one in (told, plain)]
    assert [(one.least_known, one.coverage) for one in points if one] == [
        (0.5, pytest.approx(2 / 3, abs=1e-6)),
        (None, 1.0),
    ]
