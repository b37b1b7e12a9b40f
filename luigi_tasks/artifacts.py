"""Results of the steps in the store: how each is saved, found and loaded.

The only module that knows which files a result consists of. The statement about all of them is written last
(`evidence/ledger.py`): where it exists, the record and the files next to it do too. Light on purpose: a run
with nothing to do finds records, and must not pay for NumPy.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from edge_client.contract.documents import encode_compact
from edge_client.contract.errors import InputError, TransportError
from edge_client.contract.names import LABELS_FILE, MODEL_FILE, REPORT_FILE
from luigi_tasks import addresses
from luigi_tasks.backbone.records import Backbone, BackboneRecord
from luigi_tasks.dataset.records import (
    Inventory,
    MovedPictures,
    ReadPicture,
    Snapshot,
    SnapshotSummary,
    moved_digest,
)
from luigi_tasks.evidence.ledger import BINARY, JSON, EvidenceError, File
from luigi_tasks.evidence.records import StoredDocument
from luigi_tasks.gate.records import Evaluated, Evaluation
from luigi_tasks.quantization.records import Candidate, CandidateRecord, write_labels
from luigi_tasks.training.records import (
    FeaturesRecord,
    Lineage,
    TrainedHead,
    TrainingRecord,
    TunedBackbone,
    TunedRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

    from luigi_tasks.dataset.splits import ShardSplit
    from luigi_tasks.evidence.ledger import Ledger
    from luigi_tasks.evidence.records import DocumentT, PendingDocument
    from luigi_tasks.labelling.records import DoubtfulRecord
    from luigi_tasks.storage.cache import ContentCache
    from luigi_tasks.training.features import FeatureRows
    from luigi_tasks.workspace import Workspace

    Target = StoredDocument | PendingDocument

WEIGHTS_FILE = "weights.npz"
CHECKPOINT_FILE = "checkpoint.npz"
HEAD_FILE = "head.npz"
FLOAT_SCORES_FILE = "float_scores.npy"
UNSEEN_FILE = "unseen.npz"
SCORES_FILE = "scores.npy"
PICTURES_FILE = "pictures.json"
MOVED_FILE = "moved.json"
# A presigned link lives at most a week (AWS Signature Version 4).
REPORT_LINK_S = 7 * 24 * 3600
HTML = "text/html; charset=utf-8"


def find_key(target: Target) -> str | None:
    """Return the key of a record that exists, else None."""
    return target.key if isinstance(target, StoredDocument) and target.exists() else None


def _find(target: Target, kind: type[DocumentT]) -> DocumentT | None:
    """Return a step's record, None while it does not exist."""
    return target.find(kind) if isinstance(target, StoredDocument) else None


# Pictures


def save_shard(target: StoredDocument, read: tuple[ReadPicture, ...]) -> None:
    target.save_list(Inventory(pictures=read))


def load_shard(target: StoredDocument) -> tuple[ReadPicture, ...]:
    return target.load(Inventory).pictures


def find_shard(target: Target, workspace: Workspace, shard: str) -> tuple[ReadPicture, ...]:
    """Return the pictures of a shard; the inventory has them where the shard's record was deleted."""
    found = _find(target, Inventory)
    if found is not None:
        return found.pictures
    known = workspace.log.load(workspace.plan.inventory).pictures
    return tuple(one for one in known if one.shard == shard)


def save_snapshot(target: StoredDocument, snapshot: Snapshot) -> None:
    target.put(PICTURES_FILE, encode_compact(snapshot), content_type=JSON)
    if snapshot.moved:
        target.put(MOVED_FILE, encode_compact(MovedPictures(shards=snapshot.moved)), content_type=JSON)
    target.save(SnapshotSummary.of(snapshot))


def find_summary(target: Target) -> SnapshotSummary | None:
    """Return what most steps need of the snapshot."""
    return _find(target, SnapshotSummary)


def load_snapshot(target: StoredDocument) -> Snapshot:
    """Return the full list of pictures."""
    return target.load_part(PICTURES_FILE, Snapshot)


def load_split(
    target: StoredDocument, shard: str, hashes: Iterable[str], holdout_percent: float
) -> ShardSplit:
    """Return the split of a shard's pictures without reading the whole snapshot.

    Args:
        target: The snapshot.
        shard: Key of the shard.
        hashes: Content hashes of its pictures.
        holdout_percent: Share of the hold-out.
    """
    from luigi_tasks.dataset.splits import ShardSplit  # noqa: PLC0415 - a run with nothing to do

    summary = target.load(SnapshotSummary)
    moves = shard in summary.moved
    away = target.load_part(MOVED_FILE, MovedPictures).shards[shard] if moves else ()
    return ShardSplit.find(hashes, away, summary.train_pictures, holdout_percent)


