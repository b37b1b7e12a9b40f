"""Retraining as cron does it, in mode `head` on pictures in a bucket: only what is new costs anything.

Real S3, broker, luigid and `luigi`; the backbone is a small one that was trained on other colours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import re
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from local_services import MqttBroker, ObjectStore, Scheduler
from PIL import Image
from pipeline_under_test import PipelineUnderTest

from edge_client.contract.documents import decode_document
from luigi_tasks.dataset.records import Snapshot
from luigi_tasks.gate.records import Evaluation
from luigi_tasks.quantization.calibration import choose_calibration
from luigi_tasks.release.announcement import announce
from luigi_tasks.release.broker import BrokerClient
from luigi_tasks.release.repository import ReleaseRepository
from luigi_tasks.settings.values import BrokerSettings, StoreSettings
from luigi_tasks.storage.s3_store import S3Store
from luigi_tasks.training.records import FeaturesRecord, TunedRecord
from tests.fakes.datasets import write_tree
from tests.fakes.trust import trust_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NIGHTLY = [
    "ReadShard",
    "DatasetSnapshot",
    "BackboneFeatures",
    "TrainModel",
    "QuantizeModel",
    "EvaluateModel",
    "PublishRelease",
    "AnnounceRelease",
]
COLOURS = {"ant": (200, 40, 40), "bee": (200, 200, 40), "cow": (40, 60, 200), "dog": (40, 190, 60)}


def coloured(per_class: int, start: int = 0, labels: Sequence[str] = tuple(COLOURS)) -> dict[str, bytes]:
    """Noisy pictures by path, each mostly of its class's colour, from the given one of each class on."""
    tree = {}
    for label in labels:
        for number in range(start, start + per_class):
            rng = np.random.default_rng([number, *label.encode()])
            blocks = np.array(COLOURS[label]) + rng.normal(0, 45, (8, 8, 3))
            pixels = np.clip(blocks, 0, 255).astype(np.uint8).repeat(5, 0).repeat(6, 1)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            tree[f"{label}/{number:04}.png"] = file.getvalue()
    return tree


class Fleet:
    """A pipeline whose pictures are in a bucket, and what it published."""

    def __init__(self, pipeline: PipelineUnderTest) -> None:
        self.pipeline = pipeline
        credentials = (f"s3://{pipeline.store.bucket}/{pipeline.name}", pipeline.store.endpoint_url)
        self.store = S3Store(StoreSettings(*credentials, "us-east-1", "when_required", True))
        keys = pipeline.keys
        trust = trust_settings(keys)
        self._repository = ReleaseRepository(self.store, trust)

    def deploy(self, *arguments: str) -> tuple[list[str], str]:
        """Run; return the steps that did work, and the log."""
        run = self.pipeline.luigi("Deploy", *arguments, report_imports=True)
        assert run.returncode == 0, run.stderr
        return re.findall(r"(\w+) took [\d.]+ s$", run.stderr, re.MULTILINE), run.stderr + run.stdout

    def upload(self, tree: dict[str, bytes]) -> None:
        for path, data in tree.items():
            self.store.put(f"pictures/{path}", data)

    def deployed(self):
        """The release document of what the channel points to."""
        state = self._repository.load()
        pointer = state.channel("stable")
        assert pointer is not None
        return state.release(pointer.release)

    def forget(self) -> None:
        """Remove all that may be deleted: `work/` in the bucket, and this machine's cache."""
        found = self.store.client.list_objects_v2(
            Bucket=self.store.bucket, Prefix=f"{self.store.prefix}work/"
        )
        assert not found["IsTruncated"]
        for one in found["Contents"]:
            self.store.client.delete_object(Bucket=self.store.bucket, Key=one["Key"])
        shutil.rmtree(self.pipeline.folder / "cache")

    def newest(self, folder: str, name: str):
        """The object below a folder, with this end of its name, that was written last."""
        client = self.store.client
        prefix = f"{self.store.prefix}work/{folder}/"
        listed = client.list_objects_v2(Bucket=self.store.bucket, Prefix=prefix)["Contents"]
        named = [one for one in listed if one["Key"].endswith(name) and ".intoto." not in one["Key"]]
        found = max(named, key=lambda one: one["LastModified"])
        key = found["Key"].removeprefix(self.store.prefix)
        return key, self.store.read(key)

    def newest_document(self, kind, folder: str, name: str):
        key, data = self.newest(folder, name)
        return decode_document(kind, data, source=key, limit_bytes=1 << 26)


