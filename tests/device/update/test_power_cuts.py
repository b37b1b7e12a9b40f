"""The device loses power at any call that changes its disk, in every kind of update: it serves, and goes on.

By default every n-th call is tried, each run another kind of cut; `--every-fault` tries all of them, and
`scripts/faults` prints what came of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import shutil
from typing import TYPE_CHECKING

import pytest

from edge_client.contract.errors import TransportError
from edge_client.contract.names import MODEL_FILE, patch_file, release_target
from edge_client.serving.activation import open_best_slot
from edge_client.update import check as updater
from edge_client.update import endings
from edge_client.update.decision import Decision
from edge_client.update.refusals import RefusedError
from edge_client.update.selftest import SelfTestError
from edge_client.update.slots import Slots
from edge_client.update.slots_document import ProbationRecord
from tests.device.conftest import DeviceUnderTest, PassedSelfTest
from tests.fakes.patches import zstd_patch
from tests.fakes.power_cut import Cut, run_until
from tests.fakes.tiny_model import plain_picture
from tests.fakes.tiny_release import tiny_release
from tests.fault_table import Kind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fakes.power_cut import Ending
    from tests.fakes.tuf_repository import TufRepository

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STRIDE = 7
A, B = (tiny_release(bias)[0].release for bias in (0, 1))
BAD = tiny_release(2)[0].release
STATE = {"slots", "slots.json", "slots.copy.json", "activated", "metadata", "incoming"}
FILES = {tiny_release(bias)[0].release: tiny_release(bias)[1] for bias in (0, 1)}


class QuickSelfTest(PassedSelfTest):
    """Knows the bad release without trying it."""

    def run(self, folder: Path) -> int:
        if folder.name == BAD:
            msg = "its answers are wrong"
            raise SelfTestError(msg, endings.Ending.WRONG_ANSWERS)
        return super().run(folder)


class Device(DeviceUnderTest):
    """A device that starts as the daemon does."""

    def start(self) -> None:
        classifier = open_best_slot(self.slots, 1).classifier
        if classifier is not None:
            self.slots.secure(classifier.release or "", classifier.document_sha256)
            self.slots.clean_slots()
            self.holder.swap(classifier)
        self.slots.clean_leftovers()

    def update(self) -> None:
        self.start()
        self.check()

    def update_to_refuse(self) -> None:
        self.start()
        try:
            self.check()
        except RefusedError:
            return
        assert BAD in self.slots.refused

    def end_probation(self) -> None:
        self.start()
        if self.slots.current == B:
            assert self.slots.probation is not None
            self.slots.roll_back("too slow", "this software")
            self.slots.clean_slots()

    def begin_shadow(self) -> None:
        self.start()
        outcome = self.updater().check()
        if outcome.decision is Decision.INSTALL:
            self.slots.keep_shadow(ProbationRecord(release=outcome.release))
            self.slots.clean_slots()

    def follow(self) -> None:
        self.start()
        if self.slots.shadow is not None:
            self.slots.activate(self.slots.shadow.release, ProbationRecord(release=B))
            self.slots.clean_slots()

    def refuse_shadow(self) -> None:
        self.start()
        if self.slots.shadow is not None:
            self.slots.note_failure(B, endings.Ending.WORSE, "it disagreed", "this software")
            self.slots.clean_slots()


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One way through the states of an update.

    Attributes:
        prepare: Brings the disk of a device and the repository to the start.
        act: What the power is cut in.
        may_serve: Releases that may serve after a cut; None: no release yet.
        ends_with: Release that serves once `act` went through.
    """

    prepare: Callable[[Device, TufRepository], None]
    act: Callable[[Device], None]
    may_serve: set[str | None]
    ends_with: str


def nothing(_device: Device, repository: TufRepository) -> None:
    repository.publish_tiny(0)


def serving_a(device: Device, repository: TufRepository) -> None:
    repository.publish_tiny(0)
    device.check()
    repository.publish_tiny(1)


def patch_to_b(device: Device, repository: TufRepository) -> None:
    serving_a(device, repository)
    patch = zstd_patch(FILES[B][MODEL_FILE], FILES[A][MODEL_FILE])
    repository.add({release_target(B, patch_file(A)): patch})
    repository.sign()


def broken_off_at_b(device: Device, repository: TufRepository) -> None:
    serving_a(device, repository)
    model = repository.find(f"{B}/{hashlib.sha256(FILES[B][MODEL_FILE]).hexdigest()}")
    repository.break_off_after[model] = 100
    with pytest.raises(TransportError):
        device.check()
    repository.break_off_after.clear()


def serving_b_over_a(device: Device, repository: TufRepository) -> None:
    serving_a(device, repository)
    device.check()


