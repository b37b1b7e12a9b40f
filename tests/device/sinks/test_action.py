"""Commands on labels: hysteresis, hold-off, and a command that misbehaves."""

from __future__ import annotations

import json
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from local_services import wait_until

from edge_client.contract.errors import SettingsError
from edge_client.inference.classifier import Prediction
from edge_client.settings.results import ActionSettings
from edge_client.sinks.action import ActionSink, LabelSwitch
from tests.fakes.results import example_result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_client.contract.messages import Result


def settings(**changes: Any) -> ActionSettings:
    return ActionSettings(**{"labels": ("cat",), "on_command": "true", "hold_off_s": 0.0, **changes})


def result(score: float, label: str = "cat", channel: str = "", *, sure: bool = True) -> Result:
    return example_result(channel=channel, label=label, confidence=score, top={label: score}, sure=sure)


def test_a_label_switches_on_at_the_threshold_and_off_below_release_below():
    switch = LabelSwitch(settings(threshold=0.8, release_below=0.5))
    scores = [0.7, 0.8, 0.6, 0.79, 0.5, 0.49, 0.79, 0.81]
    assert [switch.update(score, now) for now, score in enumerate(scores)] == [
        None, True, None, None, None, False, None, True,
    ]  # fmt: skip


def test_changes_within_the_hold_off_time_are_ignored():
    switch = LabelSwitch(settings(hold_off_s=10.0))
    assert switch.update(0.9, 0.0) is True
    assert switch.update(0.1, 9.9) is None
    assert switch.update(0.9, 9.95) is None
    assert switch.update(0.1, 10.0) is False
    assert switch.update(0.9, 15.0) is None
    assert switch.update(0.9, 20.0) is True


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


def test_commands_get_the_switch_in_their_environment_and_quoted_arguments(log):
    sink = ActionSink(settings(on_command=f"{log.command} 'two words'", off_command=f"{log.command} off"))
    for score in (0.1, 0.9, 0.95, 0.2):
        sink.write(result(score))
    wait_until(lambda: len(log.lines) == 2, "two commands")
    sink.close()
    assert log.lines == ["two words cat on 0.9000", "off cat off 0.2000"]


def test_each_label_has_a_state_of_its_own(log):
    sink = ActionSink(settings(labels=("cat", "dog"), on_command=log.command))
    for label in ("cat", "dog", "bird"):
        sink.write(result(0.9, label))
    wait_until(lambda: len(log.lines) == 2, "two commands")
    sink.close()
    assert [line.split()[0] for line in log.lines] == ["cat", "dog"]


def answered(sink: ActionSink, channel: str = "stable", **scores: float) -> None:
    """Hand over what a release with these labels said; its result names the best one alone."""
    best = max(scores, key=lambda label: scores[label])
    values = np.array(list(scores.values()), np.float32)
    answer = Prediction(best, list(scores).index(best), scores[best], values, 1.0, tuple(scores))
    sink.write(result(scores[best], best, channel), answer)


class Watched:
    """A sink whose changes are written down instead of carried out, and its clock."""

    def __init__(self, **changes: Any) -> None:
        self.now = 0.0
        self.seen: list[tuple[str, str, str]] = []
        self.sink = ActionSink(settings(off_command="true", **changes), clock=lambda: self.now)
        self.sink._put = self._note  # type: ignore[method-assign]

    def _note(self, command: tuple[list[str], dict[str, str]]) -> None:
        _, told = command
        self.seen.append((told["EDGE_CHANNEL"], told["EDGE_LABEL"], told["EDGE_STATE"]))


@pytest.fixture
def watched() -> Iterator[Callable[..., Watched]]:
    opened: list[Watched] = []

    def open_(**changes: Any) -> Watched:
        opened.append(Watched(**changes))
        return opened[-1]

    yield open_
    for one in opened:
        one.sink.close()


def test_a_channel_without_the_label_does_not_switch_it(watched):
    one = watched(hold_off_s=5.0)
    for _ in range(300):
        one.now += 0.1
        answered(one.sink, "stable", cat=0.95, none=0.05)
        answered(one.sink, "doors", open=0.9, shut=0.1)
    assert one.seen == [("stable", "cat", "on")]


