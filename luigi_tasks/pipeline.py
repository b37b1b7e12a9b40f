"""Every task of the pipeline: the DAG on a page.

    ReadShard* -> DatasetSnapshot -> [TuneBackbone ->] ConvertBackbone -> BackboneFeatures* -> TrainModel
        -> QuantizeModel -> EvaluateModel -> PublishRelease -> AnnounceRelease

`Deploy` asks for the verdict of EvaluateModel, and for the rest only if it is good. There is one of the
tasks with a star for each shard of pictures; workers on several machines share them.

A task's target is addressed by the content that made it. A target whose address depends on a
result that is not there yet is pending: it does not exist. So a run with nothing new finds every
target and ends, without importing TensorFlow.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import logging
import time
from typing import TYPE_CHECKING, Any, TypeVar

import luigi

from edge_client.contract.errors import EdgeError, InputError, SettingsError, TransportError
from edge_client.contract.names import MODEL_FILE, REPORT_FILE, release_target
from edge_client.contract.release import PREPROCESSING_ID
from edge_client.contract.times import utc_now
from luigi_tasks.backbone.records import BackboneRecord
from luigi_tasks.dataset.listing import _list_once, _recall_listing, listing_digest
from luigi_tasks.dataset.records import Inventory, Plan, ReadPicture
from luigi_tasks.dataset.shards import PictureLog, make_plan
from luigi_tasks.dataset.sources import PictureSource, open_source
from luigi_tasks.progress import Progress, TaskProgress, ignore_progress
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.storage.cache import ContentCache
from luigi_tasks.storage.documents import DocumentTarget, content_key
from luigi_tasks.storage.opening import open_store
from luigi_tasks.targets import AnnouncementTarget, ChannelTarget, FreshSignaturesTarget, PendingTarget
from luigi_tasks.training.cluster import cluster_size
from luigi_tasks.training.records import FeaturesRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from luigi_tasks.settings.values import PipelineSettings, Portions, StoreSettings
    from luigi_tasks.storage.store import Store
    from luigi_tasks.training.features import FeatureRows

# Raised when a step would make something else from the same input.
PLAN_VERSION = 2
SNAPSHOT_VERSION = 2
TUNING_VERSION = 2
BACKBONE_VERSION = 2
FEATURES_VERSION = 3
TRAINING_VERSION = 4
QUANTIZATION_VERSION = 4
EVALUATION_VERSION = 3
# The same for training/augmentation.py, whose copies three steps learn from.
AUGMENTATION_VERSION = 2

# A presigned link lives at most a week (AWS Signature Version 4).
REPORT_LINK_S = 7 * 24 * 3600

# A network that fails for a minute is forgiven, and so are two lost machines: luigid counts them too.
KEEP_ALIVE_TRIES = 3

WEIGHTS_FILE = "weights.npz"
CHECKPOINT_FILE = "checkpoint.npz"
HEAD_FILE = "head.npz"
FLOAT_SCORES_FILE = "float_scores.npy"

# Fields that were renamed keep their first name inside content keys, so that results in the store stay valid.
NAMES_IN_KEYS = {
    "augmented_copies": "augmented_views",
    "small_set_copies": "small_set_views",
    "copies": "views",
    "shard_pictures": "batch_pictures",
}

# The settings of [dataset] that decide the snapshot of a given listing.
SPLIT_RULES = ("min_images_per_class", "holdout_percent", "max_broken_pictures")

TargetT = TypeVar("TargetT", bound="DocumentTarget | PendingTarget")

logger = logging.getLogger("luigi-interface")


class _OneParagraph(logging.Filter):
    """Logs an error that we raised on purpose as its message; a traceback would hide it."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, EdgeError):
            record.msg = f"{record.getMessage()}: {type(error).__name__}: {error}"
            record.args, record.exc_info = (), None
        return True


logger.addFilter(_OneParagraph())


def settled(output: Callable[[Any], TargetT]) -> Callable[[Any], TargetT]:
    """Remember a task's target once its address is known; luigi asks for it again and again."""

    @functools.wraps(output)
    def remember(task: Any) -> TargetT:  # noqa: ANN401 - any task
        found: TargetT | None = task.__dict__.get("_settled")
        if found is None:
            found = output(task)
            if not isinstance(found, PendingTarget):
                task.__dict__["_settled"] = found
        return found

    return remember


