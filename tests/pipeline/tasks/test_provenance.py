"""The code version of a model: it changes with the source that makes a model, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import edge_client.contract
import luigi_tasks
from luigi_tasks.provenance import code_version, package_versions

PACKAGE = Path(luigi_tasks.__file__).parent
CONTRACT = Path(edge_client.contract.__file__).parent


@pytest.fixture
def copies(tmp_path) -> tuple[Path, Path]:
    """Copies of the package and of the contract, to be edited."""
    shutil.copytree(PACKAGE, tmp_path / "luigi_tasks")
    shutil.copytree(CONTRACT, tmp_path / "contract")
    return tmp_path / "luigi_tasks", tmp_path / "contract"


def test_the_same_source_has_the_same_version_wherever_it_lies(copies):
    assert code_version(*copies) == code_version() == package_versions()["code"]


@pytest.mark.parametrize(
    "edited",
    [
        "dataset/snapshot.py",
        "backbone/networks.py",
        "inference/features.py",
        "training/augmentation.py",
        "quantization/compose.py",
        "settings/values.py",
        "../contract/preprocessing.py",
    ],
)
def test_an_edit_of_what_makes_a_model_changes_the_version(copies, edited):
    with (copies[0] / edited).open("a") as file:
        file.write("# edited\n")
    assert code_version(*copies) != code_version()


@pytest.mark.parametrize("edited", ["release/keys.py", "labelling/folder.py", "gate/report.py", "pages.py"])
def test_an_edit_of_anything_else_changes_nothing(copies, edited):
    with (copies[0] / edited).open("a") as file:
        file.write("# edited\n")
    assert code_version(*copies) == code_version()


def test_a_wing_that_is_gone_changes_the_version(copies):
    versions = {code_version()}
    for wing in ("dataset", "backbone", "training", "quantization"):
        shutil.rmtree(copies[0] / wing)
        (copies[0] / wing).mkdir()
        versions.add(code_version(*copies))
    assert len(versions) == 5
