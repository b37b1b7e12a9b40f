"""Fixtures that every room's tests use."""

from __future__ import annotations

import collections
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from local_services import MqttBroker, ObjectStore, Scheduler

from tests.fakes.small_weights import make_small_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luigi_tasks.settings.values import StoreSettings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-fault", action="store_true", help="cut the power at every call, not some")
    parser.addoption("--fault-table", help="write the table of injected faults to this file")


_ABOUT_FAULTS = """\
# Faults injected into the device

Written by `pytest tests/device --every-fault --fault-table docs/faults.md`; every run of the tests takes
a sample. A device runs until the named call and ends there. The state of its disk depends on the fault:
a killed process loses nothing; a power cut loses what was not synced, which is all that POSIX allows to be
lost: bytes without fsync of the file, names without fsync of its folder. Then a new device starts on that
disk. It must serve a complete, verified release (if one was ever installed), finish the interrupted update,
and leave no leftovers. `docs/update.md` has the states of an update; each scenario begins in one of them,
and the calls below run through those that follow.
"""


class Faults:
    """Counts the faults that tests inject; each was survived, or its test fails.

    Attributes:
        every: Whether all are wanted, however long it takes.
    """

    def __init__(self, *, every: bool) -> None:
        self.every = every
        self._tried: dict[tuple[str, str], collections.Counter[str]] = {}

    def record(self, what: str, fault: str, place: str, times: int = 1) -> None:
        """Count a fault after which the device served and finished the update."""
        self._tried.setdefault((what, fault), collections.Counter())[place] += times

    def rows(self) -> list[tuple[str, str, str, int]]:
        """Return what `record` was called with, each with how often, to be merged with other processes'."""
        return [
            (what, fault, place, times)
            for (what, fault), places in self._tried.items()
            for place, times in places.items()
        ]

    def table(self) -> str:
        """Return Markdown."""
        rows = [
            f"| {what} | {fault} | {places.total()} | {places.total()} |"
            for (what, fault), places in sorted(self._tried.items())
        ]
        total = sum(places.total() for places in self._tried.values())
        where = sum(self._tried.values(), collections.Counter())
        return "\n".join(
            [
                _ABOUT_FAULTS,
                "| scenario | fault | injected | served and finished the update |",
                "| --- | --- | ---: | ---: |",
                *rows,
                f"| all | | {total} | {total} |",
                "",
                "| call before which the fault was injected | times |",
                "| --- | ---: |",
                *(f"| `{place}` | {times} |" for place, times in sorted(where.items()) if place),
                "",
            ]
        )


FAULTS = pytest.StashKey[Faults]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FAULTS] = Faults(every=config.getoption("--every-fault"))


@pytest.fixture(scope="session")
def faults(request: pytest.FixtureRequest) -> Faults:
    """Count of injected faults."""
    return request.config.stash[FAULTS]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Merge what a parallel process of tests counted; pytest-xdist calls this as the process ends."""
    for row in getattr(node, "workeroutput", {}).get("faults", ()):
        node.config.stash[FAULTS].record(*row)


def pytest_sessionfinish(session: pytest.Session) -> None:
    faults = session.config.stash[FAULTS]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = faults.rows()
    elif path := session.config.getoption("--fault-table"):
        Path(path).write_text(faults.table(), encoding="utf-8")


# Seconds of the files that take longest. Where several processes share the tests by file, these begin first:
# otherwise the last process would finish long after the others.
LONGEST_S = {
    "end_to_end/test_workers.py": 250,
    "end_to_end/test_deploy.py": 240,
    "pipeline/tasks/test_nightly.py": 150,
    "device/daemon/test_daemon.py": 120,
    "pipeline/training/test_train.py": 90,
    "pipeline/training/test_cluster.py": 45,
    "device/daemon/test_random_kills.py": 40,
    "pipeline/quantization/test_compose.py": 40,
    "device/daemon/test_verdicts.py": 40,
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
