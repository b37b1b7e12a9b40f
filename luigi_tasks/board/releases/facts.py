"""One release: what the gate found, what it came from, who let it out, and what proves each of that."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edge_client.contract.names import (
    COMPRESSED_MODEL_FILE,
    MODEL_FILE,
    RELEASE_FILE,
    is_patch,
    release_target,
)
from edge_client.contract.release import ReleaseDocument  # noqa: TC001 - dataclasses are written as JSON
from edge_client.contract.times import seconds_of
from luigi_tasks.board.releases.matrix import LabelRow, Matrix, build_matrix, list_labels
from luigi_tasks.board.releases.rows import InChannel, ReleaseRow, row_of, states_by_release
from luigi_tasks.gate.words import (
    describe_check,
    describe_check_interval,
    mark_check,
    mark_verdict,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luigi_tasks.board.releases.known import Kept, Published
    from luigi_tasks.board.releases.rollout_log import PastRollout
    from luigi_tasks.gate.records import Evaluation
    from luigi_tasks.release.kept_snapshot import KeptSnapshot
    from luigi_tasks.release.verify import Proof

# Of a long line of ancestors.
ANCESTORS = 12
# Events of a rollout that a person stands behind.
ACTS = {"opened", "approved", "resumed", "going_back", "aborted", "paused"}


@dataclasses.dataclass(frozen=True)
class JudgedCheck:
    """A check of the gate, in words.

    Attributes:
        name: Quantity.
        measured: Its value.
        interval: Its interval at 95 %; empty: none.
        limit: What it was compared with.
        outcome: `passed`, `refused` or `thin`.
        words: The outcome in words.
        note: What was counted.
        reason: Why it did not pass.
    """

    name: str
    measured: str
    interval: str
    limit: str
    outcome: str
    words: str
    note: str
    reason: str


@dataclasses.dataclass(frozen=True)
class GateFacts:
    """What the gate found.

    Attributes:
        origin: `signed`: a file of the release; `proven`: in `work/`, with the digest that was signed.
        outcome: `passed`, `refused` or `thin`.
        words: The verdict in words.
        at: When it judged, seconds since 1970.
        checks: Every check.
        record: The whole record.
    """

    origin: str
    outcome: str
    words: str
    at: float
    checks: tuple[JudgedCheck, ...]
    record: Evaluation


@dataclasses.dataclass(frozen=True)
class Ancestor:
    """A release that another was judged against; without figures where it is not signed any more."""

    release: str
    accuracy: float | None
    made_at: float
    is_signed: bool


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting that made the release, and what the other release has; None: it has none of that name."""

    name: str
    value: str | None
    other: str | None

    @property
    def differs(self) -> bool:
        """Whether the two differ."""
        return self.value != self.other


@dataclasses.dataclass(frozen=True)
class Download:
    """A form in which a device gets the model.

    Attributes:
        file: Name of the signed file.
        base: Release that it is a patch from; empty: none is needed.
        size_bytes: Its size.
        share: Of the size of the model.
    """

    file: str
    base: str
    size_bytes: int
    share: float


@dataclasses.dataclass(frozen=True)
class Signature:
    """Who signed: a role, and the ids of the keys whose signatures stand under it."""

    role: str
    keys: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ReleaseFacts:
    """The page of a release; times are seconds since 1970, ISO 8601 within what was signed.

    Attributes:
        row: As in the list.
        added_at: When it was signed first.
        document: Its signed document; None: it cannot be read.
        gate: What the gate found; None: see `gate_missing`.
        gate_missing: Why there is nothing of it.
        matrix: Confusions; None where there is no record of them.
        labels: Figures of each label, those found least often first.
        ancestors: Releases that it came from, its parent first.
        more_ancestors: Older ones, not among them.
        settings: The settings that made it, beside its parent's.
        downloads: Forms of the model, and their sizes.
        signatures: Who signed.
        rollouts: Rollouts that brought it to devices, newest first.
        snapshot: Its pictures, counted; None: see `snapshot_missing`.
        snapshot_missing: Why they are not known.
        proof: What its statements prove; None: see `proof_missing`.
        proof_missing: Why nothing is proven.
        has_report: Whether the gate's report can be asked for.
        names: All releases, newest first.
        notes: What could not be read.
    """

    row: ReleaseRow
    added_at: float
    document: ReleaseDocument | None
    gate: GateFacts | None = None
    gate_missing: str = ""
    matrix: Matrix | None = None
    labels: tuple[LabelRow, ...] = ()
    ancestors: tuple[Ancestor, ...] = ()
    more_ancestors: int = 0
    settings: tuple[Setting, ...] = ()
    downloads: tuple[Download, ...] = ()
    signatures: tuple[Signature, ...] = ()
    rollouts: tuple[PastRollout, ...] = ()
    snapshot: KeptSnapshot | None = None
    snapshot_missing: str = ""
    proof: Proof | None = None
    proof_missing: str = ""
    has_report: bool = False
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def describe_release(
    published: Published, release: str, kept: Kept, devices: Mapping[str, int] | None
) -> ReleaseFacts:
    """Return all that is known of a signed release."""
    states: list[InChannel] = states_by_release(published).get(release, [])
    document = published.documents.get(release)
    evaluation = kept.gate.evaluation
    ancestors, more = _ancestors(published, document)
    parent = published.documents.get(ancestors[0].release) if ancestors else None
    return ReleaseFacts(
        row=row_of(published, release, states, devices),
        added_at=_added_at(published, release),
        document=document,
        gate=None if evaluation is None else describe_gate(evaluation, kept.gate.origin),
        gate_missing=kept.gate.missing,
        matrix=None if evaluation is None else build_matrix(evaluation.candidate),
        labels=() if document is None else list_labels(document, evaluation),
        ancestors=ancestors,
        more_ancestors=more,
        settings=() if document is None else compare_settings(document, parent),
        downloads=() if document is None else _downloads(published, document),
        signatures=_signatures(published),
        rollouts=published.log.of(release),
        snapshot=kept.snapshot,
        snapshot_missing=kept.snapshot_missing,
        proof=kept.proof,
        proof_missing=kept.proof_missing,
        has_report=kept.proof is not None and any(one.step == "EvaluateModel" for one in kept.proof.steps),
        names=tuple(reversed(published.order)),
        notes=published.notes,
    )


