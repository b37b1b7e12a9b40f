"""Settings of the demo's pipeline: what differs from luigi.cfg."""

from __future__ import annotations

import dataclasses
import re
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from luigi_tasks.backbone.imagenet import BASE_URL

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from local_services import MqttBroker, ObjectStore, Scheduler

FLEET, CHANNEL = "demo", "stable"
HOLDOUT_PERCENT = 20.0
# More of a user's own are trained for fewer epochs, so that the demo takes minutes.
FEW_PICTURES = 1000
REACHABLE_S = 3.0


@dataclasses.dataclass(frozen=True)
class Network:
    """The model settings of this demo."""

    architecture: str
    alpha: float
    input_size: int
    weights: str


# For pictures of a user's own, where its weights can be had.
PRETRAINED = Network("mobilenet_v2", 1.0, 160, "imagenet")


def choose_network(options: argparse.Namespace) -> Network:
    """Return a network that fits the weights, or a small one to train from scratch.

    Without `--weights`, Keras downloads ImageNet's for pictures of a user's own, if they can be reached.
    """
    if options.weights is None:
        if options.data is not None and can_download_weights():
            return PRETRAINED
        size = 32 if options.data is None else 96
        return Network("mobilenet_v1", 0.25, size, "none")
    name = options.weights.name
    patterns = {
        r"mobilenet_v2_weights_.*_kernels_([\d.]+)_(\d+)_no_top": "mobilenet_v2",
        r"mobilenet_(\d_\d+)_(\d+)_tf_no_top": "mobilenet_v1",
    }
    for pattern, architecture in patterns.items():
        if found := re.search(pattern, name):
            alpha = float(found[1].replace("_", "."))
            return Network(architecture, alpha, int(found[2]), str(options.weights.resolve()))
    sys.exit(f"--weights {name}: keep the file name that Keras gives it, it identifies the network")


def can_download_weights() -> bool:
    """Whether the server of Keras's ImageNet weights can be reached from here."""
    url = f"{BASE_URL}/"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACHABLE_S):  # noqa: S310
            return True
    except urllib.error.HTTPError:
        return True  # it answers; the folder itself is no file
    except OSError:
        return False


def write_pipeline_settings(
    work: Path,
    network: Network,
    store: ObjectStore,
    broker: MqttBroker,
    scheduler: Scheduler,
    *,
    pictures: int,
    is_photographs: bool,
) -> Path:
    """Write the pipeline's settings into the folder of the demo; return the file.

    Args:
        work: The folder.
        network: The network.
        store: Where releases are published.
        broker: Where they are announced.
        scheduler: The luigid that the board shows, and runs under.
        pictures: Number of pictures, about.
        is_photographs: Whether the pictures are a user's own, of which nothing is known.
    """
    recipe = choose_recipe(network, pictures, is_photographs=is_photographs)
    dataset = {"url": work / "pictures", "cache_dir": work / "cache", "holdout_percent": HOLDOUT_PERCENT}
    sections: dict[str, dict[str, object]] = {
        **recipe,
        "dataset": {**recipe.get("dataset", {}), **dataset},
        "store": {
            "url": f"s3://{store.bucket}/demo",
            "endpoint_url": store.endpoint_url,
            "region": "us-east-1",
        },
        "trust": {"root": work / "keys/device/root.json", "keys": work / "keys/pipeline"},
        "broker": {"host": broker.host, "port": broker.port, "fleet": FLEET},
        "release": {"channel": CHANNEL},
        "board": {"state_dir": work / "board"},
        "core": {"default-scheduler-url": scheduler.url},
    }
    path = work / "luigi.cfg"
    path.write_text(
        "".join(
            f"[{section}]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())
            for section, values in sections.items()
        )
    )
    return path


def choose_recipe(network: Network, pictures: int, *, is_photographs: bool) -> dict[str, dict[str, object]]:
    """Return how the network is trained, and what the gate asks of it.

    Args:
        network: The network.
        pictures: Number of pictures.
        is_photographs: Whether the pictures are a user's own, of which nothing is known.
    """
    recipe: dict[str, dict[str, object]] = {
        "model": dataclasses.asdict(network),
        "training": {"mode": "head"},
        # The demo shows the way of a release. What is thin stands in the log and the report.
        "gate": {"min_accuracy": 0.9, "thin_evidence": "publish"},
    }
    if is_photographs:
        recipe["dataset"] = {"max_left_out_percent": 50}
        recipe["gate"] |= {"min_accuracy": 0.0, "min_class_recall": 0.0, "min_class_holdout": 0}
    if network.weights == "none":
        recipe["training"] = {  # found by trial on the digits
            "mode": "finetune",
            "epochs": 48,
            "augmented_copies": 3,
            "batch_size": 128,
            "learning_rate": 0.01,
            "horizontal_flip": "false",
            "hidden_units": 0,
            "dropout": 0.1,
        }
        if is_photographs:
            # Few photographs without pretrained weights make a weak model, which int8 harms more, and of
            # which no two are alike: the gate asks that it is better than a constant answer, and no more.
            epochs = min(48, max(8, 48 * FEW_PICTURES // max(pictures, 1)))
            recipe["training"] |= {"epochs": epochs, "horizontal_flip": "true"}
            drops = ("max_float_drop_points", "max_class_drop_points", "max_champion_drop_points")
            recipe["gate"] |= dict.fromkeys(drops, 100)
            recipe["quantization"] = {"fallbacks": ""}
    return recipe
