"""Which scheme a candidate takes: the first that loses no more against float than the gate allows."""

from __future__ import annotations

import dataclasses

import pytest

from luigi_tasks.quantization.schemes import count_tried
from luigi_tasks.settings.sections import load_settings
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


def record(drops: tuple[float, float] | None) -> TrainingRecord | None:
    """The record of a head that loses so much; None: not trained yet."""
    if drops is None:
        return None
    return TrainingRecord(
        history={},
        made_with={},
        seconds=0.0,
        train_pictures=1,
        float_drop_points=drops[0],
        class_drop_points=drops[1],
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_schemes_are_tried_in_turn_until_one_is_within_the_gates_limits(case):
    settings = load_settings()
    names = settings.quantization.schemes_in_order()
    records = [record(case.lost.get(name)) for name in names]
    assert names[: count_tried(records, settings.gate)] == case.tried


def test_a_later_scheme_is_not_looked_up_before_it_is_needed():
    def records():
        yield record((0.0, 0.0))
        raise AssertionError("looked up")

    assert count_tried(records(), load_settings().gate) == 1
