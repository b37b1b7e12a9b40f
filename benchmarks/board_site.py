"""A bucket with a fleet of any size for the board: registry, snapshots, a release, a rollout that runs."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fleet_collector import HEARTBEAT_S, RELEASES, heartbeat
from securesystemslib.signer import CryptoSigner

from edge_client.contract.names import release_target
from edge_client.contract.times import utc_now
from luigi_tasks.fleet.marks import Mark
from luigi_tasks.fleet.opening import documents_of
from luigi_tasks.fleet.records import CurrentRollout, EnrolledDevice, RolloutRecord, SnapshotHead, StageRecord
from luigi_tasks.fleet.registry import RegistryChange, change_registry
from luigi_tasks.fleet.rollouts import Rollouts
from luigi_tasks.fleet.snapshots import StoredRow, write_snapshot
from luigi_tasks.release.channel import point_channel
from luigi_tasks.release.keys import make_keys
from luigi_tasks.release.repository import ReleaseRepository
from luigi_tasks.settings.values import StoreSettings, TrustSettings
from luigi_tasks.storage.folder_store import FolderStore
from tests.fakes.tiny_release import tiny_release

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FLEET, CHANNEL, ROLLOUT = "fleet", "stable", "20261128T010000-r1"
_SNAPSHOT_S = 300.0
# Of each cohort, as the collector's default; hours of each.
_SAMPLED, _HOURS = 1000, 24


class BoardSite:
    """A bucket in a folder.

    Args:
        folder: Gets the bucket, keys and a luigi.cfg.
        devices: Devices of the fleet.
    """

    def __init__(self, folder: Path, devices: int) -> None:
        self._devices = devices
        self._names = [f"cam-{one:06}" for one in range(devices)]
        self._collector = CryptoSigner.generate_ed25519()
        make_keys(folder / "keys")
        self.luigi_cfg = folder / "luigi.cfg"
        self.luigi_cfg.write_text(
            f"[store]\nurl = file://{folder}/bucket\n[broker]\nhost =\nfleet = {FLEET}\n"
            f"[trust]\nroot = {folder}/keys/device/root.json\nkeys = {folder}/keys/pipeline\n"
            f"memory_dir = {folder}/memory\n[board]\nstate_dir = {folder}/board\n"
        )
        self.store = FolderStore(
            StoreSettings(f"file://{folder}/bucket", "", "", "", conditional_writes=True)
        )
        trust = TrustSettings(
            folder / "keys/device/root.json", f"{folder}/keys/pipeline", 7, 30, 365, 20, f"{folder}/memory"
        )
        self._repository = ReleaseRepository(self.store, trust)
        self._documents = documents_of(self._repository)

    def write(self) -> None:
        """Write all of it."""
        self._publish()
        self._enroll()
        self._roll_out()
        self.snapshot(time.time() - _SNAPSHOT_S)

    def snapshot(self, taken_at: float) -> None:
        """Write a snapshot of that time."""
        head = SnapshotHead(
            fleet=FLEET,
            taken_at=taken_at,
            collector="collector",
            devices=self._devices,
            registered=self._devices,
            heard=self._devices,
        )
        write_snapshot(self.store, head, self._rows(taken_at), self._collector)

    def _publish(self) -> None:
        document, files = tiny_release(0)
        self._repository.publish(
            {release_target(document.release, name): data for name, data in files.items()},
            lambda now: point_channel(now, CHANNEL, document.release, share_percent=100.0, at=utc_now()),
            CHANNEL,
        )

    def _enroll(self) -> None:
        members = tuple(
            EnrolledDevice(
                device=name,
                site=f"shop-{one % 3000}",
                device_class="pi4",
                tags=("outdoor",),
                enrolled_at="2026-11-27T10:00:00Z",
                enrolled_by="ann",
            )
            for one, name in enumerate(self._names)
        )
        key = self._collector._private_key.public_key()  # noqa: SLF001 - it has no door for this
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        change = RegistryChange(members, {"collector": pem})
        change_registry(self._documents, self._names, lambda _: change, who="ann", begin=True)

    def _roll_out(self) -> None:
        """Let a rollout run that has come to a tenth of the devices."""
        stage = StageRecord(
            number=1, size=self._devices // 10, threshold=1 << 60, opened_at=time.time() - 7200
        )
        record = RolloutRecord(
            id=ROLLOUT,
            channel=CHANNEL,
            release=RELEASES[1],
            from_release=RELEASES[0],
            state="open",
            stages=(stage,),
            created_at=utc_now(),
            created_by="ann",
        )
        rollouts = Rollouts(self._documents)
        rollouts.save(record, None)
        rollouts.save_current(CurrentRollout(channel=CHANNEL, rollout=record.id), None)

    def _rows(self, taken_at: float) -> Iterator[StoredRow]:
        period = int(taken_at // HEARTBEAT_S) * HEARTBEAT_S
        for one, name in enumerate(self._names):
            draw = random.Random(f"{one} {taken_at}")
            report = heartbeat(one, 1)
            if one % 10 == 0:
                report = msgspec.structs.replace(report, release=RELEASES[1])
            if one % 100 == 0:
                report = msgspec.structs.replace(report, drift_alarm=True, warning="the lens is dirty")
            yield StoredRow(
                device=name,
                channel=CHANNEL,
                enrolled=True,
                online=draw.random() < 0.95,
                first_seen=taken_at - 30 * 86400,
                last_seen=taken_at - draw.expovariate(1 / 3000),
                start=report.start,
                sequence=report.sequence,
                report=msgspec.Raw(msgspec.json.encode(report)),
                marks=tuple(
                    _mark(report.release, period - hour * HEARTBEAT_S) for hour in range(_HOURS, 0, -1)
                )
                if one < _SAMPLED
                else (),
            )


def _mark(release: str, period: int) -> Mark:
    frames = period // 3600 % 100_000 * 3600
    return Mark(period, release, "2026-11-20T10:20:00Z", 1, period, frames=frames, seconds=float(frames))
