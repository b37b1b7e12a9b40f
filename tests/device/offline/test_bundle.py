"""Bundles on a USB stick: the checks are those of the store."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from edge_client.cli import main
from edge_client.contract.documents import encode_document
from edge_client.contract.errors import DeviceError, InputError, TransportError, TrustError
from edge_client.contract.messages import DeviceStatus
from edge_client.contract.rollout import EVERYBODY, NOBODY
from edge_client.offline import handover
from edge_client.offline import importing as offline
from edge_client.offline.export import export_bundle
from edge_client.offline.handover import BUNDLE_FILE, RESULT_FILE, BundleResult, close_bundle
from edge_client.offline.importing import import_bundle
from edge_client.repository.bundle_fetcher import BundleFetcher
from edge_client.settings.file import load_settings
from edge_client.state_folder import refresh_status, running_process
from edge_client.update.refusals import RefusedError
from edge_client.update.slots import Slots
from tests.fakes.device_daemon import assert_answers
from tests.fakes.patches import zstd_patch
from tests.fakes.tiny_release import tiny_release

if TYPE_CHECKING:
    from pathlib import Path

    from edge_client.settings.file import Settings

pytestmark = pytest.mark.slow


def device_settings(folder: Path, repository) -> Settings:
    folder.mkdir()
    (folder / "root.json").write_bytes(repository.root)
    file = folder / "device.toml"
    file.write_text(
        f'[device]\nid = "camera-1"\nstate_dir = "state"\n[store]\nbase_url = "{repository.url}"\n'
        '[trust]\nroot = "root.json"\n[source]\npath = "camera"\n[update]\nmin_free_bytes = 0\n'
    )
    return load_settings(file)


@pytest.fixture
def bundle(tmp_path, repository):
    """A bundle of release 0, exported where there is a network; returns (path, release)."""
    release = repository.publish_tiny(0).release
    path = tmp_path / "stick.tar"
    assert export_bundle(device_settings(tmp_path / "office", repository), path) == (release,)
    return path, release


@pytest.fixture
def orchard(tmp_path, repository, bundle):
    """A device that never sees the store."""
    settings = device_settings(tmp_path / "orchard", repository)
    repository.stop()
    yield settings
    repository.start()


def test_a_bundle_is_exported_from_a_folder_store_too(tmp_path, repository, bundle):
    folder = tmp_path / "store"
    for key, data in repository.objects.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    settings = device_settings(tmp_path / "desk", repository)
    settings = dataclasses.replace(
        settings, store=dataclasses.replace(settings.store, base_url=folder.as_uri())
    )
    assert export_bundle(settings, tmp_path / "other.tar") == (bundle[1],)
    assert (tmp_path / "other.tar").read_bytes() == bundle[0].read_bytes()


def test_a_device_without_a_network_imports_a_bundle(bundle, orchard):
    path, release = bundle
    assert release in import_bundle(orchard, path)
    slots = Slots(orchard.device.state_dir)
    assert slots.current == release
    files = {one.name: one.read_bytes() for one in slots.folder(release).iterdir()}
    assert files == tiny_release(0)[1]
    assert "already" in import_bundle(orchard, path)


def test_a_bundle_brings_a_device_what_the_store_would_during_a_rollout(tmp_path, repository):
    """All releases that are signed for anybody are in it; the device decides."""
    steady = repository.publish_tiny(0).release
    repository.delegate()
    document, files = tiny_release(1)
    repository.add({f"releases/{document.release}/{name}": data for name, data in files.items()})
    repository.sign()
    path = tmp_path / "stick.tar"
    for name, threshold, expected in (("in", EVERYBODY, document.release), ("out", NOBODY, steady)):
        repository.roll_out(id="r1", release=document.release, threshold=threshold, spread_s=3600.0)
        settings = device_settings(tmp_path / name, repository)
        assert export_bundle(settings, path) == (steady, document.release)
        repository.stop()
        assert expected in import_bundle(settings, path)
        slots = Slots(settings.device.state_dir)
        assert slots.current == expected
        assert (slots.previous == steady) is (expected != steady), "the steady release came first"
        repository.start()
    # A client that knows no rollouts exports what it reads.
    rewrite(path, lambda members: {name: data for name, data in members.items() if "/rollouts/" not in name})
    settings = device_settings(tmp_path / "old", repository)
    repository.stop()
    assert steady in import_bundle(settings, path)
    repository.start()


def test_a_newer_bundle_follows_an_older_one_and_not_the_other_way_round(
    bundle, orchard, repository, tmp_path
):
    path, first = bundle
    import_bundle(orchard, path)
    repository.start()
    second = repository.publish_tiny(1).release
    newer = tmp_path / "newer.tar"
    export_bundle(dataclasses.replace(orchard), newer)
    repository.stop()
    assert second in import_bundle(orchard, newer)
    with pytest.raises(TrustError, match="older than what this device has seen"):
        import_bundle(orchard, path)
    slots = Slots(orchard.device.state_dir)
    assert (slots.current, slots.previous) == (second, first)


def test_a_patch_that_is_signed_but_not_in_the_bundle_is_not_missed(bundle, orchard, repository, tmp_path):
    path, first = bundle
    import_bundle(orchard, path)
    repository.start()
    second, files = tiny_release(1)
    patch = zstd_patch(files["model.tflite"], tiny_release(0)[1]["model.tflite"])
    repository.publish(second.release, {**files, f"model.tflite.from-{first}.zst": patch})
    newer = tmp_path / "newer.tar"
    export_bundle(orchard, newer)
    repository.stop()
    assert second.release in import_bundle(orchard, newer)


def rewrite(path: Path, change) -> None:
    """Write the bundle again with other members."""
    with tarfile.open(path) as tar:
        members = {one.name: tar.extractfile(one).read() for one in tar if one.isreg()}  # type: ignore[union-attr]
    members = change(members)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


ATTACKS = {
    "changed model": lambda members: {
        name: data[:-1] + b"?" if name.endswith("model.tflite") else data for name, data in members.items()
    },
    "changed metadata": lambda members: {
        name: data.replace(b"releases", b"releasez") if name.endswith("targets.json") else data
        for name, data in members.items()
    },
    "longer model": lambda members: {
        name: data * 50 if name.endswith("model.tflite") else data for name, data in members.items()
    },
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_forged_bundle_is_refused(bundle, orchard, attack):
    path, _ = bundle
    rewrite(path, ATTACKS[attack])
    with pytest.raises(TrustError):
        import_bundle(orchard, path)
    assert Slots(orchard.device.state_dir).current is None


def test_a_bundle_without_the_model_is_an_error_that_names_it(bundle, orchard):
    path, _ = bundle
    rewrite(path, lambda members: {name: data for name, data in members.items() if "tflite" not in name})
    with pytest.raises(TransportError, match="not in the bundle"):
        import_bundle(orchard, path)


def test_names_that_lead_out_of_the_folder_are_not_followed(bundle, orchard, tmp_path):
    path, release = bundle
    rewrite(path, lambda members: {**members, "../../evil": b"x", "/tmp/evil": b"x"})  # noqa: S108
    assert release in import_bundle(orchard, path)
    assert not list(tmp_path.rglob("evil"))


def test_an_expired_bundle_is_refused(tmp_path, repository):
    repository.expire("timestamp")
    repository.publish_tiny(0)
    settings = device_settings(tmp_path / "office", repository)
    with pytest.raises(TrustError, match="expired"):
        export_bundle(settings, tmp_path / "stick.tar")
    assert not list(tmp_path.glob("*stick*"))


@pytest.mark.parametrize("data", [b"", b"no tar", b"\0" * 10240])
def test_a_file_that_is_no_bundle_is_named(orchard, tmp_path, data):
    path = tmp_path / "photo.tar"
    path.write_bytes(data)
    with pytest.raises(InputError, match="edge-client export"):
        import_bundle(orchard, path)
    with pytest.raises(InputError, match="none: no such file"):
        BundleFetcher(tmp_path / "none")


def test_a_pipe_and_a_folder_are_no_bundles_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(InputError, match="not a valid bundle"):
            BundleFetcher(path)


def test_a_bundle_that_does_not_fit_on_the_disk_is_not_copied(orchard, tmp_path):
    path = tmp_path / "stick.tar"
    with path.open("wb") as file:
        file.truncate(shutil.disk_usage(tmp_path).total)
    with path.open("rb") as file, pytest.raises(DeviceError, match="free some space"):
        handover.hand_over(file, orchard.device.state_dir)
    assert not list(orchard.device.state_dir.glob("*bundle*"))


def header(kind: bytes = b"0", size: bytes = b"%011o\0" % 0) -> bytes:
    """One tar header, as wrong as wanted."""
    member = tarfile.TarInfo("some/file")
    data = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    data[124:136], data[156:157] = size, kind
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def pax(**records: str) -> bytes:
    """A file with these PAX records."""
    member = tarfile.TarInfo("some/file")
    member.pax_headers = records
    return member.tobuf(tarfile.PAX_FORMAT)


END = bytes(1024)
GIGABYTES = b"%011o\0" % (3 << 30)
SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 18}
PAX_BYTES = 19 << 20
RECORDS = b"".join(b"12 %06d=1\n" % number for number in range(1024)) * (PAX_BYTES // 12288 + 1)
RECORDS = RECORDS[:PAX_BYTES]
HOSTILE = {
    "a negative size, which older tarfiles read for ever": header(size=b"\xff" * 12) * 3 + END,
    "a negative size in a PAX header": pax(size="-512") * 50 + END,
    "a size that is no number": pax(size="many") + END,
    "a name of gigabytes": header(b"L", GIGABYTES) + bytes(4096) + END,
    "a PAX header of gigabytes": header(b"x", GIGABYTES) + bytes(4096) + END,
    "PAX headers without end": header(b"x") * 5000 + END,
    "the same file without end": header() * 10_001 + END,
    "empty files without end": header(size=b"%011o\0" % 0) * 50_000,
    "19 MB of PAX records": header(b"x", b"%011o\0" % PAX_BYTES) + RECORDS + header() + END,
    "19 MB of global PAX records": (header(b"g", b"%011o\0" % 3072) + RECORDS[:3072]) * 6000 + END,
    "19 MB of PAX records, some for each file": (header(b"x", b"%011o\0" % 3072) + RECORDS[:3072] + header())
    * 5600
    + END,
    "names of names": header(b"L", b"%011o\0" % 512) * 20_000 + END,
    "a map of a sparse file without end": pax(**SPARSE)[:-512]
    + header(size=b"%011o\0" % (1 << 24))
    + b"1000000\n"
    + b"0\n" * (8 << 20)
    + END,
    "a sparse file": pax(**SPARSE) + END,
    "a link to another file": header(b"2") + END,
    "a device": header(b"3") + END,
    "cut off": header()[:300],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tar_is_named_and_costs_no_memory(orchard, tmp_path, name):
    path = tmp_path / "stick.tar"
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="edge-client export"):
            BundleFetcher(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_export_and_import_name_the_release(bundle, orchard, capsys, tmp_path):
    path, release = bundle
    assert main(["import", "--config", str(orchard.file), str(path)]) == 0
    assert release in capsys.readouterr().out
    assert main(["export", "--config", str(orchard.file), str(tmp_path / "again.tar")]) == 4


def test_a_running_daemon_imports_a_bundle_between_two_frames(daemon, watcher, serving, repository, tmp_path):
    second = repository.publish_tiny(1).release
    path = tmp_path / "stick.tar"
    export_bundle(load_settings(daemon.file), path)
    repository.stop()
    done = daemon.ask("import", str(path))
    assert done.returncode == 0, done.stderr
    assert second in done.stdout
    watcher.wait_release(second)
    assert_answers(daemon, watcher, second)
    assert not (daemon.state_dir / BUNDLE_FILE).exists()
    repository.start()


def test_a_running_daemon_reports_why_it_refuses_a_bundle(daemon, watcher, serving, repository, tmp_path):
    repository.publish_tiny(1)
    path = tmp_path / "stick.tar"
    export_bundle(load_settings(daemon.file), path)
    rewrite(path, ATTACKS["changed model"])
    done = daemon.ask("import", str(path))
    assert done.returncode == 3, "as without a daemon"
    assert "not the content that was signed" in done.stderr
    assert_answers(daemon, watcher, serving)


ANSWERS = {
    "taken": (BundleResult(message="release r2 serves"), None),
    "forged": (BundleResult(message="older than known", error="TrustError"), TrustError),
    "refused": (BundleResult(message="too slow", error="RefusedError"), RefusedError),
    "of a kind that is not known here": (BundleResult(message="?", error="Newer"), DeviceError),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_result_of_a_bundle_is_not_read_from_an_old_status(bundle, orchard, monkeypatch, name):
    """The daemon's status comes to the disk in a thread of its own, later than the bundle is dealt with."""
    result, error = ANSWERS[name]
    state_dir = orchard.device.state_dir
    state_dir.mkdir()
    status = DeviceStatus(device="c", channel="stable", state="serving", last_error="yesterday's")
    (state_dir / "status.json").write_bytes(encode_document(status))
    monkeypatch.setattr(offline, "daemon_runs", lambda _folder: True)
    monkeypatch.setattr(offline, "signal_daemon", lambda _folder, _number: close_bundle(state_dir, result))
    if error is None:
        assert import_bundle(orchard, bundle[0]) == "release r2 serves"
    else:
        with pytest.raises(error, match=re.escape(result.message)):
            import_bundle(orchard, bundle[0])
    assert {path.name for path in state_dir.iterdir()} == {"status.json"}