def find_earlier_splits(workspace: Workspace, wanted: AbstractSet[str]) -> dict[str, str]:
    """Return what named the split of each shard that had wanted pictures before this run."""
    from luigi_tasks.dataset.splits import find_moved  # noqa: PLC0415 - a run with nothing to do

    known = workspace.log.load(workspace.plan.inventory).pictures
    shards = {one.shard for one in known if one.sha256 in wanted}
    own = [one for one in known if one.shard in shards]
    percent = workspace.settings.dataset.holdout_percent
    moved = find_moved(own, {one.sha256: one.split for one in own if one.split}, percent)
    return {shard: moved_digest(moved.get(shard, ())) for shard in sorted(shards)}


# The backbone


class StoredCheckpoint:
    """Checkpoint next to the result that it is for: any machine may resume from it."""

    def __init__(self, target: StoredDocument) -> None:
        self._ledger, self._folder = target.ledger, target.folder

    def load(self) -> bytes | None:
        """Return what was saved last, or None."""
        key = self._folder + CHECKPOINT_FILE
        try:
            return self._ledger.load(key) if self._ledger.find(key) is not None else None
        except EvidenceError:  # the training begins anew
            return None

    def save(self, data: bytes) -> None:
        """Replace the checkpoint; empty data means that it is not needed any more."""
        if data:
            self._ledger.save(File(CHECKPOINT_FILE, data, BINARY), self._folder, replace=True)
        else:
            self._ledger.store.put(self._folder + CHECKPOINT_FILE, data)
            self._ledger.withdraw(self._folder + CHECKPOINT_FILE)


def save_tuned(target: StoredDocument, tuned: TunedBackbone) -> None:
    target.put(WEIGHTS_FILE, tuned.weights)
    target.save(tuned.record)
    StoredCheckpoint(target).save(b"")


def find_tuned(target: Target) -> TunedRecord | None:
    return _find(target, TunedRecord)


def load_tuned(target: StoredDocument) -> TunedBackbone:
    return TunedBackbone(target.load(TunedRecord), target.read(WEIGHTS_FILE))


def save_lineage(ledger: Ledger, release: str, tuned: StoredDocument) -> None:
    """Record which tuned backbone a release was made from, for a warm start."""
    document = StoredDocument(ledger, addresses.lineage(release), lambda: [tuned.key])
    document.save(Lineage(tuned=tuned.folder), replace=True)


def find_parent(workspace: Workspace) -> tuple[str, bytes] | None:
    """Return the deployed release and the weights of its tuned backbone, where both still exist.

    None, too, where it learned from pictures that judge today: what is trained further would know them.
    """
    release = workspace.find_start()
    if release is None:
        return None
    lineage = _find(StoredDocument(workspace.ledger, addresses.lineage(release)), Lineage)
    if lineage is None:
        return None
    tuned = StoredDocument(workspace.ledger, lineage.tuned + addresses.TUNED_FILE)
    try:
        return (release, tuned.read(WEIGHTS_FILE)) if tuned.exists() else None
    except EvidenceError:  # the initial weights do instead
        return None


def save_backbone(target: StoredDocument, backbone: Backbone) -> None:
    """Save a backbone; where two machines convert at once, the first result counts."""
    for name, sha256 in backbone.record.variants.items():
        target.put(addresses.variant("", name, sha256), backbone.files[name])
    target.save_list(backbone.record)


def find_backbone(target: Target) -> BackboneRecord | None:
    return _find(target, BackboneRecord)


def load_backbone(target: StoredDocument, cache: ContentCache, scheme: str, key: str) -> Backbone:
    """Return a converted backbone.

    Args:
        target: Its record.
        cache: This machine's copies of its files.
        scheme: The scheme that it was converted for.
        key: Key of the backbone that its calibration set belongs to.
    """
    record = target.load(BackboneRecord)
    files = {
        name: _read_cached(target, cache, addresses.variant("", name, sha256), sha256)
        for name, sha256 in record.variants.items()
    }
    return Backbone(record, files, scheme, key)


# Features and head


def save_features(target: StoredDocument, features: FeatureRows, cache: ContentCache) -> None:
    packed = features.pack()
    sha256 = hashlib.sha256(packed).hexdigest()
    target.put(f"{sha256}.npz", packed)
    cache.put(sha256, packed)
    target.save_list(
        FeaturesRecord(pictures=dict(features.pictures), sha256=sha256, computed=features.computed)
    )


def load_features(target: StoredDocument, cache: ContentCache) -> FeatureRows:
    """Return the features of a shard.

    Raises: InputError if they are damaged in the store, TransportError if they are gone.
    """
    from luigi_tasks.training.features import unpack_rows  # noqa: PLC0415 - NumPy

    record = target.load(FeaturesRecord)
    packed = _read_cached(target, cache, f"{record.sha256}.npz", record.sha256)
    return unpack_rows(packed, record.pictures)


