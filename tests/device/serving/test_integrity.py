"""What lies in a slot serves only if it is what was signed; and no damage costs a camera its model.

Bits flip in every file of the state, releases are put into slots by hand, metadata and slots.json are edited.
Each time a device starts on that disk, without a network, and then looks at an honest store.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from typing import TYPE_CHECKING

import msgspec
import pytest

from edge_client.contract.documents import encode_document
from edge_client.contract.errors import DeviceError, TransportError
from edge_client.contract.names import release_target
from edge_client.machine import boot_id
from edge_client.serving import other_process
from edge_client.serving.probation import ENDS, FAILURES, STOPPED, LastEnd
from edge_client.serving.serving import Serving
from edge_client.settings.file import load_settings
from edge_client.update import check as updater
from edge_client.update.endings import Ending
from edge_client.update.selftest import SelfTestError
from edge_client.update.slots_document import ProbationRecord
from tests.device.conftest import DeviceUnderTest, PassedSelfTest
from tests.fakes.bad_disk import bits_of, fail_to_read, flip
from tests.fakes.tiny_model import plain_picture
from tests.fakes.tiny_release import tiny_release
from tests.fakes.tuf_repository import object_path
from tests.fault_table import Kind

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.runtime, pytest.mark.timeout(3600)]

(A, FILES_A), (B, FILES_B) = ((document.release, files) for document, files in map(tiny_release, (0, 1)))
PICTURES = {label: plain_picture(label) for label in ("red", "green", "blue")}
# Bits of a file that are flipped by default, and with --every-fault; and how many flips share a look at the
# store.
SOME, MOST, LOOKS = 3, 200, 20


@dataclasses.dataclass
class Camera:
    """A device with two releases on its disk, the second one current; its store may be gone."""

    state: Path
    template: Path
    device: DeviceUnderTest
    settings: object

    def start(self) -> Serving:
        """As the daemon starts."""
        return Serving(self.settings, "this software", lambda _urgent: None)  # type: ignore[arg-type]

    def restore(self) -> None:
        shutil.rmtree(self.state)
        shutil.copytree(self.template, self.state)

    def look(self, serving: Serving) -> None:
        """As the daemon's update check, with its child's part in this process."""
        signed: dict[str, str] = {}
        self.device.slots.reload()
        check = self.device.updater(on_signed=signed.__setitem__)
        try:
            outcome = check.check()
        except TransportError:
            serving.note_verified(signed)
            return
        serving.reload()
        serving.note_verified(signed)
        serving.install(outcome, lambda _outcome: None)

    def slot(self, release: str) -> Path:
        return self.state / "slots" / release


@pytest.fixture
def camera(tmp_path, repository, monkeypatch) -> Camera:
    monkeypatch.setattr(updater, "SelfTest", PassedSelfTest)
    device = DeviceUnderTest(tmp_path / "state", repository)
    for bias in (0, 1):
        repository.publish_tiny(bias)
        device.check()
    file = tmp_path / "device.toml"
    file.write_text(
        f'[device]\nid = "camera-1"\nstate_dir = "{device.state_dir}"\n'
        f'[store]\nbase_url = "{repository.url}"\n[source]\npath = "{tmp_path}"\n'
    )
    camera = Camera(device.state_dir, tmp_path / "template", device, load_settings(file))
    camera.start()
    shutil.copytree(camera.state, camera.template)
    return camera


def assert_right(serving: Serving, *releases: str) -> None:
    """One of these releases serves, and its answers are those that the pipeline saw."""
    assert serving.release in releases, serving.fault
    for label, pixels in PICTURES.items():
        predicted = serving.predict(pixels)
        assert predicted is not None
        assert predicted[0].label == label
        assert predicted[0].confidence == pytest.approx(0.996, abs=0.003)
        assert predicted[1] == serving.release


def files_of(slot: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in slot.iterdir()}


def test_no_flipped_bit_costs_a_release_or_gives_a_wrong_answer(camera, faults):
    files = [path.relative_to(camera.state) for path in sorted(camera.state.rglob("*")) if path.is_file()]
    assert len(files) > 15
    flips = 0
    for file in files:
        data = (camera.state / file).read_bytes()
        for bit in bits_of(data, faults, SOME, MOST):
            flips += 1
            camera.restore()
            (camera.state / file).write_bytes(flip(data, bit))
            with faults.injected(Kind.BIT_FLIPS, "two releases, no network", _sort_of(file)):
                serving = camera.start()
                assert_right(serving, A, B)
                in_current = file.parts[:2] == ("slots", B)
                assert serving.release == B or in_current, (file, bit)
                assert files_of(camera.slot(A)) == FILES_A or file.parts[:2] == ("slots", A), (file, bit)
                assert files_of(camera.slot(B)) == FILES_B or in_current, (file, bit)
                if flips % LOOKS == 0:
                    camera.look(serving)
                    assert_right(serving, B)
                    assert files_of(camera.slot(B)) == FILES_B
                    assert files_of(camera.slot(A)) == FILES_A


def _sort_of(file: Path) -> str:
    if file.parts[0] == "slots":
        return "self-test picture" if file.suffix == ".png" else file.name
    return "metadata" if file.parts[0] == "metadata" else file.name


def test_every_bit_of_a_release_document_is_noticed_or_harmless(camera, faults):
    """Mean and deviation of the pixels stand there: 20 of 9,464 bits gave wrong answers unnoticed."""
    data = FILES_B["release.json"]
    start = data.index(b'"normalization"') * 8
    bits = set(bits_of(data, faults, 6, 2000)) | set(range(start + 8 * 18, start + 8 * 90, 37))
    for bit in sorted(bits):
        camera.restore()
        for release in (A, B):
            other = (camera.slot(release) / "release.json").read_bytes()
            (camera.slot(release) / "release.json").write_bytes(flip(other, bit % (8 * len(other))))
        serving = camera.start()
        if serving.serves:  # a bit in a text for people
            assert_right(serving, A, B)


SELF_MADE = tiny_release(3)


def forge(slot: Path) -> None:
    """Put a release of somebody else into the slot of a signed one, under its name."""
    document, files = SELF_MADE
    assert document.labels != tiny_release(1)[0].labels or files != FILES_B
    for name, data in files.items():
        (slot / name).write_bytes(data)
    (slot / "release.json").write_bytes(encode_document(msgspec.structs.replace(document, release=slot.name)))


def test_a_self_made_release_in_the_slot_of_a_signed_one_does_not_serve(camera, repository):
    forge(camera.slot(B))
    serving = camera.start()
    assert_right(serving, A)
    assert "is not what was signed" in serving.fault
    repository.stop()
    camera.look(serving)
    assert_right(serving, A)
    repository.start()
    camera.look(serving)
    assert_right(serving, B)
    assert (serving.fault, files_of(camera.slot(B))) == ("", FILES_B)


def test_a_release_that_was_signed_anew_serves_on_while_it_cannot_be_downloaded(camera, repository):
    """After stolen keys the same candidate is published again, with another document under the same id."""
    serving = camera.start()
    document = msgspec.structs.replace(tiny_release(1)[0], created_at="later")
    anew = encode_document(document)
    repository.publish(B, {**FILES_B, "release.json": anew})
    repository.break_off_after = {object_path(release_target(B, "release.json"), anew): 10}
    camera.look(serving)
    assert_right(serving, B)
    assert_right(camera.start(), B)
    repository.break_off_after.clear()
    camera.look(serving)
    assert_right(serving, B)
    assert (camera.slot(B) / "release.json").read_bytes() == anew
    assert_right(camera.start(), B)


def test_no_rollback_goes_to_a_release_that_is_not_what_was_signed(camera):
    camera.device.slots.keep_probation(ProbationRecord(release=B, crashes=STOPPED))
    serving = camera.start()
    forge(camera.slot(A))

    def fail(_pixels):
        raise DeviceError("broken")

    assert serving._holder.current is not None
    serving._holder.current.classify = fail
    for _ in range(FAILURES):
        with pytest.raises(DeviceError, match="broken"):
            serving.predict(PICTURES["red"])
    with pytest.raises(DeviceError, match="not what was signed"):
        serving.settle(lambda _outcome: None)
    assert serving.release == B


def test_no_refusal_for_frames_that_fail_for_lack_of_memory(camera):
    """However often it happens: the machine lacks it, whatever the runtime raises."""
    camera.device.slots.keep_probation(ProbationRecord(release=B, crashes=STOPPED))
    serving = camera.start()

    def fail(_pixels):
        raise DeviceError("the runtime failed") from RuntimeError("std::bad_alloc")

    assert serving._holder.current is not None
    serving._holder.current.classify = fail
    for _ in range(FAILURES):
        with pytest.raises(DeviceError, match="the runtime failed"):
            serving.predict(PICTURES["red"])
    changes = serving.settle(lambda _outcome: None)
    assert changes is not None
    assert (serving.release, changes["refused"]) == (A, None)
    record = serving._slots.failures.records[B]
    assert record.ending == Ending.OUT_OF_MEMORY.name.lower()


def test_a_bad_start_by_a_crash_inside_a_model_is_not_repeated(camera, monkeypatch):
    """A runtime that crashes on the current release would keep the device from every update."""
    crashes, tried = {B}, []

    class Crashing(PassedSelfTest):
        def run(self, folder):
            tried.append(folder.name)
            if folder.name in crashes:
                raise SelfTestError("the model crashed the runtime (SIGSEGV)", Ending.CRASHED)
            return super().run(folder)

    monkeypatch.setattr(other_process, "SelfTest", Crashing)
    camera.start()
    assert not tried
    end = LastEnd.SERVING_MODEL
    serving = Serving(camera.settings, "this software", lambda _urgent: None, last_end=end)
    assert_right(serving, A)
    assert "SIGSEGV" in serving.fault
    assert tried == [B, A]
    crashes.clear()  # the runtime was mended
    assert serving.reopen()
    assert_right(serving, B)


def test_signatures_count_more_than_an_edited_slots_json(camera, repository):
    forge(camera.slot(B))
    digest = hashlib.sha256((camera.slot(B) / "release.json").read_bytes()).hexdigest()
    content = json.loads((camera.state / "slots.json").read_bytes())
    del content["checksum"]
    content["digests"][B] = digest
    for name in ("slots.json", "slots.copy.json"):
        (camera.state / name).write_text(json.dumps(content))
    repository.stop()
    serving = camera.start()
    assert serving.release == B, "all that the daemon has to go by says so"
    camera.look(serving)
    assert_right(serving, A)
    assert serving.fault
    repository.start()
    camera.look(serving)
    assert_right(serving, B)


@pytest.mark.parametrize("damage", ["deleted", "emptied", "of somebody else"])
def test_damaged_metadata_does_not_end_serving_nor_let_a_self_made_release_serve(camera, damage):
    targets = camera.state / "metadata" / "targets.json"
    if damage == "deleted":
        shutil.rmtree(targets.parent)
    else:
        targets.write_bytes(b"" if damage == "emptied" else b'{"signed": {"targets": {}}}')
    assert_right(camera.start(), B)
    forge(camera.slot(B))
    serving = camera.start()
    assert_right(serving, A)


def test_a_state_of_the_released_version_is_compared_too(camera):
    """No digests, no checksum, no second copy."""
    content = json.loads((camera.state / "slots.json").read_bytes())
    known = ("schema", "current", "previous", "refused", "refused_by", "probation", "shadow")
    (camera.state / "slots.json").write_text(json.dumps({name: content[name] for name in known}))
    for name in ("slots.copy.json", "activated"):
        (camera.state / name).unlink()
    forge(camera.slot(B))
    assert_right(camera.start(), A)
    shutil.rmtree(camera.slot(B))
    shutil.copytree(camera.template / "slots" / B, camera.slot(B))
    assert_right(camera.start(), B)
    assert (camera.state / "slots.copy.json").read_bytes() == (camera.state / "slots.json").read_bytes()


def test_a_device_that_was_off_for_months_serves(camera, repository):
    for role in ("timestamp", "snapshot", "targets"):
        repository.expire(role)
    repository.sign()
    serving = camera.start()
    assert_right(serving, B)
    repository.stop()
    camera.look(serving)
    assert_right(serving, B)


def test_a_file_that_cannot_be_read_now_is_no_proof(camera, repository, monkeypatch):
    with monkeypatch.context() as patch:
        fail_to_read(patch, "release.json", "model.tflite", "labels.txt")
        serving = camera.start()
        assert (serving.release, serving.serves) == (None, False)
        assert "Input/output error" in serving.fault
        camera.look(serving)
    assert (files_of(camera.slot(A)), files_of(camera.slot(B))) == (FILES_A, FILES_B)
    assert not [path for path in repository.requests if "model" in path][2:], "nothing is downloaded again"
    assert serving.reopen()
    assert_right(serving, B)


def test_a_release_that_rots_under_the_daemon_goes_on_and_is_mended(camera):
    serving = camera.start()
    (camera.slot(B) / "model.tflite").unlink()
    (camera.slot(B) / "selftest-red.png").write_bytes(b"rotten")
    assert_right(serving, B)
    camera.look(serving)
    assert_right(serving, B)
    assert files_of(camera.slot(B)) == FILES_B


def test_a_newer_release_keeps_the_one_that_serves_and_not_the_damaged_one(camera, repository):
    (camera.slot(B) / "model.tflite").write_bytes(b"rotten")
    serving = camera.start()
    assert_right(serving, A)
    recent = serving._recent
    assert not serving.reopen()
    assert serving._recent is recent, "a try that changes nothing begins no measurement anew"
    newest = repository.publish_tiny(2).release
    camera.look(serving)
    assert_right(serving, newest)
    assert serving.previous == A
    assert not camera.slot(B).exists()


def test_a_bad_start_is_no_crash_of_a_release_on_probation(camera, monkeypatch):
    camera.device.slots.keep_probation(ProbationRecord(release=B, crashes=STOPPED))
    before = (camera.state / "slots.json").read_bytes()
    for _ in range(5):
        with monkeypatch.context() as patch:
            fail_to_read(patch, "model.tflite")
            assert not camera.start().serves
        assert (camera.state / "slots.json").read_bytes() == before
    serving = camera.start()
    assert_right(serving, B)
    assert serving.on_probation


def test_no_release_is_sent_back_for_kills_to_one_that_cannot_serve(camera):
    record = ProbationRecord(release=B, crashes=ENDS, boot=boot_id())
    camera.device.slots.keep_probation(record)
    model = camera.slot(A) / "model.tflite"
    model.write_bytes(flip(model.read_bytes(), 4000))
    serving = camera.start()
    assert_right(serving, B)
    assert serving.on_probation
    model.write_bytes(FILES_A["model.tflite"])
    assert_right(camera.start(), A)


def test_a_runtime_that_cannot_load_the_newest_release_is_waited_for(camera, repository, monkeypatch):
    """Its self-test passed in another process: what fails in the daemon does not refuse it."""
    serving = camera.start()
    newest = repository.publish_tiny(2).release
    with monkeypatch.context() as patch:
        fail_to_read(patch, "labels.txt")
        with pytest.raises(Exception, match="Input/output error"):
            camera.look(serving)
    assert_right(serving, B)
    assert camera.device.slots.refused == {}
    asked = len(repository.requests)
    camera.device.slots.forget_failures()
    camera.look(serving)
    assert_right(serving, newest)
    assert not [path for path in repository.requests[asked:] if "tflite" in path], "it is on the disk"
