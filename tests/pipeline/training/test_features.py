"""Features: each computed once for a picture and a copy, equal on every machine, found by content hash."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from luigi_tasks import addresses
from luigi_tasks.backbone.extractor import QuantizationParameters, open_extractor
from luigi_tasks.dataset.records import Picture, Snapshot
from luigi_tasks.dataset.splits import is_learned_from
from luigi_tasks.inference.model_process import OPEN_AT_MOST
from luigi_tasks.progress import ignore_progress
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.settings.values import FLOAT_SHARE, Portions
from luigi_tasks.training.augmentation import augment
from luigi_tasks.training.features import FeatureRows, choose_rows, compute_rows, in_float_share, unpack_rows
from luigi_tasks.training.train import train
from tests.fakes.tiny_model import tiny_model

SIZE = 32
PICTURES = 100
# Mean brightness of the left and right edge of the first copy of a ramp, of the first eight names.
LEFT_AND_RIGHT = [(19, 132), (34, 120), (142, 67), (29, 120), (131, 45), (151, 44), (40, 140), (137, 45)]


def digest(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def names(count, start=0):
    return [digest(number) for number in range(start, start + count)]


def pixels_of(some):
    """Pixels that belong to their name."""
    seeds = [int(one[:8], 16) for one in some]
    return np.stack(
        [np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8) for seed in seeds]
    )


@pytest.fixture(scope="module")
def variants():
    """Small files with a backbone's ends: bytes or floats in, int8-like numbers or floats out."""
    return {"int8": tiny_model(kind="uint8"), "float": tiny_model(kind="float32")}


def compute(variants, pictures, known=None, copies=1.0):
    wanted = choose_rows(pictures, "int8", Portions(copies, FLOAT_SHARE), held(pictures))
    rows = compute_rows(
        variants, wanted, pictures, pixels_of(pictures), known or {}, ignore_progress, flip=True
    )
    return rows, rows.computed


def held(pictures):
    return {one for one in pictures if not is_learned_from(one, 20.0)}


def known_from(rows):
    return {name: rows.find(name) for name in rows.rows}


def test_five_percent_new_pictures_compute_five_percent(variants):
    old, new = names(PICTURES), names(5, start=PICTURES)
    first, computed = compute(variants, old)
    second, more = compute(variants, sorted(old + new), known_from(first))
    alone, expected = compute(variants, new)
    assert computed == sum(map(len, first.pictures.values()))
    assert more == expected == sum(map(len, alone.pictures.values()))
    assert more < 0.08 * computed
    whole, _ = compute(variants, sorted(old + new))
    for name, rows in whole.rows.items():
        np.testing.assert_array_equal(second.rows[name], rows)


def test_everything_known_computes_nothing(variants):
    rows, _ = compute(variants, names(20))
    again, computed = compute(variants, names(20)[::-1], known_from(rows))
    assert computed == 0
    for name, pictures in again.pictures.items():
        for row, one in zip(again.rows[name], pictures, strict=True):
            np.testing.assert_array_equal(row, rows.find(name)[one])


def test_rows_survive_being_stored(variants):
    rows, _ = compute(variants, names(10))
    packed = rows.pack()
    again = unpack_rows(packed, rows.pictures)
    assert again.pack() == packed
    assert again.rows.keys() == rows.rows.keys()


def test_holdout_has_no_augmented_copies_and_its_float_features_are_all_there():
    pictures = names(500)
    holdout = set(pictures[::5])
    wanted = choose_rows(pictures, "int8", Portions(1.5, FLOAT_SHARE), holdout)
    assert set(wanted["int8_0"]) == set(pictures)
    assert not holdout & (set(wanted["int8_1"]) | set(wanted["int8_2"]))
    assert set(wanted["int8_1"]) == set(pictures) - holdout
    assert 0.4 < len(wanted["int8_2"]) / len(wanted["int8_1"]) < 0.6
    assert holdout <= set(wanted["float_0"]) == holdout | {one for one in pictures if in_float_share(one)}


def test_a_small_set_is_learned_from_in_more_copies_and_all_its_float_features():
    training = dataclasses.replace(load_settings().training, augmented_copies=0.5, small_set_copies=2.0)
    assert training.portions(1000) == Portions(0.5, FLOAT_SHARE)
    assert training.portions(999) == Portions(2.0, 1.0)
    tuned = dataclasses.replace(training, mode="finetune")
    assert tuned.portions(999) == Portions(1.0, 1.0), "the backbone has learned from the copies"
    assert (tuned.shown_copies(999), tuned.shown_copies(1000)) == (2.0, 0.5)
    pictures = names(500)
    wanted = choose_rows(pictures, "int8", training.portions(400), held(pictures))
    learned = set(pictures) - held(pictures)
    assert set(wanted["int8_1"]) == set(wanted["int8_2"]) == learned
    assert wanted["float_0"] == wanted["int8_0"] == tuple(pictures)


