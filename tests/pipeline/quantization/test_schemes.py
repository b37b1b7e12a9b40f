"""Which scheme a candidate takes: the first that loses no more against float than the gate allows."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from luigi_tasks.pipeline import QuantizeModel
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.storage.documents import DocumentTarget
from luigi_tasks.storage.s3_store import S3Store
from luigi_tasks.training.records import TrainingRecord


@dataclasses.dataclass(frozen=True)
class Case:
    """Losses against float, in points overall and of the worst class, by scheme; and what comes of them."""

    name: str
    lost: dict[str, tuple[float, float]]
    tried: tuple[str, ...]


CASES = (
    Case("the first holds", {"int8": (2.0, 10.0)}, ("int8",)),
    Case("better than float", {"int8": (-1.0, 0.0)}, ("int8",)),
    Case("overall too much", {"int8": (2.1, 0.0), "int8_wide": (0.0, 0.0)}, ("int8", "int8_wide")),
    Case("one class collapsed", {"int8": (0.0, 10.1), "int8_wide": (0.0, 0.0)}, ("int8", "int8_wide")),
    Case(
        "only float16 holds",
        {"int8": (60.0, 90.0), "int8_wide": (50.0, 90.0), "mixed": (2.5, 9.0), "float16": (0.0, 0.0)},
        ("int8", "int8_wide", "mixed", "float16"),
    ),
    Case(
        "none holds: the last goes to the gate, which refuses it",
        dict.fromkeys(("int8", "int8_wide", "mixed", "float16"), (9.0, 9.0)),
        ("int8", "int8_wide", "mixed", "float16"),
    ),
    Case("the next is not trained yet", {"int8": (9.0, 9.0)}, ("int8", "int8_wide")),
    Case("nothing is trained yet", {}, ("int8",)),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_first_scheme_that_holds_is_taken(case, store_settings):
    store = S3Store(store_settings)
    for scheme, (overall, worst) in case.lost.items():
        target_of(store, scheme).save(
            TrainingRecord(
                history={},
                made_with={},
                seconds=1.0,
                train_pictures=9,
                float_drop_points=overall,
                class_drop_points=worst,
            )
        )
    settings = load_settings()
    assert (settings.gate.max_float_drop_points, settings.gate.max_class_drop_points) == (2.0, 10.0)
    task: Any = SimpleNamespace(
        settings=settings,
        clone=lambda _kind, scheme: SimpleNamespace(scheme=scheme, output=lambda: target_of(store, scheme)),
    )
    task._holds = lambda target: QuantizeModel._holds(task, target)
    assert tuple(one.scheme for one in QuantizeModel.climb(task)) == case.tried


def target_of(store: S3Store, scheme: str) -> DocumentTarget:
    return DocumentTarget(store, f"work/heads/{scheme}/training.json")


@pytest.mark.parametrize(
    ("scheme", "fallbacks", "ladder"),
    [
        ("int8", "int8_wide, mixed, float16", ("int8", "int8_wide", "mixed", "float16")),
        ("int8", "float16,mixed", ("int8", "mixed", "float16")),
        ("mixed", "int8_wide, mixed, float16", ("mixed", "float16")),
        ("float16", "int8_wide, mixed, float16", ("float16",)),
        ("int8", "", ("int8",)),
    ],
)
def test_ladder_leads_to_what_loses_less_whatever_the_order_given(scheme, fallbacks, ladder):
    quantization = dataclasses.replace(load_settings().quantization, scheme=scheme, fallbacks=fallbacks)
    assert quantization.schemes_in_order() == ladder


def test_wide_form_is_calibrated_on_more_pictures():
    quantization = load_settings().quantization
    assert quantization.calibrated_on("int8_wide") == 4 * quantization.calibrated_on("int8")
