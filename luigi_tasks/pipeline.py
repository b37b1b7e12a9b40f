"""The DAG on a page: what each task needs, where its result lies, which step it runs.

    ReadShard* -> DatasetSnapshot -> [TuneBackbone ->] ConvertBackbone -> BackboneFeatures* -> TrainModel
        -> QuantizeModel -> EvaluateModel -> PublishRelease -> AnnounceRelease

`Deploy` asks for the verdict of EvaluateModel, and for the rest only if it is good. There is one of the
tasks with a star for each shard of the pictures; workers on several machines share them.

What a step does is in `steps.py`, how it does it in the wings, and where its result lies in `addresses.py`.
A target whose address depends on a result that does not exist yet is pending. So a run with nothing new
finds every target and ends, without importing TensorFlow.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import luigi

from edge_client.contract.errors import InputError, TransportError
from luigi_tasks import addresses, artifacts, steps
from luigi_tasks.evidence.ledger import EvidenceError
from luigi_tasks.progress import ignore_progress
from luigi_tasks.quantization import schemes
from luigi_tasks.refusals import tell_refusal
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.targets import FreshSignaturesTarget, PendingTarget, announcement_target, channel_target
from luigi_tasks.task import PipelineTask, addresses_of, logger

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from luigi_tasks.backbone.records import Backbone
    from luigi_tasks.dataset.records import Snapshot, SnapshotSummary
    from luigi_tasks.progress import Progress
    from luigi_tasks.targets import AnnouncementTarget, ChannelTarget
    from luigi_tasks.training.features import FeatureRows
    from luigi_tasks.training.records import TrainedHead


class ReadShard(PipelineTask):
    """Pictures that are new, read once: hashed, decoded, scaled to the network's input."""

    shard = luigi.Parameter(description="key of the shard, from the plan")

    def address(self) -> str:
        return addresses.shard(str(self.shard))

    def work(self, progress: Progress) -> str:
        read = steps.read_shard(self.workspace, str(self.shard), progress)
        artifacts.save_shard(self.own_target(), read)
        return f"{len(read)} pictures"


class DatasetSnapshot(PipelineTask):
    """The exact list of pictures of this run: path, hash, label, split."""

    def requires(self) -> list[ReadShard]:
        return [self.clone(ReadShard, shard=one.key) for one in self.workspace.plan.new]

    def address(self) -> str:
        return addresses.snapshot(self.workspace.identity)

    def work(self, progress: Progress) -> str:
        read = [artifacts.load_shard(one) for one in self.input()]
        snapshot = steps.take_snapshot(self.workspace, read, progress)
        artifacts.save_snapshot(self.own_target(), snapshot)
        return self.workspace.describe(snapshot)


class TrainingTask(PipelineTask):
    """A step after the snapshot."""

    @property
    def identity(self) -> addresses.Identity:
        """Values that determine the addresses of this run's results."""
        return self.workspace.identity

    def summary(self) -> SnapshotSummary | None:
        """Return what most steps need of the snapshot; None until it exists."""
        return artifacts.find_summary(self.clone(DatasetSnapshot).output())

    def snapshot_digest(self) -> str | None:
        """Return the digest of the snapshot; None until it exists."""
        summary = self.summary()
        return None if summary is None else summary.digest

    def load_snapshot(self) -> Snapshot:
        """Return the full list of pictures."""
        return artifacts.load_snapshot(self.clone(DatasetSnapshot).own_target())


class TuneBackbone(TrainingTask):
    """The backbone's weights, trained on the snapshot (`finetune`, or from scratch)."""

    holds_interpreter = True

    def requires(self) -> DatasetSnapshot:
        return self.clone(DatasetSnapshot)

    def address(self) -> str | None:
        return addresses.tuned(self.identity, self.snapshot_digest())

    def work(self, progress: Progress) -> str:
        target = self.own_target()
        parent = artifacts.find_parent(self.workspace) if self.identity.settings.training.warm_start else None
        checkpoint = artifacts.StoredCheckpoint(target)
        tuned = steps.tune_backbone(
            self.workspace, self.load_snapshot(), parent, checkpoint, progress=progress
        )
        artifacts.save_tuned(target, tuned)
        return f"trained from {tuned.record.parent or 'the initial weights'}"


