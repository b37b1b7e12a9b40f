"""Answers of `edge-client classify` in an Arm user land, compared with those of this machine."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from arm.userland import ArmError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from arm.userland import UserLand

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"
# A third of a release's own tolerance ([release] self_test_tolerance). Kernels of the two processors round
# differently, and an int8 network has 256 steps.
TOLERANCE = 0.05
ALL_LABELS = "10000"


@dataclasses.dataclass(frozen=True)
class Case:
    """One model and the pictures that it is given."""

    name: str
    model: Path
    pictures: tuple[Path, ...]
    options: tuple[str, ...] = ()


@dataclasses.dataclass
class Comparison:
    """How far apart two machines' answers are.

    Attributes:
        pictures: How many were compared.
        largest: Largest difference of a label's confidence.
        where: Model, picture and label of the largest difference.
        other_labels: Pictures whose best label differs.
    """

    pictures: int = 0
    largest: float = 0.0
    where: str = "none"
    other_labels: list[str] = dataclasses.field(default_factory=list)

    def add(self, what: str, here: Mapping[str, float], there: Mapping[str, float]) -> None:
        """Compare the confidence of each label in one picture's answers."""
        self.pictures += 1
        for label in {*here, *there}:
            difference = abs(here.get(label, 0.0) - there.get(label, 0.0))
            if difference > self.largest:
                self.largest, self.where = difference, f"{what}, {label}"
        best_here, best_there = max(here, key=here.__getitem__), max(there, key=there.__getitem__)
        if best_here != best_there:
            # Of two labels that are equally likely, either machine may name another first.
            margin = here[best_here] - here.get(best_there, 0.0)
            self.other_labels.append(f"{what}: {best_here} here, {best_there} there, {margin:.4f} apart")

    def check(self) -> None:
        """Raise ArmError if the answers are too far apart."""
        if self.pictures == 0:
            msg = "no answers were compared"
            raise ArmError(msg)
        if self.largest > TOLERANCE:
            msg = f"a confidence differs by {self.largest:.4f} ({self.where}), more than {TOLERANCE}"
            raise ArmError(msg)
        # A best label that is ahead by more than the tolerance cannot change without a difference above it.


def compare_answers(land: UserLand, folder: Path) -> Comparison:
    """Classify each case's pictures there and here.

    Args:
        land: With the device installed.
        folder: Gets models and pictures that are made.
    """
    comparison = Comparison()
    for case in [*made_cases(folder), *shared_cases()]:
        arguments = ["classify", "--json", "--top", ALL_LABELS, "--model", str(case.model), *case.options]
        arguments += map(str, case.pictures)
        here = subprocess.run(
            [str(Path(sys.executable).with_name("edge-client")), *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=REPOSITORY,
        )
        if here.returncode != 0:
            msg = f"{case.name} is not classified here: {here.stderr[-1000:]}"
            raise ArmError(msg)
        there = land.run(land.edge_client, *arguments)
        answers = zip(case.pictures, here.stdout.splitlines(), there.splitlines(), strict=True)
        for picture, one, other in answers:
            comparison.add(f"{case.name}, {picture.name}", json.loads(one)["top"], json.loads(other)["top"])
    return comparison


def made_cases(folder: Path) -> Iterator[Case]:
    """Yield the tests' own models, with pictures of their colours and photographs that a library ships."""
    from PIL import Image  # noqa: PLC0415 - after the command line
    from sklearn import datasets  # noqa: PLC0415

    from tests.fakes.tiny_model import COLOURS, Kind, plain_picture, tiny_labels, tiny_model  # noqa: PLC0415

    pictures = [*sorted((Path(datasets.__file__).parent / "images").glob("*.jpg"))]
    for label in COLOURS:
        pictures.append(folder / f"{label}.png")
        Image.fromarray(plain_picture(label)).save(pictures[-1])
    labels = folder / "labels.txt"
    labels.write_text("\n".join(tiny_labels(8)) + "\n")
    kinds: tuple[Kind, ...] = ("int8", "uint8", "float32")
    for kind in kinds:
        model = folder / f"{kind}.tflite"
        model.write_bytes(tiny_model(labels=8, kind=kind))
        signed = ("--mean", "127.5", "--std", "127.5") if kind == "float32" else ()
        yield Case(f"tests' {kind} model", model, (*pictures,), ("--labels", str(labels), *signed))


def shared_cases() -> Iterator[Case]:
    """Yield third-party models with photographs, where they are: they are not this project's to ship."""
    coral, flowers, field = SHARED / "data/coral", SHARED / "data/flowers", SHARED / "field/models"
    if coral.is_dir():
        photographs = (coral / "parrot.jpg", coral / "cat_720p.jpg")
        some = tuple(next(iter(sorted(one.glob("*.jpg")))) for one in sorted(flowers.glob("*/")))
        for name in ("mobilenet_v1_0.25_128_quant", "mobilenet_v2_1.0_224_quant"):
            labels = ("--labels", str(coral / "imagenet_labels.txt"))
            yield Case(name, coral / f"{name}.tflite", (*photographs, *some), labels)
    else:
        print(f"  skipped: models of Coral, since there is no folder {coral}", flush=True)
    if field.is_dir():
        pictures = tuple(sorted(field.glob("*.png")))
        yield Case("float model with metadata", field / "meta_float_0_1.tflite", pictures)
    else:
        print(f"  skipped: a float model with metadata, since there is no folder {field}", flush=True)
