"""The cheapest download of a model, and the next cheapest where one cannot be used."""

from __future__ import annotations

import builtins
import hashlib

import pytest
import zstandard

from edge_client.contract.errors import InputError, TrustError
from edge_client.contract.names import COMPRESSED_MODEL_FILE, MODEL_FILE, patch_file, release_target
from edge_client.update import check as updater
from edge_client.update.patches import unpack
from tests.device.conftest import PassedSelfTest
from tests.fakes.bad_disk import fail_to_read_below
from tests.fakes.patches import zstd_patch
from tests.fakes.tiny_release import tiny_release
from tests.fakes.tuf_repository import object_path

A, FILES_A = tiny_release(0)
B, FILES_B = tiny_release(1)
MODEL_A, MODEL_B = FILES_A[MODEL_FILE], FILES_B[MODEL_FILE]
RED = FILES_B["selftest-red.png"]
PATCH = release_target(B.release, patch_file(A.release))
COMPRESSED = release_target(B.release, COMPRESSED_MODEL_FILE)
FULL = release_target(B.release, MODEL_FILE)


@pytest.fixture
def serving(device, repository, monkeypatch):
    """The device serves release A; B is published, without a patch yet."""
    monkeypatch.setattr(updater, "SelfTest", PassedSelfTest)
    repository.publish_tiny(0)
    device.check()
    repository.publish_tiny(1)
    return device


def publish(repository, **files: bytes) -> None:
    repository.add({{"patch": PATCH, "compressed": COMPRESSED}[name]: data for name, data in files.items()})
    repository.sign()


def update(device, repository) -> list[str]:
    """Update, and return the files that were read on the way to the model."""
    asked = len(repository.requests)
    device.check()
    device.assert_serves(B.release)
    slot = device.slots.folder(B.release)
    assert {path.name: path.read_bytes() for path in slot.iterdir()} == FILES_B
    return [path.rpartition(".tflite")[2] for path in repository.requests[asked:] if ".tflite" in path]


def test_a_patch_on_the_serving_model_is_the_cheapest_download(serving, repository):
    publish(repository, patch=zstd_patch(MODEL_B, MODEL_A), compressed=zstd_patch(MODEL_B))
    assert update(serving, repository) == [f".from-{A.release}.zst"]


def test_without_a_patch_the_compressed_model_is_read(serving, repository):
    publish(repository, compressed=zstd_patch(MODEL_B))
    assert update(serving, repository) == [".zst"]


def test_without_either_the_model_is_read(serving, repository):
    assert update(serving, repository) == [""]


def test_a_patch_on_another_release_is_not_read(serving, repository):
    other = release_target(B.release, patch_file("0123456789"))
    repository.add({other: zstd_patch(MODEL_B, MODEL_A)})
    repository.sign()
    assert update(serving, repository) == [""]


def test_a_patch_larger_than_the_model_is_not_downloaded(serving, repository):
    publish(repository, patch=bytes(2 * len(MODEL_B)))
    assert update(serving, repository) == [""]


@pytest.mark.parametrize(
    "wrong",
    [
        b"no frame at all",
        zstd_patch(MODEL_A, MODEL_A),
        zstd_patch(MODEL_B[:-1], MODEL_A),
        zstd_patch(MODEL_B + b"more", MODEL_A),
        zstd_patch(MODEL_B, MODEL_A)[:-20],
        zstd_patch(MODEL_B, MODEL_A[::-1]),
    ],
    ids=["garbage", "another model", "shorter", "longer", "cut off", "another base"],
)
def test_a_patch_that_does_not_give_the_signed_model_costs_its_bytes_only(serving, repository, wrong):
    publish(repository, patch=wrong, compressed=zstd_patch(MODEL_B))
    assert update(serving, repository) == [f".from-{A.release}.zst", ".zst"]


@pytest.mark.parametrize("fault", ["changed", "missing", "not signed"])
def test_a_patch_that_is_not_the_signed_one_costs_its_bytes_only(serving, repository, fault):
    patch = zstd_patch(MODEL_B, MODEL_A)
    publish(repository, patch=patch)
    path = object_path(PATCH, patch)
    if fault == "changed":
        repository.change_byte(path)
    elif fault == "missing":
        del repository.objects[path]
    else:
        repository.forget(PATCH)
        repository.sign()
    assert update(serving, repository)[-1] == ""


def test_a_damaged_base_costs_the_whole_model(serving, repository):
    publish(repository, patch=zstd_patch(MODEL_B, MODEL_A))
    (serving.slots.folder(A.release) / MODEL_FILE).write_bytes(MODEL_A[::-1])
    assert update(serving, repository) == [f".from-{A.release}.zst", ""]


@pytest.mark.parametrize("fault", ["EIO", "deleted", "truncated", "a folder"])
def test_a_base_that_cannot_be_read_costs_the_patch_only(serving, repository, monkeypatch, fault):
    publish(repository, patch=zstd_patch(MODEL_B, MODEL_A), compressed=zstd_patch(MODEL_B))
    base = serving.slots.folder(A.release) / MODEL_FILE
    if fault == "truncated":
        base.write_bytes(MODEL_A[:100])
    elif fault != "EIO":
        base.unlink()
    if fault == "a folder":
        base.mkdir()
    with monkeypatch.context() as patch:
        if fault == "EIO":
            fail_to_read_below(patch, base.parent)
        read = update(serving, repository)
    assert read == ([f".from-{A.release}.zst"] if fault == "truncated" else []) + [".zst"]


def test_a_device_without_zstandard_reads_the_model(serving, repository, monkeypatch):
    publish(repository, patch=zstd_patch(MODEL_B, MODEL_A))
    real = builtins.__import__

    def without(name, *rest):
        if name == "zstandard":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert update(serving, repository)[-1] == ""


def test_a_bomb_is_not_unpacked():
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(200_000_000))
    with pytest.raises(InputError):
        unpack(bomb, b"", 1000)


def test_a_frame_that_wants_gigabytes_of_window_is_refused():
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=0)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    greedy = writer.compress(bytes(1000)) + writer.flush()
    with pytest.raises(InputError, match="does not unpack"):
        unpack(greedy, b"", 1000)


def test_labels_and_pictures_of_the_release_before_are_not_read_again(serving, repository):
    asked = len(repository.requests)
    serving.check()
    read = [path for path in repository.requests[asked:] if "selftest" in path]
    assert set(FILES_A) == set(FILES_B)
    same = [name for name in FILES_A if "selftest" in name and FILES_A[name] == FILES_B[name]]
    assert same
    assert read == []


def test_a_picture_that_is_not_the_signed_one_is_refused_in_slot_and_store(serving, repository):
    (serving.slots.folder(A.release) / "selftest-red.png").write_bytes(b"rotten")
    repository.change_byte(repository.find(f"{B.release}/{hashlib.sha256(RED).hexdigest()}"))
    with pytest.raises(TrustError, match="selftest-red"):
        serving.check()
    serving.assert_serves(A.release)


def test_a_damaged_picture_in_the_slot_is_read_from_the_store(serving, repository):
    (serving.slots.folder(A.release) / "selftest-red.png").write_bytes(b"rotten")
    asked = len(repository.requests)
    serving.check()
    read = [path for path in repository.requests[asked:] if "selftest" in path]
    assert len(read) == 1
    assert (serving.slots.folder(B.release) / "selftest-red.png").read_bytes() == RED
