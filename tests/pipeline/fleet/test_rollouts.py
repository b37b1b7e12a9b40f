"""Rollouts on a real signed repository, registry and snapshots: what moves, and what nothing moves."""

from __future__ import annotations

import dataclasses
import json
import uuid
from typing import TYPE_CHECKING

import msgspec
import pytest

from edge_client.contract.errors import InputError, TrustError
from edge_client.contract.rollout import Member
from luigi_tasks.fleet.enrolment import retire_row
from luigi_tasks.fleet.plans import heartbeat_of, plan_of
from luigi_tasks.fleet.registry import INDEX_KEY, RegistryChange, change_registry
from luigi_tasks.fleet.rollouts import current_key, record_key
from luigi_tasks.release.announcement import announced_release
from luigi_tasks.release.broker import BrokerClient
from luigi_tasks.settings.values import FleetSettings
from luigi_tasks.storage.folder_store import FolderStore
from tests.fakes.rollout_fleet import QUICK, Killed, MortalStore, RolloutFleet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luigi_tasks.fleet import records


@pytest.fixture
def fleet(tmp_path):
    return RolloutFleet(tmp_path)


def start(fleet: RolloutFleet, bias: int = 1, **plan) -> str:
    release = fleet.publish(bias, move=False).release
    fleet.machine().start("stable", release, fleet.plan(**plan), "ann")
    return release


def test_a_good_release_goes_through_its_stages_to_everybody(fleet):
    settings = dataclasses.replace(fleet.settings.fleet, heartbeat_s=900.0)
    fleet.settings = dataclasses.replace(fleet.settings, fleet=settings)
    new = start(fleet)
    had = []
    states = []
    for _ in range(6):
        states.append(fleet.look())
        had.append(fleet.has(new))
    assert states == ["open", "open", "open", "done", "", ""]
    assert had == [1, 2, 4, 4, 4, 4]
    signed = fleet.machine().stand("stable").signed
    assert (signed.channel.release, signed.rollout.id) == (new, "")
    assert signed.rollout.heartbeat_s == 900.0
    # without a rollout a look signs another interval, once
    settings = dataclasses.replace(fleet.settings.fleet, heartbeat_s=60.0)
    fleet.settings = dataclasses.replace(fleet.settings, fleet=settings)
    assert "every 60 s" in fleet.machine().advance("stable").words
    signed = fleet.machine().stand("stable").signed
    assert (signed.channel.release, signed.rollout.id, signed.rollout.heartbeat_s) == (new, "", 60.0)
    assert fleet.machine().advance("stable").words == "channel stable: no rollout runs"


@pytest.mark.parametrize(
    ("unsigned", "has"), [("approve", [1, 2, 2, 2, 4]), ("count", [1, 2, 4, 4, 4])], ids=("approve", "count")
)
def test_unsigned_reports_open_the_second_stage_and_none_after_it(tmp_path, unsigned, has):
    fleet = RolloutFleet(tmp_path, 0)
    fleet.device_key = ""
    fleet.enroll(f"camera-{number}" for number in range(4))
    new = start(fleet, unsigned=unsigned)
    had = []
    for look in range(5):
        if look == 4 and (running := fleet.machine().stand("stable").running) is not None:
            waits = running.document
            assert waits.state == "waiting_for_approval"
            assert "2 devices that passed stage 2 sign no reports" in waits.events[-1].why
            fleet.machine().approve("stable", "ann", "the broker is ours")
        fleet.look()
        had.append(fleet.has(new))
    assert had == has


@pytest.mark.parametrize(
    ("devices", "heartbeat_s"), [(0, 0), (12, 0), (833, 0), (3_000, 108), (100_000, 3600), (10**6, 3600)]
)
def test_a_large_fleet_reports_more_seldom(devices, heartbeat_s):
    assert heartbeat_of(FleetSettings(), devices) == heartbeat_s


