"""A device follows a signed rollout: to its release, past it, and back from it."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING

import pytest

from edge_client.contract.errors import InputError, TransportError, TrustError
from edge_client.contract.names import ROLLOUTS_ROLE, channel_target, rollout_target
from edge_client.contract.rollout import EVERYBODY, NOBODY, Member, rollout_hash
from edge_client.contract.windows import parse_window
from edge_client.update import check as updater
from edge_client.update.decision import Decision
from edge_client.update.refusals import RefusedError
from edge_client.update.timing import MOVE_FILE, MoveTiming
from tests.device.conftest import DeviceUnderTest, PassedSelfTest
from tests.fakes.tiny_release import tiny_release

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.tuf_repository import TufRepository

FIRST_LOOK = datetime.datetime(2026, 3, 28, 12, 0, tzinfo=datetime.timezone.utc)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(updater, "SelfTest", PassedSelfTest)  # seconds saved; it has tests of its own


class Clock:
    """The time of a device, and the largest or smallest number for its chance."""

    def __init__(self, folder: Path) -> None:
        self.now = FIRST_LOOK
        self.share = 1.0
        self.file = folder / MOVE_FILE

    def timing(self) -> MoveTiming:
        return MoveTiming(self.file, lambda: self.now, lambda low, high: low + self.share * (high - low))

    def pass_s(self, seconds: float) -> None:
        self.now += datetime.timedelta(seconds=seconds)


class Fleet:
    """A channel with a steady release on a device, and another release to roll out.

    Attributes:
        steady: The release of the channel's pointer.
        release: The other one, signed and named by nothing yet.
    """

    def __init__(self, device: DeviceUnderTest, repository: TufRepository) -> None:
        self.device, self.repository = device, repository
        self.steady = repository.publish_tiny(0).release
        repository.delegate()
        self.release = self.add(1)
        device.state_dir.mkdir(exist_ok=True)
        self.clock = Clock(device.state_dir)
        device.timing = self.clock.timing()

    def add(self, bias: int, **options: object) -> str:
        """Sign the files of a release, and point nothing to it."""
        document, files = tiny_release(bias, **options)  # type: ignore[arg-type]
        self.repository.add({f"releases/{document.release}/{name}": data for name, data in files.items()})
        self.repository.sign()
        return document.release

    def roll_out(self, threshold: int = EVERYBODY, **fields: object) -> None:
        known = {"id": "r1", "release": self.release, "from_release": self.steady, "threshold": threshold}
        self.repository.roll_out("stable", **(known | fields))

    def end(self) -> None:
        self.repository.roll_out()

    def settle(self) -> str:
        """Check until nothing changes; return the serving release."""
        while self.device.check().decision is Decision.INSTALL:
            pass
        assert self.device.slots.current is not None
        self.device.assert_serves(self.device.slots.current)
        return self.device.slots.current


@pytest.fixture
def fleet(device, repository):
    """A device that serves the steady release."""
    fleet = Fleet(device, repository)
    assert fleet.settle() == fleet.steady
    return fleet


def test_below_the_threshold_a_device_moves_and_above_it_serves_the_steady_release(fleet):
    place = rollout_hash("r1", "device", Member("camera-1"))
    fleet.roll_out(place)
    outcome = fleet.device.check()
    assert (outcome.decision, outcome.release, outcome.intended) == (
        Decision.SERVES,
        fleet.steady,
        fleet.steady,
    )
    assert (outcome.rollout, outcome.rollout_release) == ("r1", fleet.release)
    assert set(outcome.named) == {fleet.steady, fleet.release}
    fleet.roll_out(place + 1)
    outcome = fleet.device.check()
    assert (outcome.decision, outcome.release, outcome.steady) == (
        Decision.INSTALL,
        fleet.release,
        fleet.steady,
    )
    fleet.device.assert_serves(fleet.release)


def test_the_release_that_finished_its_rollout_stays_when_the_document_is_idle(fleet):
    fleet.roll_out()
    fleet.settle()
    fleet.repository.point("stable", fleet.release)
    assert fleet.device.check().decision is Decision.SERVES
    fleet.end()
    outcome = fleet.device.check()
    assert (outcome.decision, outcome.rollout) == (Decision.SERVES, "")
    assert fleet.device.installed == [fleet.steady, fleet.release]


SELECTIONS: dict[str, tuple[dict[str, object], bool]] = {
    "all": ({}, True),
    "its site": ({"only": ("site=shop-7",)}, True),
    "another site": ({"only": ("site=shop-8",)}, False),
    "its tag": ({"only": ("outdoor", "line=3")}, True),
    "a tag it lacks": ({"only": ("indoor",)}, False),
    "its class excluded": ({"excluded": ("class=pi4",)}, False),
    "another class excluded": ({"excluded": ("class=zero2w",)}, True),
    "a kind of condition that this version does not know": ({"only": ("os=linux",)}, False),
}


def test_a_rollout_is_for_the_devices_that_it_selects(fleet):
    fleet.device.member = Member("camera-1", "shop-7", "pi4", ("outdoor", "line=3"))
    found = {}
    for name, (fields, _expected) in SELECTIONS.items():
        fleet.roll_out(**fields)
        found[name] = fleet.settle() == fleet.release
    assert found == {name: expected for name, (_fields, expected) in SELECTIONS.items()}


def test_a_device_class_gets_its_variant(fleet):
    variant = fleet.add(2)
    fleet.device.member = Member("camera-1", device_class="zero2w")
    fleet.roll_out(variants={"zero2w": variant})
    assert fleet.settle() == variant


def test_a_new_device_of_a_class_with_a_variant_takes_it_at_once_when_the_rollout_is_done(device, repository):
    """The pointer's release may not run on that class at all."""
    fleet = Fleet(device, repository)
    variant = fleet.add(2)
    device.member = Member("camera-1", device_class="zero2w")
    repository.point("stable", fleet.release)
    fleet.roll_out(variants={"zero2w": variant}, apply="ask")
    outcome = device.check()
    assert (outcome.decision, outcome.release, outcome.steady) == (Decision.INSTALL, variant, variant)
    assert device.installed == [variant]