class PipelineTask(luigi.Task):
    """A step on one listing of one dataset under one set of settings."""

    # Not `dataset`: luigi takes --dataset for a short form of the section's options.
    pictures = luigi.Parameter(default="", description="where pictures are; empty: [dataset] url")
    listing = luigi.Parameter(default="", description="digest of the list of pictures; filled in")
    recipe = luigi.Parameter(default="", description="digest of all settings; filled in")

    @classmethod
    def get_param_values(cls, params: Any, args: Any, kwargs: Any) -> list[tuple[str, Any]]:  # noqa: ANN401
        """Fill in what names the work, so that equal work has equal ids on every worker and machine."""
        values = dict(super().get_param_values(params, args, kwargs))  # type: ignore[no-untyped-call]
        if all(values[name] for name in ("pictures", "listing", "recipe")):
            return [(name, values[name]) for name, _ in params]
        settings = load_settings()
        values["pictures"] = values["pictures"] or settings.dataset.url
        settings = _with_dataset(settings, values["pictures"])
        values["recipe"] = values["recipe"] or _recipe(settings)
        if not values["listing"]:
            values["listing"] = _list_once(settings)
        return [(name, values[name]) for name, _ in params]

    @property
    def retry_count(self) -> int | None:
        """How often a step may fail while workers wait for each other; Luigi would try it for ever.

        Without --worker-keep-alive the run ends at the first failure, and the next run tries again.
        """
        return KEEP_ALIVE_TRIES if luigi.worker.worker().keep_alive else None

    @functools.cached_property
    def settings(self) -> PipelineSettings:
        """The settings of this process; other settings make other tasks, so they may be kept.

        Raises: SettingsError if they are not those that this task was made with.
        """
        settings = _with_dataset(load_settings(), self.pictures)
        if _recipe(settings) != self.recipe:
            msg = f"{self.task_id}: made with other settings than this worker has; use one luigi.cfg for all"
            raise SettingsError(msg)
        return settings

    @property
    def store(self) -> Store:
        """The bucket."""
        return _shared_store(self.settings.store)

    @property
    def source(self) -> PictureSource:
        """The pictures."""
        return open_source(self.settings.dataset, self.settings.store)

    @functools.cached_property
    def plan(self) -> Plan:
        """How the listing is read; the first worker that asks decides for all.

        Raises: InputError if the pictures are not those of the listing any more.
        """
        shard_pictures = self.settings.dataset.shard_pictures
        key = content_key("plan", PLAN_VERSION, self.pictures, self.listing, shard_pictures)
        target = DocumentTarget(self.store, f"work/plans/{key}.json")
        if target.exists():
            plan = target.load(Plan)
            if self.log.has(plan.inventory):
                return plan
            # Somebody cleared the store of old objects: what was known has to be read again.
        listing = _recall_listing(self.pictures, self.listing)
        if not listing:
            listing = self.source.listing()
            if listing_digest(listing) != self.listing:
                msg = f"{self.pictures}: pictures came or went since they were listed; run again"
                raise InputError(msg)
        plan = make_plan(self.log, listing, self.pictures, shard_pictures)
        if target.exists():
            target.save_list(plan)
            return plan
        return target.save_first(plan)

    @property
    def log(self) -> PictureLog:
        """What is known of the dataset."""
        return PictureLog(self.store, self.pictures)

    def load_pixels(self, pictures: Any, height: int, width: int) -> Any:  # noqa: ANN401
        """Return (N, height, width, 3) uint8 pixels of the snapshot's pictures."""
        from luigi_tasks.dataset.pixels import load_pixels  # noqa: PLC0415 - a run with nothing to do skips it

        cache = self.pixel_cache(height, width)
        return load_pixels(self.source, pictures, height, width, self.progress, cache)

    def pixel_cache(self, height: int, width: int) -> Any:  # noqa: ANN401 - imported as above
        """This machine's decoded pictures of one size."""
        from luigi_tasks.dataset.pixel_cache import PixelCache  # noqa: PLC0415 - as above

        return PixelCache(self.settings.dataset.cache_dir / "pixels", height, width)

    @property
    def cache(self) -> ContentCache:
        """This machine's copies of the store's objects, by digest."""
        return ContentCache(self.settings.dataset.cache_dir / "objects")

    def read_cached(self, key: str, sha256: str) -> bytes:
        """Return an object of the store, from this machine's cache where it is there.

        Raises: TransportError if it is gone; InputError if the store's copy is not what was written.
        """
        data = self.cache.get(sha256)
        if data is None:
            data = self.store.read(key)
            if hashlib.sha256(data).hexdigest() != sha256:
                msg = f"{self.store.url(key)}: not what was written there; remove it and run again"
                raise InputError(msg)
            self.cache.put(sha256, data)
        return data

    def run(self) -> None:
        """Do the step, with its progress on luigid's page.

        Its address may have become known only now, and somebody may have done it long ago: pictures
        that were only touched, or moved to another folder, need no new model.
        """
        if self.complete():
            self.tell("found done")
            return
        started = time.monotonic()
        shown = TaskProgress(self)
        self.progress: Progress = shown
        try:
            self.work()
        finally:
            shown.close()
        logger.info("%s took %.1f s", self.task_family, time.monotonic() - started)

    def work(self) -> None:
        """Do the step."""
        raise NotImplementedError

    def own_target(self) -> DocumentTarget:
        """Return the step's target once its address is known.

        Raises: TransportError if a result that it depends on is gone.
        """
        target = self.output()
        if not isinstance(target, DocumentTarget):
            msg = f"{self.task_id}: a result of an earlier step is gone from the store; run again"
            raise TransportError(msg)
        return target

    def tell(self, message: str) -> None:
        """Show a message on luigid's page, if this is the step that runs."""
        if self.set_status_message is not None:
            self.set_status_message(message)


