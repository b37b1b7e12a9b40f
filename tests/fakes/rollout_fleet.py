"""A fleet whose rollouts are looked at: a real signed repository, registry and snapshots in a folder.

Devices are reports: `report` writes what they say into a snapshot, signed by the collector. The clock is the
test's.
"""

from __future__ import annotations

import dataclasses
import datetime
import shutil
import time
from typing import TYPE_CHECKING

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner

from edge_client.contract.names import release_target
from edge_client.contract.report import DeviceReport, ReleaseFigures
from luigi_tasks.fleet.actions import Fleet
from luigi_tasks.fleet.opening import documents_of
from luigi_tasks.fleet.plans import plan_of
from luigi_tasks.fleet.records import EnrolledDevice, SnapshotHead
from luigi_tasks.fleet.registry import RegistryChange, change_registry
from luigi_tasks.fleet.snapshots import StoredRow, write_snapshot
from luigi_tasks.release.broker import BrokerClient
from luigi_tasks.release.channel import point_channel
from luigi_tasks.release.repository import ReleaseRepository
from luigi_tasks.settings.rollout import RolloutSettings
from luigi_tasks.settings.values import StoreSettings
from luigi_tasks.storage.folder_store import FolderStore
from tests.fakes.tiny_release import tiny_release
from tests.fakes.trust import settings_with_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from edge_client.contract.release import ReleaseDocument
    from luigi_tasks.fleet.records import RolloutPlan
    from luigi_tasks.settings.values import PipelineSettings

QUICK = RolloutSettings(stages="1d,50%,100%", soak="0s", errors="10%|2d")
COLLECTOR = "collector"


class Killed(BaseException):
    """The machine stops, at this instruction."""


class MortalStore(FolderStore):
    """A store whose machine is killed before its n-th write.

    Attributes:
        left: Writes that are still done; None: all.
        writes: Keys that were written.
    """

    def __init__(self, settings: StoreSettings) -> None:
        super().__init__(settings)
        self.left: int | None = None
        self.writes: list[str] = []

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        self._die_or_count(key)
        super().put(key, data, content_type=content_type)

    def put_if_unchanged(self, key: str, data: bytes, etag: str | None) -> None:
        self._die_or_count(key)
        super().put_if_unchanged(key, data, etag)

    def _die_or_count(self, key: str) -> None:
        if self.left is not None:
            if self.left == 0:
                raise Killed(key)
            self.left -= 1
        self.writes.append(key)