def test_a_device_that_has_nothing_starts_with_the_steady_release_and_moves_on_from_it(device, repository):
    """So it has something to go back to, and its rollout's release is on probation."""
    fleet = Fleet(device, repository)
    fleet.roll_out(spread_s=3600.0, apply="ask")
    outcome = device.check()
    assert (outcome.decision, outcome.release, outcome.intended) == (
        Decision.INSTALL,
        fleet.steady,
        fleet.release,
    )
    device.assert_serves(fleet.steady)
    fleet.roll_out()
    assert fleet.settle() == fleet.release
    assert device.slots.previous == fleet.steady


def test_a_new_device_whose_steady_release_is_refused_takes_the_one_of_its_rollout(device, repository):
    fleet = Fleet(device, repository)
    repository.point("stable", fleet.add(5, device_class="other"))
    fleet.roll_out()
    with pytest.raises(RefusedError):
        device.check()
    assert fleet.settle() == fleet.release


def test_a_channel_without_a_steady_release_serves_those_that_its_rollout_includes(device, repository):
    fleet = Fleet(device, repository)
    repository.forget(channel_target("stable"))
    fleet.roll_out(NOBODY)
    with pytest.raises(TransportError, match="no release for all devices yet"):
        device.check()
    fleet.roll_out()
    assert fleet.settle() == fleet.release


def test_a_device_that_refuses_the_release_serves_what_it_has_and_still_follows_the_pointer(fleet):
    broken = fleet.add(5, device_class="other")
    fleet.roll_out(release=broken)
    with pytest.raises(RefusedError):
        fleet.device.check()
    outcome = fleet.device.check()
    assert (outcome.decision, outcome.release, outcome.rollout) == (
        Decision.REFUSED,
        broken,
        "r1",
    )
    fleet.device.assert_serves(fleet.steady)
    fleet.repository.point("stable", fleet.release)
    assert fleet.settle() == fleet.release
    fleet.repository.point("stable", fleet.release, retry_since="2026-01-01T00:00:00Z")
    with pytest.raises(RefusedError):
        fleet.device.check()  # tried once more: the refusal was lifted


def test_going_back_needs_no_download_no_probation_and_refuses_nothing(fleet):
    fleet.roll_out()
    fleet.settle()
    asked = len(fleet.repository.requests)
    fleet.roll_out(NOBODY)
    outcome = fleet.device.check()
    assert (outcome.decision, outcome.returns) == (Decision.INSTALL, True)
    fleet.device.assert_serves(fleet.steady)
    assert not any(path.startswith("targets/releases") for path in fleet.repository.requests[asked:])
    slots = fleet.device.slots
    assert (slots.refused, slots.failures.records, slots.probation) == ({}, {}, None)
    fleet.end()
    assert fleet.settle() == fleet.steady
    fleet.roll_out(id="r2")
    assert fleet.settle() == fleet.release


