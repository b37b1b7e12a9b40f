"""A device daemon, a store and a broker for the benchmarks of the device; releases of real size."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "scripts")]

import numpy as np  # noqa: E402 - found through the line above
from device_watcher import device_settings, write_settings  # noqa: E402
from local_services import MqttBroker, ObjectStore  # noqa: E402
from PIL import Image  # noqa: E402

from edge_client.contract.names import MODEL_FILE, release_target  # noqa: E402
from edge_client.contract.release import (  # noqa: E402
    PREPROCESSING_ID,
    Normalization,
    Preprocessing,
    SelfTestCase,
)
from edge_client.inference.classifier import Classifier  # noqa: E402
from luigi_tasks.backbone.extractor import open_extractor  # noqa: E402
from luigi_tasks.dataset.pixels import to_png  # noqa: E402
from luigi_tasks.quantization.compose import Dense, compose_classifier  # noqa: E402
from luigi_tasks.release.announcement import announce  # noqa: E402
from luigi_tasks.release.broker import BrokerClient  # noqa: E402
from luigi_tasks.release.channel import point_channel  # noqa: E402
from luigi_tasks.release.keys import make_keys  # noqa: E402
from luigi_tasks.release.patches import make_patches  # noqa: E402
from luigi_tasks.release.repository import ReleaseRepository  # noqa: E402
from luigi_tasks.settings.values import BrokerSettings, ModelSettings, StoreSettings, TrustSettings  # noqa: E402
from luigi_tasks.storage.s3_store import S3Store  # noqa: E402
from tests.fakes.tiny_release import pack_release  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from numpy.typing import NDArray

SIZE = 160
LABELS = tuple(f"class-{number}" for number in range(10))
DEVICE, FLEET, CHANNEL = "camera-1", "bench", "stable"
SELF_TEST_PICTURES = 5


def make_backbone(weights: Path) -> bytes:
    """Return MobileNetV2 1.0/160 in int8.

    Args:
        weights: Keras's no-top ImageNet weights; random ones give scales that XNNPACK refuses.
    """
    from luigi_tasks.quantization.variants import convert_backbone  # noqa: PLC0415 - TensorFlow

    pictures = np.random.default_rng(1).integers(0, 256, (20, SIZE, SIZE, 3), np.uint8)
    model = ModelSettings("mobilenet_v2", 1.0, SIZE, 2, str(weights))
    variants, _ = convert_backbone(model, "int8", pictures, None, lambda *_: None, 1)
    return variants["int8"]


def make_release(backbone: bytes, number: int) -> tuple[str, dict[str, bytes]]:
    """Return id and files, by signed path, of a release with a random head."""
    # The pipeline keeps the self-test pictures of the release before, while they are answered right.
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for _ in range(SELF_TEST_PICTURES)]
    extractor = open_extractor(backbone)
    features = extractor(np.stack(pictures), lambda *_: None, "").astype(np.float32)
    features = (features - extractor.quantization.zero_point) * extractor.quantization.scale
    weights = np.random.default_rng(number).normal(0, 1, (features.shape[1], len(LABELS))).astype(np.float32)
    weights *= 4 / np.abs(features @ weights).max()
    head = Dense(weights, np.zeros(len(LABELS), np.float32), -4.0, 4.0)
    model = compose_classifier(backbone, [head], LABELS, name="bench")
    preprocessing = Preprocessing(id=PREPROCESSING_ID, height=SIZE, width=SIZE, normalization=Normalization())
    classifier = Classifier(model, LABELS, normalization=preprocessing.normalization)
    self_test = {
        f"selftest-{place}.png": (picture, classifier.classify(picture))
        for place, picture in enumerate(pictures)
    }
    document, files = pack_release(
        model,
        LABELS,
        preprocessing,
        {name: to_png(picture) for name, (picture, _) in self_test.items()},
        tuple(
            SelfTestCase(file=name, label=answer.label, confidence=answer.confidence)
            for name, (_, answer) in self_test.items()
        ),
    )
    release = document.release
    return release, {release_target(release, name): content for name, content in files.items()}


def weights_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a command line that asks for the weights, and how to print the measurements."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("weights", type=Path, help="no-top ImageNet weights of MobileNetV2 1.0/160")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser


def print_measurements(benchmark: str, measured: Mapping[str, float], *, as_json: bool) -> None:
    """Print a table, or one JSON object."""
    if as_json:
        print(json.dumps({"benchmark": benchmark, "figures": measured}))
        return
    width = max(map(len, measured)) + 2
    for name, value in measured.items():
        print(f"{name:<{width}} {value:g}")


class DeviceBench:
    """Store, broker and keys; releases are published on one channel."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._services = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.store = self._services.enter_context(ObjectStore(self.folder / "s3"))
        self.broker = self._services.enter_context(MqttBroker(self.folder / "mqtt"))
        os.environ.update(self.store.credentials())
        make_keys(self.folder / "keys")
        url = f"s3://{self.store.bucket}/bench"
        store = S3Store(StoreSettings(url, self.store.endpoint_url, "us-east-1", "when_required", True))
        trust = TrustSettings(
            self.folder / "keys/device/root.json", str(self.folder / "keys/pipeline"), 14, 90, 365, 50
        )
        self._repository = ReleaseRepository(store, trust)
        self._client = BrokerClient(
            BrokerSettings(self.broker.host, self.broker.port, FLEET, "", "", False, "", 10.0)
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._services.close()

    def publish(self, release: str, files: dict[str, bytes]) -> None:
        """Sign a release, and let the channel point to it, without an announcement."""
        path = release_target(release, MODEL_FILE)
        patches = make_patches(self._repository.load(), release, files[path], CHANNEL, 1)
        self._repository.publish(
            files | patches,
            lambda pointer: point_channel(pointer, CHANNEL, release, share_percent=100.0, at=""),
            CHANNEL,
        )

    def announce(self, release: str) -> None:
        """Tell the device."""
        announce(self._client, CHANNEL, release)

    @property
    def base_url(self) -> str:
        """Store that the device reads from."""
        return f"{self.store.endpoint_url}/{self.store.bucket}/bench"

    def write_settings(self, **sections: dict[str, object]) -> Path:
        """Write the device's settings, `[source]` and others as given; return their path."""
        settings = device_settings(
            self.folder,
            device=DEVICE,
            fleet=FLEET,
            base_url=self.base_url,
            root=self.folder / "keys/device/root.json",
            broker=self.broker,
        )
        return write_settings(self.folder / "device.toml", {**settings, **sections})

    def write_picture(self, name: str = "frame.jpg") -> Path:
        """Write one 640x480 JPEG, as a camera would; return its path."""
        path = self.folder / name
        if not path.exists():
            blocks: NDArray[np.uint8] = np.random.default_rng(2).integers(0, 256, (60, 80, 3), np.uint8)
            Image.fromarray(blocks).resize((640, 480)).save(path, quality=85)
        return path