ACTIONS = {
    "start": lambda machine: machine.start("stable", machine.new, machine.plan, "ann"),
    "advance": lambda machine: machine.advance("stable"),
    "back": lambda machine: machine.back("stable", "ann", "it is bad"),
    "abort": lambda machine: machine.abort("stable", "ann", "it is bad"),
}
# Actions, what the devices say before the last of them, the state after it, and how many devices have the
# release then.
LIVES = {
    "started": (("start",), "passed", "planned", 0),
    "first stage": (("start", "advance"), "passed", "open", 1),
    "second stage": (("start", "advance", "advance"), "passed", "open", 2),
    "done": (("start", "advance", "advance", "advance", "advance"), "passed", "done", 4),
    "halted": (("start", "advance", "advance", "advance"), "sent_back", "going_back", 0),
    "sent back": (("start", "advance", "back"), "passed", "going_back", 0),
    "is back": (("start", "advance", "back", "advance"), "passed", "back", 0),
    "aborted": (("start", "advance", "abort"), "passed", "aborted", 0),
}
LONGER = ("second stage", "sent back", "is back")


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (one in LONGER)) for one in LIVES]
)
def test_a_machine_may_be_killed_before_each_write(fleet, tmp_path, name):
    """Another look, or the same command again, ends where the machine would have ended."""
    actions, verdict, state, devices = LIVES[name]
    new = fleet.publish(1, move=False).release
    for action in actions[:-1]:
        fleet.report()
        act(fleet.machine(), action, new)
        fleet.follow()
    if verdict != "passed":
        fleet.verdicts.update(dict.fromkeys(fleet.serving, verdict))
    fleet.report()
    had, put_back, last = fleet.has(new), fleet.keep(tmp_path / "before"), actions[-1]
    for killed in range(100):
        store = MortalStore(fleet.settings.store)
        store.left = killed
        try:
            act(fleet.machine(store), last, new)
        except Killed:
            pass
        else:
            break
        assert fleet.has(new) in {had, devices}, "a part of a step is never signed"
        act(fleet.machine(), "start" if last == "start" else "advance", new)
        if last not in {"start", "advance"} and newest(fleet).state != state:
            act(fleet.machine(), last, new)  # the person was not told that it is done
        assert newest(fleet).state == state, f"killed before write {killed}, after {store.writes[-1:]}"
        assert fleet.has(new) == devices
        put_back()
    assert killed >= 2
    assert newest(fleet).state == state


def act(machine, action: str, new: str) -> None:
    machine.new, machine.plan = new, plan_of(QUICK)
    ACTIONS[action](machine)


def newest(fleet: RolloutFleet) -> records.RolloutRecord:
    standing = fleet.machine().stand("stable")
    if standing.running is not None:
        return standing.running.document
    assert standing.current is not None
    return fleet.machine().rollouts.load("stable", standing.current.document.last).document


def test_a_bad_release_is_sent_back_withdrawn_and_never_started_again(fleet):
    new = start(fleet)
    assert [fleet.look(), fleet.look()] == ["open", "open"]
    fleet.verdicts.update(dict.fromkeys(fleet.serving, "sent_back"))
    fleet.follow()
    fleet.report()
    look = fleet.machine().advance("stable")
    assert look.is_halted
    assert look.record.state == "going_back"
    assert fleet.has(new) == 0
    assert not fleet.machine().advance("stable").is_halted, "it is told once"
    assert fleet.look() == "back"
    standing = fleet.machine().stand("stable")
    assert standing.signed.channel.withdrawn == (new,)
    assert standing.signed.rollout.id == ""
    assert fleet.machine().is_taken_up("stable", new)
    with pytest.raises(InputError, match="was withdrawn"):
        fleet.machine().start("stable", new, fleet.plan(), "ann")


def test_two_looks_at_once_are_one(fleet):
    """Both read the same; the slower one finds the record changed, and signs nothing."""
    new = start(fleet)
    fleet.look()
    fleet.follow()
    fleet.report()
    slow, fast = fleet.machine(), fleet.machine()
    standing = slow.stand("stable")
    slow.stand = lambda _channel: standing  # as read before the other one wrote
    assert len(fast.advance("stable").record.stages) == 2
    look = slow.advance("stable")
    assert "another look was faster" in look.words
    assert fleet.has(new) == 2
    assert [one.what for one in newest(fleet).events].count("stage") == 2


def test_two_that_start_at_once_start_one(fleet):
    first, second = (fleet.publish(bias, move=False).release for bias in (1, 2))
    slow, standing = fleet.machine(), fleet.machine().stand("stable")
    slow.stand = lambda _channel: standing
    fleet.machine().start("stable", first, fleet.plan(), "ann")
    with pytest.raises(InputError, match="somebody else started"):
        slow.start("stable", second, fleet.plan(), "bob")
    assert [one.release for one in fleet.machine().rollouts.find_all("stable", [])] == [first]


