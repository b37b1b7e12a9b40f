"""Every task of the pipeline: the DAG on a page.

    DatasetSnapshot -> TrainModel -> QuantizeModel -> EvaluateModel -> PublishRelease -> AnnounceRelease

`Deploy` asks for the verdict of EvaluateModel, and for the rest only if it is good.

A task's target is addressed by the content that made it. A target whose address depends on a
result that is not there yet is pending: it does not exist. So a run with nothing new finds every
target and ends, without importing TensorFlow.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import logging
import time
from typing import TYPE_CHECKING, Any

import luigi

from edge_client.contract.errors import EdgeError, SettingsError, TransportError
from edge_client.contract.names import MODEL_FILE, REPORT_FILE
from luigi_tasks.dataset import PictureSource, listing_digest, open_source
from luigi_tasks.progress import TaskProgress
from luigi_tasks.settings import PipelineSettings, load_settings
from luigi_tasks.store import Store, open_store
from luigi_tasks.targets import (
    AnnouncementTarget,
    ChannelTarget,
    DocumentTarget,
    FreshSignaturesTarget,
    PendingTarget,
    content_key,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

# Raised when a step would make something else from the same input.
SNAPSHOT_VERSION = 1
TRAINING_VERSION = 1
QUANTIZATION_VERSION = 1
EVALUATION_VERSION = 1

# A presigned link lives at most a week (AWS Signature Version 4).
REPORT_LINK_S = 7 * 24 * 3600

WEIGHTS_FILE = "weights"
FLOAT_MODEL_FILE = "float.tflite"

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
            values["listing"] = listing_digest(open_source(settings.dataset, settings.store).listing())
        return [(name, values[name]) for name, _ in params]

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
        return open_store(self.settings.store)

    @property
    def source(self) -> PictureSource:
        """The pictures."""
        return open_source(self.settings.dataset, self.settings.store)

    def load_pixels(self, pictures: Any, height: int, width: int) -> Any:  # noqa: ANN401
        """Return (N, height, width, 3) uint8 pixels of the snapshot's pictures."""
        from luigi_tasks.pictures import load_pixels  # noqa: PLC0415 - a run with nothing to do skips it

        return load_pixels(self.source, pictures, height, width, self.progress)

    def run(self) -> None:
        """Do the step, with its progress on luigid's page.

        Its address may have become known only now, and somebody may have done it long ago: pictures
        that were only touched, or moved to another folder, need no new model.
        """
        if self.complete():
            self.tell("found done")
            return
        started = time.monotonic()
        self.progress = TaskProgress(self)
        try:
            self.work()
        finally:
            self.progress.close()
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
        """Show a message on luigid's page."""
        self.set_status_message(message)  # type: ignore[misc]


class DatasetSnapshot(PipelineTask):
    """The exact list of pictures of this run: path, hash, label, split."""

    def output(self) -> DocumentTarget:
        """Address: the listing and the rules."""
        rules = dataclasses.replace(self.settings.dataset, url="")
        key = content_key("snapshot", SNAPSHOT_VERSION, self.listing, _plain(rules))
        return DocumentTarget(self.store, f"work/snapshots/{key}/summary.json")

    def work(self) -> None:
        """Read every picture once."""
        from luigi_tasks.records import SnapshotSummary  # noqa: PLC0415
        from luigi_tasks.snapshot import take_snapshot  # noqa: PLC0415

        target = self.own_target()
        snapshot = take_snapshot(self.source, self.settings.dataset, self.progress)
        DocumentTarget(self.store, target.folder + "pictures.json").save(snapshot)
        target.save(SnapshotSummary.of(snapshot))
        self.tell(f"{len(snapshot.pictures)} pictures of {len(snapshot.labels)} classes")


class TrainModel(PipelineTask):
    """A float network, trained on the snapshot."""

    def requires(self) -> DatasetSnapshot:
        return self.clone(DatasetSnapshot)  # type: ignore[no-any-return]

    def output(self) -> DocumentTarget | PendingTarget:
        """Address: the pictures' content and what trains on them."""
        summary = self.input()
        if not summary.exists():
            return PendingTarget()
        from luigi_tasks.backbones import weights_digest  # noqa: PLC0415
        from luigi_tasks.records import SnapshotSummary  # noqa: PLC0415

        s = self.settings
        network = {**_plain(s.model), "weights": weights_digest(s.model)}
        digest = summary.load(SnapshotSummary).digest
        key = content_key(
            "model", TRAINING_VERSION, digest, network, _plain(s.training), _plain(s.quantization)
        )
        return DocumentTarget(self.store, f"work/models/{key}/training.json")

    def work(self) -> None:
        """Train; the weights lie beside the record, and are there before it."""
        from luigi_tasks.train import train  # noqa: PLC0415

        s, target = self.settings, self.own_target()
        trained = train(
            self.load_pixels, load_snapshot(self), s.model, s.training, s.quantization, self.progress
        )
        self.store.put(target.folder + WEIGHTS_FILE, trained.weights)
        target.save(trained.record)


