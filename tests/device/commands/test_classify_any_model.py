"""`edge-client classify` with files of other people: what they say of themselves counts, or is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge_client.cli import main

pytestmark = pytest.mark.runtime

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def field(shared_data: Path) -> Path:
    """Models like those of public trackers, and pictures for them."""
    folder = shared_data.parent / "field" / "models"
    if not folder.exists():
        pytest.skip("the models from the field are not here")
    return folder


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, dict[str, float]]:
    """Classify in this process; returns the scores of each picture."""
    assert main(["classify", "--json", *map(str, arguments)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {Path(one["file"]).stem: one["top"] for one in map(json.loads, lines)}


def test_labels_and_normalization_inside_a_file_are_used(
    field: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [field / f"{name}.png" for name in ("red", "blue", "purple")]
    told = ask(capsys, "--model", field / "meta_float_0_1.tflite", *pictures)
    # What MediaPipe 0.10 answers: 0.999988 for the plain colours, 0.499998 twice for purple.
    assert told["red"]["red"] == pytest.approx(0.999988, abs=1e-5)
    assert told["blue"]["blue"] == pytest.approx(0.999988, abs=1e-5)
    assert told["purple"]["red"] == pytest.approx(told["purple"]["blue"]) == pytest.approx(0.5, abs=1e-4)


MEDIAPIPE = """
import sys
import mediapipe as mp
from mediapipe.tasks.python import BaseOptions, vision

options = vision.ImageClassifierOptions(BaseOptions(model_asset_path=sys.argv[1]), max_results=3)
with vision.ImageClassifier.create_from_options(options) as classifier:
    for path in sys.argv[2:]:
        found = classifier.classify(mp.Image.create_from_file(path)).classifications[0].categories
        print("answer", *(text for one in found for text in (one.category_name, one.score)), sep="\\t")
"""


@pytest.mark.slow
def test_mediapipe_says_the_same(field: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = Path.home() / ".cache/edge-pipeline-tests/mediapipe/bin/python"
    if not python.exists():
        pytest.skip("no MediaPipe here; tests/pipeline/quantization/test_compose.py installs it")
    model, coral = field / "meta_float_0_1.tflite", field.parents[1] / "data" / "coral"
    for file, pictures in (
        (model, [field / "red.png", field / "blue.png"]),
        (coral / "mobilenet_v2_1.0_224_quant.tflite", [coral / "parrot.jpg"]),
    ):
        command = [str(word) for word in (python, "-c", MEDIAPIPE, file, *pictures)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"MediaPipe does not start: {done.stderr.strip()[-200:]}")
        theirs = [line.split("\t")[1:3] for line in done.stdout.splitlines() if line.startswith("answer")]
        ours = [next(iter(top.items())) for top in ask(capsys, "--model", file, *pictures).values()]
        assert [label for label, _ in theirs] == [label for label, _ in ours]
        assert [float(score) for _, score in theirs] == pytest.approx([score for _, score in ours], abs=0.01)


def test_one_output_has_two_labels(field: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "two.txt").write_text("dark\nbright\n")
    (tmp_path / "one.txt").write_text("bright\n")
    model = ("--model", field / "binary_logit.tflite", "--mean", "127.5", "--std", "127.5")
    two = ask(capsys, *model, "--labels", tmp_path / "two.txt", field / "purple.png", field / "red.png")
    assert two["purple"]["bright"] == pytest.approx(1 - two["purple"]["dark"], abs=1e-5)
    one = ask(capsys, *model, "--labels", tmp_path / "one.txt", field / "red.png")
    assert one["red"] == {"not bright": two["red"]["dark"], "bright": two["red"]["bright"]}


def test_a_float_model_that_says_nothing_is_a_warning_with_the_options_that_end_it(
    field: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "two.txt").write_text("dark\nbright\n")
    known = ["--model", str(field / "binary_logit.tflite"), "--labels", str(tmp_path / "two.txt")]
    assert main(["classify", *known, str(field / "red.png")]) == 0
    assert "[-1, 1] is assumed" in (told := capsys.readouterr().err)
    assert "--mean and --std" in told
    assert main(["classify", *known, "--mean", "0", "--std", "255", str(field / "red.png")]) == 0
    assert "assumed" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--mean", "1"], "--mean and std: give both, or neither"),
        (["--mean", "1", "--std", "0"], "--std: not 0"),
        (["--input-size", "0"], "--input-size: one side, or height and width"),
        (["--labels", "/dev/zero"], "/dev/zero: not a file; give a labels file"),
        (["--labels", "/"], "/: not a file; give a labels file"),
    ],
)
def test_an_option_that_cannot_work_is_named(
    field: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["classify", "--model", str(field / "meta_float_0_1.tflite"), *options]
    assert main([*command, str(field / "red.png")]) in {1, 2}
    assert told in capsys.readouterr().err


def test_labels_may_come_through_a_pipe(
    field: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `--labels <(…)` of a shell: it can be read once."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("a\nb\nc\n",))
    writer.start()
    told = ask(capsys, "--model", field / "meta_float_0_1.tflite", "--labels", pipe, field / "red.png")
    writer.join()
    assert next(iter(told["red"])) == "a"


def test_an_input_of_any_size_needs_one(
    field: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.txt").write_text("chequered\nplain\n")
    known = ["--model", str(field / "dynamic_texture.tflite"), "--labels", str(tmp_path / "labels.txt")]
    pictures = [field / "chequered.png", field / "plain.png"]
    assert main(["classify", *known, *map(str, pictures)]) == 1
    assert "give --input-size" in capsys.readouterr().err
    told = ask(capsys, *known, "--input-size", "64", *pictures)
    assert {name: max(scores, key=scores.__getitem__) for name, scores in told.items()} == {
        "chequered": "chequered",
        "plain": "plain",
    }


def test_a_file_that_crashes_the_runtime_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """The child is killed in the place of the runtime that a damaged file crashes."""
    killer = tmp_path / "sitecustomize.py"
    killer.write_text(
        "import sys, os, signal\n"
        "if 'edge_client.serving.model_trial' in ' '.join(sys.orig_argv):\n"
        "    os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    (tmp_path / "x.tflite").write_bytes(b"\x1c\0\0\0TFL3" + b"\0" * 99)
    command = [sys.executable, "-m", "edge_client.cli", "classify", "--model", "x.tflite", "x.png"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 5
    assert "the model crashed the runtime (SIGSEGV); download or convert it again" in done.stderr
