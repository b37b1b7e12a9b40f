"""A fleet in a folder, as the commands of `edge-fleet` find it: settings, keys, releases."""

from __future__ import annotations

import contextlib
import io
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner

from edge_client.contract.documents import encode_document
from edge_client.contract.names import RELEASE_FILE, release_target
from edge_client.contract.times import utc_now
from luigi_tasks import edge_fleet
from luigi_tasks.fleet.opening import documents_of
from luigi_tasks.fleet.records import CurrentRollout, SnapshotHead
from luigi_tasks.fleet.registry import RegistryChange, change_registry, load_registry
from luigi_tasks.fleet.rollouts import Rollouts
from luigi_tasks.fleet.snapshots import StoredRow, write_snapshot
from luigi_tasks.release.channel import Pointers, point_channel
from luigi_tasks.release.keys import make_keys
from luigi_tasks.release.repository import ReleaseRepository
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.storage.opening import open_store
from tests.fakes.settings_files import SettingsFiles
from tests.fakes.tiny_release import tiny_release

if TYPE_CHECKING:
    from pathlib import Path

    from edge_client.contract.release import ReleaseDocument
    from edge_client.contract.report import DeviceReport
    from edge_client.contract.rollout import RolloutDocument
    from luigi_tasks.fleet.records import EnrolledDevice, RolloutRecord


class CommandFleet:
    """A bucket (a folder), keys and a luigi.cfg that names both; what a command says is captured."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_keys(folder / "keys")
        self.bucket = folder / "bucket"
        SettingsFiles(folder, monkeypatch).start(
            LUIGI_CONFIG_PATH=f"[store]\nurl = {self.bucket.as_uri()}\n"
            f"[trust]\nroot = {folder}/keys/device/root.json\nkeys = {folder}/keys/pipeline\n"
            "[broker]\nhost =\n"
        )
        self.settings = load_settings()
        self.repository = ReleaseRepository(open_store(self.settings.store), self.settings.trust)
        self.documents = documents_of(self.repository)
        self.rollouts = Rollouts(self.documents)
        self._collector = CryptoSigner.generate_ed25519()

    def publish(
        self, bias: int = 0, channel: str = "stable", operators: dict[str, int] | None = None
    ) -> ReleaseDocument:
        """Publish a tiny release, which may claim other operators, and point the channel to it."""
        document, files = tiny_release(bias)
        if operators is not None:
            document = msgspec.structs.replace(document, operators=operators)
            files[RELEASE_FILE] = encode_document(document)
        self.repository.publish(
            {release_target(document.release, name): data for name, data in files.items()},
            lambda pointer: point_channel(
                pointer, channel, document.release, share_percent=100.0, at=utc_now()
            ),
            channel,
        )
        return document

    def enroll(self, *devices: EnrolledDevice) -> None:
        """Put devices and the collector's key into the registry."""
        key = self._collector._private_key.public_key()
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        change_registry(
            self.documents,
            [one.device for one in devices],
            lambda _: RegistryChange(devices, {"c1": pem}),
            who="ann",
            begin=True,
        )

    def report(self, *reports: DeviceReport, age_s: float = 30.0, **head: Any) -> None:
        """Write a snapshot with these reports, each heard of a moment before."""
        taken_at = time.time() - age_s
        enrolled = load_registry(self.documents).devices
        rows = [
            StoredRow(
                device=one.device,
                channel=one.channel,
                enrolled=one.device in enrolled,
                online=True,
                last_seen=taken_at - 5,
                start=one.start,
                sequence=one.sequence,
                report=msgspec.Raw(msgspec.json.encode(one)),
            )
            for one in sorted(reports, key=lambda one: (one.device, one.channel))
        ]
        facts = {
            "fleet": self.settings.broker.fleet,
            "collector": "c1",
            "taken_at": taken_at,
            "devices": len(rows),
            "registered": len(enrolled),
            "heard": len({row.device for row in rows if row.enrolled}),
            **head,
        }
        write_snapshot(self.documents.store, SnapshotHead(**facts), rows, self._collector)

    def roll_out(self, record: RolloutRecord, document: RolloutDocument) -> None:
        """Let a rollout run: its record, what names it, and the signed document."""
        self.rollouts.save(record, None)
        self.rollouts.save_current(CurrentRollout(channel=record.channel, rollout=record.id), None)
        self.repository.point(record.channel, lambda now: Pointers(now.channel, document))

    def run(self, *arguments: str, columns: int = 0) -> tuple[int, str, str]:
        """Run a command; return its exit code, and what it wrote to standard output and error.

        Args:
            arguments: Of the command.
            columns: Width of the terminal that it writes to; 0: a pipe.
        """
        out, error = Terminal() if columns else io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", str(columns or 80))
            patch.setenv("TERM", "xterm")
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
                try:
                    code = edge_fleet.main(arguments)
                except SystemExit as e:
                    code = int(e.code or 0)
        return code, out.getvalue(), error.getvalue()


class Terminal(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        """Whether it is one."""
        return True
