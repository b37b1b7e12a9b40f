"""The benchmark of the judge: a good release goes through its simulated fleet, bad ones do not."""

from __future__ import annotations

import pytest
from simulated_fleet import CASES
from verdicts import run

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("good", {"done"}),
        ("broker_outage", {"done"}),
        ("fails_on_one_in_five", {"hard", "paused"}),
        ("crashes_after_40_min", {"hard", "paused"}),
        ("slower_on_one_runtime", {"soft", "asked"}),
    ],
)
def test_rollout_ends_as_its_release_deserves(name, ends):
    course = run(BY_NAME[name], 150, 3, 2.0, has_probation=True)
    assert course.end in ends
    assert (course.stage == 5) == (course.end == "done")


def test_probation_spares_devices_on_which_a_release_fails():
    harmed = [
        run(BY_NAME["fails_on_one_in_five"], 60, 5, 2.0, has_probation=has).harmed for has in (True, False)
    ]
    assert harmed[0] == 0
    assert harmed[1] >= 1
