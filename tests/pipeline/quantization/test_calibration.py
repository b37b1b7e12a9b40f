"""The calibration set: kept from release to release, signed, and found again where the store is cold."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import uuid

import msgspec
import pytest

from edge_client.contract.documents import encode_compact
from edge_client.contract.errors import InputError, SettingsError, TrustError
from edge_client.contract.names import CALIBRATION_FILE, release_target
from edge_client.contract.release import ChannelDocument
from luigi_tasks import addresses
from luigi_tasks.dataset.records import Picture
from luigi_tasks.quantization.calibration import demand_calibration, recall_calibration
from luigi_tasks.quantization.records import Calibration, CalibrationSet
from luigi_tasks.release.history import published_calibration
from luigi_tasks.release.published import object_key
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.storage.s3_store import S3Store
from luigi_tasks.workspace import open_workspace
from tests.fakes.trust import settings_with_keys

RELEASE = "0123456789abcdef0123"


def pictures(count, start=0):
    names = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(start, start + count)]
    return tuple(Picture(path=f"a/{name[:4]}", sha256=name, label="a", split="train") for name in names)


CHOSEN = tuple(one.sha256 for one in pictures(5)[::-1])
SETS = (
    CalibrationSet(backbone="this one", scheme="int8", pictures=CHOSEN),
    CalibrationSet(backbone="this one, wide", scheme="int8_wide", pictures=CHOSEN[:1]),
)


@pytest.fixture
def settings(store_settings, tmp_path):
    return settings_with_keys(store_settings, tmp_path / "keys")


@pytest.fixture
def state(settings):
    """A channel with a release that records its calibration set."""
    repository = open_workspace(settings).repository
    repository.publish(
        {release_target(RELEASE, CALIBRATION_FILE): encode_compact(Calibration(sets=SETS))},
        lambda _: ChannelDocument(channel="stable", release=RELEASE),
        "stable",
    )
    return repository.load()


def test_the_deployed_releases_set_is_taken_in_its_order(state, caplog):
    with caplog.at_level(logging.INFO, "luigi-interface"):
        found = recall_calibration(published_calibration(state, RELEASE, "this one"), RELEASE, pictures(20))
    assert tuple(one.sha256 for one in found) == CHOSEN
    assert f"Calibrating on the 5 pictures of release {RELEASE}" in caplog.text


@pytest.mark.parametrize(
    ("backbone", "snapshot", "told"),
    [
        ("another", pictures(20), f"release {RELEASE} has none for this backbone"),
        ("this one", pictures(20, start=2), "2 of the 5 pictures that release"),
    ],
    ids=["another backbone", "pictures that are gone"],
)
def test_a_set_that_does_not_fit_is_not_taken_and_the_log_names_the_reason(
    state, caplog, backbone, snapshot, told
):
    with caplog.at_level(logging.INFO, "luigi-interface"):
        assert recall_calibration(published_calibration(state, RELEASE, backbone), RELEASE, snapshot) == ()
    assert told in caplog.text
    assert "Calibrating on a new set" in caplog.text


def test_a_set_that_was_changed_in_the_bucket_is_not_taken(state, settings):
    path = release_target(RELEASE, CALIBRATION_FILE)
    forged = encode_compact(Calibration(sets=(msgspec.structs.replace(SETS[0], pictures=CHOSEN[:1]),)))
    S3Store(settings.store).put(object_key(path, state.files[path].hashes["sha256"]), forged)
    with pytest.raises(TrustError, match="not the signed content"):
        published_calibration(state, RELEASE, "this one")


def test_a_release_that_is_named_is_followed_or_refused(state):
    def demand(release, backbone, snapshot):
        return demand_calibration(published_calibration(state, release, backbone), release, snapshot)

    found = demand(RELEASE, "this one, wide", pictures(20))
    assert tuple(one.sha256 for one in found) == CHOSEN[:1]
    with pytest.raises(SettingsError, match="has no calibration set for this network"):
        demand("ffff", "this one", pictures(20))
    with pytest.raises(InputError, match="5 of the 5 pictures that release"):
        demand(RELEASE, "this one", pictures(20, start=100))


def backbone_of(url, **changes):
    """Address of a converted backbone, and the name of what its calibration set is chosen for."""
    settings = load_settings(pictures=url)
    changed = {name: dataclasses.replace(getattr(settings, name), **changes[name]) for name in changes}
    settings = dataclasses.replace(settings, **changed)
    identity = addresses.Identity(url, uuid.uuid4().hex, settings, "imagenet")
    return (
        addresses.backbone(identity, "int8", None),
        addresses.calibrated_backbone(identity, "int8", None),
    )


def test_a_set_belongs_to_a_backbone_wherever_its_pictures_lie():
    address, backbone = backbone_of("here")
    assert backbone_of("here", training={"epochs": 7}) == (address, backbone)
    moved, same = backbone_of("there")
    assert (moved != address, same) == (True, backbone)
    for change in ({"training": {"seed": 2}}, {"quantization": {"calibration_pictures": 50}}):
        assert backbone_of("here", **change)[1] != backbone


def test_a_backbone_with_a_requested_calibration_set_has_an_address_of_its_own():
    address, backbone = backbone_of("here")
    apart, same = backbone_of("here", quantization={"calibration": RELEASE})
    assert (apart != address, same) == (True, backbone)
