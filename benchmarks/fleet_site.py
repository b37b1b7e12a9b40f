"""A fleet on this machine: store, broker, registry, collector, releases, processes of simulated devices."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "scripts")]

import msgspec  # noqa: E402 - found through the line above
import numpy as np  # noqa: E402
from device_watcher import device_settings, write_settings  # noqa: E402
from fleet_devices import DevicePlan, ProcessPlan, Trace, memory_kb  # noqa: E402
from local_services import MqttBroker, ObjectStore  # noqa: E402

from edge_client.contract.names import release_target  # noqa: E402
from edge_client.contract.preprocessing import PREPROCESSING_ID  # noqa: E402
from edge_client.contract.release import Normalization, Preprocessing, SelfTestCase  # noqa: E402
from edge_client.inference.classifier import Classifier, classifier_from_release  # noqa: E402
from tests.fakes.tiny_model import tiny_labels, tiny_model  # noqa: E402
from tests.fakes.tiny_release import pack_release, png  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Self

    from numpy.typing import NDArray

    from luigi_tasks.fleet.snapshots import Snapshot
    from luigi_tasks.settings.values import PipelineSettings

FLEET, CHANNEL = "bench", "stable"
REAL_DEVICES, PROCESSES = 12, 2
SIZE, LABELS, PICTURES_EACH = 96, 8, 16
SELF_TEST_PICTURES = 3
SLOW_READER_S = 0.05


class CountingBroker(MqttBroker):
    """Mosquitto that tells its counters every second."""

    def command(self) -> list[str]:
        command = super().command()
        configuration = Path(command[-1])
        configuration.write_text(f"{configuration.read_text()}sys_interval 1\nlog_type error\n")
        return command


@dataclasses.dataclass(frozen=True)
class Release:
    """A release, and what real interpreters measured of it."""

    name: str
    files: dict[str, bytes]
    traces: tuple[Trace, ...]


def make_pictures() -> NDArray[np.uint8]:
    """Return crops of scikit-learn's two photographs: (N, H, W, 3), those of each real device in a row."""
    from sklearn.datasets import load_sample_images  # noqa: PLC0415 - slow

    chance, photographs = np.random.default_rng(1), load_sample_images().images
    crops = []
    for number in range(REAL_DEVICES * PICTURES_EACH):
        photograph = photographs[number % 2]
        top, left = (int(chance.integers(0, edge - SIZE)) for edge in photograph.shape[:2])
        crops.append(photograph[top : top + SIZE, left : left + SIZE])
    return np.stack(crops)


