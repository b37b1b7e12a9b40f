"""Pictures that decide, and are not learned from."""

from __future__ import annotations

import hashlib

from luigi_tasks.dataset.records import Picture
from luigi_tasks.dataset.splits import is_validation
from luigi_tasks.training.validation import choose_validation


def pictures(count, label):
    hashes = [hashlib.sha256(f"{label}{number}".encode()).hexdigest() for number in range(count)]
    return [Picture(path=one, sha256=one, label=label, split="train") for one in hashes]


def test_a_tenth_is_for_validation_whatever_else_is_there():
    some = pictures(2000, "a") + pictures(20, "b")
    chosen = choose_validation(some)
    assert 0.07 < chosen.mean() < 0.13
    assert chosen[:1000].tolist() == choose_validation(some[:1000]).tolist()


def test_a_class_that_is_all_validation_is_learned_from():
    lone = [one for one in pictures(200, "b") if is_validation(one)][:3]
    assert not choose_validation([*pictures(30, "a"), *lone])[30:].any()


def test_a_group_is_for_validation_as_a_whole():
    groups = pictures(400, "group")
    frames = [
        Picture(path=one.path, sha256=one.sha256, label="a", split="train", group=groups[number // 5].sha256)
        for number, one in enumerate(pictures(2000, "a"))
    ]
    chosen = choose_validation(frames).reshape(400, 5)
    assert (chosen.all(1) == chosen.any(1)).all()
    assert 0.05 < chosen.mean() < 0.15
