"""The comparison with the champion: what passes, what is refused, what stays open, and how often."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luigi_tasks.gate.paired import Paired, accepted_risk, beats, compare, count_pairs
from luigi_tasks.gate.simulation import main, simulate


def test_pictures_that_both_answer_alike_tell_nothing_apart():
    own = np.array([True, True, False, False, True])
    other = np.array([True, False, True, False, False])
    assert count_pairs(own, other, ["a", "b", "c", "d", "e"]) == Paired(units=5, lost=1, gained=2)


def test_a_burst_counts_once_for_the_model_that_is_right_on_more_of_it():
    own = np.array([True, True, True, False, False, True, False])
    other = np.array([False, False, False, True, True, False, True])
    groups = ["burst", "burst", "burst", "burst", "second", "tie", "tie"]
    assert count_pairs(own, other, groups) == Paired(units=3, lost=1, gained=1)


@pytest.mark.parametrize(
    ("lost", "gained", "units", "outcome"),
    [
        (0, 0, 400, "passed"),
        (6, 2, 400, "passed"),  # one point, as equal models differ in 14 % of comparisons
        (14, 4, 400, "refused"),
        (24, 16, 400, "thin"),  # neither worse by more than chance, nor clearly better than 3 points worse
        (30, 10, 2000, "refused"),
        (600, 500, 100_000, "passed"),  # significant, and 0.1 points
        (1100, 500, 100_000, "refused"),
        (1, 0, 10, "passed"),
        (2, 0, 10, "thin"),
        (5, 0, 20, "refused"),
        (2, 30, 400, "passed"),
    ],
)
def test_a_loss_is_judged_by_what_it_proves(lost, gained, units, outcome):
    assert compare(Paired(units, lost, gained), 0.5, 3.0) == outcome


def test_a_larger_allowed_loss_lets_more_pass():
    loss = Paired(2000, 60, 20)  # 2 points, provably worse
    assert compare(loss, 0.5, 3.0) == "refused"
    assert compare(loss, 3.0, 3.0) == "passed"


RANK = {"refused": 0, "thin": 1, "passed": 2}


@given(st.integers(1, 5000), st.integers(0, 200), st.integers(0, 200))
def test_one_loss_less_never_makes_it_worse(units, lost, gained):
    if lost == 0 or lost + gained > units:
        return
    worse = compare(Paired(units, lost, gained), 0.5, 3.0)
    better = compare(Paired(units, lost - 1, gained + 1), 0.5, 3.0)
    assert RANK[better] >= RANK[worse]


def test_better_by_chance_is_not_yet_better():
    assert beats(Paired(20, 0, 8)) == "passed"
    assert beats(Paired(20, 1, 3)) == "thin"
    assert beats(Paired(20, 3, 3)) == "refused"


def test_the_accepted_risk_falls_as_evidence_grows():
    assert accepted_risk(20) == accepted_risk(400) == 0.25
    assert accepted_risk(2000) == pytest.approx(0.01)


@pytest.mark.parametrize("apart", [0.03, 0.05, 0.1, 0.2])
@pytest.mark.parametrize(("units", "worse_passed"), [(400, 0.3), (2000, 0.02)])
def test_error_rates_of_the_gate_are_those_that_are_promised(units, worse_passed, apart):
    found = simulate(units, apart=apart, draws=4000)
    assert found.equal_refused <= 0.055  # 0.05 and the noise of 4,000 draws
    assert found.equal_held <= 0.21
    assert found.worse_passed <= worse_passed + 0.005
    assert f"passes in {found.worse_passed:.1%}" in found.in_words()


def test_simulation_is_the_same_each_time():
    assert simulate(300, draws=500, seed=7) == simulate(300, draws=500, seed=7)


def test_command_prints_a_line_for_each_case(capsys):
    assert main(["--holdout", "40", "80", "--apart-percent", "5", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ['"units":40' in lines[0], '"units":80' in lines[1]] == [True, True]