@pytest.mark.parametrize("small", [True, False])
def test_only_a_large_set_can_spare_pictures_for_early_stopping(small):
    rng = np.random.default_rng(1)
    training = dataclasses.replace(load_settings().training, epochs=3)
    some = names(900 if small else 1000) + names(20, start=2000)
    labels = {one: int(one[:2], 16) % 3 for one in some}
    pictures = [
        Picture(
            path=one,
            sha256=one,
            label="abc"[labels[one]],
            split="train" if place < len(some) - 20 else "holdout",
        )
        for place, one in enumerate(some)
    ]
    rows = np.stack([np.eye(3)[labels[one]] * 50 + rng.normal(0, 5, 3) for one in some])
    features = FeatureRows(
        {"int8_0": tuple(some), "float_0": tuple(some)},
        {"int8_0": rows.astype(np.int8), "float_0": (rows / 50).astype(np.float16)},
    )
    snapshot = Snapshot(digest="d", labels=("a", "b", "c"), pictures=tuple(pictures))
    record = train(
        snapshot, [features], "int8", QuantizationParameters(1 / 50, 0), training, ignore_progress
    ).record
    assert ("validation loss" in record.history) != small
    assert len(record.history["loss"]) == 3


def test_a_picture_that_was_moved_to_training_is_found_as_itself():
    rows = FeatureRows({"int8_0": (digest(1),)}, {"int8_0": np.array([[1, 2]], np.int8)})
    assert rows.find("int8_1") == {}
    assert rows.find("int8_0")[digest(1)].tolist() == [1, 2]


def test_a_backbone_is_opened_once_and_found_by_its_content():
    backbones = [tiny_model(size=size, kind="float32") for size in range(8, 9 + OPEN_AT_MOST)]
    first = open_extractor(backbones[0]).process
    assert open_extractor(bytes(bytearray(backbones[0]))).process is first
    for one in backbones[1:]:
        open_extractor(one)
    assert open_extractor(backbones[-1]).process is open_extractor(backbones[-1]).process
    assert open_extractor(backbones[0]).process is not first, "the least recently used was not closed"


# --- copies --------------------------------------------------------------------------------------


def test_a_view_depends_on_the_picture_and_its_name_alone():
    some = names(40)
    pixels = pixels_of(some)
    whole = augment(pixels, some, 1, flip=True)
    alone = augment(pixels[7:8], some[7:8], 1, flip=True)
    np.testing.assert_array_equal(whole[7:8], alone)
    assert (augment(pixels, some, 2, flip=True) != whole).any()
    assert augment(pixels, some, 0, flip=True) is pixels


def test_half_of_the_copies_are_mirrored_where_a_mirror_image_keeps_its_class():
    """Pictures that are dark on the left: a mirrored copy is dark on the right."""
    some = names(200)
    pixels = np.full((200, SIZE, SIZE, 3), 200, np.uint8)
    pixels[:, :, : SIZE // 2] = 50

    def mirrored(*, flip):
        copies = augment(pixels, some, 1, flip=flip).astype(int)
        return float((copies[:, :, 0].mean((1, 2)) > copies[:, :, -1].mean((1, 2))).mean())

    assert 0.4 < mirrored(flip=True) < 0.6
    assert mirrored(flip=False) == 0


def test_augmented_copies_are_those_of_their_version():
    """Where these change, features in the store are of other pictures: raise AUGMENTATION_VERSION too."""
    some = names(8)
    ramp = np.arange(SIZE, dtype=np.uint8) * 4 + np.arange(SIZE, dtype=np.uint8)[:, None]
    pixels = np.broadcast_to(ramp[None, :, :, None], (8, SIZE, SIZE, 3)).copy()
    copies = augment(pixels, some, 1, flip=True).astype(float)
    assert addresses.AUGMENTATION_VERSION == 2
    found = [(copy[:, :4].mean(), copy[:, -4:].mean()) for copy in copies]
    assert np.allclose(found, LEFT_AND_RIGHT, atol=1.5), found