class ReadShard(PipelineTask):
    """Pictures that are new, read once: hashed, decoded, fitted to the network."""

    shard = luigi.Parameter(description="key of the shard, from the plan")

    @settled
    def output(self) -> DocumentTarget:
        """Address: paths, sizes and versions of the shard's pictures."""
        return DocumentTarget(self.store, f"work/batches/{self.shard}/batch.json")

    def work(self) -> None:
        """Read every picture of the shard."""
        from luigi_tasks.dataset.pixels import read_pictures  # noqa: PLC0415

        size = self.settings.model.input_size
        found = [one.pictures for one in self.clone(DatasetSnapshot).plan.new if one.key == self.shard]
        if not found:
            msg = f"{self.task_id}: no shard of this listing; run DatasetSnapshot, it knows them"
            raise SettingsError(msg)
        read = read_pictures(
            self.source, found[0], self.shard, size, size, self.progress, self.pixel_cache(size, size)
        )
        self.own_target().save_list(Inventory(pictures=read))
        self.tell(f"{len(read)} pictures")


class DatasetSnapshot(PipelineTask):
    """The exact list of pictures of this run: path, hash, label, split."""

    def requires(self) -> list[ReadShard]:
        return [self.clone(ReadShard, shard=one.key) for one in self.plan.new]

    @settled
    def output(self) -> DocumentTarget:
        """Address: the listing and the rules."""
        rules = {name: value for name, value in _plain(self.settings.dataset).items() if name in SPLIT_RULES}
        key = content_key("snapshot", SNAPSHOT_VERSION, self.pictures, self.listing, rules)
        return DocumentTarget(self.store, f"work/snapshots/{key}/summary.json")

    def work(self) -> None:
        """Put together what is known and what was read."""
        from luigi_tasks.dataset.records import SnapshotSummary  # noqa: PLC0415
        from luigi_tasks.dataset.snapshot import make_snapshot  # noqa: PLC0415

        target, plan = self.own_target(), self.plan
        gone = set(plan.gone)
        read = [one for one in self.log.load(plan.inventory).pictures if one.path not in gone]
        for shard in self.input():
            read += shard.load(Inventory).pictures
        read.sort(key=lambda one: one.path)
        saved = None
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            if plan.new or plan.gone:
                # Whatever the rules say of it: what was read stays known.
                key = content_key("inventory", self.listing, plan.shards)
                saved = pool.submit(self.log.save, key, Inventory(pictures=tuple(read)))
            snapshot = make_snapshot(read, self.source.url, self.settings.dataset)
        if saved is not None:
            saved.result()
        DocumentTarget(self.store, target.folder + "pictures.json").save_list(snapshot)
        target.save(SnapshotSummary.of(snapshot))
        new = sum(len(one.pictures) for one in plan.new)
        self.tell(f"{len(snapshot.pictures)} pictures of {len(snapshot.labels)} classes, {new} read")