class QuantizeModel(PipelineTask):
    """The candidate: `model.tflite`, and the float network beside it for the gate."""

    def requires(self) -> TrainModel:
        return self.clone(TrainModel)  # type: ignore[no-any-return]

    def output(self) -> DocumentTarget | PendingTarget:
        """Address: the trained model and the scheme."""
        record = self.input()
        if isinstance(record, PendingTarget) or not record.exists():
            return PendingTarget()
        key = content_key("candidate", QUANTIZATION_VERSION, record.key, _plain(self.settings.quantization))
        return DocumentTarget(self.store, f"work/candidates/{key}/candidate.json")

    def work(self) -> None:
        """Convert and quantize."""
        from luigi_tasks.quantize import quantize  # noqa: PLC0415

        s, target = self.settings, self.own_target()
        weights = self.store.read(self.input().folder + WEIGHTS_FILE)
        snapshot = load_snapshot(self)
        quantized = quantize(
            weights, self.load_pixels, snapshot, s.model, s.training, s.quantization, self.progress
        )
        self.store.put(target.folder + MODEL_FILE, quantized.model)
        self.store.put(target.folder + FLOAT_MODEL_FILE, quantized.float_model)
        target.save(_describe_candidate(quantized, snapshot, s))


class EvaluateModel(PipelineTask):
    """The gate: the candidate's file against the float network and the deployed champion."""

    def requires(self) -> QuantizeModel:
        return self.clone(QuantizeModel)  # type: ignore[no-any-return]

    def output(self) -> DocumentTarget | PendingTarget:
        """Address: the candidate, the gate's settings and the champion it had to meet."""
        target = self.input()
        if isinstance(target, PendingTarget) or not target.exists():
            return PendingTarget()
        from luigi_tasks.records import Candidate  # noqa: PLC0415

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
        from luigi_tasks.judging import judge_candidate  # noqa: PLC0415

        target = self.own_target()
        evaluation, report = judge_candidate(self)
        self.store.put(target.folder + REPORT_FILE, report.encode(), content_type="text/html; charset=utf-8")
        self.set_tracking_url(  # type: ignore[misc]
            self.store.sign_link(target.folder + REPORT_FILE, REPORT_LINK_S)
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
        from luigi_tasks.judging import assemble_release  # noqa: PLC0415
        from luigi_tasks.publish import point_channel  # noqa: PLC0415

        rules = self.settings.release
        release = load_evaluation(self.input()).release
        repository = open_repository(self.settings)
        files = {} if repository.load().release(release) is not None else assemble_release(self)
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
        if repository.load().needs_renewal():
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
        from luigi_tasks.publish import roll_channel_back  # noqa: PLC0415

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
    from luigi_tasks.records import Snapshot  # noqa: PLC0415

    summary = task.clone(DatasetSnapshot).output()
    return DocumentTarget(task.store, summary.folder + "pictures.json").load(Snapshot)


def load_evaluation(target: DocumentTarget | PendingTarget) -> Any:  # noqa: ANN401 - as above
    """Return the gate's record, or None if there is none yet."""
    if isinstance(target, PendingTarget) or not target.exists():
        return None
    from luigi_tasks.records import Evaluation  # noqa: PLC0415

    return target.load(Evaluation)


def open_repository(settings: PipelineSettings) -> Any:  # noqa: ANN401 - tuf is imported only here
    """Return the signed repository."""
    from luigi_tasks.repository import open_repository as open_one  # noqa: PLC0415

    return open_one(open_store(settings.store), settings.trust)


def channel_target(settings: PipelineSettings, release: str) -> ChannelTarget:
    """Return the target of a release being what the channel offers."""
    rules = settings.release
    return ChannelTarget(open_repository(settings), rules.channel, release, rules.share_percent)


def announcement(settings: PipelineSettings) -> AnnouncementTarget:
    """Return the target of the channel's announcement."""
    from luigi_tasks.announce import BrokerClient  # noqa: PLC0415

    return AnnouncementTarget(
        open_repository(settings), BrokerClient(settings.broker), settings.release.channel
    )


def announce(settings: PipelineSettings) -> None:
    """Announce what the channel points to."""
    from luigi_tasks.announce import BrokerClient  # noqa: PLC0415

    channel = settings.release.channel
    pointer = open_repository(settings).load().channel(channel)
    BrokerClient(settings.broker).announce(channel, pointer.release)


def utc_now() -> str:
    """ISO 8601, UTC, milliseconds."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def _describe_candidate(quantized: Any, snapshot: Any, settings: PipelineSettings) -> Any:  # noqa: ANN401
    from edge_client.contract.preprocessing import PREPROCESSING_ID  # noqa: PLC0415
    from edge_client.contract.release import Normalization, Preprocessing, release_id  # noqa: PLC0415
    from luigi_tasks.records import Candidate  # noqa: PLC0415

    size = settings.model.input_size
    preprocessing = Preprocessing(id=PREPROCESSING_ID, height=size, width=size, normalization=Normalization())
    return Candidate(
        release=release_id(quantized.model, snapshot.labels, preprocessing),
        model_sha256=hashlib.sha256(quantized.model).hexdigest(),
        labels=snapshot.labels,
        preprocessing=preprocessing,
        snapshot=snapshot.digest,
        quantization=quantized.record,
    )


def _with_dataset(settings: PipelineSettings, url: str) -> PipelineSettings:
    return dataclasses.replace(settings, dataset=dataclasses.replace(settings.dataset, url=url))


def _recipe(settings: PipelineSettings) -> str:
    return content_key(
        {field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    )


def _plain(values: Any) -> Mapping[str, Any]:  # noqa: ANN401
    return {name: value for name, value in dataclasses.asdict(values).items() if name != "cache_dir"}