def make_release(pictures: NDArray[np.uint8], bias: int) -> Release:
    """Return a release of a tiny model; those whose bias differs by the number of labels answer alike."""
    model, labels = tiny_model(bias, SIZE, LABELS), tiny_labels(LABELS, bias)
    preprocessing = Preprocessing(id=PREPROCESSING_ID, height=SIZE, width=SIZE, normalization=Normalization())
    classifier = Classifier(model, labels, normalization=preprocessing.normalization)
    shown = {f"selftest-{place}.png": pictures[place] for place in range(SELF_TEST_PICTURES)}
    answers = {name: classifier.classify(pixels) for name, pixels in shown.items()}
    document, files = pack_release(
        model,
        labels,
        preprocessing,
        {name: png(pixels) for name, pixels in shown.items()},
        tuple(
            SelfTestCase(file=name, label=one.label, confidence=one.confidence)
            for name, one in answers.items()
        ),
        operators={"MEAN": 2, "FULLY_CONNECTED": 4, "SOFTMAX": 2},
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        traces = tuple(
            record_trace(Path(folder), pictures[place * PICTURES_EACH : (place + 1) * PICTURES_EACH])
            for place in range(REAL_DEVICES)
        )
    return Release(document.release, files, traces)


def record_trace(folder: Path, pictures: NDArray[np.uint8]) -> Trace:
    """Let a real interpreter answer the pictures of one device."""
    classifier = classifier_from_release(folder)
    classifier.warm()
    answers = [classifier.classify(one) for one in pictures]
    return Trace(
        labels=classifier.labels,
        scores=tuple(tuple(one.scores.tolist()) for one in answers),
        latency_ms=tuple(one.latency_ms for one in answers),
    )


class SlowReader:
    """Somebody who subscribes all reports, and reads few of them a second."""

    def __init__(self, broker: MqttBroker) -> None:
        from edge_client.reporting.mqtt_client import make_client  # noqa: PLC0415 - imports paho

        self.heard = self.heard_bytes = 0
        self._stop = threading.Event()
        self._broker = broker
        self._client = make_client("slow-reader")
        self._client.on_connect = lambda client, *_: client.subscribe(f"edge/{FLEET}/devices/+/report", 1)
        self._client.on_message = lambda _client, _data, message: self._note(len(message.payload))
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _note(self, size_bytes: int) -> None:
        self.heard += 1
        self.heard_bytes += size_bytes

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._client.socket() is None:
                with contextlib.suppress(OSError):
                    self._client.connect(self._broker.host, self._broker.port)
            self._client.loop(timeout=0.1)
            self._stop.wait(SLOW_READER_S)


class DeviceWorker:
    """A process of simulated devices."""

    def __init__(self, plan: ProcessPlan, folder: Path, number: int) -> None:
        file = folder / f"devices-{number}.json"
        file.write_bytes(msgspec.json.encode(plan))
        self.names = frozenset(one.name for one in plan.devices)
        self._log = (folder / f"devices-{number}.log").open("wb")
        command = [sys.executable, str(REPOSITORY / "benchmarks" / "fleet_devices.py"), str(file)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def order(self, what: str, **more: object) -> dict[str, Any]:
        """Give an order; return what the process tells of its devices."""
        to, back = self._process.stdin, self._process.stdout
        if to is None or back is None:
            raise ValueError("the process has no pipes")
        to.write(json.dumps({"do": what, **more}) + "\n")
        to.flush()
        line = back.readline()
        if not line:
            msg = f"the process of the devices ended; see {self._log.name}"
            raise RuntimeError(msg)
        told: dict[str, Any] = json.loads(line)
        return told

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for one in (self._process.stdin, self._process.stdout, self._log):
            if one is not None:
                one.close()


class FleetSite:
    """Everything, started; `devices` are switched on by `start_devices`."""

    def __init__(self, devices: int, stack: contextlib.ExitStack, rollout: Mapping[str, str]) -> None:
        self.stack = stack
        memory = Path("/dev/shm")  # noqa: S108 - each device of a real fleet has a disk of its own
        place = memory if memory.is_dir() else None
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-", dir=place)))
        self.store = stack.enter_context(ObjectStore(self.folder / "s3"))
        self.broker = stack.enter_context(CountingBroker(self.folder / "mqtt"))
        os.environ.update(self.store.credentials())
        self.names = [f"camera-{number:05}" for number in range(devices)]
        self.pictures = make_pictures()
        self.settings = self._settings(rollout)
        self.workers: list[DeviceWorker] = []
        self._collector: subprocess.Popen[str] | None = None
        self._keys: dict[str, str] = {}

    def _settings(self, rollout: Mapping[str, str]) -> PipelineSettings:
        sections: dict[str, Mapping[str, object]] = {
            "store": {"url": f"s3://{self.store.bucket}/fleet", "endpoint_url": self.store.endpoint_url},
            "trust": {
                "root": self.folder / "keys/device/root.json",
                "keys": self.folder / "keys/pipeline",
            },
            "broker": {"host": self.broker.host, "port": self.broker.port, "fleet": FLEET},
            "release": {"channel": CHANNEL},
            "fleet": {
                "collector_key_file": self.folder / "keys/collector.pem",
                "database_file": self.folder / "collector/collector.sqlite",
                "snapshot_s": look_s(len(self.names)),
            },
            "rollout": rollout,
        }
        text = "".join(
            f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())
            for name, values in sections.items()
        )
        file = self.folder / "luigi.cfg"
        file.write_text(text)
        os.environ["LUIGI_CONFIG_PATH"] = str(file)
        from luigi_tasks.release.keys import make_keys  # noqa: PLC0415 - Luigi reads the file that is named now
        from luigi_tasks.settings.sections import load_settings  # noqa: PLC0415 - as above

        make_keys(self.folder / "keys")
        return load_settings("preset:digits")

    # Pipeline

    def publish(self, release: Release, *, move: bool) -> None:
        """Sign a release, and let the channel point to it."""
        from luigi_tasks.release.channel import point_channel  # noqa: PLC0415 - as above
        from luigi_tasks.release.repository import ReleaseRepository  # noqa: PLC0415 - as above
        from luigi_tasks.storage.opening import open_store  # noqa: PLC0415 - as above

        repository = ReleaseRepository(open_store(self.settings.store), self.settings.trust)
        files = {release_target(release.name, name): data for name, data in release.files.items()}
        if move:
            repository.publish(
                files,
                lambda now: point_channel(now, CHANNEL, release.name, share_percent=100.0, at=""),
                CHANNEL,
            )
        else:
            repository.publish(files)

    def enroll(self) -> None:
        """Put all devices into the registry, with a key each, and the collector's key."""
        from cryptography.hazmat.primitives import serialization as pem  # noqa: PLC0415 - seldom
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

        from luigi_tasks.fleet.opening import open_documents  # noqa: PLC0415 - as above
        from luigi_tasks.fleet.records import EnrolledDevice  # noqa: PLC0415 - as above
        from luigi_tasks.fleet.registry import RegistryChange, change_registry  # noqa: PLC0415 - as above

        at = datetime.datetime.now(datetime.timezone.utc).isoformat()
        rows = []
        for name in self.names:
            key = Ed25519PrivateKey.generate()
            folder = self.folder / "states" / name
            folder.mkdir(parents=True)
            file = folder / "key.pem"
            file.touch(0o600)
            file.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()))
            public = key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
            site, tags = place_of(name)
            rows.append(
                EnrolledDevice(device=name, site=site, tags=tags, key=public.decode(), enrolled_at=at)
            )
        documents = open_documents(self.settings)
        change_registry(documents, self.names, lambda _: RegistryChange(tuple(rows)), who="bench", begin=True)
        self.edge_fleet("collector-key", "collector", "--out", str(self.folder / "keys/collector.pem"))

    def edge_fleet(self, *arguments: str) -> str:
        """Run a command of edge-fleet to its end."""
        command = [sys.executable, "-m", "luigi_tasks.edge_fleet", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY).stdout

    # Collector

    def start_collector(self) -> None:
        """Start `edge-fleet collect`."""
        command = [sys.executable, "-m", "luigi_tasks.edge_fleet", "collect", "--json"]
        log = self.stack.enter_context((self.folder / "collector.log").open("ab"))
        self._collector = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=REPOSITORY
        )
        self.stack.callback(self.kill_collector)

    def check_collector(self) -> None:
        """Raise RuntimeError if it has ended by itself, or by somebody else's hand."""
        process = self._collector
        if process is not None and process.poll() is not None:
            msg = f"the collector ended with code {process.returncode}; {self.folder / 'collector.log'}"
            raise RuntimeError(msg)

    def kill_collector(self) -> None:
        """Kill it."""
        process, self._collector = self._collector, None
        if process is not None:
            process.kill()
            process.communicate()

    def stop_collector(self) -> dict[str, Any]:
        """End it; return its figures."""
        process, self._collector = self._collector, None
        if process is None:
            return {}
        process.terminate()
        out, _ = process.communicate(timeout=60)
        found: dict[str, Any] = json.loads(out)
        return found

    def collector_rss_mb(self) -> float:
        """Return the peak memory of the collector."""
        return memory_kb("VmHWM", self._collector.pid) / 1024 if self._collector is not None else 0.0

    def broker_rss_mb(self) -> float:
        """Return the peak memory of the broker."""
        process = self.broker._process  # noqa: SLF001 - the service has no door for this
        return memory_kb("VmHWM", process.pid) / 1024 if process is not None else 0.0

    def snapshot(self, newer_than: float = 0.0) -> Snapshot:
        """Return the newest snapshot, once there is one that was taken later than a time."""
        from luigi_tasks.fleet.opening import open_documents  # noqa: PLC0415 - as above
        from luigi_tasks.fleet.registry import load_registry  # noqa: PLC0415 - as above
        from luigi_tasks.fleet.snapshots import read_newest_snapshot  # noqa: PLC0415 - as above

        documents = open_documents(self.settings)
        trusted = load_registry(documents).collectors
        limit = time.monotonic() + 120
        while time.monotonic() < limit:
            self.check_collector()
            found = read_newest_snapshot(documents.store, FLEET, trusted)
            if found is not None and found.head.taken_at > newer_than:
                return found
            time.sleep(0.2)
        raise TimeoutError("the collector writes no snapshots")

    def broker_counts(self) -> dict[str, int]:
        """Return the broker's counters of PUBLISH packets."""
        from luigi_tasks.release.broker import BrokerClient  # noqa: PLC0415 - as above

        time.sleep(1.5)  # the broker tells them every second
        found = BrokerClient(self.settings.broker).find_retained("$SYS/broker/publish/#")
        return {topic.removeprefix("$SYS/broker/publish/"): int(value) for topic, value in found.items()}

    # Devices

    def start_devices(self, releases: Sequence[Release], start_s: float, slower: Mapping[str, float]) -> None:
        """Start the processes of the devices, which switch them on one after the other."""
        from luigi_tasks.fleet.plans import heartbeat_of  # noqa: PLC0415 - as above

        np.save(self.folder / "pictures.npy", self.pictures)
        settings = device_settings(
            self.folder,
            device="camera",
            fleet=FLEET,
            base_url=f"{self.store.endpoint_url}/{self.store.bucket}/fleet",
            root=self.folder / "keys/device/root.json",
            broker=self.broker,
        )
        # Hundreds of devices share a process: what a frame waits for the others is no fault of a release. Nor
        # is chance: of thousands that are judged by 20 frames each, one is unsure of half of them.
        probation: dict[str, object] = {"frames": 20, "max_slowdown": 200.0, "max_unsure_points": 70.0}
        settings |= {"status": {"retain": False}, "probation": probation}
        if heartbeat_s := heartbeat_of(self.settings.fleet, len(self.names)):  # as a rollout tells them, too
            settings["status"]["report_interval_s"] = heartbeat_s
        settings["source"] = {"kind": "folder", "path": str(self.folder)}
        file = write_settings(self.folder / "device.toml", settings)
        os.environ["AWS_ACCESS_KEY_ID"] = self.store.device_access_key
        os.environ["AWS_SECRET_ACCESS_KEY"] = self.store.device_secret_key
        real = set(self.names[:: max(len(self.names) // REAL_DEVICES, 1)][:REAL_DEVICES])
        for number in range(PROCESSES):
            plan = ProcessPlan(
                settings=str(file),
                states=str(self.folder / "states"),
                devices=tuple(
                    DevicePlan(name, *place_of(name), name in real, dict(slower))
                    for name in self.names[number::PROCESSES]
                ),
                traces={one.name: one.traces for one in releases},
                pictures=str(self.folder / "pictures.npy"),
                start_s=start_s,
            )
            worker = DeviceWorker(plan, self.folder, number)
            self.stack.callback(worker.stop)
            self.workers.append(worker)
        os.environ.update(self.store.credentials())

    def order(self, what: str, names: Iterable[str] = (), **more: object) -> dict[str, Any]:
        """Give an order to all processes; return what they tell, summed."""
        answers = [
            one.order(what, devices=[name for name in names if name in one.names], **more)
            for one in self.workers
        ]
        told: dict[str, Any] = {"releases": {}, "newest": {}}
        for answer in answers:
            for key, value in answer.items():
                if not isinstance(value, dict):
                    told[key] = told.get(key, 0) + value
            for release, count in answer["releases"].items():
                told["releases"][release] = told["releases"].get(release, 0) + count
            told["newest"] |= answer.get("newest", {})
        return told


def look_s(devices: int) -> float:
    """Return the seconds between two snapshots, and between two looks.

    In a real fleet these are minutes; stages here last seconds.
    """
    return 1.0 if devices <= 300 else 2.0


def place_of(name: str) -> tuple[str, tuple[str, ...]]:
    """Return site and tags of a device."""
    number = int(name.rpartition("-")[2])
    return f"shop-{number // 6}", (("outdoor",) if number % 3 == 0 else ("indoor",))