def test_each_channel_with_the_label_has_a_state_of_its_own(watched):
    one = watched()
    for score in (0.9, 0.1):
        answered(one.sink, "stable", cat=0.9, none=0.1)
        answered(one.sink, "night", cat=score, none=1 - score)
    assert one.seen == [("stable", "cat", "on"), ("night", "cat", "on"), ("night", "cat", "off")]


def test_a_label_that_is_not_among_the_best_has_its_score(watched):
    one = watched(threshold=0.5, release_below=0.3)
    answered(one.sink, cat=0.6, dog=0.4)
    answered(one.sink, cat=0.45, dog=0.55)
    assert one.seen == [("stable", "cat", "on")]


def test_a_label_that_a_new_release_lacks_switches_off(watched):
    one = watched()
    answered(one.sink, cat=0.9, dog=0.1)
    answered(one.sink, dog=0.9, bird=0.1)
    assert [state for _, _, state in one.seen] == ["on", "off"]


SEQUENCE = ((0.9, False), (0.9, True), (0.1, False), (0.9, False), (0.1, True), (0.95, False))


@pytest.mark.parametrize(
    ("when_unsure", "switches"),
    [
        ("wait", ["0.9 on", "0.1 off"]),
        ("off", ["0.9 on", "0.1 off"]),
        ("act", ["0.9 on", "0.1 off", "0.9 on", "0.1 off", "0.95 on"]),
    ],
)
def test_a_frame_that_the_release_is_not_sure_of_starts_nothing(watched, when_unsure, switches):
    one = watched(when_unsure=when_unsure)
    when: list[int] = []
    for number, (score, sure) in enumerate(SEQUENCE):
        one.sink.write(result(score, sure=sure))
        when += [number] * (len(one.seen) - len(when))
    scores = [f"{SEQUENCE[number][0]} {state}" for number, (_, _, state) in zip(when, one.seen, strict=True)]
    assert scores == switches
    assert when == {"wait": [1, 4], "off": [1, 2], "act": [0, 2, 3, 4, 5]}[when_unsure]


def test_a_class_named_unknown_is_acted_on_only_where_the_release_is_sure_of_it(watched):
    one = watched(labels=("unknown",))
    one.sink.write(result(0.9, "unknown", sure=False))
    assert one.seen == []
    one.sink.write(result(0.9, "unknown"))
    assert [state for _, _, state in one.seen] == ["on"]


def test_a_command_does_not_get_the_store_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "secret")
    monkeypatch.setenv("SIREN_VOLUME", "11")
    script = tmp_path / "command.py"
    script.write_text("import json, os, sys\njson.dump(dict(os.environ), open(sys.argv[1], 'w'))\n")
    told = tmp_path / "environment.json"
    sink = ActionSink(settings(on_command=f"'{sys.executable}' '{script}' '{told}'"))
    answered(sink, cat=0.9, dog=0.1)
    wait_until(lambda: told.exists() and told.read_text().endswith("}"), "the command")
    sink.close()
    found = json.loads(told.read_text())
    assert not [name for name in found if name.startswith("AWS_")]
    assert (found["SIREN_VOLUME"], found["EDGE_CHANNEL"]) == ("11", "stable")


def test_without_an_off_command_nothing_runs(log):
    sink = ActionSink(settings(on_command=log.command))
    for score in (0.9, 0.1, 0.9):
        sink.write(result(score))
    wait_until(lambda: len(log.lines) == 2, "two commands")
    sink.close()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("/nowhere/program", "cannot be run"),
        (f"'{sys.executable}' -c 'raise SystemExit(3)'", "ended with exit code 3"),
        (f"'{sys.executable}' -c 'import time; time.sleep(60)'", "was killed"),
    ],
)
def test_a_failing_command_is_logged_and_the_next_one_runs(command, said, log, caplog):
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
        ({"threshold": 0.4, "release_below": 0.5}, "release_below <= threshold"),
        ({"release_below": 0.0}, "0 < release_below"),
        ({"hold_off_s": -1.0}, "hold_off_s"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"when_unsure": "off on"}, "when_unsure 'off on': choose one of wait, off, act"),
        ({"on_command": ""}, "give on_command or off_command"),
        ({"on_command": "echo 'open"}, "close each quote"),
    ],
)
def test_wrong_settings_are_named(changes, fault):
    with pytest.raises(SettingsError, match=fault):
        ActionSink(settings(**changes))