def test_a_device_is_not_judged_by_the_release_that_it_leaves(fleet):
    """Also where the steady release was never on it: it went from an older one straight to the rollout's."""
    newer = fleet.add(2)
    fleet.roll_out()
    fleet.settle()
    fleet.repository.point("stable", newer)
    fleet.roll_out(NOBODY)
    outcome = fleet.device.check()
    assert (outcome.release, outcome.returns) == (newer, True)
    # A pointer that moves on without a rollout is no way back, and the release is on probation.
    fleet.end()
    fleet.repository.point("stable", fleet.add(3))
    assert not fleet.device.check().returns


def signed_as(fleet, **changes: object) -> None:
    """Sign a rollout document that no constructor would make."""
    fields = {"channel": "stable", "id": "r1", "release": fleet.release, "threshold": EVERYBODY}
    fleet.repository.add({rollout_target("stable"): json.dumps({**fields, **changes}).encode()})
    fleet.repository.sign_pointers()


UNREADABLE: dict[str, dict[str, object]] = {
    "a newer schema": {"schema": 2},
    "an unknown way of applying": {"apply": "at_full_moon"},
    "an unknown unit": {"by": "country"},
    "a threshold beyond all": {"threshold": EVERYBODY + 1},
    "a threshold that is none": {"threshold": "all"},
    "another channel": {"channel": "canary"},
    "a release that is a path": {"release": "../x"},
    "a variant that is a path": {"variants": {"pi4": "../x"}},
    "an id that is a path": {"id": "../x"},
    "too long": {"only": ["x" * 70000]},
}


def test_a_rollout_that_cannot_be_read_is_as_none_and_said(fleet):
    for name, changes in UNREADABLE.items():
        signed_as(fleet, **changes)
        outcome = fleet.device.check()
        assert (outcome.decision, outcome.release, outcome.rollout) == (Decision.SERVES, fleet.steady, ""), (
            name
        )
        assert outcome.warning.startswith("the rollout is not followed"), name


def test_a_rollout_with_fields_of_a_later_version_is_followed(fleet):
    signed_as(fleet, colour="blue")
    assert fleet.settle() == fleet.release


# Trust


def test_moving_a_rollout_costs_a_device_neither_the_targets_nor_their_memory(fleet):
    folder = fleet.device.state_dir / "metadata"
    targets = (folder / "targets.json").read_bytes()
    asked = len(fleet.repository.requests)
    fleet.roll_out()
    fleet.settle()
    assert not any(path.endswith(".targets.json") for path in fleet.repository.requests[asked:])
    assert (folder / "targets.json").read_bytes() == targets
    with fleet.device.open() as trusted:
        assert set(trusted.remembered_digests([fleet.release])) == {fleet.release}


def test_a_look_without_news_is_two_small_requests(fleet):
    fleet.settle()
    asked = len(fleet.repository.requests)
    (fleet.device.state_dir / "metadata/channels/stable.json").write_bytes(b"rotten")
    fleet.settle()
    assert len(fleet.repository.requests) - asked == 3, "the pointer is fetched again"
    asked = len(fleet.repository.requests)
    fleet.settle()
    assert fleet.repository.requests[asked:] == ["metadata/2.root.json", "metadata/timestamp.json"]


@pytest.mark.parametrize("attack", ["key", "altered", "older", "left out", "expired"])
def test_a_rollout_that_the_delegated_key_did_not_sign_changes_nothing(fleet, attack):
    repository = fleet.repository
    fleet.roll_out(NOBODY)
    fleet.settle()
    if attack == "key":
        repository.steal(ROLLOUTS_ROLE)
        fleet.roll_out()
    elif attack == "expired":
        repository.expire(ROLLOUTS_ROLE)
        fleet.roll_out()
    elif attack == "altered":
        fleet.roll_out()
        repository.change_byte(f"metadata/{repository._pointers.version}.{ROLLOUTS_ROLE}.json")
    elif attack == "older":
        repository._pointers.version -= 2
        fleet.roll_out()
    else:
        repository._pointers = None
        repository.sign_pointers()
    memory = (fleet.device.state_dir / "metadata" / f"{ROLLOUTS_ROLE}.json").read_bytes()
    with pytest.raises(TrustError):
        fleet.device.check()
    fleet.device.assert_serves(fleet.steady)
    assert (fleet.device.state_dir / "metadata" / f"{ROLLOUTS_ROLE}.json").read_bytes() == memory


def test_a_channel_named_like_metadata_does_not_take_its_place(tmp_path, repository):
    device = DeviceUnderTest(tmp_path / "other", repository)
    release = repository.publish_tiny(0, channel=ROLLOUTS_ROLE).release
    repository.delegate()
    with device.open() as trusted:
        trusted.refresh()
        assert trusted.channel(ROLLOUTS_ROLE).release == release
        assert trusted.rollout(ROLLOUTS_ROLE) is None
    with device.open() as trusted:
        trusted.refresh()
        assert trusted.channel(ROLLOUTS_ROLE).release == release


