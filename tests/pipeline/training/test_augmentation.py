"""Augmented copies of the two strengths."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from luigi_tasks.training.augmentation import FOR_HEADS, FOR_TUNING, augment

NAMES = [hashlib.sha256(bytes([number])).hexdigest() for number in range(64)]


def noise(size=32):
    return np.random.default_rng(1).integers(0, 256, (len(NAMES), size, size, 3), np.uint8)


def test_copies_for_tuning_change_colours_and_those_for_heads_do_not():
    red = np.zeros((len(NAMES), 16, 16, 3), np.uint8)
    red[..., 0] = 160

    def purity_spread(strength):
        made = augment(red, NAMES, 1, flip=False, strength=strength)[:, 8, 8].astype(int)
        return (made[:, 0] - made[:, 1]).std()

    assert purity_spread(FOR_TUNING) > 1.5 * purity_spread(FOR_HEADS) > 0


@pytest.mark.parametrize("strength", [FOR_HEADS, FOR_TUNING])
def test_a_copy_depends_on_the_picture_and_its_number_alone(strength):
    pixels = noise()
    made = augment(pixels, NAMES, 2, flip=True, strength=strength)
    some = augment(pixels[5:9], NAMES[5:9], 2, flip=True, strength=strength)
    np.testing.assert_array_equal(made[5:9], some)
    assert (made != augment(pixels, NAMES, 3, flip=True, strength=strength)).mean() > 0.5


def test_copy_0_is_the_picture_and_copies_for_tuning_are_not_those_the_head_learns_from():
    pixels = noise()
    np.testing.assert_array_equal(augment(pixels, NAMES, 0, flip=True, strength=FOR_TUNING), pixels)
    assert (
        augment(pixels, NAMES, 1, flip=False) != augment(pixels, NAMES, 1, flip=False, strength=FOR_TUNING)
    ).any()
