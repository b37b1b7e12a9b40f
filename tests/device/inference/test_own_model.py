"""Any TFLite image classifier is read as it is meant, and what is none is refused by its name."""

from __future__ import annotations

import io
import math
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_client.contract.errors import DeviceError, EdgeError, InputError
from edge_client.inference.label_file import read_labels
from edge_client.inference.own_model import OwnModel, open_own_model
from edge_client.settings.own_model import ModelOptions
from tests.fakes.described_model import (
    CALIBRATION,
    THRESHOLDING,
    VALUE_LABELS,
    Labels,
    as_custom,
    attach,
    changed,
    describe,
    ends_in,
    graph_of,
    of_shape,
    set_shape,
    tiny,
)
from tests.fakes.tiny_model import COLOURS, Vector, plain_picture, tiny_labels

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.runtime

LINES = "".join(f"{label}\n" for label in tiny_labels())
INSIDE = Labels(LINES.encode())
FLOAT = tiny(kind="float32")
LOGITS = tiny(kind="float32", softmax=False)
LOGISTIC, L2_NORMALIZATION, TANH, ARG_MAX, TOPK = 14, 11, 28, 56, 48


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., OwnModel]:
    """Open a model of these bytes, with the text of a labels file."""

    def open_bytes(model: bytes, labels: str | bytes | None = None, **options: Any) -> OwnModel:
        path = tmp_path / "model.tflite"
        path.write_bytes(model)
        file = None
        if labels is not None:
            file = tmp_path / "labels.txt"
            file.write_bytes(labels.encode() if isinstance(labels, str) else labels)
        return open_own_model(path, ModelOptions(file, **options))

    return open_bytes


def answers(model: OwnModel, *colours: str) -> list[str]:
    return [model.classifier.classify(plain_picture(colour)).label for colour in colours or COLOURS]


# --- what the file says of itself


@pytest.mark.parametrize("kind", ["float32", "int8", "uint8"])
def test_labels_and_normalization_are_those_inside(opened: Callable[..., OwnModel], kind: Any) -> None:
    model = opened(describe(tiny(kind=kind), mean=[127.5], std=[127.5], outputs=[[INSIDE]]))
    assert answers(model, "red", "green", "blue") == ["red", "green", "blue"]
    assert model.notes == ()


def test_the_first_file_of_labels_counts_and_those_of_values_where_there_is_no_other(
    opened: Callable[..., OwnModel],
) -> None:
    english = Labels(b"R\nG\nB\n", name="labels_en.txt", locale="en")
    values = Labels(b"1\n2\n3\n", name="values.txt", kind=VALUE_LABELS)
    both = opened(describe(FLOAT, mean=[127.5], std=[127.5], outputs=[[values, INSIDE, english]]))
    assert both.classifier.labels == tiny_labels()
    only = opened(describe(FLOAT, mean=[127.5], std=[127.5], outputs=[[values]]))
    assert only.classifier.labels == ("1", "2", "3")


def test_options_come_before_what_the_file_says(opened: Callable[..., OwnModel]) -> None:
    file = describe(FLOAT, mean=[0], std=[0], outputs=[[Labels(b"x\n")]])
    model = opened(file, "a\nb\nc", mean=(127.5,), std=(127.5,))
    assert answers(model, "red", "green", "blue") == ["a", "b", "c"]


def test_labels_may_be_given_themselves(opened: Callable[..., OwnModel]) -> None:
    model = opened(FLOAT, names=("a, b", "None", "c"))
    assert answers(model, "red", "green", "blue") == ["a, b", "None", "c"]
    with pytest.raises(InputError, match="1 labels for a model with 3 outputs"):
        opened(FLOAT, names=("a",))


def test_each_channel_has_its_mean_and_deviation(opened: Callable[..., OwnModel]) -> None:
    """The second channel is turned around: yellow arrives as red, cyan as blue."""
    mean, std = [127.5] * 3, [127.5, -127.5, 127.5]
    for model in (
        opened(describe(FLOAT, mean=mean, std=std, outputs=[[INSIDE]])),
        opened(FLOAT, LINES, mean=tuple(mean), std=tuple(std)),
        opened(tiny(), LINES, mean=tuple(mean), std=tuple(std)),
    ):
        assert answers(model, "yellow", "cyan") == ["red", "blue"]
        assert model.notes == ()


def test_what_is_asked_for_and_not_applied_is_said(opened: Callable[..., OwnModel]) -> None:
    file = describe(FLOAT, mean=[127.5], std=[127.5], outputs=[[INSIDE]], units=[CALIBRATION, THRESHOLDING])
    assert [note.split(" which is")[0] for note in opened(file).notes] == [
        "its metadata ask for a calibration of scores,",
        "its metadata ask for a threshold of scores ([inbox] and the consumer of results have their own),",
    ]