class SchemeTask(TrainingTask):
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
    """The frozen backbone as TFLite: in float, and in the candidate's scheme.

    With initial weights it is made once, and stays while they, the dataset and `[quantization]` stay: the
    calibration set too, so that the next release differs from this one in its head alone. Where it was
    cleared from the store, the deployed release names its calibration set.
    """

    holds_interpreter = True

    def requires(self) -> DatasetSnapshot | TuneBackbone:
        return self.clone(TuneBackbone) if self.identity.tunes else self.clone(DatasetSnapshot)

    def address(self) -> str | None:
        tuned = self.clone(TuneBackbone).address() if self.identity.tunes else None
        return addresses.backbone(self.identity, str(self.scheme), tuned)

    def work(self, progress: Progress) -> str:
        tuned = artifacts.load_tuned(self.requires().own_target()) if self.identity.tunes else None
        snapshot, scheme = self.load_snapshot(), str(self.scheme)
        # Not part of the address: a published set is taken again where this result was deleted.
        calibration = steps.choose_calibration(self.workspace, snapshot, scheme)
        backbone = steps.convert_backbone(
            self.workspace, snapshot, scheme, tuned, progress, calibration=calibration
        )
        artifacts.save_backbone(self.own_target(), backbone)
        return f"calibrated on {len(backbone.record.calibration)} pictures"

    def load(self) -> Backbone:
        """Return the converted backbone."""
        key = self.workspace.calibration_key(str(self.scheme), self.snapshot_digest() or "")
        return artifacts.load_backbone(self.own_target(), self.workspace.cache, str(self.scheme), key)


class BackboneFeatures(SchemeTask):
    """Features (embeddings) the frozen backbone extracts from a shard's pictures and augmented copies."""

    shard = luigi.Parameter(description="key of the shard, from the plan")

    def requires(self) -> list[PipelineTask]:
        is_new = any(one.key == self.shard for one in self.workspace.plan.new)
        shard = [self.clone(ReadShard)] if is_new else []
        return [self.clone(DatasetSnapshot), self.clone(ConvertBackbone), *shard]

    def address(self) -> str | None:
        summary, shard = self.summary(), str(self.shard)
        return None if summary is None else self.key_of(shard, summary, summary.moved.get(shard, ""))

    def key_of(self, shard: str, summary: SnapshotSummary, moved: str) -> str | None:
        """Return the key of a shard's features for one of its splits."""
        backbone = artifacts.find_backbone(self.clone(ConvertBackbone).output())
        portions = self.identity.settings.training.portions(summary.train_pictures)
        return addresses.features(self.identity, backbone, portions, shard, moved)

    def work(self, progress: Progress) -> str:
        shard = artifacts.find_shard(self.clone(ReadShard).output(), self.workspace, str(self.shard))
        pictures = [one for one in shard if not one.fault]
        hashes = {one.sha256 for one in pictures}
        percent = self.identity.settings.dataset.holdout_percent
        snapshot = self.clone(DatasetSnapshot).own_target()
        features = steps.extract_features(
            self.workspace,
            pictures,
            self.clone(ConvertBackbone).load(),
            str(self.scheme),
            known=self.load_known(hashes),
            split=artifacts.load_split(snapshot, str(self.shard), hashes, percent),
            progress=progress,
        )
        artifacts.save_features(self.own_target(), features, self.workspace.cache)
        return f"{features.computed} rows of {len(pictures)} pictures computed"

    def load_known(self, wanted: set[str]) -> dict[str, dict[str, Any]]:
        """Return rows that were computed in another shard, or for another split of this one."""
        summary, workspace = self.summary(), self.workspace
        if summary is None:
            return {}
        splits = artifacts.find_earlier_splits(workspace, wanted).items()
        keys = [self.key_of(shard, summary, moved) for shard, moved in splits]
        return artifacts.find_known_rows(workspace, [one for one in keys if one is not None], wanted)

    def load(self) -> FeatureRows:
        """Return the features; those that were damaged or deleted in the store are computed again."""
        try:
            return artifacts.load_features(self.own_target(), self.workspace.cache)
        except (InputError, TransportError) as e:
            if not isinstance(e, EvidenceError):  # it was named already
                logger.warning("%s: %s; computing the features again", self.task_id, e)
            self.work(ignore_progress)
            return artifacts.load_features(self.own_target(), self.workspace.cache)


