"""`edge-client run` as a user runs it: a real process, a real broker, a repository that lies.

The tests only see the outside: the broker, the disk, the exit code.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import threading
import time
import urllib.request
import uuid

import pytest
from local_services import wait_until
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edge_client.contract.documents import encode_document
from edge_client.contract.messages import Announcement, SureMetrics
from edge_client.contract.names import (
    command_topic,
)
from edge_client.contract.release import OperatingPoint
from tests.fakes.device_daemon import DEVICE, LIMIT_S, Watcher, answer_all, assert_answers
from tests.fakes.tiny_model import tiny_model
from tests.fakes.tiny_release import tiny_release
from tests.fault_table import Kind

pytestmark = pytest.mark.slow


@pytest.mark.runtime
def test_a_first_release_is_announced_downloaded_and_served(daemon, watcher, repository):
    daemon.drop("red")
    daemon.start()
    status = watcher.wait_status(lambda s: s.state == "waiting", "waiting")
    assert status.release is None
    assert "litert" in status.runtime or "tflite" in status.runtime
    assert list(daemon.camera.iterdir()), "frames are not consumed before there is a release"
    document = repository.publish_tiny(0)
    watcher.announce(document.release)
    watcher.wait_release(document.release)
    assert_answers(daemon, watcher, document.release)
    status = watcher.wait_status(lambda s: s.update is not None, "the metrics of the update")
    assert status.update.release == document.release
    assert status.update.bytes_pulled > document.model_bytes
    assert 0 < status.update.seconds < LIMIT_S
    status = watcher.wait_status(lambda s: s.frames == 2, "both frames counted")
    assert status.latency_ms > 0
    assert status.last_error is None
    assert [(r.frame, r.label) for r in watcher.results] == [(1, "red"), (2, "blue")]
    assert sum(watcher.results[0].top.values()) == pytest.approx(1, abs=0.02)


@pytest.mark.runtime
def test_a_swap_misses_no_frame(daemon, watcher, repository, serving):
    """Pictures keep coming through the update; every one is answered rightly, once, in order."""
    dropped: list[str] = []
    stop = threading.Event()

    def feed() -> None:
        for label in itertools.cycle(("red", "green", "blue")):
            dropped.append(daemon.drop(label))
            if stop.wait(0.005):
                return

    thread = threading.Thread(target=feed)
    thread.start()
    release = repository.publish_tiny(1).release
    watcher.announce(release)
    watcher.wait(lambda w: any(r.release == release for r in w.results), "an answer by the new release")
    stop.set()
    thread.join()
    watcher.wait(lambda w: len(w.results) >= len(dropped), "all answers")
    results = watcher.results
    assert [r.frame for r in results] == list(range(1, len(dropped) + 1))
    assert sorted(r.source for r in results) == dropped
    assert all(r.label in r.source for r in results)
    releases = [r.release for r in results]
    assert [key for key, _ in itertools.groupby(releases)] == [serving, release]
    status = watcher.wait_release(release)
    assert status.previous == serving


@pytest.mark.runtime
def test_a_release_that_does_worse_on_live_frames_is_rolled_back(daemon, watcher, repository, serving):
    answer_all(daemon, watcher, "red", 30)
    release = repository.publish_tiny(1).release
    watcher.announce(release)
    assert watcher.wait_release(release).probation
    answer_all(daemon, watcher, "grey", 20)
    status = watcher.wait_status(lambda s: s.refused == release, "the way back")
    assert status.release == serving
    assert status.probation is False
    assert "unsure of 100% of the frames" in status.last_error
    assert_answers(daemon, watcher, serving)
    # Not tried again, also after a restart, until the channel moves.
    daemon.terminate()
    daemon.start()
    watcher.wait(lambda w: w.online == "online", "online again")
    status = watcher.wait_status(lambda s: s.refused == release and s.state == "serving", "still refused")
    assert status.release == serving


@pytest.mark.runtime
def test_a_release_that_does_well_passes_its_probation(daemon, watcher, repository, serving):
    daemon.settings["probation"] = {"frames": 25}
    daemon.terminate()
    daemon.start()
    watcher.wait_release(serving)
    answer_all(daemon, watcher, "red", 30)
    release = repository.publish_tiny(1).release
    watcher.announce(release)
    assert watcher.wait_release(release).probation
    answer_all(daemon, watcher, "green", 25)
    status = watcher.wait_status(lambda s: not s.probation, "the end of the probation")
    assert (status.release, status.previous, status.last_error) == (release, serving, None)


def test_going_back_is_followed(daemon, watcher, repository, serving):
    release = repository.publish_tiny(1).release
    watcher.announce(release)
    watcher.wait_release(release)
    repository.point("stable", serving)
    watcher.announce(serving)
    status = watcher.wait_release(serving)
    assert status.previous == release
    assert_answers(daemon, watcher, serving)


def test_an_announced_release_that_does_not_exist_is_checked_for_and_changes_nothing(
    daemon, watcher, repository, serving
):
    asked = len(repository.requests)
    watcher.announce("feedbeef")
    status = watcher.wait_status(lambda s: s.last_error is not None, "the error")
    assert "feedbeef was announced" in status.last_error
    assert f"points to {serving}" in status.last_error
    assert "metadata/timestamp.json" in repository.requests[asked:]
    assert status.release == serving
    assert_answers(daemon, watcher, serving)
    release = repository.publish_tiny(1).release
    watcher.announce(release)
    assert watcher.wait_release(release).last_error is None


def test_a_release_announced_before_the_store_shows_it_is_checked_for_again(
    daemon, watcher, repository, serving
):
    """A CDN before the store may show the old channel for a while."""
    asked, announced = len(repository.requests), time.monotonic()
    release = tiny_release(1)[0].release
    watcher.announce(release)
    checks = lambda: repository.requests[asked:].count("metadata/timestamp.json")  # noqa: E731
    wait_until(lambda: checks() >= 2, "a second check", LIMIT_S)
    assert_answers(daemon, watcher, serving)
    late_s = time.monotonic() - announced
    repository.publish_tiny(1)
    assert watcher.wait_release(release).last_error is None
    assert_answers(daemon, watcher, release)
    status = watcher.wait_status(lambda s: s.update and s.update.release == release, "the metrics")
    assert status.update.seconds > late_s


def test_a_flood_of_announcements_costs_few_update_checks(daemon, watcher, repository, serving):
    asked, started = len(repository.requests), time.monotonic()
    while time.monotonic() - started < 2:
        flood = Announcement(channel="stable", release=uuid.uuid4().hex, announced_at="")
        watcher.publish(encode_document(flood), retain=False)
    release = repository.publish_tiny(1).release
    watcher.announce(release)
    watcher.wait_release(release)
    checks = repository.requests[asked:].count("metadata/timestamp.json")
    assert checks <= time.monotonic() - started + 2


@pytest.mark.parametrize("lie", ["changed byte", "wrong key", "expired", "older"])
def test_a_lie_of_the_store_is_refused_and_reported(daemon, watcher, repository, serving, lie):
    before = dict(repository.objects)
    if lie == "older":
        serving = repository.publish_tiny(1).release
        watcher.announce(serving)
        watcher.wait_release(serving)
        repository.go_back_to(before)
    elif lie == "changed byte":
        document, files = tiny_release(1)
        repository.publish(document.release, files)
        repository.change_byte(next(p for p in repository.objects if document.release in p and "tflite" in p))
    elif lie == "wrong key":
        repository.steal("targets")
        repository.publish_tiny(1)
    else:
        repository.expire("timestamp")
        repository.publish_tiny(1)
    watcher.announce("x" if lie == "older" else tiny_release(1)[0].release)
    words = {"changed byte": "was altered", "wrong key": "keys", "expired": "clock", "older": "older than"}
    status = watcher.wait_status(lambda s: s.last_error is not None and words[lie] in s.last_error, lie)
    assert status.release == serving
    assert status.refused is None
    assert_answers(daemon, watcher, serving)


@pytest.mark.runtime
def test_a_release_that_this_device_cannot_run_is_refused_and_reported(daemon, watcher, repository, serving):
    document, files = tiny_release(1, model=tiny_model(1, fully_connected_version=99))
    repository.publish(document.release, files)
    watcher.announce(document.release)
    status = watcher.wait_status(lambda s: s.refused == document.release, "the refusal")
    assert "FULLY_CONNECTED" in status.last_error
    assert status.release == serving
    assert_answers(daemon, watcher, serving)


def test_sigterm_ends_cleanly_and_publishes_offline(daemon, watcher, serving):
    watcher.wait(lambda w: w.online == "online", "online")
    assert daemon.terminate() == 0
    watcher.wait(lambda w: w.online == "offline", "offline")
    assert "Traceback" not in daemon.log
    answer = daemon.ask("status", "--json")
    status = json.loads(answer.stdout)
    assert (status["running"], status["release"]) == (False, serving)


def test_sigint_ends_cleanly_too(daemon, watcher, serving):
    assert daemon.terminate(signal.SIGINT) == 0
    watcher.wait(lambda w: w.online == "offline", "offline")


def test_sigkill_leaves_the_last_will_and_the_release(daemon, watcher, repository, serving):
    watcher.wait(lambda w: w.online == "online", "online")
    daemon.terminate(signal.SIGKILL)
    watcher.wait(lambda w: w.online == "offline", "the last will")
    repository.stop()
    daemon.start()
    watcher.wait(lambda w: w.online == "online", "online again")
    assert_answers(daemon, watcher, serving)


def test_a_device_serves_without_store_and_broker(daemon, watcher, repository, serving):
    """Everything but the disk and the camera is gone."""
    assert daemon.terminate() == 0
    repository.stop()
    out = daemon.folder / "results.jsonl"
    daemon.settings["broker"]["port"] = 1
    daemon.settings["sinks"]["json_lines"] = str(out)
    daemon.settings["source"] |= {"kind": "files", "path": str(daemon.camera / "*.png")}
    name = daemon.drop("green")
    daemon.start()
    assert daemon.process.wait(LIMIT_S) == 0
    [result] = [json.loads(line) for line in out.read_text().splitlines()]
    assert (result["source"], result["label"], result["release"]) == (name, "green", serving)


def test_a_release_published_while_the_store_was_down_is_taken_by_a_retry(
    daemon, watcher, repository, serving
):
    repository.stop()
    release = tiny_release(1)[0].release
    watcher.announce(release)
    status = watcher.wait_status(lambda s: s.last_error is not None, "the error")
    assert "refused" in status.last_error
    assert_answers(daemon, watcher, serving)
    repository.publish_tiny(1)
    repository.start()
    assert watcher.wait_release(release).last_error is None


def test_polling_finds_a_release_without_an_announcement(daemon, watcher, repository):
    daemon.settings["update"]["poll_s"] = 0.3
    first = repository.publish_tiny(0).release
    daemon.start()
    watcher.wait_release(first)
    second = repository.publish_tiny(1).release
    watcher.wait_release(second)


def test_after_a_restart_of_the_broker_status_and_announcements_arrive_again(
    daemon, tmp_path, repository, fleet
):
    """A broker that forgot everything: the device subscribes again and publishes its state again."""
    from local_services import MqttBroker  # noqa: PLC0415

    with MqttBroker(tmp_path / "broker") as broker:
        daemon.settings["broker"]["port"] = broker.port
        first = repository.publish_tiny(0).release
        daemon.start()
        with contextlib.closing(Watcher(broker, fleet)) as watcher:
            watcher.wait_release(first)
        broker.stop()
        broker.start()
        with contextlib.closing(Watcher(broker, fleet)) as watcher:
            watcher.wait_release(first)
            watcher.wait(lambda w: w.online == "online", "online")
            second = repository.publish_tiny(1).release
            watcher.announce(second)
            watcher.wait_release(second)


def test_a_source_that_comes_later_is_opened_then(daemon, watcher, repository, serving):
    assert daemon.terminate() == 0
    daemon.camera.rmdir()
    daemon.start()
    watcher.wait_status(lambda s: s.last_error is not None and "camera" in s.last_error, "the source's fault")
    daemon.camera.mkdir()
    assert_answers(daemon, watcher, serving)


@pytest.mark.parametrize("lock", ["there", "removed"])
def test_one_state_folder_serves_one_daemon(daemon, watcher, serving, lock, faults):
    with faults.injected(Kind.STATE, "second daemon on one state folder, lock file", lock):
        if lock == "removed":
            (daemon.state_dir / "lock").unlink()
        second = daemon.ask("run")
        assert second.returncode == 5
        assert "another edge-client" in second.stderr
        assert "Traceback" not in second.stderr
        assert_answers(daemon, watcher, serving)


def test_without_a_root_of_trust_a_new_device_ends_with_an_error(daemon):
    (daemon.folder / "root.json").unlink()
    answer = daemon.ask("run")
    assert answer.returncode == 2
    assert "[trust] root" in answer.stderr


@pytest.mark.runtime
def test_status_of_a_running_daemon_is_shown(daemon, watcher, serving):
    answer = daemon.ask("status")
    assert answer.returncode == 0
    assert "running" in answer.stdout
    assert serving in answer.stdout


def test_status_before_any_run_is_an_error_with_the_way_out(daemon):
    answer = daemon.ask("status")
    assert answer.returncode == 5
    assert "start `edge-client run`" in answer.stderr


def test_the_state_folder_holds_nothing_superfluous_after_kills(daemon, watcher, repository, serving):
    """Killed at random points of updates; each restart serves and sweeps."""
    current = serving
    for bias in (1, 2, 3):
        release = repository.publish_tiny(bias, labels=4).release
        watcher.announce(release)
        watcher.wait_status(lambda s, new=release: s.state == "updating" or s.release == new, "the update")
        daemon.terminate(signal.SIGKILL)
        daemon.start()
        watcher.wait_release(release)
        current = release
    assert_answers(daemon, watcher, current)
    assert daemon.terminate() == 0
    names = {path.name for path in daemon.state_dir.iterdir()}
    assert names <= {
        "slots",
        "slots.json",
        "slots.copy.json",
        "activated",
        "figures.json",
        "status.json",
        "metadata",
        "lock",
        "incoming",
        "crash.txt",
    }
    assert len(list((daemon.state_dir / "slots").iterdir())) == 2


def wait_held(watcher, release):
    return watcher.wait_status(lambda s: s.latest == release, f"release {release} to be known")


def test_a_release_waits_until_it_is_requested(daemon, watcher, repository):
    """By the command line, and by the broker as Home Assistant's button does it."""
    daemon.settings["update"] |= {"automatic": False}
    first = repository.publish_tiny(0).release
    daemon.start()
    watcher.wait_release(first)
    second = repository.publish_tiny(1).release
    watcher.announce(second)
    held = wait_held(watcher, second)
    assert held.release == first
    assert "waits for `edge-client update`" in held.why
    assert daemon.ask("update").returncode == 0
    status = watcher.wait_release(second)
    assert status.why == "channel stable points to it"
    third = repository.publish_tiny(2).release
    watcher.announce(third)
    assert wait_held(watcher, third).release == second
    watcher._client.publish(command_topic(watcher.fleet, DEVICE), b"anything else", qos=1)
    watcher._client.publish(command_topic(watcher.fleet, DEVICE), b"install", qos=1)
    watcher.wait_release(third)


