"""Results of the steps in the store: how each is saved, found and loaded.

The only module that knows which files a result consists of. The record is written last: where it exists,
the files next to it do too. Light on purpose: a run with nothing to do finds records, and must not pay for
NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import InputError, TransportError
from edge_client.contract.names import MODEL_FILE, REPORT_FILE
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
from luigi_tasks.gate.records import Evaluated, Evaluation
from luigi_tasks.quantization.records import Candidate, CandidateRecord
from luigi_tasks.storage.documents import StoredDocument
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
    from luigi_tasks.labelling.doubtful import DoubtfulRecord
    from luigi_tasks.storage.cache import ContentCache
    from luigi_tasks.storage.documents import DocumentT, PendingDocument
    from luigi_tasks.storage.store import Store
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
    StoredDocument(target.store, target.folder + PICTURES_FILE).save_list(snapshot)
    if snapshot.moved:
        moved = MovedPictures(shards=snapshot.moved)
        StoredDocument(target.store, target.folder + MOVED_FILE).save_list(moved)
    target.save(SnapshotSummary.of(snapshot))


def find_summary(target: Target) -> SnapshotSummary | None:
    """Return what most steps need of the snapshot."""
    return _find(target, SnapshotSummary)


def load_snapshot(target: StoredDocument) -> Snapshot:
    """Return the full list of pictures."""
    return StoredDocument(target.store, target.folder + PICTURES_FILE).load(Snapshot)


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

    summary, moved = target.load(SnapshotSummary), StoredDocument(target.store, target.folder + MOVED_FILE)
    away = moved.load(MovedPictures).shards[shard] if shard in summary.moved else ()
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
        self._store, self._key = target.store, target.folder + CHECKPOINT_FILE

    def load(self) -> bytes | None:
        """Return what was saved last, or None."""
        found = self._store.get(self._key)
        return found.data if found is not None else None

    def save(self, data: bytes) -> None:
        """Replace the checkpoint; empty data means that it is not needed any more."""
        self._store.put(self._key, data)


def save_tuned(target: StoredDocument, tuned: TunedBackbone) -> None:
    target.store.put(target.folder + WEIGHTS_FILE, tuned.weights)
    target.save(tuned.record)
    StoredCheckpoint(target).save(b"")


def find_tuned(target: Target) -> TunedRecord | None:
    return _find(target, TunedRecord)


def load_tuned(target: StoredDocument) -> TunedBackbone:
    return TunedBackbone(target.load(TunedRecord), target.store.read(target.folder + WEIGHTS_FILE))


def save_lineage(store: Store, release: str, tuned: StoredDocument) -> None:
    """Record which tuned backbone a release was made from, for a warm start."""
    StoredDocument(store, addresses.lineage(release)).save(Lineage(tuned=tuned.folder))


def find_parent(workspace: Workspace) -> tuple[str, bytes] | None:
    """Return the deployed release and the weights of its tuned backbone, where both still exist.

    None, too, where it learned from pictures that judge today: what is trained further would know them.
    """
    release = workspace.find_start()
    if release is None:
        return None
    lineage = _find(StoredDocument(workspace.store, addresses.lineage(release)), Lineage)
    found = workspace.store.get(lineage.tuned + WEIGHTS_FILE) if lineage is not None else None
    return (release, found.data) if found is not None else None


def save_backbone(target: StoredDocument, backbone: Backbone) -> None:
    """Save a backbone; where two machines convert at once, the first result counts."""
    for name, sha256 in backbone.record.variants.items():
        target.store.put(addresses.variant(target.folder, name, sha256), backbone.files[name])
    target.save_first(backbone.record)


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
        name: cache.read(target.store, addresses.variant(target.folder, name, sha256), sha256)
        for name, sha256 in record.variants.items()
    }
    return Backbone(record, files, scheme, key)


# Features and head


def save_features(target: StoredDocument, features: FeatureRows, cache: ContentCache) -> None:
    import hashlib  # noqa: PLC0415 - with NumPy

    packed = features.pack()
    sha256 = hashlib.sha256(packed).hexdigest()
    target.store.put(f"{target.folder}{sha256}.npz", packed)
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
    packed = cache.read(target.store, f"{target.folder}{record.sha256}.npz", record.sha256)
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

    target.store.put(target.folder + HEAD_FILE, pack_head(head.layers, head.ranges))
    target.store.put(target.folder + FLOAT_SCORES_FILE, pack_array(head.float_scores))
    target.store.put(target.folder + UNSEEN_FILE, pack_unseen(head.unseen))
    target.save(head.record)


def find_known_rows(
    workspace: Workspace, keys: Iterable[str], wanted: AbstractSet[str]
) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the rows of wanted pictures in earlier features, by name and content hash."""
    from luigi_tasks.training.features import collect_known  # noqa: PLC0415 - NumPy

    targets = (StoredDocument(workspace.store, one) for one in keys)
    return collect_known((find_features(one, workspace.cache) for one in targets), wanted)