class RolloutFleet:
    """Machines that share a bucket (a folder), and the devices of their registry.

    Attributes:
        now: The time, seconds since 1970.
        serving: Release that each device serves.
        verdicts: Verdict of a device's probation, other than `passed`.
        silent: Devices of which nothing is heard.
        signing: Devices that sign their reports.
        device_key: Public key of the devices that are enrolled; empty: nobody signs.
    """

    device_key = "PEM"

    def __init__(self, folder: Path, devices: int = 4, settings: PipelineSettings | None = None) -> None:
        """Enroll devices in the bucket that settings name, where something is published, or in a new one."""
        self.folder = folder
        self.now = time.time()
        self.settings = settings or self._make_bucket()
        self.signer = CryptoSigner.generate_ed25519()
        self.serving: dict[str, str] = {}
        self.verdicts: dict[str, str] = {}
        self.silent: set[str] = set()
        self.signing: set[str] = set()
        if settings is None:
            self.publish(0)
        pointer = self.machine().repository.load().channel("stable")
        self.steady = pointer.release if pointer is not None else ""
        self.enroll(f"camera-{number}" for number in range(devices))

    def _make_bucket(self) -> PipelineSettings:
        url = (self.folder / "bucket").as_uri()
        store = StoreSettings(url, "", "", "when_required", conditional_writes=True)
        settings = settings_with_keys(store, self.folder / "keys")
        broker = dataclasses.replace(settings.broker, host="")
        return dataclasses.replace(settings, broker=broker, rollout=QUICK)

    def keep(self, place: Path) -> Callable[[], None]:
        """Copy bucket and memory to a place; return what puts them back."""
        folders = ("bucket", "keys")
        for name in folders:
            shutil.copytree(self.folder / name, place / name)
        before = self.now, dict(self.serving), dict(self.verdicts)

        def put_back() -> None:
            for name in folders:
                shutil.rmtree(self.folder / name)
                shutil.copytree(place / name, self.folder / name)
            self.now, serving, verdicts = before
            self.serving, self.verdicts = dict(serving), dict(verdicts)

        return put_back

    def machine(self, store: FolderStore | None = None) -> Fleet:
        """Return a machine that looks; each call is another process on the same machine."""
        store = store or MortalStore(self.settings.store)
        repository = ReleaseRepository(store, self.settings.trust)
        broker = BrokerClient(self.settings.broker)
        return Fleet(self.settings, documents_of(repository), repository, broker, lambda: self.now)

    def publish(self, bias: int, *, move: bool = True) -> ReleaseDocument:
        """Sign a tiny release, and move the channel to it."""
        document, files = tiny_release(bias)
        ReleaseRepository(FolderStore(self.settings.store), self.settings.trust).publish(
            {release_target(document.release, name): data for name, data in files.items()},
            (lambda now: point_channel(now, "stable", document.release, share_percent=100.0, at=""))
            if move
            else None,
            "stable" if move else "",
        )
        return document

    def enroll(self, names: Iterable[str]) -> None:
        """Put devices into the registry, and the collector's key."""
        at = datetime.datetime.fromtimestamp(self.now, datetime.timezone.utc).isoformat()
        rows = tuple(EnrolledDevice(device=name, enrolled_at=at, key=self.device_key) for name in names)
        key = self.signer._private_key.public_key()
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        change_registry(
            self.machine().documents,
            [row.device for row in rows],
            lambda _: RegistryChange(rows, {COLLECTOR: pem}),
            who="ann",
            begin=True,
        )
        self.serving.update(dict.fromkeys((row.device for row in rows), self.steady))
        self.signing |= {row.device for row in rows if row.key}

    def plan(self, **changes: object) -> RolloutPlan:
        """Return the plan of the settings, changed."""
        return plan_of(dataclasses.replace(QUICK, **changes))  # type: ignore[arg-type]

    def follow(self) -> dict[str, str]:
        """Let the devices take what the signed documents have for them; return it."""
        state = self.machine().repository.load()
        rollout, pointer = state.rollout("stable"), state.channel("stable")
        for device in self.serving:
            member = EnrolledDevice(device=device).member
            wanted = rollout.release_for(member) if rollout is not None else None
            self.serving[device] = wanted or (pointer.release if pointer is not None else "")
        return dict(self.serving)

    def report(self, seconds: float = 600.0) -> None:
        """Let time pass and the devices report; the collector writes a snapshot."""
        self.now += seconds
        rows = [self._row(device) for device in sorted(self.serving) if device not in self.silent]
        head = SnapshotHead(
            fleet=self.settings.broker.fleet,
            taken_at=self.now - 1,
            collector=COLLECTOR,
            devices=len(rows),
            registered=len(self.serving),
        )
        write_snapshot(FolderStore(self.settings.store), head, rows, self.signer)

    def look(self) -> str:
        """Let devices follow and report, then take a look; return the state of the rollout."""
        self.follow()
        self.report()
        look = self.machine().advance("stable")
        return look.record.state if look.record is not None else ""

    def has(self, release: str) -> int:
        """Return how many devices have a release."""
        return sum(one == release for one in self.follow().values())

    def _row(self, device: str) -> StoredRow:
        release = self.serving[device]
        figures = ReleaseFigures(
            release=release, probation=self.verdicts.get(device, "passed"), seconds=600.0
        )
        report = DeviceReport(
            fleet=self.settings.broker.fleet,
            device=device,
            channel="stable",
            release=release,
            offered=release,
            steady=self.steady,
            interval_s=600.0,
            releases=(figures,),
        )
        return StoredRow(
            device=device,
            channel="stable",
            enrolled=True,
            is_signed=device in self.signing,
            first_seen=self.now - 2,
            last_seen=self.now - 2,
            report=msgspec.Raw(msgspec.json.encode(report)),
        )