class TuneBackbone(PipelineTask):
    """The backbone's weights, trained on the snapshot (`finetune`, or from scratch)."""

    def requires(self) -> DatasetSnapshot:
        return self.clone(DatasetSnapshot)  # type: ignore[no-any-return]

    @settled
    def output(self) -> DocumentTarget | PendingTarget:
        """Address: the pictures' content and what trains on them."""
        summary = load_summary(self)
        if summary is None:
            return PendingTarget()
        s = self.settings
        key = content_key("tuned", TUNING_VERSION, summary.digest, _network(s), _learning(s))
        return DocumentTarget(self.store, f"work/tuned/{key}/tuned.json")

    def work(self) -> None:
        """Train; the weights lie beside the record, and are there before it."""
        from luigi_tasks.quantization.candidate import tune_on_snapshot  # noqa: PLC0415

        target = self.own_target()
        weights, record = tune_on_snapshot(self, target)
        self.store.put(target.folder + WEIGHTS_FILE, weights)
        target.save(record)


class SchemeTask(PipelineTask):
    """A step for one quantization scheme."""

    scheme = luigi.Parameter(default="", description="one of [quantization]; empty: the first to try")

    @classmethod
    def get_param_values(cls, params: Any, args: Any, kwargs: Any) -> list[tuple[str, Any]]:  # noqa: ANN401
        """Fill in the scheme too."""
        values = super().get_param_values(params, args, kwargs)
        return [
            (name, value or load_settings().quantization.scheme if name == "scheme" else value)
            for name, value in values
        ]


class ConvertBackbone(SchemeTask):
    """The frozen backbone as TFLite, in float and in the candidate's variant.

    With initial weights it is made once, and stays while they, the dataset and `[quantization]` stay:
    the calibration set too, so that the next release differs from this one in its head alone. Where it
    was cleared from the store, the deployed release tells on what it was calibrated.
    """

    def requires(self) -> DatasetSnapshot | TuneBackbone:
        return self.clone(TuneBackbone if tunes(self.settings) else DatasetSnapshot)  # type: ignore[no-any-return]

    @settled
    def output(self) -> DocumentTarget | PendingTarget:
        """Address: the weights, the dataset's address and how it is quantized; not its pictures."""
        if not tunes(self.settings):
            named = self.settings.quantization.calibration
            return self._target([self.pictures, named] if named else self.pictures)
        tuned = self.clone(TuneBackbone).output()
        return tuned if isinstance(tuned, PendingTarget) else self._target(tuned.key)

    def _target(self, origin: object) -> DocumentTarget:
        return DocumentTarget(self.store, f"work/backbones/{self._key(origin)}/backbone.json")

    def _key(self, *origin: object) -> str:
        s = self.settings
        quantized = (self.scheme, self.calibrated_on)
        return content_key("backbone", BACKBONE_VERSION, _network(s), s.training.seed, quantized, *origin)

    @property
    def backbone(self) -> str:
        """Key of what a calibration set is chosen for: the address, wherever the pictures lie."""
        return self._key(self.clone(TuneBackbone).own_target().key) if tunes(self.settings) else self._key()

    @property
    def calibrated_on(self) -> int:
        """How many pictures set the scales."""
        return self.settings.quantization.calibrated_on(str(self.scheme))

    def work(self) -> None:
        """Calibrate and convert; the variants lie beside the record, and are there before it."""
        from luigi_tasks.quantization.candidate import convert_on_snapshot  # noqa: PLC0415

        target = self.own_target()
        variants, record = convert_on_snapshot(self)
        for variant, sha256 in record.variants.items():
            self.store.put(_variant_key(target, variant, sha256), variants[variant])
        target.save_first(record)

    def load(self) -> tuple[BackboneRecord, dict[str, bytes]]:
        """Return the record and the variants."""
        target = self.own_target()
        record = target.load(BackboneRecord)
        return record, {
            variant: self.read_cached(_variant_key(target, variant, sha256), sha256)
            for variant, sha256 in record.variants.items()
        }


