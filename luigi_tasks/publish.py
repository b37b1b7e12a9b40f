"""What a release consists of, and how a channel moves. Values in, values out: no store, no clock."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

from edge_client.contract.documents import encode_compact, encode_document
from edge_client.contract.errors import InputError
from edge_client.contract.names import (
    EVALUATION_FILE,
    LABELS_FILE,
    MODEL_FILE,
    RELEASE_FILE,
    REPORT_FILE,
    release_target,
)
from edge_client.contract.release import ChannelDocument, ReleaseDocument, SelfTestCase
from luigi_tasks.calibration import CALIBRATION_FILE
from luigi_tasks.records import Calibration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luigi_tasks.records import CalibrationSet, Candidate, Evaluation
    from luigi_tasks.settings import PipelineSettings


@dataclasses.dataclass(frozen=True)
class SelfTestPicture:
    """A hold-out picture with the answer that the candidate gave.

    Attributes:
        png: The picture as the model sees it, lossless.
        label: Its answer.
        confidence: The score of that answer in [0, 1].
        picture: Content hash of the picture.
    """

    png: bytes
    label: str
    confidence: float
    picture: str = ""


def build_release(
    candidate: Candidate,
    model: bytes,
    evaluation: Evaluation,
    report: bytes,
    self_test: Sequence[SelfTestPicture],
    settings: PipelineSettings,
    architecture: str,
) -> dict[str, bytes]:
    """Return the files of a release by signed target path."""
    names = [f"selftest-{number}.png" for number in range(1, len(self_test) + 1)]
    document = ReleaseDocument(
        release=candidate.release,
        model_sha256=candidate.model_sha256,
        model_bytes=len(model),
        labels=candidate.labels,
        preprocessing=candidate.preprocessing,
        quantization=candidate.quantization.scheme,
        operators=candidate.quantization.operators,
        self_test=tuple(
            SelfTestCase(
                file=name, label=case.label, confidence=round(case.confidence, 6), picture=case.picture
            )
            for name, case in zip(names, self_test, strict=True)
        ),
        parent=evaluation.champion_release,
        snapshot=candidate.snapshot,
        architecture=architecture,
        accuracy=evaluation.candidate.accuracy,
        hold_out=evaluation.candidate.hold_out,
        device_class=settings.release.device_class,
        calibration=digest_calibration(candidate.quantization.calibration),
        made_with=candidate.quantization.made_with,
        settings=flatten_settings(settings),
        created_at=evaluation.at,
    )
    files = {
        MODEL_FILE: model,
        LABELS_FILE: "".join(f"{label}\n" for label in candidate.labels).encode(),
        RELEASE_FILE: encode_document(document),
        EVALUATION_FILE: encode_document(evaluation),
        CALIBRATION_FILE: encode_compact(Calibration(sets=candidate.quantization.calibration)),
        REPORT_FILE: report,
        **{name: case.png for name, case in zip(names, self_test, strict=True)},
    }
    return {release_target(candidate.release, name): data for name, data in files.items()}


def digest_calibration(sets: Sequence[CalibrationSet]) -> str:
    """Hex SHA-256 over the content hashes that calibrated the scheme that was taken."""
    pictures = sets[-1].pictures if sets else ()
    return hashlib.sha256("".join(pictures).encode()).hexdigest()


def flatten_settings(settings: PipelineSettings) -> dict[str, str]:
    """Return the settings that make a model, e.g. {"training.epochs": "20"}; no secrets, paths or hosts."""
    sections: dict[str, Any] = {
        "model": settings.model,
        "training": settings.training,
        "quantization": settings.quantization,
        "gate": settings.gate,
    }
    flat = {
        f"{section}.{name}": str(value)
        for section, values in sections.items()
        for name, value in dataclasses.asdict(values).items()
    }
    del flat["training.cluster"]
    del flat["quantization.calibration"]  # whatever it was taken from, the release has its own list
    flat["dataset.holdout_percent"] = str(settings.dataset.holdout_percent)
    flat["model.weights"] = settings.model.weights.rsplit("/", 1)[-1]
    return flat


def point_channel(
    pointer: ChannelDocument | None, channel: str, release: str, *, share_percent: float, at: str
) -> ChannelDocument:
    """Return the pointer after a new release was published on the channel."""
    return ChannelDocument(
        channel=channel,
        release=release,
        share_percent=share_percent,
        withdrawn=pointer.withdrawn if pointer is not None else (),
        moved_at=at,
    )


def roll_channel_back(
    pointer: ChannelDocument | None, channel: str, release: str, *, at: str
) -> ChannelDocument:
    """Return the pointer after a person took back what the channel points to.

    What it pointed to is withdrawn: no run points there again until data or settings change.
    Raises: InputError if there is no such channel.
    """
    if pointer is None:
        msg = f"channel {channel}: nothing was published on it, so there is nothing to take back"
        raise InputError(msg)
    withdrawn = [one for one in (*pointer.withdrawn, pointer.release) if one != release]
    return ChannelDocument(
        channel=channel,
        release=release,
        share_percent=100.0,
        withdrawn=tuple(dict.fromkeys(withdrawn)),
        moved_at=at,
    )
