"""From a frame to an answer: our classifier, a bare loop as the lower bound, and other runtimes.

One 640x480 RGB frame in memory; MobileNetV2 1.0/160 in int8 (a release of this pipeline) and Coral's
MobileNetV2 1.0/224. The floor is a bare LiteRT loop with the same resize and as many threads. The others,
each set up as its guide describes and in an environment of its own: MediaPipe Tasks' ImageClassifier,
ONNX Runtime on the same network (tf2onnx; OpenCV's area resize), and TensorFlow's label_image recipe on
tflite-runtime.
They take turns, in processes that stay alive; results are medians.

    python benchmarks/inference.py WEIGHTS CORAL [--json] [--threads 2]

Needs a package index for the peers, installed once below ~/.cache; a peer that cannot be installed is left
out and named. MediaPipe needs Debian's libgles2 and libegl1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import numpy as np
from device_under_test import LABELS, REPOSITORY, make_backbone, make_release
from PIL import Image

from edge_client.contract.names import MODEL_FILE
from edge_client.settings.update import DeviceSettings

if TYPE_CHECKING:
    from typing import Self

ENVIRONMENTS = Path.home() / ".cache/edge-pipeline-benchmarks"
FRAMES, ROUNDS = 50, 15
HEIGHT, WIDTH = 480, 640

LOOP = """
import statistics, sys, time
import numpy as np
model, frame, threads = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3])
{setup}
for _ in range(20):
    answer = classify()
print("answer", answer, flush=True)
for line in sys.stdin:
    times = []
    for _ in range(int(line)):
        started = time.perf_counter()
        classify()
        times.append(time.perf_counter() - started)
    print(statistics.median(times) * 1000, flush=True)
"""
BARE = """
sys.path.insert(0, sys.argv[4])
from ai_edge_litert.interpreter import Interpreter
from edge_client.contract.preprocessing import fit_pixels
net = Interpreter(model, num_threads=threads)
net.allocate_tensors()
given, wanted = net.get_input_details()[0], net.get_output_details()[0]["index"]
place, (_, height, width, _) = given["index"], given["shape"]
def classify():
    net.set_tensor(place, fit_pixels(frame, height, width)[None])
    net.invoke()
    return int(net.get_tensor(wanted)[0].argmax())
"""
OURS = """
sys.path.insert(0, sys.argv[4])
from edge_client.contract.release import Normalization
from edge_client.inference.classifier import Classifier
content = open(model, "rb").read()
labels = [str(number) for number in range(int(sys.argv[5]))]
ours = Classifier(content, labels, normalization=Normalization(), threads=threads)
def classify():
    return ours.classify(frame).index
"""
MEDIAPIPE = """
import mediapipe as mp
from mediapipe.tasks.python import BaseOptions, vision
options = vision.ImageClassifierOptions(BaseOptions(model_asset_path=model), max_results=1)
task = vision.ImageClassifier.create_from_options(options)
def classify():
    image = mp.Image(image_format=mp.ImageFormat.SRGB, data=frame)
    return task.classify(image).classifications[0].categories[0].index
"""
ONNX = """
import cv2, onnxruntime
cv2.setNumThreads(threads)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(sys.argv[4], options)
[given] = session.get_inputs()
size = (given.shape[2], given.shape[1])
def classify():
    fitted = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return int(session.run(None, {given.name: fitted[None]})[0].argmax())
"""
LABEL_IMAGE = """
import tflite_runtime.interpreter as tflite
from PIL import Image
net = tflite.Interpreter(model_path=model, num_threads=threads)
net.allocate_tensors()
given, wanted = net.get_input_details()[0], net.get_output_details()[0]
_, height, width, _ = given["shape"]
def classify():
    fitted = Image.fromarray(frame).resize((width, height))
    net.set_tensor(given["index"], np.expand_dims(fitted, axis=0))
    net.invoke()
    results = np.squeeze(net.get_tensor(wanted["index"]))
    return int(results.argsort()[-5:][::-1][0])
