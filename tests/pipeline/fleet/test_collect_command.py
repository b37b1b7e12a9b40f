"""`edge-fleet collect` and `ask` as a person or systemd starts them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from local_services import wait_until
from securesystemslib.signer import CryptoSigner

from edge_client.contract.signed_report import seal_report
from luigi_tasks import edge_fleet
from luigi_tasks.fleet.opening import open_documents
from luigi_tasks.fleet.registry import RegistryChange, change_registry
from luigi_tasks.fleet.snapshots import read_newest_snapshot
from luigi_tasks.release.broker import BrokerClient, Message
from luigi_tasks.release.keys import make_keys
from luigi_tasks.settings.sections import load_settings
from tests.fakes.fleet_reports import FakeDevice, pem_of
from tests.fakes.settings_files import SettingsFiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from local_services import MqttBroker

    from edge_client.contract.report import DeviceReport


class CommandBench:
    """A fleet with a registry, a folder as bucket, and a collector's luigi.cfg."""

    def __init__(self, folder: Path, broker: MqttBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.broker = folder, broker
        self.fleet = f"f{uuid.uuid4().hex}"
        self.device = FakeDevice("cam", CryptoSigner.generate_ed25519())
        self.key = CryptoSigner.generate_ed25519()
        make_keys(folder / "keys")
        pem = self.key._private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "collector.pem").write_bytes(pem)
        SettingsFiles(folder, monkeypatch).start(
            LUIGI_CONFIG_PATH=f"[store]\nurl = {(folder / 'bucket').as_uri()}\n"
            f"[trust]\nroot = {folder}/keys/device/root.json\nkeys = {folder}/keys/pipeline\n"
            f"[broker]\nhost = {broker.host}\nport = {broker.port}\nfleet = {self.fleet}\n"
            f"[fleet]\ndatabase_file = {folder}/db/collector.sqlite\nsnapshot_s = 1\n"
            f"collector_key_file = {folder}/collector.pem\n"
        )
        self.settings = load_settings()
        self.documents = open_documents(self.settings)
        change_registry(
            self.documents,
            ["cam"],
            lambda _: RegistryChange((self.device.enrolled(),), {"collector": pem_of(self.key)}),
            who="ann",
            begin=True,
        )

    def payload(self) -> bytes:
        return seal_report(self.device.report(fleet=self.fleet), self.device.signer)

    @property
    def topic(self) -> str:
        return f"edge/{self.fleet}/devices/cam/report"

    def publish(self) -> None:
        BrokerClient(self.settings.broker).publish(Message(self.topic, self.payload()))

    def report(self) -> DeviceReport | None:
        """The device's report in the newest snapshot."""
        trusted = {"collector": pem_of(self.key)}
        found = read_newest_snapshot(self.documents.store, self.fleet, trusted)
        return found.rows[0].report if found and found.rows else None

    def heard(self, sequence: int) -> bool:
        report = self.report()
        return report is not None and report.sequence == sequence

    @contextlib.contextmanager
    def collecting(self) -> Iterator[subprocess.Popen[str]]:
        log = self.folder / "log"
        with log.open("w") as errors:
            command = [sys.executable, "-m", "luigi_tasks.edge_fleet", "collect", "--json"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            wait_until(lambda: "listening to fleet" in log.read_text(), "the collector to listen")
            yield process
        finally:
            process.kill()
            process.communicate()


@pytest.fixture
def bench(tmp_path, mqtt_broker, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return CommandBench(tmp_path, mqtt_broker, monkeypatch)


def test_a_collector_that_was_killed_goes_on_and_ends_when_it_is_told(bench):
    with bench.collecting() as collector:
        bench.publish()
        wait_until(lambda: bench.heard(1), "a snapshot with the report")
        collector.send_signal(signal.SIGKILL)
        collector.wait()
    bench.publish()  # nobody hears it
    with bench.collecting() as collector:
        bench.publish()
        wait_until(lambda: bench.heard(3), "a snapshot with the report after that")
        collector.send_signal(signal.SIGTERM)
        output, _ = collector.communicate(timeout=120)
    assert collector.returncode == 0
    assert json.loads(output) == {"reports": 1, "rejected": {}}


def test_recorded_messages_are_taken_from_a_file(bench, tmp_path, capsys):
    lines = [{"topic": bench.topic, "payload": json.loads(bench.payload())} for _ in range(3)]
    lines += [{"topic": f"edge/{bench.fleet}/devices/cam/online", "payload": "online"}, lines[0]]
    file = tmp_path / "messages.jsonl"
    file.write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    assert edge_fleet.main(["collect", "--from-file", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["lines"], told["reports"], told["rejected"]) == (5, 4, {"older": 1})
    assert bench.heard(3)
    assert edge_fleet.main(["collect", "--from-file", str(tmp_path / "none")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    (tmp_path / "collector.pem").unlink()
    assert edge_fleet.main(["collect"]) == 2
    assert "edge-fleet collector-key collector" in capsys.readouterr().err


def test_ask_says_what_it_did(bench, capsys):
    assert edge_fleet.main(["ask", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"asked": f"edge/{bench.fleet}/report"}