def find_training(target: Target) -> TrainingRecord | None:
    return _find(target, TrainingRecord)


def load_head(target: StoredDocument, scheme: str) -> TrainedHead:
    from luigi_tasks.storage.arrays import unpack_array  # noqa: PLC0415 - NumPy
    from luigi_tasks.training.train import unpack_head, unpack_unseen  # noqa: PLC0415 - NumPy

    layers, ranges = unpack_head(target.store.read(target.folder + HEAD_FILE))
    scores = unpack_array(target.store.read(target.folder + FLOAT_SCORES_FILE))
    unseen = unpack_unseen(target.store.read(target.folder + UNSEEN_FILE))
    return TrainedHead(scheme, layers, ranges, scores, unseen, target.load(TrainingRecord))


# The candidate


def save_candidate(target: StoredDocument, candidate: Candidate) -> None:
    for calibration, model in zip(candidate.record.quantization.calibration, candidate.tried, strict=False):
        target.store.put(_tried_file(target, calibration.scheme), model)
    target.store.put(target.folder + MODEL_FILE, candidate.model)
    target.save(candidate.record)


def find_candidate(target: Target) -> CandidateRecord | None:
    return _find(target, CandidateRecord)


def load_candidate(target: StoredDocument) -> Candidate:
    record = target.load(CandidateRecord)
    tried = record.quantization.calibration[:-1]
    return Candidate(
        record,
        target.store.read(target.folder + MODEL_FILE),
        tuple(target.store.read(_tried_file(target, one.scheme)) for one in tried),
    )


def save_evaluation(target: StoredDocument, evaluated: Evaluated) -> str:
    """Save the gate's record, its scores and its report; return a link to the report."""
    from luigi_tasks.storage.arrays import pack_array  # noqa: PLC0415 - NumPy

    report = target.folder + REPORT_FILE
    target.store.put(report, evaluated.report.encode(), content_type="text/html; charset=utf-8")
    target.store.put(target.folder + SCORES_FILE, pack_array(evaluated.scores))
    target.save(evaluated.record)
    return target.store.presign_url(report, REPORT_LINK_S)


def save_doubtful(target: StoredDocument, record: DoubtfulRecord, page: str) -> tuple[str, str]:
    """Save the list of doubtful labels; return the address of the CSV, and a link to the page."""
    from luigi_tasks.labelling.doubtful import write_csv  # noqa: PLC0415 - only where one is made

    csv, html = target.folder + "doubtful.csv", target.folder + "doubtful.html"
    target.store.put(csv, write_csv(record.doubtful), content_type="text/csv; charset=utf-8")
    target.store.put(html, page.encode(), content_type="text/html; charset=utf-8")
    target.save_list(record)
    return target.store.url(csv), target.store.presign_url(html, REPORT_LINK_S)


def find_evaluation(target: Target) -> Evaluation | None:
    return _find(target, Evaluation)


def load_evaluation(target: StoredDocument) -> Evaluated:
    from luigi_tasks.storage.arrays import unpack_array  # noqa: PLC0415 - NumPy

    return Evaluated(
        target.load(Evaluation),
        target.store.read(target.folder + REPORT_FILE).decode(),
        unpack_array(target.store.read(target.folder + SCORES_FILE)),
    )


def _tried_file(target: StoredDocument, scheme: str) -> str:
    return f"{target.folder}tried-{scheme}.tflite"