def test_an_8_bit_input_gets_pixels_and_what_contradicts_that_is_said(
    opened: Callable[..., OwnModel],
) -> None:
    for kind in ("uint8", "int8"):
        odd = opened(describe(tiny(kind=kind), mean=[0], std=[1], outputs=[[INSIDE]]))
        assert answers(odd, "red", "green", "blue") == ["red", "green", "blue"]
        assert "--mean and --std" in odd.notes[0]
    applied = opened(tiny(kind="uint8"), LINES, mean=(0.0,), std=(-127.5,))
    assert answers(applied, "red", "green", "blue") != ["red", "green", "blue"]


def test_a_float_input_that_says_nothing_is_a_note(opened: Callable[..., OwnModel]) -> None:
    [note] = opened(FLOAT, LINES).notes
    assert "[-1, 1] is assumed (mean 127.5, std 127.5)" in note
    assert "0 and 255 for [0, 1], 0 and 1 for pixels as they are" in note


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (describe(FLOAT, mean=[0], std=[0], outputs=[[INSIDE]]), "no std of 0"),
        (describe(FLOAT, mean=[0, 1], std=[1, 1], outputs=[[INSIDE]]), "mean 0, 1 and std 1, 1 for 3"),
        (describe(FLOAT, mean=[float("nan")], std=[1], outputs=[[INSIDE]]), "mean nan"),
        (describe(FLOAT, outputs=[[Labels(b"a\nb\n")]]), "2 labels for a model with 3 outputs"),
        (describe(FLOAT, outputs=[[]]), "no labels: there are none inside, and it has 3 outputs"),
        (describe(FLOAT, outputs=[[Labels(b"", packed=False)]]), "'labels.txt' in it cannot be read"),
        (describe(FLOAT, outputs=[[Labels(b"\xff\xfe\xfd")]]), "not UTF-8"),
        (attach(FLOAT, b"M001"), "TFLite Metadata are damaged"),
        (attach(FLOAT, b"\xff" * 99), "TFLite Metadata are damaged"),
    ],
)  # fmt: skip
def test_metadata_that_contradict_the_model_are_refused(
    opened: Callable[..., OwnModel], file: bytes, reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        opened(file)
    assert "--" in str(refused.value) or "again" in str(refused.value)


# --- outputs


def test_logits_and_scores_are_told_apart_by_the_graph_and_for_each_picture_alike(
    opened: Callable[..., OwnModel],
) -> None:
    """Grey makes logits that all lie in [0, 1]: they sum to 0, and would once have passed for scores."""
    grey = np.full((32, 32, 3), 128, np.uint8)
    for model in (LOGITS, describe(LOGITS, mean=[127.5], std=[127.5], outputs=[[INSIDE]], scores=True)):
        answer = opened(model, LINES).classifier.classify(grey)
        assert answer.scores.sum() == pytest.approx(1, abs=1e-5)
    independent = opened(changed(FLOAT, ends_in(LOGISTIC)), LINES).classifier
    scores = independent.classify(plain_picture("white")).scores
    assert scores == pytest.approx([1 / (1 + np.exp(2))] * 3, abs=1e-3)  # three logits of -2
    assert independent.classify(plain_picture("yellow")).scores[:2] == pytest.approx([0.88, 0.88], abs=0.01)


def test_quantized_logits_of_a_small_range_are_logits(opened: Callable[..., OwnModel]) -> None:
    def narrow(tree: Any) -> None:
        logits = next(one for one in graph_of(tree)[0].items if one[3] == "logits")
        logits[4] = {2: Vector("f", [0.003]), 3: Vector("q", [-128], align=8)}  # 0 to 0.765

    model = opened(changed(tiny(kind="int8", softmax=False), narrow), LINES).classifier
    assert model.classify(plain_picture("red")).scores.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", ["float32", "int8", "uint8"])
@pytest.mark.parametrize("activation", [True, False])
def test_one_output_is_the_score_of_the_second_label(
    opened: Callable[..., OwnModel], kind: Any, activation: bool
) -> None:
    model = tiny(labels=1, kind=kind, softmax=activation)
    if activation:
        model = changed(model, ends_in(LOGISTIC))
    two = opened(model, "other\nred\n")
    red = two.classifier.classify(plain_picture("red"))
    assert (red.label, list(red.top(2))) == ("red", ["red", "other"])
    assert red.confidence == pytest.approx(1 / (1 + np.exp(-6)), abs=0.02)
    assert red.scores.sum() == pytest.approx(1, abs=1e-3)
    assert answers(two, "cyan") == ["other"]
    assert opened(model, "red").classifier.labels == ("not red", "red")
    inside = describe(model, mean=[127.5], std=[127.5], outputs=[[Labels(b"red\n")]])
    assert opened(inside).classifier.labels == ("not red", "red")
    with pytest.raises(InputError, match="3 labels for a model with 1 output: one output needs two"):
        opened(model, LINES)


@pytest.mark.parametrize("shape", [(3,), (1, 1, 1, 3), (1, 1, 3)])
def test_the_shape_of_the_output_does_not_matter(
    opened: Callable[..., OwnModel], shape: tuple[int, ...]
) -> None:
    model = opened(changed(FLOAT, of_shape("output", shape)), LINES)
    assert model.classifier.labels == tiny_labels()


def test_of_several_outputs_the_labels_choose(opened: Callable[..., OwnModel]) -> None:
    file = tiny(kind="float32", second_output="brightness")
    assert answers(opened(file, LINES), "blue") == ["blue"]
    assert opened(file, "dark\nbright").classifier.classify(plain_picture("white")).label == "bright"
    told = describe(file, mean=[127.5], std=[127.5], outputs=[[INSIDE], []])
    assert answers(opened(told), "blue") == ["blue"]
    with pytest.raises(InputError, match=r"2 outputs \(scores, brightness\).*not one alone that fits"):
        opened(file, "a\nb\nc\nd\ne\n")


def test_of_logits_and_their_scores_the_scores_count(opened: Callable[..., OwnModel]) -> None:
    def both(tree: Any) -> None:
        graph = graph_of(tree)
        names = [tensor[3] for tensor in graph[0].items]
        graph[2] = Vector("i", [names.index("logits"), names.index("scores")])

    model = opened(changed(FLOAT, both), LINES).classifier
    assert model.classify(plain_picture("red")).scores.sum() == pytest.approx(1, abs=1e-5)
    assert model.classify(plain_picture("red")).label == "red"


def test_a_background_that_no_file_names_is_said(opened: Callable[..., OwnModel]) -> None:
    short = opened(FLOAT, "cat\ndog\n")
    assert short.classifier.labels == ("background", "cat", "dog")
    assert any("2 labels for 3 outputs: the first output is taken for 'background'" in n for n in short.notes)
    for whole in ("background\ncat\ndog\n", "background\na\nb\nc\n"):
        assert not any("background" in note for note in opened(FLOAT, whole).notes)

    def widen(tree: Any) -> None:
        for tensor in graph_of(tree)[0].items:
            if (size := {"weights": (1001, 3), "offsets": (1001,)}.get(tensor[3])) is not None:
                set_shape(tensor, size)
                tree[4].items[tensor[2][1]] = {0: Vector("B", bytes(4 * math.prod(size)), align=16)}
            elif tensor[3] in {"logits", "scores"}:
                set_shape(tensor, (1, 1001))

    imagenet = "".join(f"class {number}\n" for number in range(1000))
    large = opened(changed(FLOAT, widen), imagenet)
    assert large.classifier.labels[:2] == ("background", "class 0")
    assert not any("background" in note for note in large.notes)


def test_a_model_of_this_project_tells_strangers_here_too(opened: Callable[..., OwnModel]) -> None:
    model = opened(tiny(second_output="known"), LINES).classifier
    assert model.classify(plain_picture("red")).known == pytest.approx(0.12, abs=0.01)


# --- inputs


@pytest.mark.parametrize("shape", [(1, 32, 32, 1), (1, 32, 32)])
def test_a_grey_input_gets_the_brightness(opened: Callable[..., OwnModel], shape: tuple[int, ...]) -> None:
    def grey(tree: Any) -> None:
        of_shape("input", shape)(tree)
        tensors = {tensor[3]: tensor for tensor in graph_of(tree)[0].items}
        set_shape(tensors["colour"], (1, 1))
        set_shape(tensors["weights"], (3, 1))
        weights = np.array([2, 0, -2], np.float32).tobytes()
        tree[4].items[tensors["weights"][2][1]] = {0: Vector("B", list(weights), align=16)}

    model = opened(changed(FLOAT, grey), "bright\nmiddle\ndark")
    assert answers(model, "white", "yellow", "black", "blue") == ["bright", "bright", "dark", "dark"]
    assert any("has no channels" in note for note in model.notes) == (len(shape) == 3)


def test_an_input_of_any_size_is_refused_or_sized(opened: Callable[..., OwnModel]) -> None:
    for shape in ((1, -1, -1, 3), (-1, -1, -1, 3), (1, 1, 1, 3)):
        model = changed(FLOAT, of_shape("input", shape))
        with pytest.raises(InputError, match=r"of any size.*give --input-size \(\[device\] input_size\)"):
            opened(model, LINES)
        sized = opened(model, LINES, input_size=(20, 24))
        assert (sized.classifier.input_height, sized.classifier.input_width) == (20, 24)
        assert answers(sized, "red", "green", "blue") == ["red", "green", "blue"]
    assert "made for 32x32 pixels, and gets 8x8" in opened(FLOAT, LINES, input_size=(8,)).notes[-1]


def test_a_batch_is_made_one_picture(opened: Callable[..., OwnModel]) -> None:
    def batch(tree: Any) -> None:
        for tensor in graph_of(tree)[0].items:
            if tensor[3] in {"pixels", "colour", "logits", "scores"}:
                set_shape(tensor, (4, *tensor[0].items[1:]))

    assert answers(opened(changed(FLOAT, batch), LINES), "red", "blue") == ["red", "blue"]


REFUSED: dict[str, tuple[bytes, str]] = {
    "channels first": (changed(FLOAT, of_shape("input", (1, 3, 32, 32))), r"channels first \(NCHW\)"),
    "channels first, grey": (changed(FLOAT, of_shape("input", (1, 1, 28, 28))), r"\(NCHW\)"),
    "four channels": (changed(FLOAT, of_shape("input", (1, 32, 32, 4))), "an image classifier takes"),
    "no batch": (changed(FLOAT, of_shape("input", (32, 32, 3))), "an image classifier takes"),
    "text": (changed(FLOAT, of_shape("input", (1, 128), 2)), "int32.* as that of a model of text"),
    "wide integers": (changed(FLOAT, of_shape("input", (1, 32, 32, 3), 4)), "int64"),
    "Edge TPU": (changed(FLOAT, as_custom("edgetpu-custom-op")), "compiled for the Edge TPU.*_edgetpu"),
    "detector": (changed(FLOAT, as_custom("TFLite_Detection_PostProcess")), "an object detector"),
    "Flex": (changed(FLOAT, as_custom("FlexAdjustHue")), r"\(FlexAdjustHue\).*TFLITE_BUILTINS"),
    "own operator": (changed(FLOAT, as_custom("MyOp")), r"operators of its own \(MyOp\)"),
    "segmentation": (changed(FLOAT, of_shape("output", (1, 65, 65, 21))), "segmentation.*DeepLab"),
    "class numbers": (changed(FLOAT, of_shape("output", (1, 65, 65), 4)), "segmentation"),
    "YOLO": (changed(FLOAT, of_shape("output", (1, 84, 8400))), "object detector, as YOLO"),
    "SSD": (
        changed(tiny(kind="float32", second_output="x"), of_shape("output", (1, 10, 4))),
        "object detector, as SSD",
    ),
    "embedding": (changed(FLOAT, ends_in(L2_NORMALIZATION)), "an embedding"),
    "arg max": (changed(FLOAT, ends_in(ARG_MAX)), r"number of a class \(ARG_MAX\)"),
    "top k": (changed(FLOAT, ends_in(TOPK)), "TOPK_V2"),
    "strings": (changed(FLOAT, of_shape("output", (1, 3), 5)), "string"),
    "softmax of one": (tiny(labels=1, kind="float32"), "a softmax of one value, which is 1 for every"),
    "no graph": (changed(FLOAT, lambda tree: tree[2].items.clear()), "it has no graph"),
    "cut short": (FLOAT[:200], "not a whole TFLite file"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_classifier_is_refused_by_name(opened: Callable[..., OwnModel], name: str) -> None:
    model, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason) as refused:
        opened(model, LINES)
    assert "model.tflite" in str(refused.value)


def archive(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name in names:
            packed.writestr(name, b"x")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("m.h5", b"\x89HDF\r\n\x1a\n", "a Keras model"),
        ("m.tflite", b"\x89HDF\r\n\x1a\n", "a Keras model"),
        ("m.keras", archive("config.json", "model.weights.h5"), "a Keras model"),
        ("m.onnx", b"\x08\x07\x12\x07pytorch", "an ONNX model"),
        ("m.pt", archive("archive/data.pkl"), "a PyTorch model"),
        ("m.task", archive("face.tflite"), "a MediaPipe task bundle with face.tflite: unpack it"),
        ("m.zip", archive("model.tflite", "labels.txt"), "a zip archive with model.tflite: unpack it"),
        ("m.tflite", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("m.tflite", b"\n<!DOCTYPE html><html>", "a web page"),
        ("m.tflite", b"", "an empty file"),
        ("m.tar.gz", b"\x1f\x8b\x08", "a gzip archive"),
        ("m.pb", b"\x0a\x03abc", "a TensorFlow graph"),
    ],
)
def test_another_format_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason):
        open_own_model(tmp_path / name, ModelOptions())


def test_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(InputError, match="a SavedModel folder"):
        open_own_model(tmp_path, ModelOptions())
    (tmp_path / "saved_model.pb").unlink()
    (tmp_path / "a.tflite").write_bytes(b"")
    with pytest.raises(InputError, match=r"a folder; give one of a\.tflite"):
        open_own_model(tmp_path, ModelOptions())


# --- labels files


@pytest.mark.parametrize(
    "text",
    [
        "red\ngreen\nblue",
        "0 red\n1 green\n2 blue\n",
        "0: red\n1: green\n2: blue",
        "0:red\r\n1:green\r\n2:blue\r\n",
        "1 red\n2 green\n3 blue",
        "2,blue\n0,red\n1,green\n",
        "index,label\n0,red\n1,green\n2,blue\n",
        "red,0\ngreen,1\nblue,2\n",
        "label\nred\ngreen\nblue\n",
        "0\tred\n1\tgreen\n2\tblue",
        '["red", "green", "blue"]',
        '{"0": "red", "1": "green", "2": "blue"}',
        '{"red": 0, "blue": 2, "green": 1}',
        '{"id2label": {"0": "red", "1": "green", "2": "blue"}, "label2id": {}}',
        '{"labels": ["red", "green", "blue"], "modelName": "x"}',
        '{"0": ["n1", "red"], "1": ["n2", "green"], "2": ["n3", "blue"]}',
        "\ufeffred\n\ngreen\nblue\n\n",
        '"red"\n"green"\n"blue"',
        "background\nred\ngreen\nblue",
        "0 background\n1 red\n2 green\n3 blue",
    ],
)
def test_labels_files_are_read_as_they_are_meant(text: str) -> None:
    assert read_labels(text.encode(), 3) == ("red", "green", "blue")


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("1 euro\n2 euro", ("1 euro", "2 euro")),
        ("7 up\n3 apples", ("7 up", "3 apples")),
        ("0\n1", ("0", "1")),
        ("None\nNull", ("None", "Null")),
        ("tench, Tinca tinca\ngold, C. auratus", ("tench, Tinca tinca", "gold, C. auratus")),
        ('0,"red, dark"\n1,blue', ("red, dark", "blue")),
        ("crane\ncrane", ("crane", "crane")),
        ("a\n\n", ("background", "a")),
    ],
)  # fmt: skip
def test_what_belongs_to_a_label_stays(text: str, labels: tuple[str, ...]) -> None:
    assert read_labels(text.encode(), 2) == labels


