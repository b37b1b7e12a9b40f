"""`edge-client classify` works with any TFLite image classifier and one bad picture stops nothing."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from edge_client.commands.classify import classify_files
from edge_client.contract.errors import DeviceError, InputError
from edge_client.contract.release import OperatingPoint
from tests.fakes.tiny_model import TINY_LABELS, plain_picture, tiny_labels, tiny_model
from tests.fakes.tiny_release import png, tiny_release

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.runtime

CORAL_V2 = "mobilenet_v2_1.0_224_quant.tflite"
CORAL_V1 = "mobilenet_v1_0.25_128_quant.tflite"


def run(model: Path, labels: Path, pictures: Sequence[Path], **options: Any) -> tuple[int, str]:
    out = io.StringIO()
    code = classify_files(
        model, labels, pictures, **({"threads": 1, "top": 3, "as_json": False} | options), out=out
    )
    return code, out.getvalue()


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A model, its labels and a red picture."""
    model, labels, red = tmp_path / "tiny.tflite", tmp_path / "labels.txt", tmp_path / "red.png"
    model.write_bytes(tiny_model())
    labels.write_text("\n".join(tiny_labels()) + "\n")
    red.write_bytes(png(plain_picture("red")))
    return model, labels, red


def test_text_names_file_label_share_and_time(parts: tuple[Path, Path, Path]) -> None:
    model, labels, red = parts
    code, text = run(model, labels, [red], top=2)
    lines = text.splitlines()
    assert code == 0
    assert lines[0].startswith(f"{red}  (")
    assert lines[0].endswith(" ms)")
    assert lines[1].split() == ["99.6%", "red"]
    assert len(lines) == 3


def test_json_is_one_object_a_picture(parts: tuple[Path, Path, Path]) -> None:
    model, labels, red = parts
    code, text = run(model, labels, [red, red], as_json=True)
    records = [json.loads(line) for line in text.splitlines()]
    assert code == 0
    assert len(records) == 2
    assert records[0]["file"] == str(red)
    assert records[0]["label"] == "red"
    assert records[0]["confidence"] == pytest.approx(0.996, abs=0.01)
    assert next(iter(records[0]["top"])) == "red"
    assert records[0]["latency_ms"] > 0


def test_a_release_next_to_the_model_says_what_is_sure(
    tmp_path: Path, parts: tuple[Path, Path, Path]
) -> None:
    point = OperatingPoint(precision=0.95, thresholds=(0.9, None, 0.9), coverage=0.5)
    for name, content in tiny_release(operating_point=point)[1].items():
        (tmp_path / name).write_bytes(content)
    model, labels, red = tmp_path / "model.tflite", tmp_path / "labels.txt", parts[2]
    green = tmp_path / "green.png"
    green.write_bytes(png(plain_picture("green")))
    text = run(model, labels, [red, green])[1]
    assert [line.endswith(" ms)  not sure") for line in text.splitlines() if " ms)" in line] == [False, True]
    sure = [
        json.loads(line)["sure"] for line in run(model, labels, [red, green], as_json=True)[1].splitlines()
    ]
    assert sure == [True, False]
    model.write_bytes(tiny_model(3))  # a release of another model says nothing about this one
    assert json.loads(run(model, labels, [green], as_json=True)[1])["sure"] is True


def test_a_model_that_tells_strangers_says_how_known_a_picture_is(parts: tuple[Path, Path, Path]) -> None:
    model, labels, red = parts
    assert json.loads(run(model, labels, [red], as_json=True)[1])["known"] is None
    model.write_bytes(tiny_model(second_output="known"))
    assert json.loads(run(model, labels, [red], as_json=True)[1])["known"] == pytest.approx(0.12, abs=0.01)
    assert run(model, labels, [red])[1].splitlines()[0].endswith(" ms, known 0.12)")


def test_a_broken_release_next_to_a_model_stops_nothing(
    parts: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, labels, red = parts
    model.with_name("release.json").write_text('{"of": "something else"}')
    assert json.loads(run(model, labels, [red], as_json=True)[1])["sure"] is True
    assert "release.json: not a valid ReleaseDocument" in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [True, False])