def test_one_rollout_a_channel_and_superseded_in_its_first_stage_only(fleet):
    first, second, third = (fleet.publish(bias, move=False).release for bias in (1, 2, 3))
    fleet.machine().start("stable", first, fleet.plan(), "ann")
    fleet.look()
    with pytest.raises(InputError, match="one rollout a channel"):
        fleet.machine().start("stable", second, fleet.plan(), "ann")
    fleet.machine().start("stable", second, fleet.plan(), "ann", supersede=True)
    assert fleet.has(first) == 0
    assert [fleet.look(), fleet.has(second)] == ["open", 1]
    assert [fleet.look(), fleet.has(second)] == ["open", 2]
    with pytest.raises(InputError, match="past its first stage"):
        fleet.machine().start("stable", third, fleet.plan(), "ann", supersede=True)


@pytest.mark.parametrize("trouble", ["no collector", "old snapshot", "same snapshot", "they are silent"])
def test_silence_advances_nothing(fleet, trouble):
    new = start(fleet)
    if trouble == "no collector":
        look = fleet.machine().advance("stable")
        assert "no snapshot of the fleet" in look.words
        assert (look.record.state, fleet.has(new)) == ("planned", 0)
        return
    fleet.look()
    assert [fleet.look(), fleet.has(new)] == ["open", 2]
    if trouble == "they are silent":
        fleet.silent.update(one for one, has in fleet.serving.items() if has == new)
        fleet.report()
    elif trouble == "old snapshot":
        fleet.now += 7200
    for _ in range(3):
        look = fleet.machine().advance("stable")
        assert look.record.state == "open"
        assert not look.is_halted
    assert fleet.has(new) == 2
    words = {"old snapshot": "is 2 h old", "same snapshot": "newer than the last look"}
    assert words.get(trouble, "") in look.words
    if trouble == "old snapshot":
        fleet.now += 3 * 86400
        look = fleet.machine().advance("stable")
        assert (look.record.state, look.is_halted, fleet.has(new)) == ("paused", True, 2)


def test_a_registry_that_is_lost_stops_every_look(fleet):
    new = start(fleet)
    fleet.look()
    store = FolderStore(fleet.settings.store)
    index = store.read(INDEX_KEY)
    store.delete(INDEX_KEY)
    with pytest.raises(InputError, match="registry"):
        fleet.machine().advance("stable")
    with pytest.raises(InputError, match="registry"):
        fleet.machine().start("stable", fleet.publish(2, move=False).release, fleet.plan(), "ann")
    assert fleet.has(new) == 1
    store.put(INDEX_KEY, index)
    assert fleet.look() == "open"


@pytest.mark.parametrize("memory", ["this machine", "another machine"])
@pytest.mark.parametrize("which", ["record", "both", "current"])
def test_an_older_copy_of_the_bucket_moves_nothing_until_a_person_decides(fleet, tmp_path, which, memory):
    new = start(fleet)
    fleet.look()
    store, record = FolderStore(fleet.settings.store), newest(fleet)
    keys = {"record": [record_key("stable", record.id)], "current": [current_key("stable")]}
    kept = {one: store.read(one) for one in keys.get(which, keys["record"] + keys["current"])}
    fleet.look()
    assert fleet.has(new) == 2
    for key, data in kept.items():
        store.put(key, data)
    if memory == "another machine":
        for path in (fleet.folder / "keys" / "device" / "memory").iterdir():
            path.unlink()
    fleet.report()
    look = fleet.machine().advance("stable")
    if which == "current":  # it is the same
        assert fleet.has(new) == 4
        return
    assert look.is_halted
    assert look.record.state == "paused"
    assert "older copy" in look.words
    assert fleet.look() == "paused"
    assert fleet.has(new) == 2
    fleet.machine().resume("stable", "ann", "nothing is lost")
    assert fleet.has(new) == 2
    assert [fleet.look(), fleet.has(new)] == ["open", 4]


