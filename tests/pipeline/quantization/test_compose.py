"""Our own files against the converter's, and TFLite Metadata in them."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from PIL import Image

from edge_client.contract.errors import InputError
from edge_client.contract.release import Normalization
from edge_client.inference.classifier import Classifier
from luigi_tasks.progress import ignore_progress
from luigi_tasks.quantization.compose import Dense, choose_scale, compose_classifier
from luigi_tasks.settings.values import ModelSettings
from luigi_tasks.training.records import Familiarity
from tests.fakes.written_model import dense_layers, infer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TINY = ModelSettings("mobilenet_v1", 0.25, 64, 2, "none")


@dataclasses.dataclass(frozen=True)
class Networks:
    """One backbone, alone and under a head, as the converter writes them."""

    alone: bytes
    whole: bytes
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]


def operators(model: bytes) -> list[tuple[int, int]]:
    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    codes = [tree.operatorCodes[one.opcodeIndex] for one in tree.subgraphs[0].operators]
    return [(max(code.builtinCode, code.deprecatedBuiltinCode), code.version) for code in codes]


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def convert(pictures):
    """Returns networks by scheme, hidden units and classes; the backbone is one for all."""
    from luigi_tasks.backbone.converters import float_converter, int8_converter  # noqa: PLC0415
    from luigi_tasks.backbone.networks import build_backbone, standardize  # noqa: PLC0415 - TensorFlow
    from luigi_tasks.inference.features import to_input  # noqa: PLC0415

    backbone = build_backbone(TINY, seed=1)
    import tensorflow as tf  # noqa: PLC0415
    import tf_keras as keras  # noqa: PLC0415

    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    backbone(to_input(pictures), training=True)  # or random weights would let all signals die
    standardize(backbone, pictures)
    variants = {
        "float": lambda network, _whole: float_converter(network),
        "int8": lambda network, _whole: int8_converter(network, pictures, ignore_progress),
    }

    def make(scheme: str, hidden: int, classes: int) -> Networks:
        outputs, made = backbone.output, []
        if hidden:
            made.append(keras.layers.Dense(hidden, activation="relu", bias_initializer="random_normal"))
            outputs = made[-1](outputs)
        made.append(keras.layers.Dense(classes, activation="softmax", bias_initializer="random_normal"))
        whole = variants[scheme](keras.Model(backbone.input, made[-1](outputs)), True)
        if scheme == "int8":
            whole.inference_output_type = tf.uint8
        return Networks(
            alone=bytes(variants[scheme](backbone, False).convert()),
            whole=bytes(whole.convert()),
            layers=tuple(tuple(layer.get_weights()) for layer in made),
        )

    return make


@pytest.mark.parametrize(("hidden", "classes"), [(0, 5), (16, 2), (0, 300)])
@pytest.mark.parametrize("scheme", ["int8", "float"])
def test_composed_file_equals_the_converters_file(convert, pictures, scheme, hidden, classes):
    networks = convert(scheme, hidden, classes)
    theirs = dense_layers(networks.whole)
    layers = [
        # The range that the converter measured is in its scales.
        Dense(weights, bias, (-128 - one.zero_point) * one.scale, (127 - one.zero_point) * one.scale)
        for (weights, bias), one in zip(networks.layers, theirs, strict=True)
    ]
    ours = compose_classifier(networks.alone, layers, [str(n) for n in range(classes)], name="tiny")
    written = dense_layers(ours)
    # A range read back from a scale gives that scale but for the last digit; exactly where it is known, in
    # test_candidate_against_converter.py.
    assert [one.scale for one in written] == pytest.approx([one.scale for one in theirs], rel=1e-6)
    assert [dataclasses.replace(one, scale=1.0, input_scale=1.0) for one in written] == [
        dataclasses.replace(one, scale=1.0, input_scale=1.0) for one in theirs
    ]
    assert operators(ours) == operators(networks.whole)
    for picture in pictures[:8]:
        np.testing.assert_allclose(infer(ours, picture), infer(networks.whole, picture), atol=1e-6)


@pytest.fixture(scope="module")
def small(convert):
    return convert("int8", 0, 3)


def head(small, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=small.layers[0][0].shape).astype(np.float32)
    return Dense(weights, rng.normal(size=3).astype(np.float32), -9.0 - seed, 8.0)


def test_two_heads_differ_in_their_own_bytes_alone(small):
    first, second = (compose_classifier(small.alone, [head(small, n)], "abc", name="x") for n in (0, 1))
    assert len(first) == len(second)
    differing = sum(one != two for one, two in zip(first, second, strict=True))
    own = (
        head(small).weights.size + 3 * 3 * 4 + 8 + 8
    )  # weights, three vectors of 3 floats, the logits' scale
    assert 0 < differing <= own
    assert compose_classifier(small.alone, [head(small, 0)], "abc", name="x") == first


def test_file_is_also_a_zip_with_the_labels_and_runs(small, pictures):
    labels = ("Ähre", "two words", "c")
    model = compose_classifier(small.alone, [head(small)], labels, name="x", description="of a test")
    with zipfile.ZipFile(io.BytesIO(model)) as archive:
        assert archive.read("labels.txt").decode() == "Ähre\ntwo words\nc\n"
        assert archive.infolist()[0].compress_type == zipfile.ZIP_STORED
    classifier = Classifier(model, labels, normalization=Normalization())
    scores = classifier.classify(pictures[0]).scores
    np.testing.assert_allclose(scores * 256, infer(model, pictures[0]), atol=1)


MEDIAPIPE = """
import sys
import mediapipe as mp
from mediapipe.tasks.python import BaseOptions, vision