def find_features(target: Target, cache: ContentCache) -> FeatureRows:
    """Return the features of a shard; none where they are missing or damaged."""
    from luigi_tasks.training.features import FeatureRows  # noqa: PLC0415 - NumPy

    try:
        if isinstance(target, StoredDocument) and target.exists():
            return load_features(target, cache)
    except (InputError, TransportError):  # they are computed instead
        pass
    return FeatureRows({}, {})


def save_head(target: StoredDocument, head: TrainedHead) -> None:
    from luigi_tasks.storage.arrays import pack_array  # noqa: PLC0415 - NumPy
    from luigi_tasks.training.train import pack_head, pack_unseen  # noqa: PLC0415 - NumPy

    target.put(HEAD_FILE, pack_head(head.layers, head.ranges))
    target.put(FLOAT_SCORES_FILE, pack_array(head.float_scores))
    target.put(UNSEEN_FILE, pack_unseen(head.unseen))
    target.save(head.record)


def find_known_rows(
    workspace: Workspace, keys: Iterable[str], wanted: AbstractSet[str]
) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the rows of wanted pictures in earlier features, by name and content hash."""
    from luigi_tasks.training.features import collect_known  # noqa: PLC0415 - NumPy

    targets = (StoredDocument(workspace.ledger, one) for one in keys)
    return collect_known((find_features(one, workspace.cache) for one in targets), wanted)


def find_training(target: Target) -> TrainingRecord | None:
    return _find(target, TrainingRecord)


def load_head(target: StoredDocument, scheme: str) -> TrainedHead:
    from luigi_tasks.storage.arrays import unpack_array  # noqa: PLC0415 - NumPy
    from luigi_tasks.training.train import unpack_head, unpack_unseen  # noqa: PLC0415 - NumPy

    layers, ranges = unpack_head(target.read(HEAD_FILE))
    scores = unpack_array(target.read(FLOAT_SCORES_FILE))
    unseen = unpack_unseen(target.read(UNSEEN_FILE))
    return TrainedHead(scheme, layers, ranges, scores, unseen, target.load(TrainingRecord))


# The candidate


def save_candidate(target: StoredDocument, candidate: Candidate) -> None:
    for calibration, model in zip(candidate.record.quantization.calibration, candidate.tried, strict=False):
        target.put(_tried_file(calibration.scheme), model)
    target.put(MODEL_FILE, candidate.model)
    target.put(LABELS_FILE, write_labels(candidate.record.labels))
    target.save(candidate.record)


def find_candidate(target: Target) -> CandidateRecord | None:
    return _find(target, CandidateRecord)


def load_candidate(target: StoredDocument) -> Candidate:
    record = target.load(CandidateRecord)
    tried = record.quantization.calibration[:-1]
    return Candidate(
        record,
        target.read(MODEL_FILE),
        tuple(target.read(_tried_file(one.scheme)) for one in tried),
    )


def save_evaluation(target: StoredDocument, evaluated: Evaluated) -> str:
    """Save the gate's record, its scores and its report; return a link to the report."""
    from luigi_tasks.storage.arrays import pack_array  # noqa: PLC0415 - NumPy

    target.put(REPORT_FILE, evaluated.report.encode(), content_type=HTML)
    target.put(SCORES_FILE, pack_array(evaluated.scores))
    target.save(evaluated.record)
    return target.store.presign_url(target.folder + REPORT_FILE, REPORT_LINK_S)


def save_doubtful(target: StoredDocument, record: DoubtfulRecord, page: str) -> tuple[str, str]:
    """Save the list of doubtful labels; return the address of the CSV, and a link to the page."""
    from luigi_tasks.labelling.doubtful import write_csv  # noqa: PLC0415 - only where one is made

    csv, html = "doubtful.csv", "doubtful.html"
    target.put(csv, write_csv(record.doubtful), content_type="text/csv; charset=utf-8")
    target.put(html, page.encode(), content_type=HTML)
    target.save_list(record)
    store, folder = target.store, target.folder
    return store.url(folder + csv), store.presign_url(folder + html, REPORT_LINK_S)


def find_evaluation(target: Target) -> Evaluation | None:
    return _find(target, Evaluation)


def load_evaluation(target: StoredDocument) -> Evaluated:
    from luigi_tasks.storage.arrays import unpack_array  # noqa: PLC0415 - NumPy

    return Evaluated(
        target.load(Evaluation),
        target.read(REPORT_FILE).decode(),
        unpack_array(target.read(SCORES_FILE)),
    )


def _tried_file(scheme: str) -> str:
    return f"tried-{scheme}.tflite"


def _read_cached(target: StoredDocument, cache: ContentCache, name: str, sha256: str) -> bytes:
    """Return a file of a signed result, from this machine's cache where it is there."""
    data = cache.get(sha256)
    if data is None:
        data = target.read(name)
        if hashlib.sha256(data).hexdigest() != sha256:  # only where results are unsigned
            msg = f"{target.store.url(target.folder + name)}: damaged in the store; remove it and run again"
            raise InputError(msg)
        cache.put(sha256, data)
    return data
