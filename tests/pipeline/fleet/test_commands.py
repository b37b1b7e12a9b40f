"""`edge-fleet`: what a person and a program see, and the exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.fakes.command_fleet import CommandFleet

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def fleet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandFleet:
    """A fleet of which nothing is published."""
    return CommandFleet(tmp_path, monkeypatch, capsys)


def test_releases_are_listed_with_what_the_channels_say(fleet):
    assert fleet.run("releases")[:2] == (0, f"{fleet.bucket.as_uri()}: no release is signed here yet\n")
    first, second = fleet.publish(1), fleet.publish(2)
    fleet.publish(1, channel="beta")

    code, text, _ = fleet.run("releases")

    assert code == 0
    line = next(one for one in text.splitlines() if second.release in one)
    assert "stable: steady" in line
    found = json.loads(fleet.run("releases", "--json")[1])
    assert {one["release"]: one["channels"] for one in found["releases"]} == {
        second.release: {"stable": "steady"},
        first.release: {"beta": "steady"},
    }


def test_a_wrong_command_ends_with_2_and_wrong_settings_too(fleet, monkeypatch):
    assert fleet.run("relases")[0] == 2
    monkeypatch.setenv("LUIGI_CONFIG_PATH", "")
    code, text, error = fleet.run("releases")
    assert (code, text) == (2, "")
    assert error.startswith("edge-fleet: LUIGI_CONFIG_PATH is empty")
