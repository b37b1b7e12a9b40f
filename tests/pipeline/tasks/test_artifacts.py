"""Results in the store: what is missing or damaged is found out, not used."""

from __future__ import annotations

import numpy as np
import pytest

from edge_client.contract.errors import InputError, TransportError
from luigi_tasks import artifacts
from luigi_tasks.evidence.ledger import Ledger
from luigi_tasks.evidence.records import PendingDocument, StoredDocument
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.storage.cache import ContentCache
from luigi_tasks.storage.folder_store import FolderStore
from luigi_tasks.training.features import FeatureRows

ROWS = FeatureRows({"int8_0": ("a", "b")}, {"int8_0": np.array([[1, 2], [3, 4]], np.int8)}, computed=2)


@pytest.fixture
def target(tmp_path):
    """Features that another machine saved: this machine's cache is empty."""
    settings = load_settings(store={"url": (tmp_path / "store").as_uri()}).store
    document = StoredDocument(Ledger(FolderStore(settings)), "work/features/f/s.json")
    artifacts.save_features(document, ROWS, ContentCache(tmp_path / "another machine"))
    return document


@pytest.fixture
def cache(tmp_path):
    return ContentCache(tmp_path / "cache")


def test_features_are_found_again_as_they_were_saved(target, cache):
    found = artifacts.find_features(target, cache)
    np.testing.assert_array_equal(found.rows["int8_0"], ROWS.rows["int8_0"])
    assert found.pictures == ROWS.pictures


@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_features_that_are_missing_or_damaged_are_empty_where_they_are_optional(
    target, cache, tmp_path, fault
):
    [file] = (tmp_path / "store").rglob("*.npz")
    if fault == "missing":
        file.unlink()
    else:
        file.write_bytes(b"PK" + file.read_bytes()[3:])
    assert artifacts.find_features(target, cache).rows == {}
    with pytest.raises(TransportError if fault == "missing" else InputError):
        artifacts.load_features(target, cache)


def test_a_pending_result_is_not_found(cache):
    assert artifacts.find_features(PendingDocument(), cache).rows == {}
    assert artifacts.find_key(PendingDocument()) is None
    assert artifacts.find_training(PendingDocument()) is None
