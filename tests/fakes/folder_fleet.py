"""A fleet whose bucket is a folder: machines that publish into it, and a device that follows."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
from typing import TYPE_CHECKING

from edge_client.repository.folder_fetcher import FolderFetcher
from edge_client.repository.trusted import TrustedRepository
from luigi_tasks.release.channel import point_channel, roll_channel_back
from luigi_tasks.release.repository import ReleaseRepository
from luigi_tasks.settings.values import StoreSettings
from luigi_tasks.storage.folder_store import FolderStore
from tests.fakes.trust import trust_settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

WHEN = "2026-11-27T09:00:00.000+00:00"


class FolderFleet:
    """A bucket (a folder), machines that publish into it, and a device that follows it."""

    def __init__(self, folder: Path, keys: Path) -> None:
        self.bucket, self.keys, self._backup, self._state = (
            folder / "bucket",
            keys,
            folder / "backup",
            folder / "device-state",
        )
        self.at = ""  # time of moves; empty: now
        self._root = (keys / "device/root.json").read_bytes()
        self.now = datetime.datetime.now(datetime.timezone.utc)

    def machine(self, name: str = "", bucket: Path | None = None) -> ReleaseRepository:
        """A process on a machine of the pipeline; machines with a name have a memory of their own."""
        settings = trust_settings(self.keys)
        if name:
            settings = dataclasses.replace(settings, memory_dir=str(self._state.parent / f"memory-{name}"))
        store = StoreSettings((bucket or self.bucket).as_uri(), "", "", "when_required", True)
        return ReleaseRepository(FolderStore(store), settings, lambda: self.now)

    def publish(self, release: str, channel: str = "stable", machine: str = "", seconds: int = 60) -> None:
        """Publish a release; time passes."""
        self.pass_time(seconds)
        files = {
            f"releases/{release}/release.json": json.dumps({"release": release}).encode(),
            f"releases/{release}/model.tflite": f"model {release}".encode(),
        }
        self.machine(machine).publish(
            files,
            lambda pointer: point_channel(pointer, channel, release, share_percent=100.0, at=self.at_now),
            channel,
        )

    @property
    def at_now(self) -> str:
        """The time that moves get."""
        return self.at or self.now.isoformat(timespec="milliseconds")

    def pass_time(self, seconds: int = 60) -> None:
        """Let time pass."""
        self.now += datetime.timedelta(seconds=seconds)

    def metadata(self) -> dict[str, bytes]:
        """All metadata in the bucket, by name."""
        return {path.name: path.read_bytes() for path in sorted((self.bucket / "metadata").glob("*.json"))}

    def put_back(self, metadata: Mapping[str, bytes]) -> None:
        """Make the metadata in the bucket what it was."""
        shutil.rmtree(self.bucket / "metadata")
        (self.bucket / "metadata").mkdir()
        for name, data in metadata.items():
            (self.bucket / "metadata" / name).write_bytes(data)

    def roll_back(self, release: str) -> None:
        """Withdraw what stable points to."""
        self.machine().publish(
            {}, lambda one: roll_channel_back(one, "stable", release, at=self.at_now), "stable"
        )

    def back_up(self) -> None:
        """Copy the whole bucket."""
        shutil.rmtree(self._backup, ignore_errors=True)
        shutil.copytree(self.bucket, self._backup)

    def restore(self, only: str = "") -> None:
        """Make the bucket, or a folder of it, what it was."""
        shutil.rmtree(self.bucket / only)
        shutil.copytree(self._backup / only, self.bucket / only)

    def device(self, channel: str = "stable", bucket: Path | None = None) -> str:
        """What a device with a memory finds."""
        url = (bucket or self.bucket).as_uri()
        with TrustedRepository(self._root, url, self._state, FolderFetcher(url)) as trusted:
            trusted.refresh()
            return trusted.channel(channel).release
