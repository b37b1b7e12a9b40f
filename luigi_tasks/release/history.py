"""Earlier releases: the champion, its calibration set and self-test, and the accuracies before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.contract.documents import decode_document
from edge_client.contract.names import CALIBRATION_FILE, MODEL_FILE, release_target
from luigi_tasks.gate.champion import Champion
from luigi_tasks.gate.report import Past
from luigi_tasks.provenance import GROUP_SETTING, flatten_settings
from luigi_tasks.quantization.records import Calibration

if TYPE_CHECKING:
    from edge_client.contract.release import ReleaseDocument
    from luigi_tasks.release.published import RepositoryState
    from luigi_tasks.settings.values import PipelineSettings

CALIBRATION_LIMIT_BYTES = 16 << 20


def load_champion(state: RepositoryState, release: str | None, settings: PipelineSettings) -> Champion | None:
    """Return the deployed model; None if there is none, or it is not signed any more.

    Args:
        state: What is published.
        release: Its id, from `channel.find_champion`.
        settings: Settings of the candidate.
    Raises: TrustError if the store holds something else than what was signed.
    """
    document = state.release(release) if release is not None else None
    if document is None:
        return None
    return Champion(
        document,
        state.read(release_target(document.release, MODEL_FILE)),
        holdout_percent=_holdout_percent(document, settings.dataset.holdout_percent),
        split_groups=_split_by_these_groups(document, settings),
    )


def is_kept_from_judges(document: ReleaseDocument, settings: PipelineSettings) -> bool:
    """Whether a release learned from no picture that judges today, in the hold-out or for validation."""
    today = settings.dataset.holdout_percent
    return _split_by_these_groups(document, settings) and _holdout_percent(document, today) >= today


def _split_by_these_groups(document: ReleaseDocument, settings: PipelineSettings) -> bool:
    """Whether no group of today can have been on both sides; a version without groups divided bursts."""
    return document.settings.get(GROUP_SETTING) == flatten_settings(settings)[GROUP_SETTING]


def _holdout_percent(document: ReleaseDocument, default: float) -> float:
    """Return the hold-out share used for a release; older releases have it in their settings."""
    if document.holdout_percent is not None:
        return document.holdout_percent
    return float(document.settings.get("dataset.holdout_percent", default))


def self_test_pictures(state: RepositoryState, channel: str) -> frozenset[str]:
    """Return the content hashes of the self-test pictures that devices on the channel have."""
    pointer = state.channel(channel)
    document = state.release(pointer.release) if pointer is not None else None
    return frozenset(case.picture for case in document.self_test) if document is not None else frozenset()


def published_calibration(state: RepositoryState, release: str, backbone: str) -> tuple[str, ...]:
    """Return the content hashes that a release was calibrated on for this backbone, or none.

    Raises: TrustError if the store holds something else than what was signed.
    """
    path = release_target(release, CALIBRATION_FILE)
    if path not in state.files:
        return ()
    found = decode_document(Calibration, state.read(path), source=path, limit_bytes=CALIBRATION_LIMIT_BYTES)
    return next((one.pictures for one in found.sets if one.backbone == backbone), ())


def past_releases(state: RepositoryState, release: str | None) -> list[Past]:
    """Return the accuracies of a release and those before it, oldest first: [trust] keep_releases of them."""
    found: list[Past] = []
    while release is not None and (document := state.release(release)) is not None:
        found.append(Past(document.release, document.accuracy, document.created_at))
        release = document.parent
    return found[::-1]