def test_bad_pictures_are_named_and_the_others_classified(
    parts: tuple[Path, Path, Path], as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    model, labels, red = parts
    broken = red.with_name("broken.jpg")
    broken.write_bytes(red.read_bytes()[:50])
    missing = red.with_name("missing.jpg")
    code, text = run(model, labels, [broken, missing, red.parent, red], as_json=as_json)
    assert code == 1
    assert text.count("red.png") == 1
    assert "broken" not in text
    messages = capsys.readouterr().err.splitlines()
    assert [message.split(": ")[0] for message in messages] == [str(broken), str(missing), str(red.parent)]


@pytest.mark.parametrize(
    "text",
    [
        "red\ngreen\nblue",
        "red\ngreen\nblue\n\n \n",
        "red\r\ngreen\r\nblue\r\n",
        "\ufeffred\ngreen\nblue\n",
        "background\nred\ngreen\nblue\n",
        "Background\nred\ngreen\nblue\n",
    ],
)
def test_common_formats_of_label_files_are_read(parts: tuple[Path, Path, Path], text: str) -> None:
    model, labels, red = parts
    labels.write_bytes(text.encode())
    assert json.loads(run(model, labels, [red], as_json=True)[1])["label"] == "red"


def test_model_with_a_background_output_gets_its_label(parts: tuple[Path, Path, Path]) -> None:
    model, labels, red = parts
    model.write_bytes(tiny_model(labels=4))
    labels.write_text("\n".join(TINY_LABELS[1:4]))  # the first output, red, has no label
    assert json.loads(run(model, labels, [red], as_json=True)[1])["label"] == "background"


@pytest.mark.parametrize(
    "text", ["", "red\n", "background\nred\n", "a\nb\nc\nd\n", "background\nred\ngreen\nblue\ncyan\n"]
)
def test_labels_that_do_not_fit_are_refused_with_both_files(
    parts: tuple[Path, Path, Path], text: str
) -> None:
    model, labels, red = parts
    labels.write_text(text)
    with pytest.raises(InputError, match=r"tiny\.tflite with .*labels\.txt: \d labels for a model with 3"):
        run(model, labels, [red])


def test_unusable_model_or_labels_are_named_with_the_reason(parts: tuple[Path, Path, Path]) -> None:
    model, labels, red = parts
    with pytest.raises(InputError, match=r"none\.tflite: the model file cannot be read"):
        run(model.with_name("none.tflite"), labels, [red])
    with pytest.raises(InputError, match=r"none\.txt: the labels file cannot be read"):
        run(model, labels.with_name("none.txt"), [red])
    with pytest.raises(InputError, match="not UTF-8"):
        run(model, red, [red])
    with pytest.raises(DeviceError, match=r"labels\.txt: not a TFLite model"):
        run(labels, labels, [red])


@pytest.mark.parametrize("kind", ["int8", "uint8", "float32"])
@pytest.mark.parametrize("softmax", [True, False])
def test_every_kind_of_model_works(parts: tuple[Path, Path, Path], kind: Any, softmax: bool) -> None:
    model, labels, red = parts
    model.write_bytes(tiny_model(kind=kind, softmax=softmax))
    assert json.loads(run(model, labels, [red], as_json=True)[1])["label"] == "red"


@pytest.mark.parametrize(
    ("model", "picture", "label"),
    [
        (CORAL_V2, "parrot.jpg", "macaw"),
        (CORAL_V2, "cat_720p.jpg", "Egyptian cat"),
        (CORAL_V1, "parrot.jpg", "macaw"),
    ],
)
def test_third_party_models_name_the_photographs(
    shared_data: Path, model: str, picture: str, label: str
) -> None:
    coral = shared_data / "coral"
    code, text = run(coral / model, coral / "imagenet_labels.txt", [coral / picture], as_json=True)
    assert code == 0
    assert json.loads(text)["label"] == label


def test_smallest_third_party_model_sees_the_cat_among_its_first_two(shared_data: Path) -> None:
    # MobileNet V1 0.25 at 128 pixels wavers between two kinds of cat (12% each).
    coral = shared_data / "coral"
    code, text = run(coral / CORAL_V1, coral / "imagenet_labels.txt", [coral / "cat_720p.jpg"], as_json=True)
    assert code == 0
    assert "Egyptian cat" in list(json.loads(text)["top"])[:2]
