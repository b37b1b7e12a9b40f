"""Update checks with all that follows, against a repository that lies: the old release goes on serving."""

from __future__ import annotations

import dataclasses
import json
import resource

import msgspec
import pytest

from edge_client.contract.documents import encode_document
from edge_client.contract.errors import DeviceError, TransportError, TrustError
from edge_client.contract.names import KNOWN_OUTPUT, release_target
from edge_client.contract.release import TWO_OUTPUTS_SCHEMA, ChannelDocument, ReleaseDocument, in_rollout
from edge_client.contract.rollout import Member
from edge_client.repository.trusted import TrustedRepository
from edge_client.serving.activation import open_best_slot
from edge_client.serving.holder import ClassifierHolder
from edge_client.update import check as updater
from edge_client.update.check import ReleaseUpdater
from edge_client.update.decision import Decision, decide
from edge_client.update.offer import find_offer
from edge_client.update.refusals import PostponedError, RefusedError
from edge_client.update.slots import Slots
from tests.device.conftest import PassedSelfTest
from tests.fakes.tiny_model import plain_picture, tiny_model
from tests.fakes.tiny_release import tiny_release


@pytest.fixture
def serving(device, repository, monkeypatch):
    """The device serves release 0; returns its id."""
    document = repository.publish_tiny(0)
    with monkeypatch.context() as patch:
        patch.setattr(updater, "SelfTest", PassedSelfTest)  # seconds saved; see the tests of it
        outcome = device.check()
    assert (outcome.decision, outcome.release) == (Decision.INSTALL, document.release)
    device.assert_serves(document.release)
    return document.release


