"""A whole pipeline on real services, for the tests and the benchmarks: `luigi` is run as a user runs it."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from local_services import MqttBroker, ObjectStore, Scheduler

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

REPOSITORY = Path(__file__).resolve().parents[1]
RUN_LIMIT_S = 600

REPORT_IMPORTS = (
    "import atexit, sys; from luigi.cmdline import luigi_run; "
    "atexit.register(lambda: print('tensorflow imported:', 'tensorflow' in sys.modules)); luigi_run()"
)


class PipelineUnderTest:
    """Settings, keys, pictures and services of one pipeline.

    Args:
        folder: Gets pictures, keys and settings.
        store: A running store; default: one of its own. The same for `broker` and `scheduler`.
        settings: Sections and settings that differ from the small, quick network used here.
        name: Prefix in the bucket and name of the fleet; default: one made of the folder's path.
    """

    def __init__(
        self,
        folder: Path,
        *,
        store: ObjectStore | None = None,
        broker: MqttBroker | None = None,
        scheduler: Scheduler | None = None,
        settings: dict[str, dict[str, object]] | None = None,
        name: str = "",
    ) -> None:
        self.folder = folder
        self.pictures = folder / "pictures"
        self.keys = folder / "keys"
        self._services = contextlib.ExitStack()
        self.store = store or self._services.enter_context(ObjectStore(folder / "s3"))
        self.broker = broker or self._services.enter_context(MqttBroker(folder / "mqtt"))
        self.scheduler = scheduler or self._services.enter_context(Scheduler(folder / "luigid"))
        # Parts shared by several pipelines are kept apart by prefix and fleet.
        self.name = name or hashlib.sha256(str(folder).encode()).hexdigest()[:12]
        self._changes: dict[str, dict[str, object]] = settings or {}

    def __enter__(self) -> Self:
        from luigi_tasks.release.keys import make_keys  # noqa: PLC0415

        if not self.keys.exists():
            make_keys(self.keys)
        self.configure()
        return self

    def __exit__(self, *error: object) -> None:
        self._services.close()

    @staticmethod
    def head_on(weights: Path, **others: dict[str, object]) -> dict[str, dict[str, object]]:
        """Return settings of mode `head`, and others: with weights, no backbone is trained."""
        return {"model": {"weights": weights}, "training": {"mode": "head"}, **others}

    @property
    def configuration(self) -> Path:
        """The settings file that overrides luigi.cfg."""
        return self.folder / "luigi.cfg"

    def configure(self, **changes: dict[str, object]) -> None:
        """Write the settings; `changes` stay for later calls."""
        for section, values in changes.items():
            self._changes.setdefault(section, {}).update(values)
        sections: dict[str, dict[str, object]] = {
            "dataset": {"url": self.pictures, "cache_dir": self.folder / "cache"},
            "model": {"architecture": "mobilenet_v1", "alpha": 0.25, "input_size": 32, "weights": "none"},
            "training": {"mode": "finetune", "epochs": 12},
            "quantization": {"calibration_pictures": 50},
            "gate": {
                "min_accuracy": 0.0,
                "max_float_drop_points": 100.0,
                "max_class_drop_points": 100.0,
                "max_champion_drop_points": 100.0,
                "min_class_recall": 0.0,
                "min_class_holdout": 0,
                "thin_evidence": "publish",
            },
            "store": {
                "url": f"s3://{self.store.bucket}/{self.name}",
                "endpoint_url": self.store.endpoint_url,
                "region": "us-east-1",
            },
            "trust": {"root": self.keys / "device/root.json", "keys": self.keys / "pipeline"},
            "broker": {
                "host": self.broker.host,
                "port": self.broker.port,
                "fleet": self.name,
                "timeout_s": 5,
            },
        }
        for section, values in self._changes.items():
            sections.setdefault(section, {}).update(values)
        self.configuration.write_text(
            "".join(
                f"[{section}]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())
                for section, values in sections.items()
            )
        )

    @contextlib.contextmanager
    def changed(self, **changes: dict[str, object]) -> Iterator[None]:
        """Write the settings and put them back, with all that was changed meanwhile."""
        before = copy.deepcopy(self._changes)
        self.configure(**changes)
        try:
            yield
        finally:
            self._changes = before
            self.configure()

    def write_digits(self, per_class: int, start: int = 0) -> None:
        """Add pictures of the digits that scikit-learn ships, from the given one of each class on."""
        import numpy as np  # noqa: PLC0415
        from PIL import Image  # noqa: PLC0415
        from sklearn.datasets import load_digits  # noqa: PLC0415

        digits = load_digits()
        for label in range(10):
            chosen = digits.images[digits.target == label][start : start + per_class]
            folder = self.pictures / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            for number, pixels in enumerate(chosen, start=start):
                image = Image.fromarray((pixels * 255 / 16).astype(np.uint8))
                image.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{number:04}.png")

    def environment(self) -> dict[str, str]:
        """Return the environment of a run: settings and the pipeline's credentials."""
        return {
            **os.environ,
            **self.store.credentials(),
            "LUIGI_CONFIG_PATH": str(self.configuration),
            "PYTHONPATH": str(REPOSITORY),
        }

    def command(self, *arguments: str, report_imports: bool = False) -> list[str]:
        """Return a luigi command line under this pipeline's luigid."""
        luigi = [sys.executable, "-c", REPORT_IMPORTS] if report_imports else [self._luigi()]
        address = ["--scheduler-host", self.scheduler.host, "--scheduler-port", str(self.scheduler.port)]
        return [*luigi, "--module", "luigi_tasks", *arguments, *address]

    def luigi(self, *arguments: str, report_imports: bool = False) -> subprocess.CompletedProcess[str]:
        """Run luigi and wait for its end."""
        return subprocess.run(
            self.command(*arguments, report_imports=report_imports),
            env=self.environment(),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_LIMIT_S,
        )

    def start_luigi(self, *arguments: str) -> subprocess.Popen[str]:
        """Start luigi in the background."""
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment(),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @staticmethod
    def _luigi() -> str:
        return str(Path(sys.executable).with_name("luigi"))