def test_a_daemon_that_cannot_write_the_result_of_a_bundle_is_not_waited_for(bundle, orchard, monkeypatch):
    """Its disk may be full."""
    monkeypatch.setattr(offline, "daemon_runs", lambda _folder: True)
    monkeypatch.setattr(offline, "signal_daemon", lambda *_: handover.forget_bundle(orchard.device.state_dir))
    monkeypatch.setattr(offline, "_RESULT_S", 0.1)
    with pytest.raises(DeviceError, match="edge-client status"):
        import_bundle(orchard, bundle[0])


def test_a_daemon_that_failed_before_reports_the_result_of_a_new_bundle(
    daemon, watcher, serving, repository, tmp_path
):
    second = repository.publish_tiny(1).release
    path = tmp_path / "stick.tar"
    export_bundle(load_settings(daemon.file), path)
    repository.stop()
    daemon.ask("update")
    watcher.wait_status(lambda s: s.last_error is not None, "yesterday's error")
    done = daemon.ask("import", str(path))
    assert done.returncode == 0, done.stderr
    assert f"release {second} serves" in done.stdout
    again = daemon.ask("import", str(path))
    assert f"release {second} serves" in again.stdout
    assert not (daemon.state_dir / RESULT_FILE).exists()
    repository.start()


def test_a_release_that_is_too_slow_for_the_device_never_becomes_current(bundle, orchard, capsys):
    path, release = bundle
    device = dataclasses.replace(orchard.device, latency_budget_ms=0.0001)
    with pytest.raises(RefusedError, match="too slow for this device"):
        import_bundle(dataclasses.replace(orchard, device=device), path)
    slots = Slots(orchard.device.state_dir)
    assert slots.current is None
    assert "latency_budget_ms" in slots.refused[release]