def test_the_update_command_needs_a_daemon(daemon):
    told = daemon.ask("update")
    assert told.returncode == 5
    assert "no daemon runs" in told.stderr
    daemon.state_dir.mkdir()
    told = daemon.ask("update", "--retry")
    assert "no daemon runs" in told.stderr
    assert not list(daemon.state_dir.iterdir())  # nothing that a later request would obey


@pytest.mark.runtime
def test_home_assistant_finds_the_device_and_metrics_are_served(
    daemon, watcher, repository, mqtt_broker, faults
):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    prefix = f"ha-{watcher.fleet}"
    daemon.settings |= {"homeassistant": {"discovery": True, "prefix": prefix}, "metrics": {"port": port}}
    told: dict[str, bytes] = {}
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.on_message = lambda _c, _u, message: told.__setitem__(message.topic, bytes(message.payload))
    client.connect(mqtt_broker.host, mqtt_broker.port)
    client.loop_start()
    client.subscribe(f"{prefix}/#", qos=1)
    try:
        release = repository.publish_tiny(0).release
        daemon.start()
        watcher.wait_release(release)
        wait_until(lambda: len(told) == 5, "five entities")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            assert f'release="{release}"' in answer.read().decode()
        # Readers that never finish keep neither the daemon nor its farewell.
        with contextlib.ExitStack() as slow:
            slow.enter_context(faults.injected(Kind.RESULTS, "metrics", "readers that never finish; SIGTERM"))
            for _ in range(20):
                reader = slow.enter_context(socket.create_connection(("127.0.0.1", port)))
                reader.sendall(b"GET /metr")
            assert daemon.terminate() == 0
            watcher.wait(lambda w: w.online == "offline", "the farewell")
        # Discovery is switched off: the entities go.
        del daemon.settings["homeassistant"]
        daemon.start()
        wait_until(lambda: set(told.values()) == {b""}, "the entities to be removed")
        assert len(told) == 5
    finally:
        client.disconnect()
        client.loop_stop()


