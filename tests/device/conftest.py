"""A device on this disk and a repository that it checks, for the tests of trust, slots and updates."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from edge_client.repository.opening import open_fetcher
from edge_client.repository.trusted import TrustedRepository
from edge_client.serving.activation import install
from edge_client.serving.holder import ClassifierHolder
from edge_client.settings.update import StoreSettings, UpdateSettings
from edge_client.update.check import ReleaseUpdater
from edge_client.update.refusals import this_software
from edge_client.update.slots import Slots
from tests.fakes.device_daemon import DaemonUnderTest, Watcher
from tests.fakes.tiny_model import plain_picture
from tests.fakes.tuf_repository import TufRepository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Self

    from edge_client.contract.rollout import Member
    from edge_client.update.decision import UpdateOutcome
    from edge_client.update.timing import MoveTiming


class PassedSelfTest:
    """In place of the child that tries a release, where a test is about something else."""

    def __init__(self, **_settings: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, _folder: Path) -> int:
        return 0


class DeviceUnderTest:
    """Everything of a device but its daemon."""

    def __init__(self, state_dir: Path, repository: TufRepository, device_id: str = "camera-1") -> None:
        self.state_dir = state_dir
        self.repository = repository
        self.root = repository.root
        self.store = StoreSettings(base_url=repository.url, timeout_s=5.0)
        self.settings = UpdateSettings(min_free_bytes=0)
        self.device_id = device_id
        self.slots = Slots(state_dir)
        self.holder = ClassifierHolder()
        self.installed: list[str] = []
        self.member: Member | None = None
        self.timing: MoveTiming | None = None

    def open(self) -> TrustedRepository:
        """Open the repository for one check."""
        return TrustedRepository(
            self.root, self.store.base_url, self.state_dir / "metadata", open_fetcher(self.store)
        )

    def updater(
        self,
        settings: UpdateSettings | None = None,
        on_signed: Callable[[str, str], None] = lambda _release, _digest: None,
        *,
        requested: bool = False,
    ) -> ReleaseUpdater:
        return ReleaseUpdater(
            self.device_id,
            "stable",
            settings or self.settings,
            self.slots,
            self.open,
            on_install=lambda outcome: self.installed.append(outcome.release),
            on_signed=on_signed,
            member=self.member,
            timing=self.timing,
            requested=requested,
        )

    def check(self, *, requested: bool = False) -> UpdateOutcome:
        """Check once, and install the release if there is one."""
        return self.check_with(self.settings, requested=requested)

    def check_with(self, settings: UpdateSettings, *, requested: bool = False) -> UpdateOutcome:
        outcome = self.updater(settings, requested=requested).check()
        install(outcome, self.slots, self.holder, software=this_software(), threads=1)
        return outcome

    def assert_serves(self, release: str) -> None:
        """The release is current in memory, on disk and for a process that starts now."""
        assert self.holder.current is not None
        assert self.holder.current.release == release
        assert self.holder.current.classify(plain_picture("green")).label == "green"
        assert Slots(self.state_dir).current == release


@pytest.fixture
def repository() -> Iterator[TufRepository]:
    with TufRepository() as repository:
        yield repository


@pytest.fixture
def device(tmp_path, repository) -> DeviceUnderTest:
    return DeviceUnderTest(tmp_path / "state", repository)


@pytest.fixture
def fleet() -> str:
    return f"fleet-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def watcher(mqtt_broker, fleet):
    watcher = Watcher(mqtt_broker, fleet)
    yield watcher
    watcher.close()


@pytest.fixture
def daemon(tmp_path, repository, mqtt_broker, fleet):
    daemon = DaemonUnderTest(tmp_path, repository, mqtt_broker, fleet)
    yield daemon
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.process.kill()
        daemon.process.wait()


@pytest.fixture
def serving(daemon, watcher, repository):
    """The daemon runs and serves release 0; returns its id."""
    release = repository.publish_tiny(0).release
    daemon.start()
    watcher.wait_release(release)
    return release
