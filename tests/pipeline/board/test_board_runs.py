"""Runs that the board starts: what may be started, how they end, and that a board started anew finds them."""

from __future__ import annotations

import os
import signal

import pytest
from local_services import wait_until

from edge_client.contract.errors import InputError, SettingsError
from luigi_tasks.board.access.rights import Person
from luigi_tasks.board.runs import process as run_process
from luigi_tasks.board.runs import runs

ANN, BOB = Person("ann", "operator"), Person("bob", "operator")


@pytest.fixture
def place(fleet, tmp_path) -> runs.Runs:
    """Runs of a board."""
    return runs.Runs(tmp_path / "board")


def wait_for_end(place: runs.Runs, name: str) -> runs.Run:
    wait_until(lambda: not place.find(name).is_running, f"the end of {name}")
    return place.find(name)


def test_a_run_is_started_once_at_a_time_and_ends_with_its_code_in_words(place):
    name = place.start(["RefreshMetadata"], ANN)
    assert place.start(["RefreshMetadata"], BOB) == name, "a second start leads to the running one"
    ended = wait_for_end(place, name)
    assert (ended.state, ended.code, ended.by, ended.has_scheduler) == ("done", 0, "ann", False)
    assert "RefreshMetadata: nothing is published yet" in place.log_tail(name)
    assert [one.id for one in place.all()] == [name]


def test_a_stopped_run_and_one_that_is_killed_with_its_keeper_are_told_apart(place):
    stopped = place.start(["RefreshMetadata"], ANN)
    place.stop(stopped, BOB)
    killed = place.start(["AdvanceRollout", "--channel", "stable"], ANN)
    wait_until(lambda: place.find(killed).pid > 0, "its process")
    keeper = os.getpgid(place._born[-1].pid)
    os.killpg(keeper, signal.SIGKILL)
    assert wait_for_end(place, killed).state == "lost"
    ended = wait_for_end(place, stopped)
    assert (ended.state, "by bob" in ended.words) == ("stopped", True)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["RollBack", "--to", "x"],
        ["Deploy", "--pictures", "s3://else/where"],
        ["Deploy", "--module=os"],
        ["AdvanceRollout", "--channel", "../x"],
        ["AdvanceRollout", "--channel", "a", "--channel", "b"],
        ["AdvanceRollout", "--channel"],
        ["TakeLabelled"],
        ["TakeLabelled", "--labels", "/etc/passwd"],
        ["TakeLabelled", "--labels", "--new-labels"],
    ],
)
def test_nothing_but_the_table_is_an_argument(place, arguments):
    with pytest.raises(InputError):
        place.start(arguments, ANN)
    assert place.all() == []


def test_without_tensorflow_a_deploy_is_refused_with_the_way_out(place, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(SettingsError, match=r"pip install 'edge-fleet\[pipeline\]'"):
        place.start(["Deploy"], ANN)


def test_a_log_keeps_its_end_in_bounded_room_and_is_text(place, monkeypatch):
    monkeypatch.setattr(run_process, "LOG_BYTES", 1000)
    folder = place.folder
    folder.mkdir(parents=True)
    log = run_process.BoundedLog(folder / "20261128T000000Z-a.log")
    for number in range(200):
        log.write(f"line {number} \x1b[31m\u202e\xff\n".encode("latin-1", "replace"))
    assert sum(one.stat().st_size for one in folder.iterdir()) < 2200
    tail = place.log_tail("20261128T000000Z-a", 1500)
    assert "line 199" in tail
    assert "\x1b" not in tail
    assert "\\x1b" in tail
    log.write(
        b"with value 'http://me:secret@luigid:8082' that; https://x/pictures.zip?sig=secret; s3://b/a/key\n"
    )
    assert place.log_tail("20261128T000000Z-a").splitlines()[-1] == (
        "with value 'http://luigid:8082' that; https://x; s3://b/a/key"
    )
