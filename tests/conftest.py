"""Fixtures that every room's tests use."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from local_services import MqttBroker, ObjectStore, Scheduler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luigi_tasks.settings import StoreSettings

SHARED_DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photographs and third-party models that the project does not ship."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no folder {SHARED_DATA}: photographs and third-party models are not shipped")
    return SHARED_DATA.resolve()


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """Real S3 on a loopback port; tests keep apart by prefix."""
    with ObjectStore() as store:
        yield store


@pytest.fixture(scope="session")
def mqtt_broker() -> Iterator[MqttBroker]:
    """Real broker on a loopback port; tests keep apart by fleet name."""
    with MqttBroker() as broker:
        yield broker


@pytest.fixture(scope="session")
def scheduler() -> Iterator[Scheduler]:
    """Real luigid on a loopback port."""
    with Scheduler() as luigid:
        yield luigid


@pytest.fixture
def store_settings(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> StoreSettings:
    """A prefix of its own in the real bucket, with the pipeline's credentials in the environment."""
    from luigi_tasks.settings import StoreSettings  # noqa: PLC0415 - the device's environments have no Luigi

    for name, value in object_store.credentials().items():
        monkeypatch.setenv(name, value)
    return StoreSettings(
        url=f"s3://{object_store.bucket}/{uuid.uuid4().hex}",
        endpoint_url=object_store.endpoint_url,
        region="us-east-1",
        checksums="when_required",
        conditional_writes=True,
    )