def files_below(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def assert_nothing_staged(device) -> None:
    assert files_below(device.state_dir / "incoming") == set()
    assert {path.name for path in (device.state_dir / "slots").iterdir()} <= {
        device.slots.current,
        device.slots.previous,
    }


def test_a_first_release_is_installed_completely(device, repository):
    document, files = tiny_release(0)
    repository.publish(document.release, files)
    device.check()
    slot = device.slots.folder(document.release)
    assert {path.name: path.read_bytes() for path in slot.iterdir()} == files
    device.assert_serves(document.release)
    assert_nothing_staged(device)


def test_a_newer_release_is_swapped_in_and_the_old_one_kept(device, repository, serving):
    document = repository.publish_tiny(1)
    outcome = device.check()
    assert outcome.decision is Decision.INSTALL
    assert outcome.bytes_pulled > document.model_bytes
    device.assert_serves(document.release)
    assert device.slots.previous == serving
    assert_nothing_staged(device)


def test_only_two_slots_are_kept(device, repository, serving):
    second = repository.publish_tiny(1).release
    device.check()
    third = repository.publish_tiny(2).release
    device.check()
    assert {path.name for path in (device.state_dir / "slots").iterdir()} == {second, third}


def test_the_release_that_serves_is_not_fetched_again(device, repository, serving):
    asked = len(repository.requests)
    assert device.check().decision is Decision.SERVES
    assert not any(path.startswith("targets/releases") for path in repository.requests[asked:])
    assert device.installed == [serving]


def test_going_back_to_the_previous_release_downloads_none_of_its_files(device, repository, serving):
    second = repository.publish_tiny(1).release
    device.check()
    repository.point("stable", serving)
    asked = len(repository.requests)
    device.check()
    device.assert_serves(serving)
    assert device.slots.previous == second
    assert not any(path.startswith("targets/releases") for path in repository.requests[asked:])


def test_a_previous_slot_that_was_damaged_is_fetched_again(device, repository, serving):
    repository.publish_tiny(1)
    device.check()
    (device.slots.folder(serving) / "model.tflite").write_bytes(b"rotten")
    repository.point("stable", serving)
    device.check()
    device.assert_serves(serving)


def test_a_device_outside_the_share_stays(device, repository, serving):
    document, files = tiny_release(1)
    share = next(s for s in range(100) if not in_rollout(device.device_id, document.release, s))
    repository.publish(document.release, files, share_percent=share)
    assert device.check().decision is Decision.NOT_IN_SHARE
    device.assert_serves(serving)
    repository.point("stable", document.release, 100.0)
    assert device.check().decision is Decision.INSTALL
    device.assert_serves(document.release)


ATTACKS = {
    "changed model": lambda repository, release: repository.change_byte(
        only(repository, release, "model.tflite")
    ),
    "changed labels": lambda repository, release: repository.change_byte(
        only(repository, release, "labels.txt")
    ),
    "changed document": lambda repository, release: repository.change_byte(
        only(repository, release, "release.json")
    ),
    "truncated model": lambda repository, release: repository.truncate(
        only(repository, release, "model.tflite")
    ),
    "forged timestamp": lambda repository, release: (repository.steal("timestamp"), repository.stamp()),
    "forged targets": lambda repository, release: (repository.steal("targets"), repository.sign()),
    "expired timestamp": lambda repository, release: (repository.expire("timestamp"), repository.stamp()),
    "file no more signed": lambda repository, release: (
        repository.forget(release_target(release, "model.tflite")),
        repository.sign(),
    ),
}


def only(repository, release: str, name: str):
    [path] = [path for path in repository.objects if f"/{release}/" in path and path.endswith(f".{name}")]
    return path


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_changes_nothing_and_is_over_once_it_ends(device, repository, serving, attack):
    release = repository.publish_tiny(1).release
    honest, signers, expiry = dict(repository.objects), dict(repository.signers), dict(repository.expiry)
    ATTACKS[attack](repository, release)
    with pytest.raises(TrustError):
        device.check()
    device.assert_serves(serving)
    assert device.slots.previous is None
    assert device.slots.refused == {}
    repository.signers, repository.expiry = signers, expiry
    repository.objects.update(honest)
    repository.publish_tiny(1)
    device.check()
    device.assert_serves(release)


def test_older_metadata_does_not_bring_back_an_older_release(device, repository, serving):
    before = dict(repository.objects)
    release = repository.publish_tiny(1).release
    device.check()
    repository.go_back_to(before)
    with pytest.raises(TrustError, match="older"):
        device.check()
    device.assert_serves(release)


def test_a_download_is_resumed_after_a_lost_connection(device, repository, serving):
    release = repository.publish_tiny(1).release
    model = only(repository, release, "model.tflite")
    repository.break_off_after[model] = 100
    with pytest.raises(TransportError):
        device.check()
    device.assert_serves(serving)
    repository.break_off_after.clear()
    asked = len(repository.requests)
    device.check()
    device.assert_serves(release)
    assert [path for path in repository.requests[asked:] if f"/{release}/" in path] == [model]


def test_a_missing_object_is_a_transport_error(device, repository, serving):
    release = repository.publish_tiny(1).release
    del repository.objects[only(repository, release, "model.tflite")]
    with pytest.raises(TransportError, match="404 NoSuchKey"):
        device.check()
    device.assert_serves(serving)


def signed_release(repository, document, files):
    """Publish a release whose document was changed, with valid signatures."""
    repository.publish(document.release, {**files, "release.json": encode_document(document)})
    return document.release


def changed(**changes):
    document, files = tiny_release(1)
    return msgspec.structs.replace(document, **changes), files


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: tiny_release(1, model=b"\0\0\0\0TFL3garbage"), "cannot run the model"),
        (lambda: tiny_release(1, model=tiny_model(1, fully_connected_version=99)), "FULLY_CONNECTED"),
        (lambda: tiny_release(1, model=tiny_model(2)), "answered"),
        (lambda: tiny_release(1, model=tiny_model(1, labels=4)), "3 labels for a model with 4 outputs"),
        (lambda: changed(model_sha256="0" * 64), "changed since it was signed"),
        (lambda: changed(labels=("a", "b", "c")), "differs from the labels"),
        (lambda: changed(self_test=()), "no self-test pictures"),
        (
            lambda: changed(
                self_test=(
                    *tiny_release(1)[0].self_test[:2],
                    wrong_confidence(tiny_release(1)[0].self_test[2]),
                )
            ),
            "apart",
        ),
        (
            lambda: changed(
                preprocessing=msgspec.structs.replace(tiny_release(1)[0].preprocessing, id="other-9")
            ),
            "update edge-client",
        ),
        (lambda: changed(schema=3), "schema 3"),
    ],
)
def test_a_signed_release_that_cannot_be_used_is_refused_for_good(device, repository, serving, make, reason):
    release = signed_release(repository, *make())
    with pytest.raises(RefusedError, match=reason):
        device.check()
    device.assert_serves(serving)
    assert_nothing_staged(device)
    assert reason in Slots(device.state_dir).refused[release]
    asked = len(repository.requests)
    outcome = device.check()
    assert outcome.decision is Decision.REFUSED
    assert reason in outcome.reason
    assert not any(path.startswith("targets/releases") for path in repository.requests[asked:])


