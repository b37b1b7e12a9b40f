"""The evaluation report: one self-contained HTML page, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from luigi_tasks.evaluate import Evaluation, Measurement
    from luigi_tasks.quantize import QuantizationRecord
    from luigi_tasks.snapshot import Snapshot
    from luigi_tasks.train import TrainingRecord

TEMPLATES = Path(__file__).with_name("templates")
# A wider matrix cannot be read as numbers; colours and the tooltip still tell.
NUMBERED_CLASSES = 20
CHART_WIDTH, CHART_HEIGHT = 560, 160


@dataclasses.dataclass(frozen=True)
class Past:
    """An earlier release."""

    release: str
    accuracy: float
    created_at: str


def render_report(
    evaluation: Evaluation,
    *,
    snapshot: Snapshot,
    training: TrainingRecord,
    quantization: QuantizationRecord,
    settings: Mapping[str, str],
    thumbnails: Mapping[str, bytes],
    past: Sequence[Past],
) -> str:
    """Return the page.

    Args:
        evaluation: The gate's record.
        snapshot: The pictures of the run.
        training: What training did.
        quantization: How the file was made.
        settings: Flat settings.
        thumbnails: PNG of each mistake by content hash; a missing one shows as text only.
        past: Earlier releases of the channel, oldest first.
    """
    images = {
        name: "data:image/png;base64," + base64.b64encode(png).decode() for name, png in thumbnails.items()
    }
    accuracies = [*(one.accuracy for one in past), evaluation.candidate.accuracy]
    page: str = _template().render(
        evaluation=evaluation,
        snapshot=snapshot,
        training=training,
        quantization=quantization,
        settings=dict(sorted(settings.items())),
        images=images,
        past=past,
        matrix=_matrix(evaluation.candidate),
        numbered=len(evaluation.candidate.labels) <= NUMBERED_CLASSES,
        models=_compared(evaluation),
        curves={
            name: _polyline(values, 1.0 if "accuracy" in name else None)
            for name, values in training.history.items()
            if values and name in {"loss", "accuracy", "val_loss", "val_accuracy"}
        },
        history=_polyline(accuracies, 1.0) if past else "",
        chart=(CHART_WIDTH, CHART_HEIGHT),
    )
    return page


@functools.lru_cache(maxsize=1)
def _template() -> Any:  # noqa: ANN401 - jinja2.Template
    import jinja2  # noqa: PLC0415 - only the evaluation needs it

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html")


def _compared(evaluation: Evaluation) -> list[tuple[str, Measurement]]:
    rows = [("candidate", evaluation.candidate), ("float model", evaluation.float_model)]
    if evaluation.champion is not None:
        rows.append(("deployed", evaluation.champion))
    return rows


def _matrix(measurement: Measurement) -> list[tuple[str, list[tuple[int, float, bool]]]]:
    """Rows of (truth, cells of (count, share of the row, whether it is the diagonal))."""
    return [
        (label, [(count, count / max(sum(row), 1), column == index) for column, count in enumerate(row)])
        for index, (label, row) in enumerate(zip(measurement.labels, measurement.confusion, strict=True))
    ]


def _polyline(values: Sequence[float], top: float | None) -> str:
    """Points of an SVG polyline in the chart's box, 0 at the bottom."""
    highest = top if top is not None else max(*values, 1e-9, 0.0)
    step = CHART_WIDTH / max(len(values) - 1, 1)
    return " ".join(
        f"{number * step:.1f},{CHART_HEIGHT * (1 - min(value / highest, 1)):.1f}"
        for number, value in enumerate(values)
    )
