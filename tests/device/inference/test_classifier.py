"""The classifier predicts correctly with every kind of model, or raises an error with the reason."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

import edge_client.inference
from edge_client.contract import names
from edge_client.contract.documents import encode_document
from edge_client.contract.errors import DeviceError, EdgeError, InputError
from edge_client.contract.preprocessing import decode_picture
from edge_client.contract.release import Normalization, OperatingPoint
from edge_client.inference import classifier as classifier_module
from edge_client.inference.classifier import Classifier, Prediction, classifier_from_release
from edge_client.inference.runtime import load_interpreter, runtime_name
from tests.fakes.tiny_model import COLOURS, plain_picture, tiny_labels, tiny_model
from tests.fakes.tiny_release import tiny_release, write_release

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.runtime

KERAS = Normalization()


def tiny(bias: int = 0, labels: int = 8, **options: Any) -> Classifier:
    model = tiny_model(bias, labels=labels, **options)
    return Classifier(model, tiny_labels(labels, bias), normalization=KERAS, release=f"release-{bias}")


@pytest.mark.parametrize("kind", ["int8", "uint8", "float32"])
@pytest.mark.parametrize("softmax", [True, False], ids=["scores", "logits"])
def test_every_colour_gets_its_label(kind: Any, softmax: bool) -> None:
    classifier = tiny(3, kind=kind, softmax=softmax)
    for label in COLOURS:
        answer = classifier.classify(plain_picture(label))
        assert (answer.label, classifier.labels[answer.index]) == (label, label)
        # Logits reach 6 for the colour itself and 2 for its three neighbours.
        assert answer.confidence == pytest.approx(np.exp(6) / (np.exp(6) + 3 * np.exp(2)), abs=0.02)
        assert answer.scores.dtype == np.float32
        assert answer.scores.shape == (8,)
        assert answer.scores.sum() == pytest.approx(1, abs=0.02)
        assert 0 <= answer.scores.min() <= answer.scores.max() <= 1
        assert answer.confidence == answer.scores[answer.index]
        assert answer.latency_ms > 0


@pytest.mark.parametrize("kind", ["int8", "uint8", "float32"])
def test_without_normalization_the_answers_are_the_same(kind: Any) -> None:
    classifier = Classifier(tiny_model(kind=kind), tiny_labels(), normalization=None)
    assert classifier.classify(plain_picture("blue")).label == "blue"


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (480, 640)])
def test_pictures_of_any_size_are_accepted(shape: tuple[int, int]) -> None:
    assert tiny().classify(plain_picture("cyan", *shape)).label == "cyan"


def test_array_views_with_other_strides_are_read_correctly() -> None:
    pixels = np.concatenate([plain_picture("red"), plain_picture("blue")], axis=1)  # (32, 64, 3)
    classifier = tiny()
    assert classifier.classify(pixels[:, :32]).label == "red"
    assert classifier.classify(pixels[:, 32:]).label == "blue"
    assert classifier.classify(pixels[:, 32:, ::-1]).label == "red"  # BGR as a view


def test_a_prediction_does_not_change_with_the_next_picture() -> None:
    for kind in ("int8", "float32"):
        classifier = tiny(kind=kind)
        first = classifier.classify(plain_picture("red"))
        before = first.scores.copy()
        classifier.classify(plain_picture("blue"))
        np.testing.assert_array_equal(first.scores, before)


def test_input_size_labels_and_release_are_attributes() -> None:
    classifier = tiny(2, size=24)
    assert (classifier.input_height, classifier.input_width) == (24, 24)
    assert classifier.labels == tiny_labels(8, 2)
    assert classifier.release == "release-2"


def test_a_release_is_sure_by_the_thresholds_of_its_operating_point(tmp_path: Path) -> None:
    point = OperatingPoint(precision=0.95, thresholds=(0.9, None, 0.0), coverage=0.5)
    for name, content in tiny_release(operating_point=point)[1].items():
        (tmp_path / name).write_bytes(content)
    classifier = classifier_from_release(tmp_path)
    pictures = {label: plain_picture(label) for label in ("red", "green", "blue")}
    pictures["dark red"] = pictures["red"] // 4 + 90
    answers = {name: classifier.classify(pixels) for name, pixels in pictures.items()}
    assert [(name, answer.label, answer.sure) for name, answer in answers.items()] == [
        ("red", "red", True),
        ("green", "green", False),
        ("blue", "blue", True),
        ("dark red", "red", False),
    ]
    assert tiny().classify(pictures["dark red"]).sure


@pytest.mark.parametrize("kind", ["int8", "uint8", "float32"])
def test_a_second_output_tells_strangers(kind: Any) -> None:
    told, plain = tiny(kind=kind, second_output="known"), tiny(kind=kind)
    assert (told.tells_strangers, plain.tells_strangers) == (True, False)
    for label, known in (("black", 0.002), ("red", 0.119), ("yellow", 0.881), ("white", 0.998)):
        answer, without = (one.classify(plain_picture(label)) for one in (told, plain))
        assert answer.known == pytest.approx(known, abs=0.005)
        assert without.known is None
        np.testing.assert_array_equal(answer.scores, without.scores)


def test_a_stranger_is_not_sure_whatever_its_score() -> None:
    point = OperatingPoint(precision=0.95, thresholds=(0.5,) * 8, coverage=0.5, least_known=0.5)
    for second_output, sure in (("known", False), ("", True)):
        model = tiny_model(labels=8, second_output=second_output)
        labels = tiny_labels(8)
        classifier = Classifier(model, labels, normalization=KERAS, operating_point=point)
        red, white = (classifier.classify(plain_picture(one)) for one in ("red", "white"))
        assert (red.label, red.sure, white.sure) == ("red", sure, True)
        assert red.confidence > 0.9


def test_a_release_that_promises_to_tell_strangers_needs_a_model_that_does(tmp_path: Path) -> None:
    point = OperatingPoint(precision=0.95, thresholds=(0.5,) * 3, coverage=0.5, least_known=0.5)
    for second_output in ("known", ""):
        model = tiny_model(second_output=second_output)
        for name, content in tiny_release(model=model, operating_point=point)[1].items():
            (tmp_path / name).write_bytes(content)
        if second_output:
            assert not classifier_from_release(tmp_path).classify(plain_picture("red")).sure
    with pytest.raises(InputError, match="threshold for the output 'known', which the model lacks"):
        classifier_from_release(tmp_path)


def test_a_model_with_other_outputs_is_refused_by_their_names() -> None:
    with pytest.raises(InputError, match=r"2 outputs \(scores, boxes\).*named 'known'.*convert"):
        tiny(second_output="boxes")


def test_the_number_of_threads_reaches_the_runtime() -> None:
    classifier = Classifier(tiny_model(), tiny_labels(), normalization=KERAS, threads=2)
    assert classifier.classify(plain_picture("green")).label == "green"


def answer_with(scores: list[float], labels: tuple[str, ...]) -> Prediction:
    values = np.array(scores, np.float32)
    best = int(values.argmax())
    return Prediction(labels[best], best, float(values[best]), values, 1.0, labels)


def test_top_is_sorted_and_cut() -> None:
    answer = answer_with([0.1, 0.5, 0.4], ("a", "b", "c"))
    assert list(answer.top(2)) == ["b", "c"]
    assert list(answer.top(9)) == ["b", "c", "a"]


def test_top_keeps_label_order_among_equals_and_the_better_of_two_same_words() -> None:
    answer = answer_with([0.2, 0.1, 0.2, 0.5], ("x", "crane", "y", "crane"))
    assert list(answer.top(3).items()) == [
        ("crane", 0.5),
        ("x", pytest.approx(0.2)),
        ("y", pytest.approx(0.2)),
    ]


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((32, 32), np.uint8), np.zeros((32, 32, 4), np.uint8), np.zeros((32, 32, 3), np.float32)],
)
def test_arrays_that_are_not_rgb_pictures_are_refused(pixels: Any) -> None:
    with pytest.raises(InputError, match="give"):
        tiny().classify(pixels)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_labels_that_do_not_fit_are_refused(count: int) -> None:
    with pytest.raises(InputError, match=f"{count} labels for a model with 3 outputs"):
        Classifier(tiny_model(), [str(n) for n in range(count)], normalization=KERAS)


@pytest.mark.parametrize("model", [b"", b"no model", b"\x1c\0\0\0TFL2" + b"\0" * 99])
def test_bytes_that_are_not_a_tflite_model_are_refused(model: bytes) -> None:
    with pytest.raises(DeviceError, match="not a TFLite model"):
        load_interpreter(model)


def test_unsupported_operator_version_is_named() -> None:
    model = tiny_model(fully_connected_version=99)
    with pytest.raises(
        DeviceError,
        match=r"(ai-edge-litert|tflite-runtime) [\d.]+ cannot run.*'FULLY_CONNECTED' version '99'",
    ):
        Classifier(model, tiny_labels(), normalization=KERAS)


def test_without_a_runtime_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ai_edge_litert", "tflite_runtime"):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setitem(sys.modules, f"{module}.interpreter", None)
    with pytest.raises(DeviceError, match="pip install ai-edge-litert"):
        load_interpreter(tiny_model())
    with pytest.raises(DeviceError, match="pip install ai-edge-litert"):
        runtime_name()


def test_runtime_built_for_another_numpy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interpreter:
        """Ends as tflite-runtime 2.14 does under NumPy 2."""

        def __init__(self, **_: object) -> None:
            raise SystemError(
                "<built-in method CreateWrapperFromBuffer> returned a result with an exception set"
            )

    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    monkeypatch.setitem(sys.modules, "tflite_runtime", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", SimpleNamespace(Interpreter=Interpreter))
    with pytest.raises(
        DeviceError, match=r"tflite-runtime.* does not work with NumPy .*pip install 'numpy<2'"
    ):
        load_interpreter(tiny_model())


def test_runtime_has_name_and_version() -> None:
    name, version = runtime_name().split()
    assert name in {"ai-edge-litert", "tflite-runtime"}
    assert version[0].isdigit()


def test_nan_output_is_refused() -> None:
    model = tiny_model(kind="float32", softmax=False)
    broken = model.replace(struct.pack("<f", 2.0), struct.pack("<f", float("nan")))
    classifier = Classifier(broken, tiny_labels(), normalization=KERAS)
    with pytest.raises(DeviceError, match="NaN"):
        classifier.warm()


class OddInterpreter:
    """Has details that no model of this project has; they can be tried without such a model."""

    def __init__(self, source: dict[str, Any], answer: dict[str, Any], inputs: int = 1) -> None:
        usual = {"index": 0, "shape": (1, 8, 8, 3), "dtype": np.int8, "quantization": (0.1, 0)}
        self._inputs = [usual | source] * inputs
        self._outputs = [usual | {"shape": (1, 3)} | answer]

    def get_input_details(self) -> list[dict[str, Any]]:
        return self._inputs

    def get_output_details(self) -> list[dict[str, Any]]:
        return self._outputs


@pytest.mark.parametrize(
    ("source", "answer", "reason"),
    [
        ({"shape": (1, 8, 8)}, {}, "shape"),
        ({"shape": (1, 8, 8, 1)}, {}, "shape"),
        ({"shape": (4, 8, 8, 3)}, {}, "shape"),
        ({"shape": (1, 0, 8, 3)}, {}, "shape"),
        ({"dtype": np.int16}, {}, "int16"),
        ({"quantization": (0.0, 0)}, {}, "without quantization"),
        ({}, {"shape": (3, 10)}, "output of shape"),
        ({}, {"shape": ()}, "output of shape"),
        ({}, {"dtype": np.int64}, "int64"),
        ({}, {"quantization": (0.0, 0)}, "without quantization"),
    ],
)
def test_model_that_is_not_an_image_classifier_is_refused(
    source: dict[str, Any], answer: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = OddInterpreter(source, answer)
    monkeypatch.setattr(classifier_module, "load_interpreter", lambda _model, _threads: odd)
    with pytest.raises(InputError, match=reason):
        Classifier(b"", tiny_labels(), normalization=KERAS)


def test_model_with_two_inputs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = OddInterpreter({}, {}, inputs=2)
    monkeypatch.setattr(classifier_module, "load_interpreter", lambda _model, _threads: odd)
    with pytest.raises(InputError, match="2 inputs"):
        Classifier(b"", tiny_labels(), normalization=KERAS)


@pytest.mark.parametrize("model", ["mobilenet_v2_1.0_224_quant.tflite", "mobilenet_v1_0.25_128_quant.tflite"])
def test_third_party_model_knows_a_parrot(shared_data: Path, model: str) -> None:
    coral = shared_data / "coral"
    labels = (coral / "imagenet_labels.txt").read_text().splitlines()
    classifier = Classifier((coral / model).read_bytes(), labels, normalization=None)
    assert classifier.classify(decode_picture(coral / "parrot.jpg")).label == "macaw"


# --- release in a folder


def test_release_is_loaded_with_labels_and_preprocessing(tmp_path: Path) -> None:
    document = write_release(tmp_path, bias=1)
    classifier = classifier_from_release(tmp_path)
    assert classifier.release == document.release
    assert classifier.labels == document.labels
    for case in document.self_test:
        answer = classifier.classify(decode_picture(tmp_path / case.file))
        assert answer.label == case.label
        assert abs(answer.confidence - case.confidence) < document.self_test_tolerance


@pytest.mark.parametrize("file", [names.MODEL_FILE, names.LABELS_FILE, names.RELEASE_FILE])
def test_release_with_a_missing_file_is_refused(tmp_path: Path, file: str) -> None:
    write_release(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(DeviceError, match=re.escape(file)):
        classifier_from_release(tmp_path)


def test_model_with_a_changed_byte_never_reaches_the_runtime(tmp_path: Path) -> None:
    write_release(tmp_path)
    path = tmp_path / names.MODEL_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DeviceError, match="changed since it was signed"):
        classifier_from_release(tmp_path)


@pytest.mark.parametrize("labels", [b"", b"red\ngreen\n", b"green\nred\nblue\n", b"red\ngreen\n\xff\n"])
def test_labels_of_another_model_are_refused(tmp_path: Path, labels: bytes) -> None:
    write_release(tmp_path)
    (tmp_path / names.LABELS_FILE).write_bytes(labels)
    with pytest.raises(InputError, match=re.escape(names.LABELS_FILE)):
        classifier_from_release(tmp_path)


@pytest.mark.parametrize(
    ("change", "error"),
    [({"id": "pillow-lanczos-7"}, DeviceError), ({"height": 48}, InputError), ({"width": 16}, InputError)],
)
def test_preprocessing_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, Any], error: type[EdgeError]
) -> None:
    document = write_release(tmp_path)
    other = msgspec.structs.replace(
        document, preprocessing=msgspec.structs.replace(document.preprocessing, **change)
    )
    (tmp_path / names.RELEASE_FILE).write_bytes(encode_document(other))
    with pytest.raises(error, match=r"pixels|pillow-lanczos-7"):
        classifier_from_release(tmp_path)


# --- public API


def test_the_public_names_load_nothing_before_their_first_use() -> None:
    code = (
        "import sys, edge_client.inference as api; assert not {'numpy', 'PIL'} & set(sys.modules); "
        "api.Classifier, api.Prediction, api.classifier_from_release; assert 'numpy' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_notebook_classifies_with_a_downloaded_release(tmp_path: Path) -> None:
    write_release(tmp_path)
    classifier = edge_client.inference.classifier_from_release(tmp_path)
    assert classifier.classify(plain_picture("red")).label == "red"
    with pytest.raises(AttributeError, match="no attribute 'Classification'"):
        edge_client.inference.Classification  # noqa: B018