def wrong_confidence(case):
    return msgspec.structs.replace(case, confidence=0.5)


def test_a_document_of_another_release_is_refused(device, repository, serving):
    document, files = tiny_release(1)
    repository.publish("0123456789abcdef0123", files)
    with pytest.raises(RefusedError, match=document.release):
        device.check()
    device.assert_serves(serving)


def test_a_self_test_file_cannot_leave_its_folder(device, repository, serving):
    document, files = changed(
        self_test=(msgspec.structs.replace(tiny_release(1)[0].self_test[0], file="../../slots.json"),)
    )
    signed_release(repository, document, files)
    before = (device.state_dir / "slots.json").read_bytes()
    with pytest.raises(RefusedError, match="self-test file"):
        device.check()
    device.assert_serves(serving)
    assert (
        json.loads((device.state_dir / "slots.json").read_bytes())["current"] == json.loads(before)["current"]
    )


def test_another_runtime_tries_a_refused_release_again(device, repository, serving, monkeypatch):
    release = signed_release(repository, *tiny_release(1, model=tiny_model(1, fully_connected_version=99)))
    with pytest.raises(RefusedError):
        device.check()
    monkeypatch.setattr("edge_client.inference.runtime.runtime_name", lambda: "tflite-runtime 99")
    with pytest.raises(RefusedError):
        device.check()
    assert device.installed == [serving, release, release]


def test_an_older_client_refuses_a_release_with_two_outputs_and_installs_it_after_its_update(
    device, repository, serving, monkeypatch
):
    document, files = tiny_release(1, model=tiny_model(1, second_output=KNOWN_OUTPUT))
    release = signed_release(repository, msgspec.structs.replace(document, schema=TWO_OUTPUTS_SCHEMA), files)
    asked = len(repository.requests)
    with monkeypatch.context() as before_the_update:
        before_the_update.setattr(ReleaseDocument, "newest_schema", 1)
        with pytest.raises(RefusedError, match="schema 2, this version reads up to 1; update the software"):
            device.check()
    device.assert_serves(serving)
    assert not any("model" in path for path in repository.requests[asked:])
    device.check()
    device.assert_serves(release)


def test_a_model_that_crashes_the_runtime_kills_the_child_only(
    device, repository, serving, monkeypatch, tmp_path
):
    """A stand-in for the interpreter that dies as a real one does: by a signal, in the child."""
    crasher = tmp_path / "crash"
    crasher.mkdir()
    (crasher / "sitecustomize.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(crasher))
    repository.publish_tiny(1)
    with pytest.raises(PostponedError, match="crashed the runtime"):
        device.check()
    device.assert_serves(serving)


def test_a_release_beyond_the_limit_is_refused_before_it_is_fetched(device, repository, serving):
    release = repository.publish_tiny(1).release
    settings = dataclasses.replace(device.settings, max_release_bytes=1000)
    asked = len(repository.requests)
    with pytest.raises(RefusedError, match="max_release_bytes"):
        device.check_with(settings)
    device.assert_serves(serving)
    assert not any(path.endswith(".model.tflite") for path in repository.requests[asked:])
    assert release in device.slots.refused


def test_too_little_space_is_a_device_error_and_tried_again(device, repository, serving):
    release = repository.publish_tiny(1).release
    with pytest.raises(DeviceError, match="free some space"):
        device.check_with(dataclasses.replace(device.settings, min_free_bytes=1 << 60))
    device.assert_serves(serving)
    assert_nothing_staged(device)
    device.check()
    device.assert_serves(release)


@pytest.mark.parametrize("limit", [10, 300, 900])
@pytest.mark.parametrize("owner", [TrustedRepository, ReleaseUpdater, Slots])
def test_a_disk_that_fills_up_anywhere_leaves_the_old_release_and_no_rest(
    device, repository, serving, monkeypatch, owner, limit
):
    """The kernel refuses writes past `limit` bytes: from metadata, files of the release, or slots.json on."""
    release = repository.publish_tiny(1).release
    step = {TrustedRepository: "refresh", ReleaseUpdater: "_fetch", Slots: "activate"}[owner]
    real, limits = getattr(owner, step), resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = 10 if owner is Slots else limit

    def fill_up(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        return real(*arguments)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, fill_up)
            with pytest.raises(DeviceError, match="free space"):
                device.check()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    device.assert_serves(serving)
    assert files_below(device.state_dir / "incoming") == set()
    device.check()
    device.assert_serves(release)
    assert_nothing_staged(device)


def test_a_swap_that_fails_goes_back(device, repository, serving, monkeypatch):
    release = repository.publish_tiny(1).release

    def fail(_holder, _new):
        raise DeviceError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierHolder, "swap", fail)
        with pytest.raises(DeviceError, match="out of memory"):
            device.check()
    device.assert_serves(serving)
    device.check()
    device.assert_serves(release)


