"""The commands of rollouts, as a person and cron give them, under a real luigid."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time

import luigi
import pytest

from edge_client.contract.errors import InputError, SettingsError
from luigi_tasks.fleet import tasks
from luigi_tasks.fleet.tasks import AdvanceRollout, RefreshMetadata, Rollout
from luigi_tasks.workspace import open_workspace
from tests.fakes.rollout_fleet import QUICK, RolloutFleet


@pytest.fixture
def fleet(tmp_path):
    fleet = RolloutFleet(tmp_path)
    (tmp_path / "luigi.cfg").write_text(
        f"[store]\nurl = {fleet.settings.store.url}\n"
        f"[trust]\nroot = {tmp_path}/keys/device/root.json\nkeys = {tmp_path}/keys/pipeline\n"
        "[broker]\nhost =\n[rollout]\nsoak = 0s\n[scheduler]\nstable_done_cooldown_secs = 10\n"
    )
    return fleet


@pytest.fixture
def command(fleet, scheduler):
    def run(*arguments: str) -> tuple[int, str]:
        place = ["--scheduler-host", scheduler.host, "--scheduler-port", str(scheduler.port)]
        done = subprocess.run(
            [sys.executable, "-m", "luigi", "--module", "luigi_tasks", *arguments, *place],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=fleet.folder,
            env={**os.environ, "LUIGI_CONFIG_PATH": str(fleet.folder / "luigi.cfg")},
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_stages_without_a_registry_or_the_rollouts_key_are_refused_before_anything_is_trained(tmp_path):
    fleet = RolloutFleet(tmp_path)
    open_workspace(fleet.settings).check_release()

    shutil.rmtree(tmp_path / "bucket/fleet/registry")
    with pytest.raises(InputError, match="registry"):
        open_workspace(fleet.settings).check_release()
    (tmp_path / "keys/pipeline/rollouts.pem").unlink()
    with pytest.raises(SettingsError, match=r"rollouts\.pem"):
        open_workspace(fleet.settings).check_release()


def test_each_look_is_a_run_of_its_own_and_the_one_that_halts_fails(fleet, monkeypatch):
    settings = dataclasses.replace(fleet.settings, rollout=dataclasses.replace(QUICK, stages="1d,100%"))
    monkeypatch.setattr(tasks, "load_settings", lambda **_changes: settings)
    new = fleet.publish(1, move=False).release

    def run(task: luigi.Task) -> bool:
        report_now(fleet)
        return bool(luigi.build([task], local_scheduler=True, log_level="WARNING"))

    assert run(AdvanceRollout()), "no rollout is no failure"
    assert not run(Rollout(release=new, channel="stabel")), "nobody is on it"
    assert fleet.machine().stand("stabel").current is None
    assert run(Rollout(release=new))
    assert fleet.has(new) == 1
    assert run(AdvanceRollout())
    assert fleet.has(new) == 4
    fleet.verdicts.update(dict.fromkeys(fleet.serving, "sent_back"))
    assert not run(AdvanceRollout())
    assert fleet.has(new) == 0
    assert run(AdvanceRollout())
    assert run(Rollout(release=fleet.steady)), "the channel points to it"
    assert not run(Rollout(release=new)), "it was withdrawn"
    assert AdvanceRollout().task_id == AdvanceRollout().task_id, "two at once are one for luigid"
    refresh = RefreshMetadata()
    assert not refresh.complete(), "each run of cron looks"
    assert run(refresh), "nothing is due"


def report_now(fleet: RolloutFleet) -> None:
    fleet.now = time.time() + 1
    fleet.report(0)


@pytest.mark.slow
def test_a_rollout_by_command(fleet, command):
    new = fleet.publish(1, move=False).release
    report_now(fleet)
    code, said = command("Rollout", "--release", new, "--stages", "1d,half,100%")
    assert (code, "such as 1d,3d,10%,50%,100%" in said) == (30, True)

    given = ["Rollout", "--release", new, "--stages", "1d,50%,100%", "--approve", "2", "--not", "device=x"]
    code, said = command(*given, "--dry-run")
    assert code == 0
    assert "stage 1 (1d): 1 device; stage 2 (50%): 2 devices, 1 more; waits for a person" in said
    assert fleet.machine().stand("stable").current is None, "a dry run changes nothing"

    code, said = command(*given)
    assert (code, fleet.has(new)) == (0, 1)
    assert "is open, stage 1 of 3 (1 device)" in said

    # Cron, seconds later: luigid knows the task as done, and the look is taken all the same.
    for words in ("newer than the last look", "newer than the last look"):
        code, said = command("AdvanceRollout")
        assert (code, words in said) == (0, True)
    report_now(fleet)
    code, said = command("AdvanceRollout")
    assert (code, "waiting_for_approval" in said, fleet.has(new)) == (0, True, 1)
    report_now(fleet)
    code, said = command("Approve", "--why", "looks good")
    assert (code, fleet.has(new)) == (0, 2)

    fleet.verdicts.update(dict.fromkeys(fleet.serving, "sent_back"))
    report_now(fleet)
    code, said = command("AdvanceRollout")
    assert (code, "is going_back" in said, fleet.has(new)) == (30, True, 0)
    code, said = command("AdvanceRollout")
    assert code == 0, "cron mails it once"
    running = fleet.machine().stand("stable").running
    assert running is not None
    assert [one.what for one in running.document.events] == [
        "opened",
        "stage",
        "passed",
        "waiting",
        "approved",
        "stage",
        "halted",
        "going_back",
    ]
    code, said = command("Back")
    assert code == 0
    for _ in range(2):  # seconds apart, under one luigid
        code, said = command("RefreshMetadata")
        assert (code, "nothing is due; left: timestamp" in said) == (0, True)
