"""A fleet in a folder, as the commands of `edge-fleet` find it: settings, keys, releases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.contract.names import release_target
from edge_client.contract.times import utc_now
from luigi_tasks import edge_fleet
from luigi_tasks.release.channel import point_channel
from luigi_tasks.release.keys import make_keys
from luigi_tasks.release.repository import ReleaseRepository
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.storage.opening import open_store
from tests.fakes.settings_files import SettingsFiles
from tests.fakes.tiny_release import tiny_release

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from edge_client.contract.release import ReleaseDocument


class CommandFleet:
    """A bucket (a folder), keys and a luigi.cfg that names both; what a command says is captured."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._capsys = capsys
        make_keys(folder / "keys")
        self.bucket = folder / "bucket"
        SettingsFiles(folder, monkeypatch).start(
            LUIGI_CONFIG_PATH=f"[store]\nurl = {self.bucket.as_uri()}\n"
            f"[trust]\nroot = {folder}/keys/device/root.json\nkeys = {folder}/keys/pipeline\n"
            "[broker]\nhost =\n"
        )
        self.settings = load_settings()
        self.repository = ReleaseRepository(open_store(self.settings.store), self.settings.trust)

    def publish(
        self, bias: int = 0, channel: str = "stable", share_percent: float = 100.0
    ) -> ReleaseDocument:
        """Publish a tiny release and point the channel to it."""
        document, files = tiny_release(bias)
        self.repository.publish(
            {release_target(document.release, name): data for name, data in files.items()},
            lambda pointer: point_channel(
                pointer, channel, document.release, share_percent=share_percent, at=utc_now()
            ),
            channel,
        )
        return document

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command; return its exit code, and what it wrote to standard output and error."""
        self._capsys.readouterr()
        try:
            code = edge_fleet.main(arguments)
        except SystemExit as e:
            code = int(e.code or 0)
        written = self._capsys.readouterr()
        return code, written.out, written.err
