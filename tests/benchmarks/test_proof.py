"""What the proof computes, and the pictures that it is computed on: an error here would be believed."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scale_pictures
from PIL import Image
from proof_measures import accuracy, auroc, calibration_error, compare_doubts, judge_folds
from proof_pictures import (
    FRAMES,
    copy_pictures,
    divide,
    flip_labels,
    label_at_random,
    link_pictures,
    own_labels,
    write_bursts,
)

if TYPE_CHECKING:
    from pathlib import Path


def answers(confidence: float, right: int, wrong: int, known: float | None = None) -> dict[str, Any]:
    count = right + wrong
    return {
        "truths": ["cat"] * right + ["dog"] * wrong,
        "labels": ["cat"] * count,
        "scores": [[confidence, 1 - confidence]] * count,
        "known": None if known is None else [known] * count,
        "sure": None,
    }


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Return 40 different pictures of two classes."""
    for label, shift in (("bright", 128), ("dark", 0)):
        (tmp_path / "source" / label).mkdir(parents=True)
        for number in range(20):
            grid = np.random.default_rng(100 * shift + number).integers(
                shift, shift + 128, (6, 8, 3), np.uint8
            )
            smooth = Image.fromarray(grid).resize((64, 48), Image.Resampling.BICUBIC)
            smooth.save(tmp_path / "source" / label / f"{number}.png")
    return copy_pictures(tmp_path / "source", tmp_path / "all")


def test_calibration_error_is_the_gap_between_confidence_and_truth():
    assert accuracy(answers(0.9, 60, 40)) == pytest.approx(0.6)
    assert calibration_error([answers(0.8, 8, 2)] * 1) == pytest.approx(0.2 * 0.8 + 0.8 * 0.2, abs=1e-6)
    # Two parts count together: one bin holds the less confident answers, all wrong.
    even = [answers(1.0, 50, 0), answers(0.5, 0, 50)]
    assert calibration_error(even) == pytest.approx(0.25)
    assert calibration_error([answers(1.0, 100, 0)]) == 0


def test_strangers_are_told_by_the_models_own_score_where_it_has_one():
    assert auroc(answers(0.9, 5, 0), answers(0.6, 5, 0)) == 1
    assert auroc(answers(0.6, 5, 0), answers(0.6, 5, 0)) == 0.5
    assert auroc(answers(0.9, 5, 0, known=0.1), answers(0.6, 5, 0, known=0.7)) == 0


def test_only_sure_answers_count_for_the_precision():
    shown = answers(0.9, 9, 1) | {"sure": [True] * 8 + [False] * 2}
    figures = judge_folds([{"unseen": shown}], 0.95)
    assert figures["precision_kept"] == pytest.approx(5)
    assert figures["precision_coverage"] == pytest.approx(0.8)
    assert figures["strangers_auroc"] is None
    assert judge_folds([{"unseen": answers(0.9, 9, 1)}], 0.95)["precision_kept"] is None


def test_doubts_are_compared_with_the_labels_that_were_flipped():
    figures = compare_doubts([{"a", "b"}], [["a", "c", "d", "e"]])
    assert figures == {"doubtful_recall": 0.5, "doubtful_precision": 0.25}
    assert compare_doubts([{"a"}], [None]) == {"doubtful_recall": None, "doubtful_precision": None}


def test_folds_are_disjoint_and_have_the_same_share_of_each_class(pictures: list[Path]):
    parts = divide(pictures, 5)
    assert sorted(one for part in parts for one in part) == sorted(pictures)
    for part in parts:
        assert collections.Counter(one.parent.name for one in part) == {"bright": 4, "dark": 4}


def test_labels_at_random_have_their_shares_and_follow_no_picture(pictures: list[Path]):
    labels = label_at_random(pictures, (0.9, 0.1), seed=1)
    assert collections.Counter(labels.values()) == {"class-0": 36, "class-1": 4}
    assert labels != label_at_random(pictures, (0.9, 0.1), seed=2)


def test_a_share_of_the_labels_is_flipped_and_named(pictures: list[Path], tmp_path: Path):
    labels, wrong = flip_labels(pictures, 0.1, seed=1)
    truths = own_labels(pictures)
    assert {one for one in pictures if labels[one] != truths[one]} == wrong
    assert len(wrong) == 4
    folder = link_pictures(labels, tmp_path / "flipped")
    assert sum(1 for _ in folder.glob("*/*.png")) == len(pictures)


def test_frames_of_a_burst_are_nearly_but_not_quite_the_same(pictures: list[Path], tmp_path: Path):
    folder = write_bursts(pictures[:1], tmp_path / "burst", seed=1)
    frames = sorted(folder.glob("*/*.jpg"))
    assert len({one.read_bytes() for one in frames}) == FRAMES
    shown = [np.asarray(Image.open(one).resize((16, 16)), float) for one in frames]
    other = np.asarray(Image.open(pictures[1]).convert("RGB").resize((16, 16)), float)
    apart = max(np.abs(one - shown[0]).mean() for one in shown[1:])
    assert 0 < apart < np.abs(other - shown[0]).mean() / 2


def test_scenes_are_the_same_each_time_and_no_two_are_alike():
    scenes = [scale_pictures.make_scene(number).astype(float) for number in range(8)]
    assert np.array_equal(scenes[3], scale_pictures.make_scene(3))
    apart = [np.abs(one - other).mean() for one in scenes for other in scenes if one is not other]
    assert min(apart) > 20