class BackboneFeatures(SchemeTask):
    """Features (embeddings) the frozen backbone extracts from a shard's pictures and augmented copies."""

    shard = luigi.Parameter(description="key of the shard, from the plan")

    def requires(self) -> list[luigi.Task]:
        return [self.clone(DatasetSnapshot), self.clone(ConvertBackbone)]

    @settled
    def output(self) -> DocumentTarget | PendingTarget:
        """Address: the backbone's bytes, the augmentation and the shard."""
        summary, backbone = load_summary(self), self.clone(ConvertBackbone).output()
        if summary is None or isinstance(backbone, PendingTarget) or not backbone.exists():
            return PendingTarget()
        portions = self.settings.training.portions(summary.train_pictures)
        return self._target(backbone.load(BackboneRecord), portions, str(self.shard))

    def _target(self, backbone: BackboneRecord, portions: Portions, shard: str) -> DocumentTarget:
        s = self.settings
        augmented = (_plain(portions), s.training.horizontal_flip, s.dataset.holdout_percent)
        shown = (PREPROCESSING_ID, AUGMENTATION_VERSION, augmented)
        key = content_key("features", FEATURES_VERSION, backbone.variants, s.model.input_size, shown)
        return DocumentTarget(self.store, f"work/features/{key}/{shard}.json")

    def work(self) -> None:
        """Compute what no earlier shard has."""
        self.make()

    def make(self) -> FeatureRows:
        """Compute, save and return the features."""
        from luigi_tasks.training.features import (  # noqa: PLC0415
            choose_rows,
            compute_rows,
            digest_of,
        )

        s, target = self.settings, self.own_target()
        read = {one.sha256: one for one in self._read_pictures() if not one.fault}
        pictures = sorted(read)
        record, variants = self.clone(ConvertBackbone).load()
        size, portions = s.model.input_size, s.training.portions(load_summary(self).train_pictures)
        pixels = self.load_pixels([read[one] for one in pictures], size, size)
        rows, computed = compute_rows(
            variants,
            choose_rows(pictures, str(self.scheme), portions, s.dataset.holdout_percent),
            pictures,
            pixels,
            self._known(record, portions, pictures),
            self.progress,
            flip=s.training.horizontal_flip,
        )
        packed = rows.pack()
        sha256 = digest_of(packed)
        self.store.put(f"{target.folder}{sha256}.npz", packed)
        self.cache.put(sha256, packed)
        target.save_list(FeaturesRecord(pictures=dict(rows.pictures), sha256=sha256, computed=computed))
        self.tell(f"{computed} rows of {len(pictures)} pictures computed")
        return rows

    def load(self) -> FeatureRows:
        """Return the features; what the store has broken is computed again."""
        from luigi_tasks.training.features import unpack_rows  # noqa: PLC0415

        target = self.own_target()
        record = target.load(FeaturesRecord)
        try:
            packed = self.read_cached(f"{target.folder}{record.sha256}.npz", record.sha256)
        except (InputError, TransportError) as e:
            logger.warning("%s: %s; computed again", self.task_id, e)
            self.progress = ignore_progress  # it is not this step that runs
            return self.make()
        return unpack_rows(packed, record.pictures)

    def _read_pictures(self) -> tuple[ReadPicture, ...]:
        shard = self.clone(ReadShard).output()
        if shard.exists():
            return shard.load(Inventory).pictures  # type: ignore[no-any-return]
        # Somebody cleared the store of it; the inventory still tells.
        plan = self.clone(DatasetSnapshot).plan
        return tuple(one for one in self.log.load(plan.inventory).pictures if one.shard == self.shard)

    def _known(
        self, backbone: BackboneRecord, portions: Portions, pictures: Iterable[str]
    ) -> dict[str, dict[str, Any]]:
        """Rows of pictures that another shard had before they were moved, touched or merged."""
        wanted = set(pictures)
        log = self.log.load(self.clone(DatasetSnapshot).plan.inventory)
        known: dict[str, dict[str, Any]] = {}
        for shard in sorted({one.shard for one in log.pictures if one.sha256 in wanted} - {self.shard}):
            if not self._target(backbone, portions, shard).exists():
                continue
            rows = self.clone(BackboneFeatures, shard=shard).load()
            for name in rows.rows:
                found = rows.find(name)
                known.setdefault(name, {}).update({one: found[one] for one in wanted & found.keys()})
        return known


class TrainModel(SchemeTask):
    """A head on the frozen backbone, trained on the snapshot."""

    def requires(self) -> list[luigi.Task]:
        features = [self.clone(BackboneFeatures, shard=shard) for shard in self.plan.shards]
        return [self.clone(DatasetSnapshot), self.clone(ConvertBackbone), *features]

    @functools.cached_property
    def plan(self) -> Plan:
        """The snapshot's."""
        return self.clone(DatasetSnapshot).plan  # type: ignore[no-any-return]

    @settled
    def output(self) -> DocumentTarget | PendingTarget:
        """Address: the pictures' content, the backbone's bytes and how the head learns."""
        summary, backbone = load_summary(self), self.clone(ConvertBackbone).output()
        if summary is None or isinstance(backbone, PendingTarget) or not backbone.exists():
            return PendingTarget()
        variants = backbone.load(BackboneRecord).variants
        key = content_key("head", TRAINING_VERSION, summary.digest, variants, _learning(self.settings))
        return DocumentTarget(self.store, f"work/heads/{key}/training.json")

    def work(self) -> None:
        """Train; the head lies beside the record, and is there before it."""
        from luigi_tasks.quantization.candidate import train_on_features  # noqa: PLC0415

        train_on_features(self, self.own_target())