options = vision.ImageClassifierOptions(BaseOptions(model_asset_path=sys.argv[1]), max_results=1)
with vision.ImageClassifier.create_from_options(options) as classifier:
    for path in sys.argv[2:]:
        image = mp.Image.create_from_file(path)
        heads = [one.categories[0] for one in classifier.classify(image).classifications]
        print(*(text for best in heads for text in (best.category_name, best.score)), sep="\t")
"""


@pytest.fixture(scope="module")
def mediapipe_python(tmp_path_factory):
    """A Python with MediaPipe, in an environment of its own: it wants other versions than we do."""
    folder = Path.home() / ".cache/edge-pipeline-tests/mediapipe"
    python = folder / "bin/python"
    probe = [str(python), "-c", "from mediapipe.tasks.python import vision"]
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "mediapipe==1.2.*"]
        if subprocess.run(install, check=False, capture_output=True).returncode:
            shutil.rmtree(folder)
            pytest.skip("MediaPipe cannot be installed here (no wheel for this Python, or no network)")
    found = subprocess.run(probe, check=False, capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"MediaPipe does not start: {found.stderr.strip()[-200:]} (Debian: libgles2, libegl1)")
    return python


@pytest.mark.parametrize("familiarity", [None, Familiarity(margin=0.2, length=0.1, bias=-1.0)])
@pytest.mark.parametrize("scheme", ["int8", "float"])
def test_mediapipe_gives_the_same_answers(convert, pictures, mediapipe_python, tmp_path, scheme, familiarity):
    """On pictures of the model's size: others, MediaPipe scales its own way, which no file can tell it."""
    labels = ("first", "second", "third")
    networks = convert(scheme, 0, 3)
    # Only the float file is fed what its metadata's mean and deviation say.
    model = compose_classifier(networks.alone, [head(networks)], labels, name="x", familiarity=familiarity)
    (tmp_path / "model.tflite").write_bytes(model)
    (tmp_path / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    files = [tmp_path / f"{number}.png" for number in range(10)]
    for path, pixels in zip(files, pictures[:10], strict=True):
        Image.fromarray(pixels).save(path)
    command = [mediapipe_python, "-c", MEDIAPIPE, tmp_path / "model.tflite", *files]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    theirs = [line.split("\t") for line in told.splitlines() if "\t" in line]
    client = [sys.executable, "-m", "edge_client.cli", "classify", "--json", "--top", "1"]
    options = ["--model", tmp_path / "model.tflite", "--labels", tmp_path / "labels.txt"]
    told = subprocess.run([*client, *options, *files], check=True, capture_output=True, text=True).stdout
    ours = [json.loads(line) for line in told.splitlines()]
    assert len(theirs) == len(ours) == 10
    for (label, score, *known), answer in zip(theirs, ours, strict=True):
        assert answer["label"] == label
        assert answer["confidence"] == pytest.approx(float(score), abs=1e-4)
        if familiarity is None:
            assert (known, answer["known"]) == ([], None)
        else:
            # A second classifier, of one label.
            assert known[0] == "known"
            assert answer["known"] == pytest.approx(float(known[1]), abs=1e-4)
    if familiarity is not None:
        assert len({answer["known"] for answer in ours}) > 1


def test_unit_without_weights_answers_its_bias(small, pictures):
    weights = head(small).weights.copy()
    weights[:, 1] = 0
    layer = Dense(weights, np.array([0, 3, 0], np.float32), -20, 20)
    model = compose_classifier(small.alone, [layer], "abc", name="x")
    [written] = dense_layers(model)
    row = np.frombuffer(written.weights, np.int8).reshape(3, -1)[1]
    assert not row.any()
    assert written.real_bias()[1] == pytest.approx(3, rel=1e-3)
    infer(model, pictures[0])  # the runtime takes it


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda layer: dataclasses.replace(layer, weights=layer.weights[:-1]), "train it on this backbone"),
        (lambda layer: dataclasses.replace(layer, bias=layer.bias[:2]), "train it on this backbone"),
        (lambda layer: dataclasses.replace(layer, high=float("nan")), "not finite"),
        (lambda layer: dataclasses.replace(layer, weights=layer.weights * np.float32("inf")), "not finite"),
    ],
)
def test_head_that_does_not_fit_is_refused(small, change, complaint):
    with pytest.raises(InputError, match=complaint):
        compose_classifier(small.alone, [change(head(small))], "abc", name="x")


def test_labels_that_do_not_fit_are_refused(small):
    with pytest.raises(InputError, match="3 outputs for 2 labels"):
        compose_classifier(small.alone, [head(small)], "ab", name="x")


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (0.0, 6.0), (2.0, 6.0), (-4.0, -1.0), (0.0, 0.0)])
def test_scale_holds_the_range_and_zero(low, high):
    scale, zero_point = choose_scale(low, high)
    assert -128 <= zero_point <= 127
    assert (-128 - zero_point) * scale <= min(low, 0) + scale / 2
    assert (127 - zero_point) * scale >= max(high, 0) - scale / 2