def test_numbers_with_gaps_name_some_of_the_outputs() -> None:
    assert read_labels(b"0 skip\n2 ad\n", 5) == ("skip", "unnamed 1", "ad", "unnamed 3", "unnamed 4")
    assert read_labels(b"0 skip\n1 ad\n", 5) == ("skip", "ad")  # rather another model's


def test_labels_of_an_editor_with_two_bytes_a_letter() -> None:
    assert read_labels("rot\ngrün".encode("utf-16"), 2) == ("rot", "grün")


@pytest.mark.parametrize("text", ['{"a": "b"}', '{"labels": [1, 2]}', "[[]]", '{"0": null, "1": "x"}'])
def test_json_without_labels_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="JSON without labels: give"):
        read_labels(text.encode(), 2)


# --- hostile bytes


def test_a_file_that_claims_more_than_it_holds_ends_soon(opened: Callable[..., OwnModel]) -> None:
    """Operators whose inputs are all the same long vector."""

    def large(tree: Any) -> None:
        operators = graph_of(tree)[3].items
        operators[0][1] = Vector("i", [0, 1, 2] * 10_000)
        operators.extend([operators[0]] * 20)

    with pytest.raises(InputError, match="it claims more than"):
        opened(changed(FLOAT, large), LINES)


def test_the_runtime_says_what_nobody_knows(opened: Callable[..., OwnModel]) -> None:
    with pytest.raises(DeviceError, match="not a TFLite model"):
        opened(b"nothing that anybody knows")
    with pytest.raises(EdgeError, match="cannot run the model"):
        opened(tiny(fully_connected_version=99), LINES)