"""
CONVERT = """
import runpy, sys
sys.path.append(sys.argv.pop(1))
runpy.run_module("tf2onnx.convert", run_name="__main__")
"""


class Contender:
    """A process that classifies the frame again and again when told to."""

    def __init__(self, python: Path, setup: str, arguments: list[str]) -> None:
        command = [str(python), "-c", LOOP.format(setup=setup), *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._ask, self._told = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)
        self.times: list[float] = []
        self.answer = self._read_answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def take_turn(self) -> None:
        """Classify `FRAMES` times."""
        self._ask.write(f"{FRAMES}\n")
        self._ask.flush()
        self.times.append(float(self._told.readline()))

    @property
    def milliseconds(self) -> float:
        """Median time of a frame."""
        return statistics.median(self.times)

    def _read_answer(self) -> int:
        for line in self._told:
            if line.startswith("answer "):
                return int(line.split()[1])
        msg = f"it ended with code {self._process.wait()} before its first answer"
        raise OSError(msg)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path, help="no-top ImageNet weights of MobileNetV2 1.0/160")
    parser.add_argument("coral", type=Path, help="folder of Coral's models and photographs")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--threads", type=int, default=DeviceSettings().threads, help="default: the device's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / MODEL_FILE
        _, files = make_release(make_backbone(options.weights), 0)
        own.write_bytes(next(data for path, data in files.items() if path.endswith(MODEL_FILE)))
        coral = options.coral / "mobilenet_v2_1.0_224_quant.tflite"
        classes = len((options.coral / "imagenet_labels.txt").read_text().splitlines())
        with Image.open(options.coral / "parrot.jpg") as picture:
            pixels = np.asarray(picture.convert("RGB").resize((WIDTH, HEIGHT)))
        np.save(Path(folder) / "frame.npy", pixels)
        measured = measure(own, len(LABELS), Path(folder), options.threads, "")
        measured |= measure(coral, classes, Path(folder), options.threads, "coral_")
    measured["overhead_ratio"] = max(measured["own_overhead_ratio"], measured["coral_overhead_ratio"])
    if options.json:
        print(json.dumps({"benchmark": "inference", "figures": measured}))
    else:
        for name, value in measured.items():
            print(f"{name:<28} {value:g}")
    return 0


def measure(model: Path, classes: int, folder: Path, threads: int, prefix: str) -> dict[str, float]:
    """Let all contenders classify in turn; return the measurements."""
    common = [str(model), str(folder / "frame.npy"), str(threads)]
    here = Path(sys.executable)
    with contextlib.ExitStack() as stack:
        contenders = {
            "bare": Contender(here, BARE, [*common, str(REPOSITORY)]),
            "ours": Contender(here, OURS, [*common, str(REPOSITORY), str(classes)]),
        }
        for name, open_peer in PEERS.items():
            try:
                contenders[name] = open_peer(model, common, folder)
            except (OSError, subprocess.CalledProcessError) as e:
                print(f"{name} is left out: {e}", file=sys.stderr)
        for contender in contenders.values():
            stack.enter_context(contender)
        if contenders["ours"].answer != contenders["bare"].answer:
            sys.exit("the floor answers something else")
        for _ in range(ROUNDS):
            for contender in contenders.values():
                contender.take_turn()
    times = {name: contender.milliseconds for name, contender in contenders.items()}
    measured = {f"{prefix}{name}_ms": round(time, 3) for name, time in times.items()}
    measured[f"{prefix or 'own_'}overhead_ratio"] = round(times["ours"] / times["bare"], 3)
    for name in PEERS.keys() & times.keys():
        measured[f"{prefix}vs_{name}"] = round(times["ours"] / times[name], 3)
    return measured


def open_mediapipe(_model: Path, common: list[str], _folder: Path) -> Contender:
    """MediaPipe Tasks, which chooses its threads itself."""
    return Contender(environment("mediapipe", "mediapipe==1.2.*"), MEDIAPIPE, common)


def open_onnxruntime(model: Path, common: list[str], folder: Path) -> Contender:
    """ONNX Runtime; the converter needs the TensorFlow that is here."""
    converter = ENVIRONMENTS / "tf2onnx"
    if not converter.exists():
        install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(converter)]
        subprocess.run([sys.executable, *install, "tf2onnx==1.17.*", "onnx==1.23.*"], check=True)
    converted = folder / f"{model.stem}.onnx"
    arguments = [str(converter), "--tflite", str(model), "--output", str(converted), "--opset", "17"]
    subprocess.run([sys.executable, "-c", CONVERT, *arguments], check=True, capture_output=True)
    python = environment("onnxruntime", "onnxruntime==1.*", "opencv-python-headless>=4.9")
    return Contender(python, ONNX, [*common, str(converted)])


def open_label_image(_model: Path, common: list[str], _folder: Path) -> Contender:
    """TensorFlow's example for devices."""
    python = environment("label_image", "tflite-runtime==2.14.0", "numpy<2", "pillow")
    return Contender(python, LABEL_IMAGE, common)


PEERS = {"mediapipe": open_mediapipe, "onnxruntime": open_onnxruntime, "label_image": open_label_image}


def environment(name: str, *packages: str) -> Path:
    """Return the Python of an environment with these packages; it is made once."""
    folder = ENVIRONMENTS / name
    python = folder / "bin/python"
    if not python.exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        except subprocess.CalledProcessError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return python


if __name__ == "__main__":
    sys.exit(main())