class QuantizeModel(PipelineTask):
    """The candidate: `model.tflite`, in the first scheme that loses no more than the gate allows."""

    def requires(self) -> TrainModel:
        return self.clone(TrainModel, scheme=self.settings.quantization.scheme)  # type: ignore[no-any-return]

    def climb(self) -> tuple[TrainModel, ...]:
        """Return the schemes tried so far, and the next one if the last of them lost too much."""
        tried: list[TrainModel] = []
        for scheme in self.settings.quantization.schemes_in_order():
            tried.append(self.clone(TrainModel, scheme=scheme))
            target = tried[-1].output()
            if isinstance(target, PendingTarget) or not target.exists() or self._holds(target):
                break
        return tuple(tried)

    def _holds(self, target: DocumentTarget) -> bool:
        from luigi_tasks.training.records import TrainingRecord  # noqa: PLC0415

        record, limits = target.load(TrainingRecord), self.settings.gate
        return (
            record.float_drop_points <= limits.max_float_drop_points
            and record.class_drop_points <= limits.max_class_drop_points
        )

    @settled
    def output(self) -> DocumentTarget | PendingTarget:
        """Address: the heads that were tried, the backbones under them, and the class of devices."""
        tried = self.climb()
        if not tried[-1].complete():
            return PendingTarget()
        parts: list[object] = [[one.own_target().key for one in tried]]
        if self.settings.release.device_class:  # it is part of the release's id
            parts.append(self.settings.release.device_class)
        key = content_key("candidate", QUANTIZATION_VERSION, *parts)
        return DocumentTarget(self.store, f"work/candidates/{key}/candidate.json")

    def run(self) -> Generator[luigi.Task, None, None]:  # type: ignore[override]
        """Train in the next scheme until one holds; then do the step."""
        while not (needed := self.climb()[-1]).complete():
            logger.warning(
                "%s loses more against float than [gate] allows; trying %s",
                self.climb()[-2].scheme if len(self.climb()) > 1 else "float",
                needed.scheme,
            )
            yield needed
        super().run()

    def work(self) -> None:
        """Write the head into the backbone's file."""
        from luigi_tasks.quantization.candidate import assemble_candidate  # noqa: PLC0415

        target = self.own_target()
        model, candidate = assemble_candidate(self)
        self.store.put(target.folder + MODEL_FILE, model)
        target.save(candidate)


class EvaluateModel(PipelineTask):
    """The gate: the candidate's file against the float network and the deployed champion."""

    def requires(self) -> QuantizeModel:
        return self.clone(QuantizeModel)  # type: ignore[no-any-return]

    def output(self) -> DocumentTarget | PendingTarget:
        """Address: the candidate, the gate's settings and the champion it had to meet."""
        target = self.clone(QuantizeModel).output()
        if isinstance(target, PendingTarget) or not target.exists():
            return PendingTarget()
        from luigi_tasks.quantization.records import Candidate  # noqa: PLC0415

        release = target.load(Candidate).release
        champion = self.champion(release)
        key = content_key("evaluation", EVALUATION_VERSION, target.key, _plain(self.settings.gate), champion)
        return DocumentTarget(self.store, f"work/evaluations/{key}/evaluation.json")

    def champion(self, release: str) -> str | None:
        """Return the release to beat: the channel's, or the one before if that is this very candidate."""
        state = open_repository(self.settings).load()
        pointer = state.channel(self.settings.release.channel)
        if pointer is None:
            return None
        if pointer.release != release:
            return str(pointer.release)
        document = state.release(release)
        return str(document.parent) if document is not None and document.parent else None

    def work(self) -> None:
        """Measure, judge and write the report."""
        from luigi_tasks.release.history import judge_candidate  # noqa: PLC0415

        target = self.own_target()
        evaluation, report = judge_candidate(self)
        self.store.put(target.folder + REPORT_FILE, report.encode(), content_type="text/html; charset=utf-8")
        self.set_tracking_url(  # type: ignore[misc]
            self.store.presign_url(target.folder + REPORT_FILE, REPORT_LINK_S)
        )
        target.save(evaluation)
        outcome = (
            "passed" if evaluation.verdict.passed else "refused: " + "; ".join(evaluation.verdict.reasons)
        )
        self.tell(f"accuracy {evaluation.candidate.accuracy:.4f}, {outcome}")


