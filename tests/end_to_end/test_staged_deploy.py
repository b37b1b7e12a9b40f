"""`Deploy` with stages: an hourly run leaves a rollout alone, and what waits is gated again after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import luigi
import pytest

from luigi_tasks import roll_back, task
from luigi_tasks.fleet import tasks
from luigi_tasks.fleet.tasks import AdvanceRollout
from luigi_tasks.pipeline import Deploy, EvaluateModel
from luigi_tasks.roll_back import RollBack
from tests.fakes.rollout_fleet import RolloutFleet
from tests.fakes.site import Site, plain

if TYPE_CHECKING:
    from luigi_tasks.fleet.records import RolloutRecord

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def site(tmp_path, small_weights, monkeypatch):
    site = Site(tmp_path, small_weights, ("", 1883))
    for module in (task, roll_back, tasks):
        monkeypatch.setattr(module, "load_settings", site.load_settings)
    with site.listening():
        yield site


def pictures(count: int):
    return {**plain("red", "red", count), **plain("blue", "blue", count)}


def running(fleet: RolloutFleet) -> RolloutRecord:
    found = fleet.machine().stand("stable").running
    assert found is not None
    return found.document


def test_a_rollout_is_left_alone_and_the_next_release_waits_and_is_gated_again(site, tmp_path):
    site.deploy(pictures(60))
    first = site.released
    site.rollout = {"stages": "1d,50%,100%", "soak": "0s"}
    fleet = RolloutFleet(tmp_path, settings=site.load_settings())
    fleet.report(0)

    site.deploy(pictures(62))
    record = running(fleet)
    second = record.release
    assert (record.state, record.from_release, site.released) == ("open", first, first)
    assert fleet.has(second) == 1
    assert Deploy(pictures=str(site.pictures)).complete(), "an hour later there is nothing to do"

    site.deploy(pictures(64))  # newer pictures, meanwhile
    assert Deploy(pictures=str(site.pictures)).complete()
    third = fleet.machine().stand("stable").queued
    assert third not in {"", first, second}
    assert fleet.machine().repository.load().release(third) is None, "what waits is not signed"
    judged = site.last.clone(EvaluateModel).output().key

    while fleet.look():
        pass
    assert (site.released, fleet.has(second)) == (second, 4)
    assert not Deploy(pictures=str(site.pictures)).complete()
    site.deploy(pictures(64))
    assert site.last.clone(EvaluateModel).output().key != judged, "gated against the new champion"
    record = running(fleet)
    assert (record.release, record.from_release) == (third, second)
    assert fleet.machine().stand("stable").queued == ""

    assert luigi.build([AdvanceRollout()], local_scheduler=True, log_level="WARNING")
    assert luigi.build([RollBack(to=first)], local_scheduler=True, log_level="WARNING")
    assert (site.released, fleet.has(first)) == (first, 4)
    assert fleet.machine().stand("stable").running is None
    assert Deploy(pictures=str(site.pictures)).complete(), "what a person ended is not started again"
