"""One daemon, several channels; what a release is for; drift and kept frames in the status."""

from __future__ import annotations

import json

import pytest
from local_services import wait_until

from edge_client.contract.release import HoldOut
from edge_client.inbox.keeper import kept_records
from tests.fakes.device_daemon import Watcher, assert_answers

pytestmark = pytest.mark.slow


@pytest.fixture
def doors(mqtt_broker, fleet):
    watcher = Watcher(mqtt_broker, fleet, channel="doors")
    yield watcher
    watcher.close()


@pytest.fixture
def both(daemon, watcher, doors, repository):
    """The daemon serves a release of each channel; returns their ids."""
    daemon.settings["device"]["more_channels"] = "doors"
    first = repository.publish_tiny(0).release
    second = repository.publish_tiny(1, channel="doors").release
    daemon.start()
    watcher.wait_release(first)
    doors.wait_release(second)
    return first, second


def test_every_frame_is_answered_on_every_channel(daemon, watcher, doors, both):
    first, second = both
    for label in ("red", "green", "blue"):
        name = daemon.drop(label)
        for seen, release, channel in ((watcher, first, "stable"), (doors, second, "doors")):
            seen.wait(lambda w, name=name: any(r.source == name for r in w.results), f"the answer to {name}")
            [result] = [r for r in seen.results if r.source == name]
            assert (result.label, result.release, result.channel) == (label, release, channel)
    wait_until(lambda: not any(daemon.camera.iterdir()), "the pictures to be done with")


def test_each_channel_is_updated_by_itself(daemon, watcher, doors, repository, both):
    first, second = both
    third = repository.publish_tiny(2, channel="doors").release
    watcher.announce(third, "doors")
    status = doors.wait_release(third)
    assert (status.channel, status.previous) == ("doors", second)
    assert watcher.status.release == first
    assert_answers(daemon, watcher, first)
    assert_answers(daemon, doors, third)


def test_a_broken_release_of_one_channel_leaves_the_other_alone(daemon, watcher, doors, repository, both):
    first, second = both
    broken = repository.publish_tiny(5, channel="doors", model=b"no model").release
    watcher.announce(broken, "doors")
    doors.wait_status(lambda s: s.refused == broken, "the refusal")
    assert_answers(daemon, doors, second)
    assert watcher.status.last_error is None
    assert_answers(daemon, watcher, first)


def test_a_channel_without_a_release_yet_keeps_no_other_waiting(daemon, watcher, doors, repository):
    daemon.settings["device"]["more_channels"] = "doors"
    first = repository.publish_tiny(0).release
    daemon.start()
    watcher.wait_release(first)
    doors.wait_status(lambda s: s.state == "waiting", "the other channel's status")
    assert_answers(daemon, watcher, first)
    second = repository.publish_tiny(1, channel="doors").release
    watcher.announce(second, "doors")
    doors.wait_release(second)


def test_status_and_bundles_know_channels(daemon, watcher, doors, repository, both, tmp_path):
    first, _second = both
    told = json.loads(daemon.ask("status", "--json").stdout)
    assert (told["channel"], told["release"]) == ("stable", first)
    assert [one["channel"] for one in told["more_channels"]] == ["doors"]
    assert daemon.ask("status").stdout.count("\nrelease ") == 2
    third = repository.publish_tiny(2, channel="doors").release
    bundle = tmp_path / "doors.tar"
    made = daemon.ask("export", "--channel", "doors", str(bundle))
    assert third in made.stdout, made.stderr
    taken = daemon.ask("import", "--channel", "doors", str(bundle))
    assert f"release {third} serves" in taken.stdout, taken.stderr
    doors.wait_release(third)
    assert watcher.status.release == first
    refused = daemon.ask("import", "--channel", "windows", str(bundle))
    assert refused.returncode == 2
    assert "stable, doors" in refused.stderr