KILL_POINTS = ("stage", "install", "activate")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", KILL_POINTS)
def test_a_kill_at_any_step_comes_back_with_a_whole_release(
    device, repository, serving, monkeypatch, step, when
):
    class PowerCut(BaseException):
        pass

    release = repository.publish_tiny(1).release
    real = getattr(Slots, step)

    def cut(self, *arguments):
        if when == "after":
            real(self, *arguments)
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(Slots, step, cut)
        with pytest.raises(PowerCut):
            device.check()
    slots = Slots(device.state_dir)
    expected = release if (step, when) == ("activate", "after") else serving
    classifier = open_best_slot(slots, 1).classifier
    assert classifier is not None
    assert classifier.release == expected
    assert classifier.classify(plain_picture("blue")).label == "blue"
    slots.clean_slots()
    slots.clean_leftovers()
    device.slots, device.holder = slots, ClassifierHolder(classifier)
    device.check()
    device.assert_serves(release)
    assert_nothing_staged(device)


def test_a_damaged_current_slot_gives_way_to_the_previous(device, repository, serving):
    release = repository.publish_tiny(1).release
    device.check()
    (device.slots.folder(release) / "model.tflite").write_bytes(b"")
    slots = Slots(device.state_dir)
    classifier = open_best_slot(slots, 1).classifier
    assert classifier is not None
    assert classifier.release == serving
    assert (slots.current, slots.previous) == (release, serving), "nothing is forgotten"


def test_a_damaged_slot_is_mended_by_the_next_check(device, repository, serving):
    (device.slots.folder(serving) / "release.json").unlink()
    device.slots = Slots(device.state_dir)
    assert open_best_slot(device.slots, 1).classifier is None
    device.check()
    device.holder = ClassifierHolder(open_best_slot(device.slots, 1).classifier)
    device.assert_serves(serving)


def offered(channel, current):
    return find_offer(channel, None, Member("camera-1"), current=current)


@pytest.mark.parametrize(
    ("release", "share", "current", "refused", "expected"),
    [
        ("b", 100.0, "a", {}, Decision.INSTALL),
        ("a", 100.0, "a", {}, Decision.SERVES),
        ("a", 0.0, "a", {}, Decision.SERVES),
        ("b", 0.0, "a", {}, Decision.NOT_IN_SHARE),
        ("b", 0.0, None, {}, Decision.INSTALL),  # a camera that is new serves something
        ("b", 100.0, "a", {"b": "no"}, Decision.REFUSED),
        ("b", 100.0, None, {"a": "no"}, Decision.INSTALL),
    ],
)
def test_the_signed_channel_decides_what_a_device_does(release, share, current, refused, expected):
    channel = ChannelDocument(channel="stable", release=release, share_percent=share)
    assert decide(offered(channel, current), current, refused) is expected


@pytest.mark.parametrize(
    ("release", "current", "refused", "expected"),
    [
        ("b", "a", {}, Decision.HELD),
        ("b", None, {}, Decision.INSTALL),
        ("a", "a", {}, Decision.SERVES),
        ("b", "a", {"b": "no"}, Decision.REFUSED),
    ],
)
def test_a_release_that_is_not_allowed_yet_is_held_unless_nothing_serves(release, current, refused, expected):
    channel = ChannelDocument(channel="stable", release=release)
    assert decide(offered(channel, current), current, refused, allowed=False) is expected


def test_a_self_test_that_never_ends_is_ended(device, repository, serving, monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import threading; threading.Event().wait()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    repository.publish_tiny(1)
    with pytest.raises(PostponedError, match="self_test_timeout_s"):
        device.check_with(dataclasses.replace(device.settings, self_test_timeout_s=0.5))
    device.assert_serves(serving)
