"""[device] model: what it needs, what it makes needless, and how its numbers may be written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from edge_client.cli import main
from edge_client.contract.errors import SettingsError
from edge_client.settings.file import Settings, load_settings

if TYPE_CHECKING:
    from pathlib import Path

REST = '[source]\nkind = "folder"\npath = "camera"\n'


def load(folder: Path, device: str, more: str = "") -> Settings:
    file = folder / "device.toml"
    file.write_text(f'[device]\nid = "cam"\n{device}\n{REST}{more}')
    return load_settings(file)


def test_a_model_needs_no_store_and_its_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    device = load(tmp_path, 'model = "m.tflite"\nlabels = "l.txt"').device
    assert (device.model, device.labels) == (str(tmp_path / "m.tflite"), str(tmp_path / "l.txt"))
    assert device.model_options().labels == tmp_path / "l.txt"
    with pytest.raises(SettingsError, match=r"\[store\] base_url"):
        load(tmp_path, "")


def test_labels_may_be_a_list(tmp_path: Path) -> None:
    device = load(tmp_path, 'model = "m.tflite"\nlabels = ["screw, M3", "None"]').device
    assert device.model_options().names == ("screw, M3", "None")
    assert device.model_options().labels is None


def test_a_store_that_is_named_besides_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"\[store\] base_url"):
        load(tmp_path, 'model = "m.tflite"', '[store]\nbase_url = "bucket"\n')
    with pytest.raises(SettingsError, match=r"\[inbox\] upload: with \[device\] model and no store"):
        load(tmp_path, 'model = "m.tflite"', "[inbox]\nunsure = true\nupload = true\n")


@pytest.mark.parametrize("command", ["export", "import"])
def test_commands_of_releases_say_that_a_model_serves(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = load(tmp_path, 'model = "m.tflite"').file
    assert main([command, "--config", str(file), str(tmp_path / "x.tar")]) == 2
    assert f"so there is nothing to {command}: replace the file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [("224", (224,)), ("[240, 320]", (240, 320)), ('"240x320"', (240, 320)), ('"64"', (64,)), ("[]", ())],
)
def test_an_input_size_is_one_number_or_two(tmp_path: Path, text: str, size: tuple[int, ...]) -> None:
    assert load(tmp_path, f'model = "m.tflite"\ninput_size = {text}').device.input_size == size


@pytest.mark.parametrize("text", ["127.5", "[127.5]", '"127.5"', "[1, 2, 3.5]", '"1, 2, 3.5"'])
def test_mean_and_std_are_one_number_or_three(tmp_path: Path, text: str) -> None:
    device = load(tmp_path, f'model = "m.tflite"\nmean = {text}\nstd = {text}').device
    assert device.mean == device.std
    assert device.mean in {(127.5,), (1.0, 2.0, 3.5)}


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ('model = "m.tflite"\nmean = 1', "mean and std: give both"),
        ('model = "m.tflite"\nmean = 1\nstd = 0', "std: not 0"),
        ('model = "m.tflite"\nmean = [1, 2]\nstd = 1', "mean: one number, or three"),
        ('model = "m.tflite"\nmean = "grey"\nstd = 1', "mean: 'grey' is not a number"),
        ('model = "m.tflite"\nmean = true\nstd = 1', "mean: True is not a number"),
        ('model = "m.tflite"\ninput_size = 0', "input_size: one side, or height and width"),
        ('model = "m.tflite"\ninput_size = [1, 2, 3]', "input_size: one side, or height and width"),
        ('model = "m.tflite"\ninput_size = "wide"', "input_size: 'wide' is not a number"),
        ('model = "m.tflite"\nmore_channels = ["a"]', "model: the device serves this file alone"),
        ('labels = "l.txt"', "labels, mean, std, input_size: only with model"),
    ],
)
def test_what_cannot_work_is_named(tmp_path: Path, device: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=rf"\[device\] {re.escape(reason)}"):
        load(tmp_path, device)