def describe_gate(evaluation: Evaluation, origin: str) -> GateFacts:
    """Return a record of the gate in words."""
    verdict = evaluation.verdict
    checks = []
    for check in verdict.checks:
        measured, limit = describe_check(check)
        mark = mark_check(check)
        checks.append(
            JudgedCheck(
                name=check.name,
                measured=measured,
                interval=describe_check_interval(check),
                limit=limit,
                outcome=mark.mark,
                words=mark.check.partition(" ")[2],
                note=check.note,
                reason=check.reason,
            )
        )
    mark = mark_verdict(verdict)
    return GateFacts(origin, mark.mark, mark.word, seconds_of(evaluation.at), tuple(checks), evaluation)


def compare_settings(document: ReleaseDocument, other: ReleaseDocument | None) -> tuple[Setting, ...]:
    """Return the settings of a release beside those of another; without one, nothing differs."""
    own, there = document.settings, document.settings if other is None else other.settings
    return tuple(Setting(name, own.get(name), there.get(name)) for name in sorted({*own, *there}))


def compare_versions(document: ReleaseDocument, other: ReleaseDocument) -> tuple[Setting, ...]:
    """Return the versions of code and packages that differ."""
    own, there = document.made_with, other.made_with
    rows = (Setting(name, own.get(name), there.get(name)) for name in sorted({*own, *there}))
    return tuple(row for row in rows if row.differs)


def _ancestors(published: Published, document: ReleaseDocument | None) -> tuple[tuple[Ancestor, ...], int]:
    """Return the releases that one came from, and how many are left out; a circle ends where it began."""
    found: list[Ancestor] = []
    seen: set[str] = set()
    while document is not None and document.parent and document.parent not in seen:
        seen.add(document.parent)
        parent = published.documents.get(document.parent)
        found.append(
            Ancestor(
                release=document.parent,
                accuracy=None if parent is None else parent.accuracy,
                made_at=0.0 if parent is None else seconds_of(parent.created_at),
                is_signed=published.has(document.parent),
            )
        )
        document = parent
    if len(found) <= ANCESTORS + 1:
        return tuple(found), 0
    return (*found[:ANCESTORS], found[-1]), len(found) - ANCESTORS - 1


def _downloads(published: Published, document: ReleaseDocument) -> tuple[Download, ...]:
    whole = max(document.model_bytes, 1)
    found = [Download(MODEL_FILE, "", document.model_bytes, 1.0)]
    folder = f"releases/{document.release}/"
    for path, signed in published.state.files.items():
        name = path.removeprefix(folder)
        if path.startswith(folder) and (name == COMPRESSED_MODEL_FILE or is_patch(name)):
            base = name.removeprefix(f"{MODEL_FILE}.from-").removesuffix(".zst") if is_patch(name) else ""
            found.append(Download(name, base, signed.length, signed.length / whole))
    return tuple(sorted(found, key=lambda one: -one.size_bytes))


def _signatures(published: Published) -> tuple[Signature, ...]:
    metadata = published.state.published
    roles = {
        "targets (this release)": metadata.targets,
        "snapshot (which releases go together)": metadata.snapshot,
        "rollouts (where channels point)": metadata.rollouts,
    }
    return tuple(Signature(role, tuple(one.signatures)) for role, one in roles.items() if one is not None)


def _added_at(published: Published, release: str) -> float:
    signed = published.state.files.get(release_target(release, RELEASE_FILE))
    custom = (signed.custom or {}) if signed is not None else {}
    return seconds_of(str(custom.get("added", "")))