class TrainModel(SchemeTask):
    """A head on the frozen backbone, trained on the snapshot."""

    def requires(self) -> list[PipelineTask]:
        return [self.clone(DatasetSnapshot), self.clone(ConvertBackbone), *self.features()]

    def features(self) -> list[BackboneFeatures]:
        """Return the task of each shard's features."""
        return [self.clone(BackboneFeatures, shard=one) for one in self.workspace.plan.shards]

    def address(self) -> str | None:
        backbone = artifacts.find_backbone(self.clone(ConvertBackbone).output())
        return addresses.head(self.identity, self.snapshot_digest(), backbone)

    def work(self, progress: Progress) -> str:
        head = steps.train_head(
            self.identity.settings.training,
            self.load_snapshot(),
            self.clone(ConvertBackbone).load(),
            [one.load() for one in self.features()],
            str(self.scheme),
            progress,
        )
        artifacts.save_head(self.own_target(), head)
        return f"loses {head.record.float_drop_points:.2f} points against float in {self.scheme}"

    def load(self) -> TrainedHead:
        """Return the trained head."""
        return artifacts.load_head(self.own_target(), str(self.scheme))


class QuantizeModel(TrainingTask):
    """The candidate: `model.tflite`, in the first scheme that loses no more than the gate allows."""

    def requires(self) -> TrainModel:
        return self.clone(TrainModel, scheme=self.identity.settings.quantization.scheme)

    def schemes_tried(self) -> list[TrainModel]:
        """Return the heads of the schemes tried so far, and of the next if the last of them lost too much."""
        settings = self.identity.settings
        heads = [self.clone(TrainModel, scheme=one) for one in settings.quantization.schemes_in_order()]
        records = (artifacts.find_training(one.output()) for one in heads)
        return heads[: schemes.count_tried(records, settings.gate)]

    def address(self) -> str | None:
        heads = [artifacts.find_key(one.output()) for one in self.schemes_tried()]
        found = [one for one in heads if one is not None]
        return addresses.candidate(self.identity, found) if len(found) == len(heads) else None

    def run(self) -> Generator[luigi.Task, None, None]:
        """Train in the next scheme until one is within the gate's limits; then do the step."""
        while not self.schemes_tried()[-1].complete():
            *lost, needed = self.schemes_tried()
            if lost:
                text = "%s loses more against float than [gate] allows; trying %s"
                logger.warning(text, lost[-1].scheme, needed.scheme)
            yield needed
        yield from super().run() or ()

    def evidence(self) -> list[str]:
        heads = self.schemes_tried()
        return addresses_of(
            self.clone(DatasetSnapshot), *heads, *(one.clone(ConvertBackbone) for one in heads)
        )

    def work(self, progress: Progress) -> str:  # noqa: ARG002 - it takes milliseconds
        heads = [one.load() for one in self.schemes_tried()]
        backbones = [one.clone(ConvertBackbone).load() for one in self.schemes_tried()]
        candidate = steps.assemble_candidate(self.identity.settings, self.load_snapshot(), backbones, heads)
        artifacts.save_candidate(self.own_target(), candidate)
        if self.identity.tunes:
            tuned = self.clone(TuneBackbone).own_target()
            artifacts.save_lineage(self.workspace.ledger, candidate.record.release, tuned)
        return f"release {candidate.record.release} in {candidate.record.quantization.scheme}"


class EvaluateModel(TrainingTask):
    """The gate: the candidate's file against the float network and the deployed champion."""

    def requires(self) -> QuantizeModel:
        return self.clone(QuantizeModel)

    keeps_target = False  # the channel may move, and with it the champion

    def evidence(self) -> list[str]:
        candidate = self.requires()
        return addresses_of(self.clone(DatasetSnapshot), candidate, *candidate.schemes_tried())

    def address(self) -> str | None:
        candidate = self.requires().output()
        record = artifacts.find_candidate(candidate)
        if record is None or isinstance(candidate, PendingTarget):
            return None
        champion = steps.find_champion(self.workspace, record.release)
        return addresses.evaluation(self.identity, candidate.key, champion, self.summary())

    def work(self, progress: Progress) -> str:
        target, candidate = self.own_target(), self.requires()
        evaluated = steps.evaluate(
            self.workspace,
            artifacts.load_candidate(candidate.own_target()),
            self.load_snapshot(),
            [one.load() for one in candidate.schemes_tried()],
            tuned=artifacts.find_tuned(self.clone(TuneBackbone).output()) if self.identity.tunes else None,
            progress=progress,
        )
        if self.own_target().key != target.key:
            raise TransportError("the channel moved while the candidate was measured; run again")
        self.link(artifacts.save_evaluation(target, evaluated))
        return f"{evaluated.record.candidate.in_words()}, {evaluated.record.verdict.in_words()}"