def settings_of(weights) -> dict[str, dict[str, object]]:
    return {
        "model": {"weights": weights, "grid": 2},
        "training": {"mode": "head", "epochs": 20},
        "quantization": {"fallbacks": ""},
    }


@contextlib.contextmanager
def running(folder: Path, weights: Path, name: str) -> Iterator[Fleet]:
    """Run services and a pipeline on a folder, which may be a copy of what another run left."""
    with (
        ObjectStore(folder / "s3") as store,
        MqttBroker(folder / "mqtt") as broker,
        Scheduler(folder / "luigid") as scheduler,
        PipelineUnderTest(
            folder / "p",
            store=store,
            broker=broker,
            scheduler=scheduler,
            settings=settings_of(weights),
            name=name,
        ) as pipeline,
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        for variable, value in store.credentials().items():
            monkeypatch.setenv(variable, value)
        fleet = Fleet(pipeline)
        pipeline.configure(dataset={"url": fleet.store.url("pictures")})
        yield fleet


NAME = "nightly"


@dataclasses.dataclass(frozen=True)
class Deployed:
    """What is on the disks after the first deployment, with all services stopped, and the release's id."""

    folder: Path
    release: str


@pytest.fixture(scope="module")
def deployed(tmp_path_factory, small_weights) -> Deployed:
    """A pipeline that deployed once on 60 pictures of each class."""
    folder = tmp_path_factory.mktemp("deployed")
    with running(folder, small_weights, NAME) as fleet:
        fleet.upload(coloured(60))
        steps, _ = fleet.deploy()
        assert steps == [*NIGHTLY[:2], "ConvertBackbone", *NIGHTLY[2:]]
        assert fleet.deployed().accuracy > 0.7
        release = fleet.deployed().release
        fleet.pipeline.store.stop()  # so that all is on its disk
    return Deployed(folder, release)


@pytest.fixture
def fleet(tmp_path, deployed, small_weights) -> Iterator[Fleet]:
    """The pipeline that deployed once, the test's own: it runs on a copy."""
    folder = shutil.copytree(deployed.folder, tmp_path / "copy")
    with running(folder, small_weights, NAME) as fleet:
        broker = fleet.pipeline.broker
        settings = BrokerSettings(
            broker.host, broker.port, NAME, "", "", tls=False, ca_file="", timeout_s=5.0
        )
        announce(BrokerClient(settings), "stable", deployed.release)
        yield fleet


def test_a_night_with_new_pictures_of_some_classes(fleet, tmp_path, small_weights):
    """No TensorFlow, no conversion, features of what is new alone; a release that records what made it."""
    before = fleet.deployed()
    steps, log = fleet.deploy()
    assert steps == []
    fleet.upload(coloured(8, start=60, labels=("ant", "dog")))
    steps, log = fleet.deploy()
    assert steps == NIGHTLY
    assert "tensorflow imported: False" in log
    record = fleet.newest_document(FeaturesRecord, "features", ".json")
    assert record.computed == sum(map(len, record.pictures.values()))
    assert len(record.pictures["int8_0"]) == 16
    after = fleet.deployed()
    assert (after.parent, before.parent) == (before.release, None)
    assert after.snapshot != before.snapshot
    assert after.calibration == before.calibration != ""
    assert after.made_with["code"] == before.made_with["code"]
    assert {"tensorflow", "ai-edge-litert", "numpy", "python"} <= after.made_with.keys()
    assert after.settings["training.mode"] == "head"
    assert after.settings["training.seed"] == "1"

    # The first release again, from cold, elsewhere: a folder in place of a bucket, a store without a trace.
    services = {part: getattr(fleet.pipeline, part) for part in ("store", "broker", "scheduler")}
    settings = settings_of(small_weights)
    with PipelineUnderTest(tmp_path / "another place", **services, settings=settings) as twin:
        write_tree(twin.pictures, coloured(60))
        run = twin.luigi("QuantizeModel")
        assert run.returncode == 0, run.stderr
        assert "ConvertBackbone took" in run.stderr
        candidate = Fleet(twin).newest("candidates", "candidate.json")[1].decode()
        assert before.model_sha256 in candidate


def test_a_release_from_a_later_snapshot_is_made_again_from_cold(fleet, tmp_path):
    """Its calibration set was chosen long before: the release itself has the list."""
    tree = coloured(60) | coloured(20, start=60)
    fleet.upload(coloured(20, start=60))
    fleet.deploy()
    released = fleet.deployed()
    snapshot = fleet.newest_document(Snapshot, "snapshots", "pictures.json")
    chosen_now = [one.sha256 for one in choose_calibration(snapshot.split("train"), 50)]
    assert released.calibration != hashlib.sha256("".join(chosen_now).encode()).hexdigest()
    fleet.forget()
    # A luigid remembers for some seconds what it just did.
    steps, log = fleet.deploy("--local-scheduler")
    assert {"ConvertBackbone", "EvaluateModel"} <= set(steps)
    assert f"Calibrating on the 50 pictures of release {released.release}" in log
    assert not {"PublishRelease", "AnnounceRelease"} & set(steps)
    assert fleet.deployed() == released
    assert released.model_sha256 in fleet.newest("candidates", "candidate.json")[1].decode()

    # As a person does it, who has its pictures and its name, whatever the channel points to.
    write_tree(tmp_path / "kept", tree)
    fleet.pipeline.configure(
        quantization={"calibration": released.release}, release={"channel": "nothing-deployed"}
    )
    run = fleet.pipeline.luigi("QuantizeModel", "--pictures", str(tmp_path / "kept"))
    assert run.returncode == 0, run.stderr
    assert "ConvertBackbone took" in run.stderr
    assert released.model_sha256 in fleet.newest("candidates", "candidate.json")[1].decode()


def test_features_that_the_store_or_the_disk_broke_are_computed_again(fleet):
    key, data = fleet.newest("features", ".npz")
    fleet.store.put(key, data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    cache = fleet.pipeline.folder / "cache"
    for path in (cache / "objects").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-40])
    # Pictures on disk are broken too; those in the bucket are whole.
    for path in (cache / "pixels").rglob("*.pixels"):
        path.write_bytes(path.read_bytes()[:500])
    fleet.pipeline.configure(training={"epochs": 19})
    steps, log = fleet.deploy()
    assert ".npz is not the file that was signed; it counts as absent and is computed again" in log
    assert "damaged cache entry" in log
    assert "TrainModel" in steps
    assert fleet.store.read(key) == data, "the same features"


