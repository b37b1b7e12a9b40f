"""Two machines under one id are seen, and what happens to one machine is not taken for two."""

from __future__ import annotations

import pytest

from edge_client.contract.report import DeviceReport, MachineFacts
from luigi_tasks.fleet.clones import WINDOW_S, RunHistory, find_clones, note_run


def told(*reports: tuple[str, str, int, int], every_s: float = 30.0) -> tuple[RunHistory, float]:
    """The history of reports (fingerprint, boot, start, sequence), and the time of the last one."""
    history, now = RunHistory(), 1e9
    for fingerprint, boot, start, sequence in reports:
        now += every_s
        machine = MachineFacts(fingerprint=fingerprint)
        report = DeviceReport(
            fleet="f",
            device="d",
            channel="stable",
            machine=machine,
            boot_id=boot,
            start=start,
            sequence=sequence,
        )
        history = note_run(history, report, now)
    return history, now


def run(fingerprint: str, boot: str, start: int, *sequences: int) -> list[tuple[str, str, int, int]]:
    """Reports of one run."""
    return [(fingerprint, boot, start, sequence) for sequence in sequences]


def alternating(one: tuple[str, str, int], other: tuple[str, str, int]) -> list[tuple[str, str, int, int]]:
    """Reports of two machines that are alive at once."""
    return [(*machine, sequence) for sequence in range(1, 5) for machine in (one, other)]


CLONES = {
    "two boards with copies of one card, machine id made anew": (
        alternating(("a", "x", 8), ("b", "y", 8)), ("a", "b")),
    "two boards with one machine id": (
        alternating(("a", "x", 8), ("a", "y", 8)), ("a boot x start 8", "a boot y start 8")),
    "two daemons on one machine": (
        alternating(("a", "x", 8), ("a", "x", 9)), ("a boot x start 8", "a boot x start 9")),
    "one of them restarts all the time": (
        [
            report
            for number in range(1, 6)
            for report in (*run("a", "x", 8, number), *run("b", f"y{number}", 8 + number, 1))
        ],
        ("a", "b"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CLONES)
def test_two_machines_under_one_id_are_seen(case):
    reports, expected = CLONES[case]
    history, now = told(*reports)
    assert find_clones(history, now) == expected
    assert find_clones(history, now + WINDOW_S + 1) == (), "one of them was given another id"


ONE_MACHINE = {
    "a quiet life": run("a", "x", 1, *range(1, 50)),
    "restarts and boots": [*run("a", "x", 1, 1, 2), *run("a", "x", 2, 1, 2), *run("a", "y", 3, 1, 2, 3)],
    "a board that was replaced": [*run("a", "x", 8, 1, 2, 3), *run("b", "y", 9, 1, 2, 3, 4)],
    "and put back later": [*run("a", "x", 8, 1, 2), *run("b", "y", 9, 1, 2), *run("a", "z", 10, 1, 2)],
    "a card written from an older image": [*run("a", "x", 8, 1, 2), *run("a", "y", 3, 1, 2, 3)],
    "messages that a broker sent twice, in any order": [
        *run("a", "x", 8, 1, 2, 3), *run("a", "x", 9, 1), *run("a", "x", 8, 3, 2), *run("a", "x", 9, 1, 2)],
    "one report that was late": [*run("a", "x", 8, 1, 2), *run("a", "x", 9, 1), *run("a", "x", 8, 3),
                                 *run("a", "x", 9, 2, 3)],
    "a client that tells neither": run("", "", 0, *range(1, 20)),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_MACHINE)
def test_one_machine_is_not_taken_for_two(case):
    history, now = told(*ONE_MACHINE[case])
    assert find_clones(history, now) == ()


def test_a_history_stays_small():
    history, _ = told(*(("a", f"boot {number}", number, 1) for number in range(200)))
    assert len(history.runs) < 10
    clones, _ = told(*(report for _ in range(50) for report in alternating(("a", "x", 8), ("b", "y", 8))))
    assert len(clones.returns) < 10