def test_an_older_copy_of_current_json_starts_no_rollout_again(fleet):
    first = start(fleet)
    store = FolderStore(fleet.settings.store)
    old = store.read(current_key("stable"))
    while fleet.look():
        pass
    second = start(fleet, bias=2)
    fleet.look()
    store.put(current_key("stable"), old)
    assert [fleet.look(), fleet.has(second)] == ["open", 2]
    while fleet.look():
        pass
    store.put(current_key("stable"), old)
    assert fleet.machine().advance("stable").record.state == "done"
    assert (fleet.has(first), fleet.has(second)) == (0, 4)


def test_a_rollout_that_was_aborted_is_not_started_by_older_copies(fleet):
    new = start(fleet)
    store, planned = FolderStore(fleet.settings.store), newest(fleet)
    keys = record_key("stable", planned.id), current_key("stable")
    kept = {one: store.read(one) for one in keys}
    fleet.look()
    fleet.now += 60
    fleet.machine().abort("stable", "ann", "it is bad")
    for key, data in kept.items():
        store.put(key, data)
    for path in (fleet.folder / "keys" / "device" / "memory").iterdir():
        path.unlink()  # another machine looks, which has seen nothing
    fleet.report()
    look = fleet.machine().advance("stable")
    assert (look.record.state, fleet.has(new)) == ("paused", 0)
    assert "moved after this rollout was started" in look.words
    fleet.machine().resume("stable", "ann", "it was a mistake")
    assert [fleet.look(), fleet.has(new)] == ["open", 1]


def test_a_rollout_that_is_over_does_not_go_on_from_an_older_copy(fleet):
    new = start(fleet)
    fleet.look()
    store, record = FolderStore(fleet.settings.store), newest(fleet)
    keys = record_key("stable", record.id), current_key("stable")
    kept = {one: store.read(one) for one in keys}
    while fleet.look():
        pass
    for key, data in kept.items():
        store.put(key, data)
    fleet.report()
    assert fleet.machine().advance("stable").record.state == "paused"
    with pytest.raises(InputError, match="points to the release already, so it cannot go on"):
        fleet.machine().resume("stable", "ann")
    fleet.machine().abort("stable", "ann")
    assert fleet.has(new) == 4
    assert fleet.machine().advance("stable").record is None


def test_a_machine_without_the_key_of_releases_looks(fleet):
    new = start(fleet)
    for name in ("targets.pem", "work.pem"):
        (fleet.folder / "keys" / "pipeline" / name).unlink()
    while fleet.look():
        pass
    assert fleet.machine().stand("stable").signed.channel.release == new


def test_a_registry_with_a_collector_and_no_device_passes_no_stage(tmp_path):
    """Nobody is enrolled, or all were retired in the middle: nothing was shown, and the pointer stays."""
    fleet = RolloutFleet(tmp_path, devices=0)
    new = start(fleet, stages="100%", min_passed=1, soak="0s")
    assert [fleet.look() for _ in range(3)] == ["planned"] * 3
    assert "no device of the registry" in fleet.machine().advance("stable").words
    fleet.enroll(["camera-0", "camera-1"])
    assert fleet.look() == "open"
    documents, left = fleet.machine().documents, ("camera-0", "camera-1")

    def retire(known: Mapping[str, records.EnrolledDevice]) -> RegistryChange:
        return RegistryChange(tuple(retire_row(known[one], "2026-11-27T00:00:00+00:00") for one in left))

    change_registry(documents, left, retire, who="ann")
    fleet.serving.clear()
    assert [fleet.look() for _ in range(3)] == ["open"] * 3
    pointer = fleet.machine().stand("stable").signed.channel
    assert pointer is not None
    assert pointer.release == fleet.steady != new


def test_a_record_that_is_gone_or_forged_is_said_and_can_be_aborted(fleet):
    new = start(fleet)
    fleet.look()
    store, key = FolderStore(fleet.settings.store), record_key("stable", newest(fleet).id)
    envelope = json.loads(store.read(key))
    store.delete(key)
    with pytest.raises(InputError, match="edge-fleet abort"):
        fleet.machine().advance("stable")
    store.put(key, json.dumps({**envelope, "payload": "e30="}).encode())
    with pytest.raises(TrustError, match="not signed by a trusted key"):
        fleet.machine().advance("stable")
    assert fleet.has(new) == 1
    fleet.machine().abort("stable", "ann")
    assert fleet.has(new) == 0
    assert fleet.machine().advance("stable").record is None


