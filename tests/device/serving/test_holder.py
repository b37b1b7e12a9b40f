"""The serving classifier is replaced between two frames."""

from __future__ import annotations

import itertools
import struct
import threading
from typing import Any

import pytest

from edge_client.contract.errors import DeviceError
from edge_client.contract.release import Normalization
from edge_client.inference.classifier import Classifier
from edge_client.serving.holder import ClassifierHolder
from tests.fakes.tiny_model import plain_picture, tiny_labels, tiny_model

pytestmark = pytest.mark.runtime

KERAS = Normalization()


def tiny(bias: int = 0, labels: int = 8, **options: Any) -> Classifier:
    model = tiny_model(bias, labels=labels, **options)
    return Classifier(model, tiny_labels(labels, bias), normalization=KERAS, release=f"release-{bias}")


def test_holder_is_empty_then_serves_what_was_swapped_in() -> None:
    holder = ClassifierHolder()
    assert holder.current is None
    new = tiny()
    holder.swap(new)
    assert holder.current is new


def test_classifier_that_cannot_run_is_not_served() -> None:
    old = tiny()
    holder = ClassifierHolder(old)
    model = tiny_model(kind="float32", softmax=False)
    broken = model.replace(struct.pack("<f", 2.0), struct.pack("<f", float("nan")))
    with pytest.raises(DeviceError):
        holder.swap(Classifier(broken, tiny_labels(), normalization=KERAS))
    assert holder.current is old
    assert old.classify(plain_picture("red")).label == "red"


def test_frames_during_swaps_see_one_classifier_or_the_other() -> None:
    holder = ClassifierHolder(tiny(0))
    enough = threading.Event()

    def swap_often() -> None:
        for n in itertools.count(1):
            holder.swap(tiny(n % 8))
            if enough.is_set():
                return

    thread = threading.Thread(target=swap_often)
    thread.start()
    red, frames = plain_picture("red"), 0
    seen: set[str | None] = set()
    try:
        while frames < 100 or len(seen) < 3:
            serving = holder.current
            assert serving is not None
            answer = serving.classify(red)
            assert answer.label == "red"
            assert serving.release == f"release-{-answer.index % 8}"
            seen.add(serving.release)
            frames += 1
    finally:
        enough.set()
        thread.join()
