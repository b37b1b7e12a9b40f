"""What the tests of the labelling wing share."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from luigi_tasks.storage.opening import open_store
from luigi_tasks.storage.s3_store import S3Store
from tests.fakes.inbox import (
    make_dataset,
    with_clients,
)

if TYPE_CHECKING:
    from luigi_tasks.storage.store import Store


@pytest.fixture(scope="module")
def clients() -> dict[int, Any]:
    """One S3 client for all tests: making one takes longer than most of them."""
    return {}


@pytest.fixture(params=["s3", "folder"])
def inbox_settings(request, tmp_path_factory, store_settings):
    """Settings of a store of each kind."""
    if request.param == "s3":
        return store_settings
    return dataclasses.replace(store_settings, url=tmp_path_factory.mktemp("inbox").as_uri())


@pytest.fixture
def store(inbox_settings, clients) -> Store:
    """A store with an empty inbox."""
    store = open_store(inbox_settings)
    return with_clients(store, clients) if isinstance(store, S3Store) else store


@pytest.fixture(params=["folder", "bucket"])
def dataset(request, tmp_path, store_settings, clients):
    """Class folders with pictures, on disk and in the bucket."""
    return make_dataset(request.param, tmp_path, store_settings, {"cat": 2, "dog": 2}, clients)