class PublishRelease(PipelineTask):
    """A candidate that passed, signed in the bucket, with the channel pointing to it."""

    def requires(self) -> EvaluateModel:
        return self.clone(EvaluateModel)  # type: ignore[no-any-return]

    def output(self) -> ChannelTarget | PendingTarget:
        """Exists when the signed channel points to the candidate."""
        evaluation = load_evaluation(self.input())
        if evaluation is None:
            return PendingTarget()
        return channel_target(self.settings, evaluation.release)

    def work(self) -> None:
        """Sign and upload: data first, pointer last."""
        from luigi_tasks.release.channel import point_channel  # noqa: PLC0415
        from luigi_tasks.release.history import assemble_release  # noqa: PLC0415
        from luigi_tasks.release.patches import make_patches  # noqa: PLC0415

        rules = self.settings.release
        release = load_evaluation(self.input()).release
        repository = open_repository(self.settings)
        state = repository.load()
        files = {} if state.release(release) is not None else assemble_release(self)
        path = release_target(release, MODEL_FILE)
        model = files[path] if files else state.read(path)
        files |= make_patches(state, release, model, rules.channel, rules.patches)
        repository.publish(
            files,
            lambda pointer: point_channel(
                pointer, rules.channel, release, share_percent=rules.share_percent, at=utc_now()
            ),
            rules.channel,
        )
        self.tell(f"channel {rules.channel} points to release {release}")


class AnnounceRelease(PipelineTask):
    """The retained announcement of what the channel points to."""

    def requires(self) -> PublishRelease:
        return self.clone(PublishRelease)  # type: ignore[no-any-return]

    def output(self) -> AnnouncementTarget | PendingTarget:
        """Exists when the broker retains it; a broker that lost it gets it again."""
        # Until the channel has moved, what is announced rightly is the release before.
        return announcement(self.settings) if self.input().exists() else PendingTarget()

    def work(self) -> None:
        """Tell the fleet."""
        announce(self.settings)


class Deploy(PipelineTask):
    """Retrain, prove, publish and announce: the whole job, as far as there is something new.

    A candidate that the gate refuses ends the run without a publication; the run itself succeeds,
    and the refusal stays on record until data or settings change.
    """

    def requires(self) -> EvaluateModel:
        return self.clone(EvaluateModel)  # type: ignore[no-any-return]

    def output(self) -> list[luigi.Target]:
        """The verdict, and what follows from it."""
        evaluation = load_evaluation(self.input())
        if evaluation is None:
            return [PendingTarget()]
        repository = open_repository(self.settings)
        targets: list[luigi.Target] = [FreshSignaturesTarget(repository)]
        if evaluation.verdict.passed:
            targets += [channel_target(self.settings, evaluation.release), announcement(self.settings)]
        return targets

    def run(self) -> Generator[Iterable[luigi.Task], None, None]:  # type: ignore[override]
        """Publish and announce what passed; keep the signatures fresh in any case."""
        evaluation = load_evaluation(self.input())
        if evaluation is None:
            msg = f"{self.task_id}: the evaluation is gone from the store; run again"
            raise TransportError(msg)
        if evaluation.verdict.passed:
            yield [self.clone(AnnounceRelease)]
        else:
            reasons = "; ".join(evaluation.verdict.reasons)
            self.tell(f"refused by the gate: {reasons}")
            logger.warning(
                "Release %s is not published, the gate refused it: %s", evaluation.release, reasons
            )
        repository = open_repository(self.settings)
        if repository.needs_renewal():
            repository.renew()


class RollBack(luigi.Task):
    """Point a channel back to an earlier release; the one that it leaves is withdrawn.

    No run points there again until data or settings change.
    """

    to = luigi.Parameter(description="release id to go back to")

    def output(self) -> luigi.Target:
        """Exists when the announcement of the earlier release is retained."""
        return announcement(load_settings())

    def complete(self) -> bool:
        """Whether the channel points there and the broker says so."""
        settings = load_settings()
        pointer = open_repository(settings).load().channel(settings.release.channel)
        return pointer is not None and pointer.release == self.to and bool(self.output().exists())

    def run(self) -> None:
        """Publish the older release under newer metadata, then announce."""
        from luigi_tasks.release.channel import roll_channel_back  # noqa: PLC0415

        settings = load_settings()
        channel = settings.release.channel
        repository = open_repository(settings)
        if repository.load().release(self.to) is None:
            msg = f"release {self.to}: not signed in {settings.store.url}; give one that is"
            raise SettingsError(msg)
        repository.publish({}, lambda old: roll_channel_back(old, channel, self.to, at=utc_now()), channel)
        announce(settings)


