"""Arithmetic of the fleet's benchmark: what counts as lost, and how totals grow."""

from __future__ import annotations

import pytest
from fleet import GROWING, count_lost, summary
from fleet_chaos import count_differences


@pytest.mark.parametrize(
    ("sent", "taken", "lost"),
    [
        ((7, 3), (7, 3), 0),
        ((7, 3), (7, 4), 0),  # the acknowledgement is on its way
        ((7, 9), (8, 1), 0),  # it was started again: that report is newer
        ((7, 5), (7, 3), 2),
        ((8, 2), (7, 9), 2),
        ((7, 4), None, 4),
    ],
)
def test_reports_are_lost_unless_a_newer_one_was_taken(sent, taken, lost):
    assert count_lost({"camera-1": sent}, {} if taken is None else {"camera-1": taken}) == lost


def test_what_grows_faster_between_two_sizes_is_not_hidden_by_the_others():
    """A fixed cost makes the fit over all sizes flat; the step to the largest counts as well."""
    runs = {size: dict.fromkeys(GROWING, float(size)) for size in (100, 1000, 3000)}
    for size, run in runs.items():
        run |= {"devices": size, "devices_without_release": 0, "reports_lost": 0}
    assert summary(runs)["growth_exponent"] == 1.0
    for size, seconds in zip(runs, (100.0, 200.0, 200.0 * 3**1.5), strict=True):
        runs[size]["seconds"] = seconds
    assert summary(runs)["growth_exponent"] == pytest.approx(1.5)


def test_a_verdict_that_only_one_run_reached_differs():
    quiet = [("1", "passed", "pass"), ("2", "passed", "pass")]
    assert count_differences(quiet, [list(one) for one in quiet]) == 0
    assert count_differences(quiet, quiet[:1]) == 1
    assert count_differences(quiet, [quiet[0], ("2", "halted", "halt")]) == 1