def test_a_renamed_class_costs_no_features_and_is_named_in_the_comparison(fleet):
    before = fleet.deployed()
    tree = coloured(60, labels=("bee",))
    for path in tree:
        fleet.store.client.delete_object(
            Bucket=fleet.store.bucket, Key=f"{fleet.store.prefix}pictures/{path}"
        )
    fleet.upload({path.replace("bee/", "Wespe \u00dc/"): data for path, data in tree.items()})
    fleet.deploy()
    record = fleet.newest_document(FeaturesRecord, "features", ".json")
    assert record.computed == 0
    evaluation = fleet.newest_document(Evaluation, "evaluations", "evaluation.json")
    assert "new: Wespe \u00dc; gone: bee" in evaluation.champion_note
    assert "'Wespe \u00dc' looks like 'bee' renamed" in evaluation.champion_note
    assert "Wespe \u00dc" in fleet.deployed().labels
    assert fleet.deployed().parent == before.release


def test_finetune_with_a_warm_start_continues_from_the_deployed_release(fleet):
    fleet.pipeline.configure(training={"mode": "finetune", "warm_start": "true", "finetune_epochs": 1})
    steps, _ = fleet.deploy()
    assert "TuneBackbone" in steps
    first = fleet.newest_document(TunedRecord, "tuned", "tuned.json")
    assert first.parent == "", "what was deployed had no tuned backbone"
    tuned = fleet.deployed().release
    fleet.upload(coloured(8, start=60, labels=("ant", "dog")))
    shutil.rmtree(fleet.pipeline.folder / "cache")
    steps, _ = fleet.deploy()
    assert "TuneBackbone" in steps
    second = fleet.newest_document(TunedRecord, "tuned", "tuned.json")
    assert second.parent == tuned