def test_a_metrics_port_without_the_library_is_reported_and_frames_are_classified(
    daemon, watcher, repository, monkeypatch, tmp_path
):
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent/prometheus_client.py").write_text("raise ImportError('not installed')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'absent'}:{os.environ.get('PYTHONPATH', '')}")
    daemon.settings["metrics"] = {"port": 9100}
    release = repository.publish_tiny(0).release
    daemon.start()
    status = watcher.wait_release(release)
    assert "pip install 'edge-fleet[metrics]'" in status.warning
    assert "pip install 'edge-fleet[metrics]'" in daemon.log
    assert_answers(daemon, watcher, release)


HOSTILE_ANNOUNCEMENTS = [b"", b"\xff\xfe", b"x" * 200_000]


def test_hostile_announcements_stop_neither_frames_nor_updates(daemon, watcher, repository, serving):
    for payload in HOSTILE_ANNOUNCEMENTS:
        watcher.publish(payload, retain=False)
    watcher.wait_status(lambda s: "not a valid announcement" in (s.last_error or ""), "the refusal")
    assert_answers(daemon, watcher, serving)
    release = repository.publish_tiny(1).release
    watcher.announce(release)
    watcher.wait_release(release)
    assert_answers(daemon, watcher, release)


def test_a_prediction_that_is_not_sure_is_said_kept_and_not_acted_on(daemon, watcher, repository, tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    seen = tmp_path / "seen"
    daemon.settings |= {
        "action": {"labels": "red, green, blue", "threshold": 0.1, "release_below": 0.1}
        | {"hold_off_s": 0.0, "on_command": f"sh -c 'echo $EDGE_SOURCE >> {seen}'"},
        "inbox": {"unsure": True, "per_hour": 3600.0},
        "metrics": {"port": port},
    }
    point = OperatingPoint(precision=0.95, thresholds=(0.9, 0.9, 0.9), coverage=0.75)
    release = repository.publish_tiny(0, operating_point=point, evidence="5 pictures of red").release
    daemon.start()
    assert watcher.wait_release(release).evidence == "5 pictures of red"
    unsure, sure = daemon.drop("grey"), daemon.drop("green")
    watcher.wait(lambda w: len(w.results) == 2, "both answers")
    assert [(one.source, one.sure) for one in watcher.results] == [(unsure, False), (sure, True)]
    assert (watcher.results[0].label, watcher.results[0].top.keys()) == ("red", {"red", "green", "blue"})
    status = watcher.wait_status(lambda s: s.sure is not None and s.sure.answers == 2, "the share")
    assert status.sure == SureMetrics(precision=0.95, coverage=0.75, answers=2, share=0.5)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    assert 'label="unknown",sure="false"} 1.0' in text
    assert 'label="green",sure="true"} 1.0' in text
    inbox = daemon.state_dir / "inbox"
    wait_until(lambda: len(list(inbox.glob("*.json"))) == 1, "the unsure frame")
    [record] = [json.loads(path.read_text()) for path in inbox.glob("*.json")]
    assert (record["why"], record["label"], record["sure"]) == ("unsure", "red", False)
    wait_until(seen.exists, "the command")
    assert daemon.terminate() == 0
    assert seen.read_text().split() == [sure]
    shown = daemon.ask("status").stdout
    assert "50% of 2 predictions (75% of the calibration pictures" in shown
    assert "5 pictures of red" in shown


def test_a_command_runs_when_its_label_comes(daemon, watcher, serving, tmp_path):
    assert daemon.terminate() == 0
    seen = tmp_path / "seen"
    daemon.settings["action"] = {"labels": "green", "on_command": f"touch '{seen}'"}
    daemon.start()
    daemon.drop("red")
    name = daemon.drop("green")
    watcher.wait(lambda w: any(result.source == name for result in w.results), "the answer")
    wait_until(seen.exists, "the command")
