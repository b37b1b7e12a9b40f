"""`Deploy` from first pictures to other classes: what is published, held and refused for its evidence."""

from __future__ import annotations

import io
import logging
import shutil
from typing import TYPE_CHECKING

import luigi
import numpy as np
import pytest
from PIL import Image

from luigi_tasks import artifacts, steps, task
from luigi_tasks.pipeline import Deploy, EvaluateModel
from luigi_tasks.release.keys import make_keys
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.workspace import open_workspace
from tests.fakes.datasets import write_tree

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edge_client.contract.release import ReleaseDocument
    from luigi_tasks.gate.records import Verdict
    from luigi_tasks.settings.values import PipelineSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Of so few pictures, too few are in the hold-out to tell a good classifier from a constant answer.
FEW, ENOUGH = 16, 60
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
        self.pictures = folder / "pictures"
        self.messages: list[str] = []
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
            store={"url": (self.folder / "store").as_uri()},
            trust={
                "root": self.folder / "keys/device/root.json",
                "keys": str(self.folder / "keys/pipeline"),
            },
            broker={"host": self.broker[0], "port": self.broker[1], "fleet": "evidence", "timeout_s": 5.0},
            release={"self_test_pictures": 2},
        )

    def deploy(self, pictures: Mapping[str, bytes], **options: object) -> str:
        """Run `Deploy` on these pictures; return what it warned of."""
        shutil.rmtree(self.pictures, ignore_errors=True)
        write_tree(self.pictures, pictures)
        self.messages.clear()
        self.last = Deploy(pictures=str(self.pictures), **options)
        assert luigi.build([self.last], local_scheduler=True, log_level="WARNING")
        return "\n".join(self.messages)

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


@pytest.fixture
def site(tmp_path, small_weights, mqtt_broker, monkeypatch):
    site = Site(tmp_path, small_weights, (mqtt_broker.host, mqtt_broker.port))
    monkeypatch.setattr(task, "load_settings", site.load_settings)
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: site.messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("luigi-interface")
    logger.addHandler(handler)
    yield site
    logger.removeHandler(handler)


def test_a_release_is_published_held_and_refused_by_its_evidence(site):
    # Labels at random, 90/10: no better than a constant answer.
    said = site.deploy({**noise("many", 135), **noise("few", FEW)})
    assert "is not published, the gate refused: " in said
    assert "is no better than always answering 'many'" in said
    assert site.released is None

    # Few pictures, first release: published, and what is thin is said wherever a person looks.
    said = site.deploy({**plain("red", "red", FEW), **plain("blue", "blue", FEW)})
    first = site.released
    assert f"Release {first} passed on thin evidence: " in said
    assert "about 5 more pictures (1 of them in the hold-out) would do" in said
    assert site.document.evidence == "; ".join(site.verdict.thin)
    assert site.document.evidence in said

    # A replacement on thin evidence is held: the run succeeds, and the verdict stays on record.
    to_learn_from = plain("red", "red", 1, start=FEW + 3)
    pictures = {**plain("red", "red", FEW), **to_learn_from, **plain("blue", "blue", FEW)}
    said = site.deploy(pictures)
    assert "is not published, the gate held: not enough evidence: " in said
    assert "more pictures" in said
    assert (site.released, site.verdict.outcome) == (first, "thin")
    assert Deploy(pictures=str(site.pictures)).complete()

    # Enough pictures.
    assert site.deploy({**plain("red", "red", ENOUGH), **plain("blue", "blue", ENOUGH)}) == ""
    second = site.released
    assert second not in {None, first}
    assert site.document.evidence == ""

    # All classes replaced: refused, unless that is meant.
    other = {**plain("rose", "red", ENOUGH), **plain("iris", "blue", ENOUGH)}
    assert "none of the deployed release's classes is left ('blue', 'red')" in site.deploy(other)
    assert site.released == second
    assert site.deploy(other, replace_classes=True) == ""
    assert site.document.labels == ("iris", "rose")