# When a device moves


def test_the_move_waits_its_part_of_the_spread_and_a_restart_does_not_begin_anew(fleet):
    fleet.roll_out(spread_s=600.0)
    outcome = fleet.device.check()
    assert (outcome.decision, outcome.waits_for, outcome.wait_s) == (Decision.HELD, "spread", 600.0)
    fleet.clock.pass_s(400)
    fleet.device.timing = fleet.clock.timing()
    assert fleet.device.check().wait_s == pytest.approx(200)
    fleet.clock.pass_s(-3000)  # a board without a clock of its own
    assert fleet.device.check().wait_s == pytest.approx(600)
    fleet.clock.pass_s(601)
    assert fleet.settle() == fleet.release
    # Back likewise; a person's request overrides it.
    fleet.roll_out(NOBODY, spread_s=600.0)
    assert fleet.device.check().waits_for == "spread"
    fleet.end()
    assert fleet.device.check().waits_for == "spread", "the pace of the way back outlives its document"
    fleet.device.assert_serves(fleet.release)
    assert fleet.device.check(requested=True).decision is Decision.INSTALL
    fleet.device.assert_serves(fleet.steady)
    assert fleet.device.check().decision is Decision.SERVES
    assert not fleet.clock.file.exists()


def test_a_planned_move_that_is_damaged_is_drawn_anew(fleet):
    fleet.roll_out(spread_s=600.0)
    far = {"release": fleet.release, "at": "9999-12-31T00:00:00Z", "wait_s": 1e300}
    for content in (b"{", b"", json.dumps(far).encode(), json.dumps(far | {"wait_s": -1}).encode()):
        fleet.clock.file.write_bytes(content)
        assert fleet.device.check().wait_s == 600.0


def test_a_release_that_asks_waits_for_a_request_and_the_way_back_does_not(fleet):
    fleet.roll_out(apply="ask")
    outcome = fleet.device.check()
    assert (outcome.decision, outcome.waits_for, outcome.wait_s) == (Decision.HELD, "request", None)
    assert fleet.device.check(requested=True).decision is Decision.INSTALL
    fleet.roll_out(NOBODY, apply="ask")
    assert fleet.settle() == fleet.steady


def test_a_window_holds_the_release_until_it_opens_and_the_fleet_does_not_come_at_its_first_second(fleet):
    local = FIRST_LOOK.astimezone()
    opens = local + datetime.timedelta(hours=2)
    closes = opens + datetime.timedelta(hours=1)
    fleet.roll_out(apply="window", window=f"{opens:%H:%M}-{closes:%H:%M}", spread_s=7200.0)
    fleet.clock.share = 0.5
    outcome = fleet.device.check()
    assert (outcome.decision, outcome.waits_for) == (Decision.HELD, "window")
    assert outcome.wait_s == pytest.approx(7200 + 0.5 * 0.9 * 3600, abs=1)
    fleet.clock.pass_s(7200 + 60)
    assert fleet.device.check().waits_for == "spread"
    fleet.clock.pass_s(3600)  # it was off until the window had closed
    outcome = fleet.device.check()
    assert outcome.waits_for == "window"
    fleet.clock.pass_s(outcome.wait_s + 1)
    assert fleet.settle() == fleet.release
    fleet.clock.pass_s(7200)
    fleet.roll_out(NOBODY, apply="window", window=f"{opens:%H:%M}-{closes:%H:%M}")
    assert fleet.settle() == fleet.steady, "the way back waits for no window"


def test_a_window_that_cannot_be_read_waits_and_says_so(fleet):
    for window in ("", "25:00-26:00", "1-5", "05:00-05:00", "01:60-02:00", "01:00-24:01"):
        with pytest.raises(InputError):
            parse_window(window)
    fleet.roll_out(apply="window", window="at night")
    outcome = fleet.device.check()
    assert (outcome.decision, outcome.waits_for, outcome.wait_s) == (Decision.HELD, "window", None)
    assert "give two times of day" in outcome.reason


def test_a_window_goes_over_midnight():
    window = parse_window("22:30-04:00")
    times = {"22:29": (60.0, 0.0), "22:30": (0.0, 19800.0), "00:00": (0.0, 14400.0), "04:00": (66600.0, 0.0)}
    for text, expected in times.items():
        now = datetime.datetime.fromisoformat(f"2026-03-28T{text}:00")
        assert (window.opens_in_s(now), window.closes_in_s(now)) == expected
    assert parse_window("00:00-24:00").closes_in_s(now.replace(hour=0)) == 86400.0