def back_to_a(device: Device, repository: TufRepository) -> None:
    serving_b_over_a(device, repository)
    repository.point("stable", A)


def keys_changed(device: Device, repository: TufRepository) -> None:
    serving_a(device, repository)
    for role in ("timestamp", "targets", "root"):
        repository.rotate(role)
    repository.sign()


def bad_release(device: Device, repository: TufRepository) -> None:
    serving_a(device, repository)
    repository.publish(BAD, tiny_release(2)[1])


def damaged_slot(device: Device, repository: TufRepository) -> None:
    serving_b_over_a(device, repository)
    (device.slots.folder(B) / "model.tflite").write_bytes(b"rotten")


def damaged_names(device: Device, repository: TufRepository) -> None:
    """The file of the released version, which has no second copy yet; a bit of it was flipped."""
    serving_a(device, repository)
    device.check()
    (device.state_dir / "slots.copy.json").unlink()
    file = device.state_dir / "slots.json"
    file.write_bytes(file.read_bytes().replace(b'"current"', b'"currens"'))


def in_probation(device: Device, repository: TufRepository) -> None:
    serving_a(device, repository)
    device.check()
    device.slots.keep_probation(ProbationRecord(release=B, latency_ms=1.0, unsure_share=0.0))


def b_in_shadow(device: Device, repository: TufRepository) -> None:
    serving_a(device, repository)
    device.begin_shadow()


SCENARIOS = {
    "first release": Scenario(nothing, Device.update, {None, A}, A),
    "newer release": Scenario(serving_a, Device.update, {A, B}, B),
    "newer release, by a patch": Scenario(patch_to_b, Device.update, {A, B}, B),
    "newer release, download interrupted before": Scenario(broken_off_at_b, Device.update, {A, B}, B),
    "rollback to the previous release": Scenario(back_to_a, Device.update, {A, B}, A),
    "newer release, all keys changed": Scenario(keys_changed, Device.update, {A, B}, B),
    "release that is refused": Scenario(bad_release, Device.update_to_refuse, {A}, A),
    "start with a damaged slot": Scenario(damaged_slot, Device.update, {A, B}, B),
    "start with a damaged slots.json": Scenario(damaged_names, Device.update, {A, B}, B),
    "rollback after probation": Scenario(in_probation, Device.end_probation, {A, B}, A),
    "newer release, into shadow mode": Scenario(serving_a, Device.begin_shadow, {A}, A),
    "release in shadow mode serves afterwards": Scenario(b_in_shadow, Device.follow, {A, B}, B),
    "release in shadow mode is refused": Scenario(b_in_shadow, Device.refuse_shadow, {A}, A),
}


@pytest.mark.parametrize("cut", Cut, ids=lambda cut: cut.name.lower())
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_device_survives_losing_power(name, cut, tmp_path, repository, monkeypatch, faults):
    monkeypatch.setattr(updater, "SelfTest", QuickSelfTest)
    scenario = SCENARIOS[name]
    template, state = tmp_path / "template", tmp_path / "state"
    template.mkdir()
    scenario.prepare(Device(template, repository), repository)
    stride = 1 if faults.every else STRIDE
    first = list(Cut).index(cut) % stride + 1
    for at in itertools.count(first, stride):
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(template, state)
        ending = run_until(lambda: scenario.act(Device(state, repository)), state, at, cut)
        with faults.injected(Kind.POWER, name, cut.value, ending.place):
            assert_survived(state, repository, scenario, ending)
        if ending.ended:
            break
    assert at > first


def assert_survived(state: Path, repository, scenario: Scenario, ending: Ending) -> None:
    where = ending.place or "after the end"
    device = Device(state, repository)
    classifier = open_best_slot(device.slots, 1).classifier
    release = (classifier.release or "") if classifier else None
    assert release in ({scenario.ends_with} if ending.ended else scenario.may_serve), where
    if classifier is not None and release is not None:
        assert classifier.classify(plain_picture("green")).label == "green", where
        slot = device.slots.folder(release)
        found = {path.name: path.read_bytes() for path in slot.iterdir()}
        assert found == FILES[release], where
    if ending.ended:
        remembered = (state / "metadata" / "timestamp.json").read_bytes()
        assert remembered == repository.objects["metadata/timestamp.json"], "older metadata could come back"
    scenario.act(device)
    assert Slots(state).current == scenario.ends_with, where
    used = set(device.slots.kept)
    assert {path.name for path in (state / "slots").iterdir()} <= used, where
    leftovers = {path.name for path in state.iterdir()} - STATE
    assert not leftovers, where
    assert not list((state / "metadata").glob("**/.*")), where
    assert not list(state.glob("incoming/*/*")), where
