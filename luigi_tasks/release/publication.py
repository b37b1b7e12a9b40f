"""Publication of a candidate: its files are signed and uploaded, then the channel points to it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from edge_client.contract.names import MODEL_FILE, release_target
from edge_client.contract.times import utc_now
from luigi_tasks.evidence.release import EVIDENCE_FILE
from luigi_tasks.gate.confirm import confirm_candidate
from luigi_tasks.release.channel import point_channel
from luigi_tasks.release.contents import build_release
from luigi_tasks.release.history import self_test_pictures
from luigi_tasks.release.patches import make_patches
from luigi_tasks.release.published import NOT_FOR_DEVICES, object_key
from luigi_tasks.release.self_test import make_self_test

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luigi_tasks.dataset.pixels import PixelLoader
    from luigi_tasks.dataset.records import Picture
    from luigi_tasks.evidence.release import Evidence
    from luigi_tasks.gate.records import Evaluated
    from luigi_tasks.progress import Progress
    from luigi_tasks.quantization.records import Candidate
    from luigi_tasks.release.published import RepositoryState
    from luigi_tasks.release.repository import ReleaseRepository
    from luigi_tasks.settings.values import PipelineSettings


def publish(
    repository: ReleaseRepository,
    candidate: Candidate,
    evaluated: Evaluated,
    holdout: Sequence[Picture],
    pixels_of: PixelLoader,
    settings: PipelineSettings,
    evidence: Evidence,
    progress: Progress,
) -> None:
    """Sign the release and upload it, then point the channel to it: data first, pointer last.

    With `[rollout] stages` the channel stays: a rollout moves it. What is signed already, since the channel
    pointed to it before, is not made again.

    Args:
        repository: Where it is published.
        candidate: The candidate.
        evaluated: The gate's decision.
        holdout: The pictures that it was judged on; some become its self-test.
        pixels_of: Loads them.
        settings: The settings that made it.
        evidence: Signed statements about what made it.
        progress: Gets pictures done.
    Raises: InputError if the gate refused or held the candidate, evaluated another one, or saw other answers
        than the file gives now; SettingsError without keys; TrustError; TransportError (the earlier release
        stays current).
    """
    check_verdict(candidate.record.release, evaluated)
    release, rules, state = candidate.record.release, settings.release, repository.load()
    files, model = dict[str, bytes](), candidate.model
    if state.release(release) is None:
        known = self_test_pictures(state, rules.channel)
        percent = settings.dataset.holdout_percent
        confirm_candidate(candidate, evaluated, holdout, pixels_of, settings.gate, progress, percent)
        self_test = make_self_test(
            candidate.record, holdout, evaluated.scores, pixels_of, rules.self_test_pictures, known
        )
        files = build_release(candidate, evaluated, self_test, settings)
        digests = {path.rpartition("/")[2]: hashlib.sha256(data).hexdigest() for path, data in files.items()}
        files[release_target(release, EVIDENCE_FILE)] = evidence.write(release, digests)
    else:
        model = state.read(release_target(release, MODEL_FILE))
    files |= make_patches(state, release, model, rules.channel, rules.patches)
    if settings.rollout.stages:
        repository.publish(files)
    else:
        repository.publish(
            files,
            lambda pointer: point_channel(
                pointer, rules.channel, release, share_percent=rules.share_percent, at=utc_now()
            ),
            rules.channel,
        )
    _empty_old_reports(repository, state)


def _empty_old_reports(repository: ReleaseRepository, state: RepositoryState) -> None:
    """Empty reports and evaluations that an earlier version published, since old metadata names them."""
    old = {path: file for path, file in state.files.items() if path.rpartition("/")[2] in NOT_FOR_DEVICES}
    if old and old.keys() & repository.load().files.keys():
        repository.renew()  # a publication that only moved the channel left the targets as they were
    for path, file in old.items():
        repository.store.put(object_key(path, file.hashes["sha256"]), b"")


def check_verdict(release: str, evaluated: Evaluated) -> None:
    """Refuse a release that may not be published; raises InputError."""
    if evaluated.record.release != release:
        msg = f"release {release}: the evaluation is of release {evaluated.record.release}; evaluate this one"
        raise InputError(msg)
    if not evaluated.record.verdict.passed:
        msg = f"release {release}: not published, the gate {evaluated.record.verdict.in_words()}"
        raise InputError(msg)
