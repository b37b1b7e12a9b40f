"""Results arrive whole, in order, and never fill the disk or stop inference."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from edge_client.contract.errors import SettingsError
from edge_client.settings.results import SinkSettings
from edge_client.sinks import json_lines
from edge_client.sinks.json_lines import JsonLines, StandardOutput
from edge_client.sinks.kept import KeptResults
from edge_client.sinks.mqtt import MqttSink
from edge_client.sinks.opening import open_sinks
from edge_client.sinks.outbox import Outbox
from tests.fakes.results import example_result

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_client.contract.messages import Result


def result(frame: int = 1) -> Result:
    return example_result(
        source="Grüße.jpg",
        frame=frame,
        label="rot\n",
        confidence=0.5,
        top={"rot\n": 0.5, "blau": 0.25},
        release=None,
        latency_ms=1.5,
    )


def frames_of(*paths: Path) -> list[int]:
    return [json.loads(line)["frame"] for path in paths for line in path.read_text().splitlines()]


def test_each_result_is_one_json_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    sink = JsonLines(path)
    sink.write(result(1))
    sink.write(result(2))
    lines = path.read_text("utf-8").splitlines()  # before close: lines reach the system at once
    sink.close()
    assert [json.loads(line)["frame"] for line in lines] == [1, 2]
    assert json.loads(lines[0])["label"] == "rot\n"
    assert list(json.loads(lines[0])["top"]) == ["rot\n", "blau"]


def test_restart_appends(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for frame in (1, 2):
        sink = JsonLines(path)
        sink.write(result(frame))
        sink.close()
    assert frames_of(path) == [1, 2]


def test_line_truncated_by_a_power_cut_does_not_corrupt_the_next(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"frame": 1}\n{"fra')
    sink = JsonLines(path)
    sink.write(result(2))
    sink.close()
    lines = path.read_bytes().splitlines()
    assert lines[1] == b'{"fra'
    assert json.loads(lines[2])["frame"] == 2


def test_two_files_never_take_more_than_twice_the_limit_and_hold_the_newest(tmp_path: Path) -> None:
    path, before = tmp_path / "results.jsonl", tmp_path / "results.jsonl.1"
    sink = JsonLines(path, max_bytes=2000)
    for frame in range(1, 101):
        sink.write(result(frame))
        assert path.stat().st_size <= 2000
    sink.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.jsonl", "results.jsonl.1"]
    kept = frames_of(before, path)
    assert kept == list(range(kept[0], 101))
    assert 2000 < before.stat().st_size + path.stat().st_size <= 4000


def test_limit_holds_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for frame in range(1, 51):
        sink = JsonLines(path, max_bytes=2000)
        sink.write(result(frame))
        sink.close()
        assert path.stat().st_size <= 2000


def test_line_longer_than_the_limit_is_still_written(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    sink = JsonLines(path, max_bytes=10)
    sink.write(result(1))
    sink.write(result(2))
    sink.close()
    assert frames_of(tmp_path / "results.jsonl.1", path) == [1, 2]


def test_path_that_cannot_be_opened_is_tried_again_with_each_result(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "stick").write_bytes(b"")
    sink = JsonLines(tmp_path / "stick" / "results.jsonl")
    sink.write(result(1))
    (tmp_path / "stick").unlink()
    sink.write(result(2))
    sink.close()
    assert frames_of(tmp_path / "stick" / "results.jsonl") == [2]
    first, last = caplog.messages
    assert "results.jsonl: Not a directory; results are dropped meanwhile" in first
    assert "writing works again; 1 results were dropped" in last
    assert (sink.metrics().written, sink.metrics().dropped, sink.metrics().error) == (1, 1, None)


def test_sink_that_never_opened_closes_silently(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    JsonLines(tmp_path / "file" / "results.jsonl").close()


class FullDisk:
    """A file on a disk that is full after so many bytes, as the system would tell it."""

    def __init__(self, file: Any, left: int) -> None:
        self._file, self._left = file, left

    def write(self, data: bytes) -> int:
        if not self._left:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = data[: self._left]
        self._left -= len(part)
        return int(self._file.write(part))

    def fileno(self) -> int:
        return int(self._file.fileno())

    def truncate(self, size: int) -> None:
        self._file.truncate(size)

    def close(self) -> None:
        self._file.close()


def test_full_disk_drops_results_with_one_warning_until_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "results.jsonl"
    sink = JsonLines(path)
    sink.write(result(1))
    sink._file = FullDisk(sink._file, left=20)  # type: ignore[assignment]
    opened = sink._open
    sink._open = lambda: FullDisk(opened(), 0)  # type: ignore[assignment, method-assign, return-value]
    for frame in (2, 3, 4):
        sink.write(result(frame))
    sink._open = opened  # type: ignore[method-assign]
    assert sink.metrics().error == f"{path}: No space left on device; results are dropped meanwhile"
    sink.write(result(5))
    sink.close()
    assert frames_of(path) == [1, 5]
    assert caplog.messages == [
        f"{path}: No space left on device; results are dropped meanwhile",
        f"{path}: writing works again; 3 results were dropped",
    ]
    assert (sink.metrics().written, sink.metrics().dropped, sink.metrics().error) == (2, 3, None)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is Linux's")
def test_device_that_is_always_full_never_raises(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.symlink_to("/dev/full")
    sink = JsonLines(path)
    sink.write(result(1))
    sink.write(result(2))
    sink.close()
    assert caplog.messages == [
        f"{path}: No space left on device; results are dropped meanwhile",
        f"{path}: 2 results were dropped",
    ]


def move(path: Path) -> None:
    path.rename(path.with_name("moved.jsonl"))


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, 0)


def replace(path: Path) -> None:
    path.with_name("new").write_bytes(b"")
    path.with_name("new").replace(path)


@pytest.mark.parametrize("change", [move, remove, truncate, replace])
def test_a_file_that_was_moved_removed_truncated_or_replaced_costs_no_line(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "results.jsonl"
    sink = JsonLines(path)
    safe: list[int] = []
    for frame in range(1, 41):
        if frame == 21:
            change(path)
        sink.write(result(frame), None, lambda: safe.append(1))
    sink.close()
    moved = tmp_path / "moved.jsonl"
    assert frames_of(path) == list(range(21, 41))
    assert not moved.exists() or frames_of(moved) == list(range(1, 21))
    assert len(safe) == sink.metrics().written == 40


def test_a_full_file_that_cannot_be_set_aside_is_written_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, taken = tmp_path / "results.jsonl", tmp_path / "results.jsonl.1"
    (taken / "of somebody").mkdir(parents=True)
    sink = JsonLines(path, max_bytes=2000)
    for frame in range(1, 121):
        sink.write(result(frame))
    assert frames_of(path) == list(range(1, 121))
    assert "cannot be set aside as results.jsonl.1: Is a directory" in (sink.metrics().error or "")
    assert len(caplog.messages) == 1
    taken.rename(tmp_path / "away")
    monkeypatch.setattr(json_lines, "ROTATION_RETRY_S", 0.0)
    sink._rotate_after = 0.0
    sink.write(result(121))
    sink.close()
    assert frames_of(taken, path) == list(range(1, 122))
    assert sink.metrics().error is None


def test_standard_output_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    StandardOutput().write(result(7))
    line = capsys.readouterr().out
    assert line.endswith("\n")
    assert json.loads(line)["frame"] == 7


def test_a_terminal_is_not_steered_by_a_file_name(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[2J\x9b\u202e\u2028\x7f\U000e0001.jpg"
    StandardOutput().write(msgspec.structs.replace(result(7), source=name))
    line = capsys.readouterr().out
    assert line[:-1].isprintable()
    assert json.loads(line)["source"] == name


def test_closed_standard_output_does_not_stop_inference(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Closed(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Closed())
    sink = StandardOutput()
    sink.write(result(1))
    sink.write(result(2))
    assert len(caplog.records) == 1
    assert sink.metrics().dropped == 2


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        (SinkSettings(), [MqttSink]),
        (SinkSettings(mqtt=False), []),
        (SinkSettings(json_lines="-"), [MqttSink, StandardOutput]),
        (SinkSettings(mqtt=False, json_lines="results.jsonl"), [JsonLines]),
    ],
)
def test_settings_choose_the_sinks(
    settings: SinkSettings, kinds: list[type], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outbox = Outbox(
        KeptResults(tmp_path / "unsent", 1000),
        send=lambda _topic, _payload: None,
        connected=lambda: False,
        topic_of=lambda _channel: "t",
    )
    sinks = open_sinks(settings, outbox=outbox)
    assert [type(sink) for sink in sinks] == kinds
    for sink in sinks:
        sink.write(result())
        sink.close()


def test_limit_that_holds_no_result_is_refused() -> None:
    with pytest.raises(SettingsError, match="json_lines_max_bytes"):
        open_sinks(SinkSettings(json_lines_max_bytes=0), outbox=None)
