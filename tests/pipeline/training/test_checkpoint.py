"""The checkpoint of a fine-tuning: found again by the same training, and by no other."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from luigi_tasks.settings.sections import load_settings
from luigi_tasks.settings.values import ModelSettings
from luigi_tasks.training.checkpoint import Checkpoint, pack_checkpoint, parse_checkpoint
from luigi_tasks.training.finetune import TrainingImages, _fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray

ARRAYS: list[NDArray[Any]] = [np.arange(12, dtype=np.float32).reshape(3, 4), np.array(7, np.int64)]
CHECKPOINT = Checkpoint(epoch=3, history={"loss": [1.5, 1.0, 0.5]}, arrays=ARRAYS)
MODEL = ModelSettings("mobilenet_v1", 0.25, 32, 2, "none")
IMAGES = TrainingImages(
    read=lambda rows: np.zeros((len(rows), 32, 32, 3), np.uint8),
    targets=np.array([0, 1, 1]),
    names=["a", "b", "c"],
    classes=2,
)


@pytest.fixture
def training():
    return dataclasses.replace(load_settings().training, cluster="a:1,b:1")


def test_a_checkpoint_gives_back_epoch_history_and_variables():
    found = parse_checkpoint(pack_checkpoint(CHECKPOINT, "this"), "this")
    assert found is not None
    assert (found.epoch, found.history) == (3, CHECKPOINT.history)
    for array, expected in zip(found.arrays, ARRAYS, strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


def test_no_checkpoint_is_no_reason_to_warn(caplog):
    assert parse_checkpoint(None, "this") is None
    assert not caplog.records


@pytest.mark.parametrize("damage", ["flipped", "cut", "foreign"])
def test_a_useless_checkpoint_is_reported_and_not_loaded(damage, caplog):
    saved = pack_checkpoint(CHECKPOINT, "another" if damage == "foreign" else "this")
    if damage == "flipped":
        saved = saved[:-1] + bytes([saved[-1] ^ 1])
    elif damage == "cut":
        saved = saved[:-20]
    with caplog.at_level(logging.WARNING, "luigi-interface"):
        assert parse_checkpoint(saved, "this") is None
    assert "starting from the first epoch" in caplog.text


def test_a_renamed_machine_finds_the_checkpoint_again(training):
    renamed = dataclasses.replace(training, cluster="a:1,c:1")
    assert _fingerprint(IMAGES, MODEL, renamed, None) == _fingerprint(IMAGES, MODEL, training, None)


def test_anything_else_that_differs_is_another_training(training):
    labels, names = np.array([0, 1, 0]), ["a", "b", "d"]
    others = [
        _fingerprint(dataclasses.replace(IMAGES, targets=labels), MODEL, training, None),
        _fingerprint(dataclasses.replace(IMAGES, names=names), MODEL, training, None),
        _fingerprint(dataclasses.replace(IMAGES, classes=3), MODEL, training, None),
        _fingerprint(IMAGES, dataclasses.replace(MODEL, alpha=0.5), training, None),
        _fingerprint(IMAGES, MODEL, dataclasses.replace(training, seed=training.seed + 1), None),
        _fingerprint(IMAGES, MODEL, dataclasses.replace(training, cluster="a:1,b:1,c:1"), None),
        _fingerprint(IMAGES, MODEL, training, b"weights of an earlier release"),
    ]
    assert len({_fingerprint(IMAGES, MODEL, training, None), *others}) == 1 + len(others)
