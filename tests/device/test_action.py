"""Commands on labels: hysteresis, hold-off, and a command that misbehaves."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from local_services import wait_until

from edge_client.contract.errors import SettingsError
from edge_client.contract.messages import Result
from edge_client.sinks.action import ActionSettings, ActionSink, Trigger

if TYPE_CHECKING:
    from pathlib import Path


def settings(**changes: Any) -> ActionSettings:
    return ActionSettings(**{"labels": "cat", "on_command": "true", "hold_off_s": 0.0, **changes})


def result(score: float, label: str = "cat") -> Result:
    return Result(
        device="pi-1",
        source="camera-0",
        frame=1,
        label=label,
        confidence=score,
        top={label: score},
        release="a",
        latency_ms=1.0,
        at="2026-01-01T00:00:00+00:00",
    )


def test_a_label_comes_above_the_threshold_and_goes_below_the_release():
    trigger = Trigger(settings(threshold=0.8, release_below=0.5))
    scores = [0.7, 0.8, 0.6, 0.79, 0.5, 0.49, 0.79, 0.81]
    assert [trigger.take(score, now) for now, score in enumerate(scores)] == [
        None, True, None, None, None, False, None, True,
    ]  # fmt: skip


def test_changes_in_the_hold_off_are_not_seen():
    trigger = Trigger(settings(hold_off_s=10.0))
    assert trigger.take(0.9, 0.0) is True
    assert trigger.take(0.1, 9.9) is None
    assert trigger.take(0.9, 9.95) is None
    assert trigger.take(0.1, 10.0) is False
    assert trigger.take(0.9, 15.0) is None
    assert trigger.take(0.9, 20.0) is True


class Log:
    """A command that writes its arguments and environment down, one line a run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log"
        script = folder / "command.py"
        script.write_text(
            "import os, sys\n"
            "told = [os.environ['EDGE_' + name] for name in ('LABEL', 'STATE', 'SCORE')]\n"
            "open(sys.argv[1], 'a').write(' '.join([*sys.argv[2:], *told]) + '\\n')\n"
        )
        self.command = f"'{sys.executable}' '{script}' '{self.path}'"

    @property
    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []


@pytest.fixture
def log(tmp_path) -> Log:
    return Log(tmp_path)


def test_commands_find_what_happened_and_quotes_hold(log):
    sink = ActionSink(settings(on_command=f"{log.command} 'two words'", off_command=f"{log.command} off"))
    for score in (0.1, 0.9, 0.95, 0.2):
        sink.write(result(score))
    wait_until(lambda: len(log.lines) == 2, "two commands")
    sink.close()
    assert log.lines == ["two words cat on 0.9000", "off cat off 0.2000"]


def test_each_label_has_a_state_of_its_own(log):
    sink = ActionSink(settings(labels="cat, dog", on_command=log.command))
    for label in ("cat", "dog", "bird"):
        sink.write(result(0.9, label))
    wait_until(lambda: len(log.lines) == 2, "two commands")
    sink.close()
    assert [line.split()[0] for line in log.lines] == ["cat", "dog"]


def test_a_missing_off_command_is_nothing_to_do(log):
    sink = ActionSink(settings(on_command=log.command))
    for score in (0.9, 0.1, 0.9):
        sink.write(result(score))
    wait_until(lambda: len(log.lines) == 2, "two commands")
    sink.close()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("/nowhere/program", "cannot be run"),
        (f"'{sys.executable}' -c 'raise SystemExit(3)'", "ended with code 3"),
        (f"'{sys.executable}' -c 'import time; time.sleep(60)'", "was killed"),
    ],
)
def test_a_command_that_fails_is_said_and_the_next_one_runs(command, said, log, caplog):
    sink = ActionSink(settings(on_command=command, off_command=log.command, timeout_s=2.0))
    sink.write(result(0.9))
    sink.write(result(0.1))
    wait_until(lambda: len(log.lines) == 1, "the other command")
    sink.close()
    assert said in caplog.text


def test_a_slow_command_never_stops_inference(monkeypatch, caplog):
    go_on, started = threading.Event(), threading.Event()

    def slow(*_arguments: object, **_options: object) -> None:
        started.set()
        go_on.wait(10)

    monkeypatch.setattr("edge_client.sinks.action.subprocess.run", slow)
    sink = ActionSink(settings(off_command="false"))
    for number in range(100):
        sink.write(result(0.9 if number % 2 == 0 else 0.1))
    assert started.wait(5)
    assert "dropped" in caplog.text
    go_on.set()
    sink.close()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"threshold": 0.4, "release_below": 0.5}, "not above threshold"),
        ({"release_below": 0.0}, "above 0"),
        ({"hold_off_s": -1.0}, "hold_off_s"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"on_command": ""}, "give on_command or off_command"),
        ({"on_command": "echo 'open"}, "close each quote"),
    ],
)
def test_wrong_settings_are_named(changes, fault):
    with pytest.raises(SettingsError, match=fault):
        ActionSink(settings(**changes))
