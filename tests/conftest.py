"""Fixtures that every room's tests use."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from local_services import MqttBroker, ObjectStore, Scheduler

from tests.fakes.small_weights import make_small_weights
from tests.fakes.store_roles import role_policies

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luigi_tasks.settings.values import StoreSettings


# Fixture `faults`, and the table of injected faults; its docstring says how a test adds rows.
pytest_plugins = ["tests.fault_table"]


# Seconds of the files that take longest. Where several processes share the tests by file, these begin first:
# otherwise the last process would finish long after the others.
LONGEST_S = {
    "end_to_end/test_deploy.py": 235,
    "pipeline/tasks/test_nightly.py": 150,
    "end_to_end/test_workers.py": 130,
    "device/daemon/test_daemon.py": 120,
    "pipeline/training/test_train.py": 80,
    "end_to_end/test_device.py": 50,
    "device/repository/test_network.py": 45,
    "device/daemon/test_random_kills.py": 40,
    "pipeline/quantization/test_compose.py": 40,
    "device/daemon/test_verdicts.py": 40,
    "pipeline/board/test_board_people.py": 30,
    "pipeline/board/test_board_pipeline.py": 30,
    "pipeline/board/test_board_rollouts.py": 30,
    "device/daemon/test_channel.py": 25,
    "device/commands/test_doctor_broker.py": 25,
    "device/daemon/test_labels.py": 25,
    "end_to_end/test_readme.py": 25,
    "end_to_end/test_stolen_keys.py": 25,
    "pipeline/board/test_board_label.py": 20,
    "pipeline/board/test_board_rights.py": 20,
    "pipeline/board/test_board_try.py": 20,
    "pipeline/training/test_cluster.py": 20,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the longest files first; within a file nothing changes."""
    here = Path(__file__).parent
    items.sort(key=lambda item: -LONGEST_S.get(item.path.relative_to(here).as_posix(), 0))


SHARED_DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photographs and third-party models that the project does not ship."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no folder {SHARED_DATA}: photographs and third-party models are not shipped")
    return SHARED_DATA.resolve()


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Initial weights of the small network, for tests that are about something else than training it."""
    return make_small_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """Real S3 on a loopback port; tests keep apart by prefix."""
    with ObjectStore(policies=role_policies()) as store:
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
    from luigi_tasks.settings.values import StoreSettings  # noqa: PLC0415 - the device's environments have no Luigi

    for name, value in object_store.credentials().items():
        monkeypatch.setenv(name, value)
    return StoreSettings(
        url=f"s3://{object_store.bucket}/{uuid.uuid4().hex}",
        endpoint_url=object_store.endpoint_url,
        region="us-east-1",
        checksums="when_required",
        conditional_writes=True,
    )
