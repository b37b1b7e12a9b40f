"""Labels that the settings name and no release has: said at the start, in status, doctor, after updates."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from local_services import wait_until

from edge_client.daemon import labels
from edge_client.daemon.labels import LabelWatch
from edge_client.serving.held import HeldLabels
from edge_client.settings.file import load_settings
from edge_client.settings.labels import unknown_watched
from tests.fakes.tiny_model import TINY_LABELS

FRUIT = HeldLabels(("ripe", "rotten", "screw, M3"), ())
DOORS = HeldLabels(("open", "shut"), ())
ACTION = '[action]\non_command = "true"\nlabels = '
PRIVATE = "[inbox]\nunsure = true\nnever_labels = "


@pytest.fixture
def watch(tmp_path, caplog):
    """Make a watch over settings and what each channel holds; it tells its warnings and its log."""

    def make(text: str, held: list[HeldLabels | None]) -> tuple[tuple[str, ...], list[str]]:
        file = tmp_path / "device.toml"
        file.write_text(f'[device]\nid = "c"\n[store]\nbase_url = "http://s/b"\n[source]\npath = "x"\n{text}')
        watch = LabelWatch(load_settings(file), lambda: held)
        caplog.clear()
        found = watch.warnings()
        assert watch.warnings() == found
        return found, [record.getMessage() for record in caplog.records]

    return make


@pytest.mark.parametrize(
    ("text", "held", "told"),
    [
        (f'{ACTION}"ripe, rotten"', [FRUIT], ""),
        (f'{ACTION}["screw, M3"]', [FRUIT], ""),
        (f'{ACTION}"screw, M3"', [FRUIT], "has screw (did you mean screw, M3?), M3"),
        (
            f'{ACTION}"Ripe"',
            [FRUIT],
            "[action] labels: no release here has Ripe (did you mean ripe?), so",
        ),
        (f'{ACTION}"riep"', [FRUIT], "riep (did you mean ripe?)"),
        (
            f'{ACTION}"cat"',
            [FRUIT],
            "has cat, so nothing switches for it; correct it; there are ripe, rotten",
        ),
        (f'{ACTION}"ripe, open"', [FRUIT, DOORS], ""),
        (f'{ACTION}"ripe, opne"', [FRUIT, DOORS], "no release here has opne (did you mean open?)"),
        (f'{ACTION}"opne"', [FRUIT, None], ""),
        (f'{ACTION}"ripe"', [HeldLabels(("raw",), ("ripe",))], "no release here has ripe"),
        (
            f'{PRIVATE}"ripe, face"',
            [FRUIT],
            "[inbox] never_labels: no release here has face, so frames",
        ),
        (f'{PRIVATE}"face"', [HeldLabels(("raw",), ("face",))], ""),
        (f'{PRIVATE.replace("true", "false")}"face"', [FRUIT], ""),
    ],
)
def test_a_label_that_no_serving_release_has_is_warned_of_once(watch, text, held, told):
    warnings, logged = watch(text, held)
    assert logged == list(warnings)
    assert bool(warnings) == bool(told)
    assert told in "".join(warnings)


def test_status_and_report_that_ask_at_once_are_told_the_same(tmp_path, monkeypatch):
    file = tmp_path / "device.toml"
    text = f'[device]\nid = "c"\n[store]\nbase_url = "http://s/b"\n[source]\npath = "x"\n{ACTION}"cat"'
    file.write_text(text)
    watch, told = LabelWatch(load_settings(file), lambda: [FRUIT]), dict[str, tuple[str, ...]]()
    looking, go_on = threading.Event(), threading.Event()

    def look(*arguments: Any) -> str | None:
        looking.set()
        assert go_on.wait(60)
        return unknown_watched(*arguments)

    monkeypatch.setattr(labels, "unknown_watched", look)  # looking takes microseconds
    threads = [
        threading.Thread(target=lambda name=name: told.update({name: watch.warnings()}))
        for name in ("status", "report")
    ]
    threads[0].start()
    assert looking.wait(60)
    threads[1].start()
    threads[1].join(0.2)
    go_on.set()
    for one in threads:
        one.join(60)
    assert told["status"]
    assert told["report"] == told["status"]


@pytest.mark.slow
def test_a_label_is_missed_at_the_start_and_after_an_update_that_drops_it(daemon, watcher, repository):
    fourth = TINY_LABELS[3]
    daemon.settings["action"] = {"labels": [fourth, "Red"], "on_command": "true"}
    first = repository.publish_tiny(0, labels=4).release
    daemon.start()
    watcher.wait_release(first)
    status = watcher.wait_status(lambda s: s.warning is not None, "the label that no release has")
    assert "no release here has Red (did you mean red?)" in status.warning
    assert fourth not in status.warning
    assert "FAIL action" in (checked := daemon.ask("doctor").stdout)
    assert "no release here has Red (did you mean red?)" in checked
    assert "no release here has Red (did you mean red?)" in daemon.ask("status").stdout
    second = repository.publish_tiny(1).release
    watcher.announce(second)
    watcher.wait_release(second)
    watcher.wait_status(lambda s: s.warning is not None and fourth in s.warning, "the label that is gone")
    assert daemon.log.count("no release here has Red (did you mean red?), so") == 1
    assert f"no release here has {fourth}" in daemon.log
    assert daemon.terminate() == 0
    daemon.start()  # with the release on the disk: said before any network is touched
    wait_until(lambda: daemon.log.count(f"no release here has {fourth}") == 2, "the label in the log")