def test_a_bundle_for_one_channel_installs_nothing_on_another(daemon, watcher, doors, repository, tmp_path):
    daemon.settings["device"]["more_channels"] = "doors"
    daemon.settings["update"]["automatic"] = False
    first = repository.publish_tiny(0).release
    repository.publish_tiny(1, channel="doors")
    daemon.start()
    watcher.wait_release(first)
    doors.wait_status(lambda s: s.state == "serving", "the other channel")
    held = repository.publish_tiny(2).release
    watcher.announce(held)
    watcher.wait_status(lambda s: s.latest == held, "the release to be known")
    third = repository.publish_tiny(3, channel="doors").release
    bundle = tmp_path / "doors.tar"
    daemon.ask("export", "--channel", "doors", str(bundle))
    taken = daemon.ask("import", "--channel", "doors", str(bundle))
    assert f"release {third} serves" in taken.stdout, taken.stderr
    asked = len(repository.requests)
    assert_answers(daemon, watcher, first)
    assert len(repository.requests) == asked
    assert watcher.status.release == first
    assert daemon.ask("update").returncode == 0
    watcher.wait_release(held)


def test_state_of_a_channel_that_is_not_followed_any_more_is_removed(daemon, watcher, doors, both):
    first, _second = both
    assert daemon.terminate() == 0
    assert (daemon.state_dir / "channels/doors/slots").is_dir()
    daemon.settings["device"]["more_channels"] = ""
    daemon.start()
    assert_answers(daemon, watcher, first)
    assert not (daemon.state_dir / "channels/doors").exists()


def test_a_release_for_another_class_of_devices_is_refused(daemon, watcher, repository):
    daemon.settings["device"]["device_class"] = "orchard"
    first = repository.publish_tiny(0, device_class="orchard").release
    daemon.start()
    watcher.wait_release(first)
    other = repository.publish_tiny(1, device_class="shop").release
    watcher.announce(other)
    status = watcher.wait_status(lambda s: s.refused == other, "the refusal")
    assert status.release == first
    assert "for devices of class 'shop', this one is of class 'orchard'" in status.last_error
    everybody = repository.publish_tiny(2).release
    watcher.announce(everybody)
    watcher.wait_release(everybody)


def test_drift_is_part_of_the_status_and_survives_a_restart(daemon, watcher, repository):
    hold_out = HoldOut(labels=(100, 100, 100), confidence=(0,) * 9 + (300,))
    release = repository.publish_tiny(0, hold_out=hold_out).release
    daemon.start()
    watcher.wait_release(release)
    for label in ["red", "grey"] * 205:
        daemon.drop(label)
    status = watcher.wait_status(lambda s: s.drift is not None and s.drift.alarm, "the alarm")
    assert status.drift.labels > 0.25  # the camera sees red, which the release is sure of, and grey
    assert status.drift.shift > 0.2
    assert daemon.terminate() == 0
    assert daemon.log.count("drift: release") == 1
    answers = json.loads((daemon.state_dir / "drift.json").read_bytes())["answers"]

    watcher.status = None
    daemon.start()
    again = watcher.wait_status(lambda s: s.drift is not None, "drift, without a new picture")
    assert (again.drift.answers, again.drift.alarm) == (len(answers), True)
    assert again.drift.since == status.drift.since
    assert f"ALARM since {again.drift.since}" in daemon.ask("status").stdout


def test_unsure_frames_are_kept_and_counted_in_the_status(daemon, watcher, repository):
    daemon.settings["inbox"] = {"unsure_below": 0.9, "per_hour": 1e6}
    release = repository.publish_tiny(0).release
    daemon.start()
    watcher.wait_release(release)
    assert_answers(daemon, watcher, release)
    folder = daemon.state_dir / "inbox"
    assert kept_records(folder) == []
    daemon.drop("grey")
    wait_until(lambda: len(kept_records(folder)) == 1, "the frame")
    status = watcher.wait_status(lambda s: s.inbox is not None and s.inbox.waiting == 1, "the inbox")
    assert (status.inbox.uploaded, status.inbox.error) == (0, None)
    assert "1 frames wait" in daemon.ask("status").stdout