def test_a_rollout_for_a_part_of_the_fleet_leaves_the_pointer_and_keeps_the_part(fleet):
    new = start(fleet, only="device=camera-1,device=camera-2", stages="1d,100%")
    states = [fleet.look() for _ in range(3)]
    assert states == ["open", "open", "done"]
    assert fleet.has(new) == 2
    assert fleet.machine().stand("stable").signed.channel.release == fleet.steady
    assert fleet.machine().is_taken_up("stable", new)
    fleet.machine().leave("stable", "ann", "RollBack")
    assert fleet.has(new) == 0


def test_the_first_release_of_a_channel_goes_by_stages_too(fleet):
    release = fleet.publish(1, move=False).release
    fleet.machine().start("beta", release, fleet.plan(), "ann")
    machine = fleet.machine()
    change_registry(
        machine.documents,
        ["camera-0"],
        lambda known: RegistryChange((msgspec.structs.replace(known["camera-0"], channels=("beta",)),)),
        who="ann",
    )
    fleet.report()
    assert machine.advance("beta").record.state == "open"
    standing = machine.stand("beta")
    assert (standing.signed.channel, standing.signed.rollout.release) == (None, release)
    machine.back("beta", "ann", "it is bad")
    fleet.now += 2 * 86400
    fleet.report(0)
    assert machine.advance("beta").record.state == "back"
    assert machine.is_taken_up("beta", release), "there is no pointer that could have it withdrawn"


def test_what_is_signed_says_how_devices_move_and_a_class_keeps_its_variant(fleet):
    new, lean = (fleet.publish(bias, move=False).release for bias in (1, 2))
    plan = fleet.plan(stages="50%,100%", apply="window", window="01:00-05:00", pace="1/min")
    fleet.machine().start("stable", new, plan, "ann", variants={"zero2w": lean})
    fleet.look()
    document = fleet.machine().stand("stable").signed.rollout
    assert (document.from_release, document.variants) == (fleet.steady, {"zero2w": lean})
    assert (document.apply, document.window, document.spread_s) == ("window", "01:00-05:00", 120.0)
    while fleet.look():
        pass
    standing = fleet.machine().stand("stable")
    assert standing.signed.channel.release == new
    assert standing.signed.rollout.release_for(Member("z", device_class="zero2w")) == lean
    assert standing.signed.rollout.release_for(Member("y")) == new


def test_the_way_back_is_paced_and_waits_for_no_window(fleet):
    start(fleet, apply="window", window="01:00-05:00", pace="1/min")
    fleet.look()
    fleet.machine().back("stable", "ann", "it is bad")
    document = fleet.machine().stand("stable").signed.rollout
    assert (document.threshold, document.apply, document.spread_s) == (0, "now", 60.0)


def test_an_aborted_release_is_started_again_by_a_person_alone(fleet):
    new = start(fleet)
    fleet.look()
    fleet.machine().abort("stable", "ann", "lunch")
    assert fleet.has(new) == 0
    assert fleet.machine().is_taken_up("stable", new)
    fleet.machine().start("stable", new, fleet.plan(), "ann")
    assert [fleet.look(), fleet.has(new)] == ["open", 1]


def test_moves_are_announced_so_that_those_wake_whom_they_are_about(fleet, mqtt_broker):
    """A device ignores the announcement of what it has."""
    broker = dataclasses.replace(
        fleet.settings.broker, host=mqtt_broker.host, port=mqtt_broker.port, fleet=uuid.uuid4().hex
    )
    fleet.settings = dataclasses.replace(fleet.settings, broker=broker)
    new, client = start(fleet), BrokerClient(broker)
    fleet.look()
    assert announced_release(client, "stable") == new
    fleet.machine().back("stable", "ann", "it is bad")
    assert announced_release(client, "stable") == fleet.steady


def test_a_broker_that_is_down_stops_no_rollout(fleet):
    broker = dataclasses.replace(fleet.settings.broker, host="127.0.0.1", port=1, timeout_s=1.0)
    fleet.settings = dataclasses.replace(fleet.settings, broker=broker)
    new = start(fleet)
    assert [fleet.look(), fleet.has(new)] == ["open", 1]
