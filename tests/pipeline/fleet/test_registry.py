"""The registry: nobody is lost, nothing older is taken for it, and it never reads as an empty fleet."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import time
from typing import TYPE_CHECKING

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner

from edge_client.contract.errors import InputError, SettingsError, TrustError
from luigi_tasks.fleet import registry
from luigi_tasks.fleet.documents import FleetKeys, SignedDocuments
from luigi_tasks.fleet.records import EnrolledDevice
from luigi_tasks.fleet.registry import (
    INDEX_KEY,
    SHARDS_FOLDER,
    NoRegistryError,
    RegistryChange,
    accept_registry,
    change_registry,
    load_registry,
)
from luigi_tasks.fleet.seen import SeenVersions
from luigi_tasks.settings.values import StoreSettings
from luigi_tasks.storage.folder_store import FolderStore
from luigi_tasks.storage.opening import open_store

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SIGNER = CryptoSigner.generate_ed25519()


def no_signer():
    raise SettingsError("this machine has no key of the fleet's documents")


KEYS = FleetKeys(lambda: {SIGNER.public_key.keyid: SIGNER.public_key}, lambda: SIGNER)
READING = FleetKeys(KEYS.trusted, no_signer)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """A store in a folder."""
    url = (tmp_path / "store").as_uri()
    return FolderStore(StoreSettings(url, "", "", "when_required", conditional_writes=True))


@pytest.fixture
def documents(store: FolderStore, tmp_path: Path) -> SignedDocuments:
    """Signed documents of a machine with a memory."""
    return SignedDocuments(store, KEYS, SeenVersions(tmp_path / "memory", store.url("")))


def enroll(documents: SignedDocuments, names: Iterable[str], site: str = "") -> None:
    """Enroll devices in one step."""
    rows = tuple(EnrolledDevice(device=name, site=site) for name in names)
    change_registry(
        documents, [row.device for row in rows], lambda _: RegistryChange(rows), who="ann", begin=True
    )


def test_who_was_enrolled_is_in_the_fleet_and_who_left_is_remembered(documents):
    enroll(documents, ["camera-1", "camera-2"], site="shop-7")
    first = load_registry(documents)
    assert set(first.devices) == {"camera-1", "camera-2"}
    assert first.devices["camera-1"].member.site == "shop-7"

    def leave(known):
        assert set(known) == {"camera-1"}
        row = msgspec.structs.replace(known["camera-1"], retired_at="2026-11-27T10:00:00Z", key="")
        return RegistryChange((row,), {"east": "PEM"})

    change_registry(documents, ["camera-1", "camera-9"], leave, who="ann")
    second = load_registry(SignedDocuments(documents.store, READING), first)
    assert set(second.devices) == {"camera-2"}
    assert set(second.retired) == {"camera-1"}
    assert second.collectors == {"east": "PEM"}
    assert second.version == first.version + 1
    change_registry(documents, [], lambda _: RegistryChange(collectors={"east": ""}), who="ann")
    assert load_registry(documents).collectors == {}


def test_a_large_fleet_lies_in_shards_and_a_change_writes_one_of_them(documents, store, monkeypatch):
    monkeypatch.setattr(registry, "SHARD_DEVICES", 8)
    names = [f"camera-{number}" for number in range(300)]
    enroll(documents, names[:5])
    assert len(store.list_folder(SHARDS_FOLDER)) == 1
    enroll(documents, names[5:])
    before = load_registry(documents)
    assert set(before.devices) == set(names)
    assert len(before.shards) > 32
    enroll(documents, ["camera-new"])
    read: list[str] = []
    get = store.get

    def recorded(key, **limit):
        read.append(key)
        return get(key, **limit)

    monkeypatch.setattr(store, "get", recorded)
    after = load_registry(documents, before)
    assert set(after.devices) == {*names, "camera-new"}
    assert len(read) == 2, "the index and the one shard that changed"
    assert load_registry(documents, after).devices == after.devices


def test_shards_that_nothing_names_any_more_go_with_the_next_change_but_one(documents, store):
    for number in range(6):
        enroll(documents, [f"camera-{number}"])
    assert len(store.list_folder(SHARDS_FOLDER)) == 2, "the one of now, and the one that a reader may be at"


def test_operators_at_once_lose_nothing(documents, store):
    enroll(documents, ["first"])
    names = [f"camera-{number}" for number in range(12)]
    with concurrent.futures.ThreadPoolExecutor(4) as operators:
        list(operators.map(lambda name: enroll(SignedDocuments(store, KEYS), [name]), names))
    assert set(load_registry(documents).devices) == {"first", *names}
    assert len(store.list_folder(SHARDS_FOLDER)) == 2, "who lost a race left nothing behind"


def test_operators_at_once_lose_nothing_in_a_real_bucket(store_settings):
    store = open_store(store_settings)
    documents = SignedDocuments(store, KEYS)
    names = [f"camera-{number}" for number in range(6)]
    with concurrent.futures.ThreadPoolExecutor(3) as operators:
        list(operators.map(lambda name: enroll(documents, [name]), names))
    assert set(load_registry(documents).devices) == set(names)


def test_a_change_that_is_refused_changes_nothing(documents, store):
    enroll(documents, ["camera-1"])
    before = store.list_folder("")

    def refuse(_known):
        raise ValueError("row 3")

    with pytest.raises(ValueError, match="row 3"):
        change_registry(documents, ["camera-2"], refuse, who="ann")
    with pytest.raises(ValueError, match="not asked about"):
        change_registry(
            documents, ["camera-2"], lambda _: RegistryChange((EnrolledDevice(device="other"),)), who="ann"
        )
    with pytest.raises(SettingsError):
        enroll(SignedDocuments(store, READING), ["camera-2"])
    assert {one for one in store.list_folder("") if one.key == INDEX_KEY} <= set(before)
    assert set(load_registry(documents).devices) == {"camera-1"}


# What somebody can do who writes the bucket and has no key.


def test_no_registry_is_an_error_and_tells_never_from_lost(documents, store):
    with pytest.raises(NoRegistryError, match="no device was enrolled yet"):
        load_registry(documents)
    with pytest.raises(NoRegistryError, match="no device was enrolled yet"):
        change_registry(documents, ["a"], lambda _: RegistryChange(), who="ann")
    enroll(documents, ["camera-1"])
    store.delete(INDEX_KEY)
    for memory in (documents.seen, None):
        lost = SignedDocuments(store, KEYS, memory)
        with pytest.raises(NoRegistryError, match="the fleet had a registry"):
            load_registry(lost)
        with pytest.raises(NoRegistryError, match="the fleet had a registry"):
            enroll(lost, ["camera-2"])
    for one in store.list_folder(SHARDS_FOLDER):
        store.delete(one.key)
    with pytest.raises(NoRegistryError, match="the fleet had a registry"):
        load_registry(documents)


@pytest.mark.parametrize("fault", [KeyboardInterrupt, SettingsError])
@pytest.mark.parametrize("number", range(1, 5))
def test_an_enrolment_that_ends_at_any_write_is_repeated_or_done(
    documents, store, monkeypatch, fault, number
):
    """A first enrolment that was killed is not taken for a registry that somebody removed."""
    writes = 0

    def failing(write):
        def act(*arguments, **options):
            nonlocal writes
            writes += 1
            if writes == number:
                raise fault
            return write(*arguments, **options)

        return act

    with monkeypatch.context() as patch:
        for name in ("put", "put_if_unchanged", "delete"):
            patch.setattr(store, name, failing(getattr(store, name)))
        with contextlib.suppress(fault):
            enroll(documents, ["camera-1"])
    with contextlib.suppress(NoRegistryError):
        assert set(load_registry(documents).devices) <= {"camera-1"}
    enroll(documents, ["camera-1", "camera-2"])
    assert set(load_registry(documents).devices) == {"camera-1", "camera-2"}


def test_a_registry_begun_anew_is_newer_than_the_lost_one_everywhere(documents, store, monkeypatch):
    enroll(documents, ["camera-1"])
    enroll(documents, ["camera-2"])
    lost = load_registry(documents)
    for one in store.list_folder("fleet/"):
        store.delete(one.key)
    monkeypatch.setattr(time, "time", lambda: lost.version + 60.0)
    enroll(SignedDocuments(store, KEYS), ["camera-3"])
    assert set(load_registry(documents).devices) == {"camera-3"}


def test_an_older_registry_put_back_is_noticed_and_can_be_accepted(documents, store):
    enroll(documents, ["camera-1"])
    old = {one.key: store.read(one.key) for one in store.list_folder("fleet/")}
    enroll(documents, ["camera-2"])
    for key, data in old.items():
        store.put(key, data)
    with pytest.raises(TrustError, match=r"an older one in its place.*--accept"):
        load_registry(documents)
    with pytest.raises(TrustError, match="an older one"):
        enroll(documents, ["camera-3"])
    newcomer = SignedDocuments(store, KEYS)
    enroll(newcomer, ["camera-4"])
    with pytest.raises(TrustError, match="another one of the same number"):
        load_registry(documents)
    accept_registry(newcomer, "ann")
    enroll(documents, ["camera-3"])
    assert set(load_registry(documents).devices) == {"camera-1", "camera-3", "camera-4"}


@pytest.mark.parametrize("fault", ["older", "empty", "foreign", "missing", "garbage"])
def test_a_shard_that_is_not_the_one_that_was_signed_is_noticed(documents, store, fault):
    enroll(documents, ["camera-1"])
    (older,) = (store.read(one.key) for one in store.list_folder(SHARDS_FOLDER))
    enroll(documents, ["camera-2"])
    name = load_registry(documents).shards.keys()
    (key,) = (f"{SHARDS_FOLDER}{one}.json" for one in name)
    if fault == "missing":
        store.delete(key)
    else:
        empty = b'{"devices":[],"nonce":"00"}'
        foreign = json.dumps({"devices": [{"device": "camera-x"}], "nonce": "00"}).encode()
        store.put(key, {"older": older, "empty": empty, "foreign": foreign, "garbage": b"\0"}[fault])
    for act in (
        load_registry,
        lambda one: enroll(one, ["camera-2"]),
        lambda one: accept_registry(one, "ann"),
    ):
        with pytest.raises(TrustError, match="bucket's versions"):
            act(documents)


def test_an_index_that_nobody_signed_is_refused(documents, store):
    enroll(documents, ["camera-1"])
    stranger = CryptoSigner.generate_ed25519()
    forger = SignedDocuments(
        store, FleetKeys(lambda: {stranger.public_key.keyid: stranger.public_key}, lambda: stranger)
    )
    store.delete(INDEX_KEY)
    for one in store.list_folder(SHARDS_FOLDER):
        store.delete(one.key)
    enroll(forger, ["camera-x"])
    with pytest.raises(TrustError, match="not signed"):
        load_registry(documents)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"payload":5,"payloadType":"x","signatures":[]}', b"7"]
)
def test_an_index_that_is_no_envelope_is_refused(documents, store, content):
    enroll(documents, ["camera-1"])
    store.put(INDEX_KEY, content)
    with pytest.raises(TrustError, match="not signed"):
        load_registry(documents)
    with pytest.raises(InputError, match="no envelope"):
        accept_registry(documents, "ann")


def test_a_reader_that_a_change_overtakes_reads_again(documents, store, monkeypatch):
    enroll(documents, ["camera-1"])
    get = store.get
    changes = iter(["camera-2", "camera-3", "camera-4"])

    def overtaken(key, **limit):
        if key.startswith(SHARDS_FOLDER):
            monkeypatch.setattr(store, "get", get)
            for name in changes:
                enroll(SignedDocuments(store, KEYS), [name])
        return get(key, **limit)

    monkeypatch.setattr(store, "get", overtaken)
    assert len(load_registry(documents).devices) == 4


def test_a_lost_or_damaged_memory_takes_what_is_there(documents, store):
    enroll(documents, ["camera-1"])
    assert documents.seen is not None
    documents.seen.path.write_bytes(b"\0")
    assert set(load_registry(documents).devices) == {"camera-1"}
    version = load_registry(documents).version
    newest = documents.seen.newest(INDEX_KEY)
    assert newest is not None
    assert newest.version == version


def test_after_a_theft_of_the_key_a_person_signs_what_this_machine_saw(documents, store, tmp_path):
    enroll(documents, ["camera-1"])
    new = CryptoSigner.generate_ed25519()
    keys = FleetKeys(lambda: {new.public_key.keyid: new.public_key}, lambda: new)
    witness = SignedDocuments(store, keys, documents.seen)
    stranger = SignedDocuments(store, keys, SeenVersions(tmp_path / "other", store.url("")))
    with pytest.raises(TrustError, match="replaced as stolen"):
        load_registry(witness)
    with pytest.raises(TrustError, match="not signed"):
        accept_registry(stranger, "ann")
    # What the thief writes afterwards is not what was seen.
    saved = store.read(INDEX_KEY)
    enroll(SignedDocuments(store, KEYS), ["thief"])
    with pytest.raises(TrustError, match="not signed"):
        accept_registry(witness, "ann")
    store.put(INDEX_KEY, saved)
    accept_registry(witness, "ann")
    assert set(load_registry(stranger).devices) == {"camera-1"}