class PublishRelease(TrainingTask):
    """A candidate that passed, signed in the store, with the channel pointing to it."""

    def requires(self) -> EvaluateModel:
        return self.clone(EvaluateModel)

    def output(self) -> ChannelTarget | PendingTarget:  # type: ignore[override]
        """Exists when the signed channel points to the candidate, or its rollout runs or waits."""
        candidate = artifacts.find_candidate(self.clone(QuantizeModel).output())
        return PendingTarget() if candidate is None else channel_target(self.workspace, candidate.release)

    def work(self, progress: Progress) -> str:
        from luigi_tasks.evidence.release import Evidence  # noqa: PLC0415 - a run with nothing to do

        made, judged = self.clone(QuantizeModel).own_target(), self.requires().own_target()
        evidence = Evidence(self.workspace.ledger, [made.key, judged.key])
        evaluated, candidate = artifacts.load_evaluation(judged), artifacts.load_candidate(made)
        return steps.publish_release(
            self.workspace, candidate, evaluated, self.load_snapshot(), progress, evidence
        )


class AnnounceRelease(PipelineTask):
    """The retained announcement of what the channel points to."""

    def requires(self) -> PublishRelease:
        return self.clone(PublishRelease)

    def output(self) -> AnnouncementTarget | PendingTarget:  # type: ignore[override]
        """Exists when the broker retains it; a broker that lost it gets it again."""
        # Until the channel has moved, the release before is announced rightly.
        published = self.requires().output().exists()
        return announcement_target(self.workspace) if published else PendingTarget()

    def work(self, progress: Progress) -> str:  # noqa: ARG002 - one message
        return f"announced release {steps.announce(self.workspace)}"


class Deploy(PipelineTask):
    """Retrain, prove, publish and announce: the whole job, as far as there is something new.

    A candidate that the gate refuses, or holds for want of evidence, ends the run without a publication; the
    run itself succeeds, and the verdict stays on record until data or settings change.
    """

    def requires(self) -> EvaluateModel:
        self.workspace.check_release()
        return self.clone(EvaluateModel)

    def output(self) -> list[luigi.Target]:  # type: ignore[override]
        """The published and announced candidate, or the verdict against it; and fresh signatures."""
        candidate = artifacts.find_candidate(self.clone(QuantizeModel).output())
        if candidate is None:
            return [PendingTarget()]
        load = functools.cache(self.workspace.repository.load)  # one answer for all three
        fresh = FreshSignaturesTarget(self.workspace.repository, load)
        channel = channel_target(self.workspace, candidate.release, load)
        if channel.exists():
            return [fresh, channel, announcement_target(self.workspace, load)]
        evaluation = artifacts.find_evaluation(self.clone(EvaluateModel).output())
        return [channel] if evaluation is None or evaluation.verdict.passed else [fresh]

    def run(self) -> Generator[Iterable[luigi.Task], None, None]:
        """Publish and announce what passed; keep the signatures fresh in any case."""
        if not self.listing:  # the task for the listing did it
            return
        is_published = self.clone(PublishRelease).complete()
        evaluation = artifacts.find_evaluation(self.clone(EvaluateModel).output())
        if is_published or (evaluation is not None and evaluation.verdict.passed):
            yield [self.clone(AnnounceRelease)]
        elif evaluation is None:
            msg = f"{self.task_id}: the evaluation is gone from the store; run again"
            raise TransportError(msg)
        if evaluation and (evaluation.verdict.thin if evaluation.verdict.passed else not is_published):
            self.tell(evaluation.verdict.in_words())
            logger.warning("%s", evaluation.in_words())
            if not evaluation.verdict.passed:
                tell_refusal(self.workspace, evaluation)
        steps.renew_signatures(self.workspace)