def test_leftovers_of_a_killed_check_are_removed_by_the_next(bundle, orchard):
    path, _release = bundle
    left = orchard.device.state_dir / ".check-killed/root_history"
    left.mkdir(parents=True)
    import_bundle(orchard, path)
    assert not list(orchard.device.state_dir.glob(".check-*"))


def test_status_does_not_end_an_import(bundle, orchard):
    """`edge-client status` during an import without a daemon sends it no signal."""
    path, release = bundle
    command = [sys.executable, "-m", "edge_client.cli"]
    with subprocess.Popen(
        [*command, "import", "--config", str(orchard.file), str(path)], stdout=subprocess.PIPE, text=True
    ) as taking:
        asked = 0
        while taking.poll() is None:
            assert running_process(orchard.device.state_dir) is None
            refresh_status(orchard.device.state_dir, [])
            asked += 1
        said = taking.communicate()[0]
    assert (taking.returncode, asked > 1) == (0, True)
    assert release in said


def test_a_full_disk_leaves_no_half_bundle(bundle, orchard, monkeypatch):
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(handover.shutil, "copyfileobj", full)  # type: ignore[attr-defined]
    with bundle[0].open("rb") as file, pytest.raises(DeviceError, match="No space"):
        handover.hand_over(file, orchard.device.state_dir)
    assert not list(orchard.device.state_dir.glob("*bundle*"))