def load_snapshot(task: PipelineTask) -> Any:  # noqa: ANN401 - Snapshot is imported only where one is read
    """Return the full list of pictures of the task's listing."""
    from luigi_tasks.dataset.records import Snapshot  # noqa: PLC0415

    summary = task.clone(DatasetSnapshot).output()
    return DocumentTarget(task.store, summary.folder + "pictures.json").load(Snapshot)


def load_evaluation(target: DocumentTarget | PendingTarget) -> Any:  # noqa: ANN401 - as above
    """Return the gate's record, or None if there is none yet."""
    if isinstance(target, PendingTarget) or not target.exists():
        return None
    from luigi_tasks.gate.records import Evaluation  # noqa: PLC0415

    return target.load(Evaluation)


@functools.lru_cache(maxsize=8)
def _shared_store(settings: StoreSettings) -> Store:
    """Return the one store of this process: a boto3 client takes 0.1 s."""
    return open_store(settings)


def open_repository(settings: PipelineSettings) -> Any:  # noqa: ANN401 - tuf is imported only here
    """Return the signed repository."""
    from luigi_tasks.release.repository import open_repository as open_one  # noqa: PLC0415

    return open_one(_shared_store(settings.store), settings.trust)


def channel_target(settings: PipelineSettings, release: str) -> ChannelTarget:
    """Return the target of a release being what the channel offers."""
    rules = settings.release
    return ChannelTarget(open_repository(settings), rules.channel, release, rules.share_percent)


def announcement(settings: PipelineSettings) -> AnnouncementTarget:
    """Return the target of the channel's announcement."""
    from luigi_tasks.release.broker import BrokerClient  # noqa: PLC0415

    return AnnouncementTarget(
        open_repository(settings), BrokerClient(settings.broker), settings.release.channel
    )


def announce(settings: PipelineSettings) -> None:
    """Announce what the channel points to."""
    from luigi_tasks.release.broker import BrokerClient  # noqa: PLC0415

    channel = settings.release.channel
    pointer = open_repository(settings).load().channel(channel)
    BrokerClient(settings.broker).announce(channel, pointer.release)


def tunes(settings: PipelineSettings) -> bool:
    """Whether the backbone itself learns."""
    return settings.training.mode == "finetune" or settings.model.weights == "none"


def lineage_key(release: str) -> str:
    """Return where it is written what a release was made from."""
    return f"work/lineage/{release}.json"


def load_summary(task: PipelineTask) -> Any:  # noqa: ANN401 - as in load_snapshot
    """Return what most steps need of the snapshot, or None if it is not there yet."""
    from luigi_tasks.dataset.records import SnapshotSummary  # noqa: PLC0415

    target = task.clone(DatasetSnapshot).output()
    return target.load(SnapshotSummary) if target.exists() else None


def _variant_key(target: DocumentTarget, variant: str, sha256: str) -> str:
    return f"{target.folder}{variant}-{sha256}.tflite"


def _network(settings: PipelineSettings) -> dict[str, object]:
    from luigi_tasks.backbone.weights import weights_digest  # noqa: PLC0415

    weights = weights_digest(settings.model)
    return {**_plain(settings.model), "weights": weights, "preprocessing": PREPROCESSING_ID}


def _learning(settings: PipelineSettings) -> dict[str, object]:
    """Return all settings that decide the result of training on the same pictures."""
    rules = {**_plain(settings.training), "preprocessing": PREPROCESSING_ID, "views": AUGMENTATION_VERSION}
    # What the machines are called changes nothing; how many tune together does: each sees its own share.
    return rules | {"cluster": cluster_size(settings.training.cluster) if tunes(settings) else 0}


def _with_dataset(settings: PipelineSettings, url: str) -> PipelineSettings:
    return dataclasses.replace(settings, dataset=dataclasses.replace(settings.dataset, url=url))


def _recipe(settings: PipelineSettings) -> str:
    return content_key(
        {field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    )


def _plain(values: Any) -> Mapping[str, Any]:  # noqa: ANN401
    fields = dataclasses.asdict(values)
    return {NAMES_IN_KEYS.get(name, name): value for name, value in fields.items() if name != "cache_dir"}
