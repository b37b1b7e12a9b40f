"""A small site: plain pictures of colours, a store in a folder, keys, and `Deploy` in this process."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
from typing import TYPE_CHECKING

import luigi
import numpy as np
from PIL import Image

from luigi_tasks import artifacts, steps
from luigi_tasks.pipeline import Deploy, EvaluateModel
from luigi_tasks.release.keys import make_keys
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.workspace import open_workspace
from tests.fakes.datasets import write_tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from edge_client.contract.release import ReleaseDocument
    from luigi_tasks.gate.records import Verdict
    from luigi_tasks.settings.values import PipelineSettings

COLOURS = {"red": (200, 40, 40), "blue": (40, 60, 200)}


def plain(label: str, colour: str, count: int, start: int = 0) -> dict[str, bytes]:
    """Noisy pictures of a class, of one colour each."""
    return {
        f"{label}/{number:04}.png": png(COLOURS[colour], 40, [number, *colour.encode()])
        for number in range(start, start + count)
    }


def noise(label: str, count: int) -> dict[str, bytes]:
    """Pictures of a class that show nothing."""
    return {
        f"{label}/{number:04}.png": png((128, 128, 128), 90, [number, *label.encode()])
        for number in range(count)
    }


def png(colour: tuple[int, int, int], spread: float, seed: list[int]) -> bytes:
    pixels = np.array(colour) + np.random.default_rng(seed).normal(0, spread, (32, 32, 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


class Site:
    """A dataset folder, a store and keys, with the default `[gate]`."""

    def __init__(self, folder: Path, weights: Path, broker: tuple[str, int]) -> None:
        self.folder, self.weights, self.broker = folder, weights, broker
        self.pictures, self.store = folder / "pictures", folder / "store"
        self.messages: list[str] = []
        self.rollout: dict[str, object] = {}
        make_keys(folder / "keys")

    def load_settings(self, pictures: str = "", **changes: Mapping[str, object]) -> PipelineSettings:
        return load_settings(
            pictures,
            dataset={"cache_dir": self.folder / "cache", "min_images_per_class": 15},
            model={
                "architecture": "mobilenet_v1",
                "alpha": 0.25,
                "input_size": 32,
                "weights": str(self.weights),
            },
            training={"learning_rate": 0.01, "batch_size": 32},
            quantization={"calibration_pictures": 20, "fallbacks": ""},
            gate=changes.get("gate", {}),
            store={"url": self.store.as_uri()},
            trust={
                "root": self.folder / "keys/device/root.json",
                "keys": str(self.folder / "keys/pipeline"),
            },
            broker={"host": self.broker[0], "port": self.broker[1], "fleet": "evidence", "timeout_s": 5.0},
            release={"self_test_pictures": 2},
            rollout=changes.get("rollout", self.rollout),
        )

    def deploy(self, pictures: Mapping[str, bytes], **options: object) -> str:
        """Run `Deploy` on these pictures; return what it warned of."""
        shutil.rmtree(self.pictures, ignore_errors=True)
        write_tree(self.pictures, pictures)
        self.messages.clear()
        self.last = Deploy(pictures=str(self.pictures), **options)
        assert luigi.build([self.last], local_scheduler=True, log_level="WARNING")
        return "\n".join(self.messages)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what the pipeline warns of in `messages`."""
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self.messages.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger("luigi-interface")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    @property
    def verdict(self) -> Verdict:
        """The verdict of the last run."""
        evaluation = artifacts.find_evaluation(self.last.clone(EvaluateModel).output())
        assert evaluation is not None
        return evaluation.verdict

    @property
    def released(self) -> str | None:
        """The release that the channel points to."""
        return steps.current_release(open_workspace(self.load_settings()))

    @property
    def document(self) -> ReleaseDocument:
        """Its document."""
        document = open_workspace(self.load_settings()).repository.load().release(str(self.released))
        assert document is not None
        return document
