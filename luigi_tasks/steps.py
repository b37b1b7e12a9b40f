"""The pipeline as plain functions: values in, values out. No Luigi, no addresses, no global settings.

    workspace = open_workspace(load_settings(pictures="~/pictures"))
    snapshot = take_snapshot(workspace)
    backbone = convert_backbone(workspace, snapshot, "int8")
    features = extract_features(workspace, snapshot.pictures, backbone, "int8")
    head = train_head(workspace.settings.training, snapshot, backbone, [features], "int8")
    candidate = assemble_candidate(workspace.settings, snapshot, [backbone], [head])
    print(evaluate(workspace, candidate, snapshot, [head]).record.verdict.in_words())

With `[training] mode = finetune`, or `[model] weights = none`, `tune_backbone` comes before
`convert_backbone`, which takes what it returns. `publish_release` needs keys (`edge-keys make`).

Only `take_snapshot` (what was read stays known), `publish_release`, `announce`, `roll_back` and
`renew_signatures` write to the store; `artifacts.py` writes what a task keeps of a result. Every function
raises errors of `edge_client.contract.errors`: InputError, SettingsError, TransportError, TrustError,
DeviceError.
"""

from __future__ import annotations

import hashlib
import logging
import time
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError, SettingsError
from edge_client.contract.times import utc_now
from luigi_tasks.dataset.records import HOLDOUT, TRAIN
from luigi_tasks.logs import LUIGI_LOGGER
from luigi_tasks.progress import ignore_progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from luigi_tasks.backbone.records import Backbone
    from luigi_tasks.dataset.records import Picture, ReadPicture, Snapshot
    from luigi_tasks.dataset.splits import ShardSplit
    from luigi_tasks.evidence.release import Evidence
    from luigi_tasks.gate.records import Evaluated
    from luigi_tasks.labelling.records import DoubtfulRecord
    from luigi_tasks.progress import Progress
    from luigi_tasks.quantization.records import Candidate
    from luigi_tasks.settings.values import PipelineSettings, TrainingSettings
    from luigi_tasks.training.features import FeatureRows
    from luigi_tasks.training.finetune import CheckpointStore
    from luigi_tasks.training.records import TrainedHead, TunedBackbone, TunedRecord
    from luigi_tasks.workspace import Workspace

logger = logging.getLogger(LUIGI_LOGGER)


def read_shard(
    workspace: Workspace, key: str, progress: Progress = ignore_progress
) -> tuple[ReadPicture, ...]:
    """Read the pictures of one new shard of the workspace's plan: hash, decode, scale to the input.

    Args:
        workspace: The run.
        key: Key of the shard, from `workspace.plan.new`.
        progress: Gets pictures done.
    Raises: SettingsError if the plan has no such shard; InputError; TransportError.
    """
    from luigi_tasks.dataset.pixels import read_pictures  # noqa: PLC0415 - Pillow

    found = [one.pictures for one in workspace.plan.new if one.key == key]
    if not found:
        msg = f"{workspace.settings.dataset.url}: no shard {key} in this listing; run DatasetSnapshot"
        raise SettingsError(msg)
    size = workspace.settings.model.input_size
    cache = workspace.pixel_cache(size, size)
    return read_pictures(workspace.source, found[0], key, size, size, progress, cache)


def take_snapshot(
    workspace: Workspace,
    read: Sequence[Sequence[ReadPicture]] | None = None,
    progress: Progress = ignore_progress,
) -> Snapshot:
    """Return the exact list of pictures of the run: path, hash, label, split.

    Args:
        workspace: The run; its dataset is listed, and pictures that are new are read.
        read: What `read_shard` returned for each new shard of the plan; None: read them here.
        progress: Gets pictures done.
    Raises: InputError if the pictures cannot make a classifier; TransportError; SettingsError.
    """
    from luigi_tasks.dataset.shards import merge_inventory  # noqa: PLC0415 - a run with nothing to do
    from luigi_tasks.dataset.snapshot import make_snapshot  # noqa: PLC0415 - as above

    plan = workspace.plan
    if read is None:
        read = [read_shard(workspace, one.key, progress) for one in plan.new]
    pictures, before = merge_inventory(workspace.log, plan, read), workspace.log.load(plan.inventory)
    with workspace.keeping(pictures) as placed:
        url, rules, passed_over = workspace.shown_url, workspace.settings.dataset, workspace.passed_over()
        archives = workspace.listed.archives_in_words(url)
        snapshot = make_snapshot(pictures, url, rules, passed_over, workspace.keep_left_out, before, archives)
        placed(snapshot)
    return snapshot


def tune_backbone(
    workspace: Workspace,
    snapshot: Snapshot,
    parent: tuple[str, bytes] | None = None,
    checkpoint: CheckpointStore | None = None,
    index: int = 0,
    progress: Progress = ignore_progress,
) -> TunedBackbone:
    """Fine-tune the backbone on the training split, or train it from scratch where it has no weights.

    Args:
        workspace: The run.
        snapshot: The pictures.
        parent: Release and backbone weights to start from; None: the initial weights.
        checkpoint: Where an unfinished training is kept; None: nowhere.
        index: Which machine of `[training] cluster` this is.
        progress: Gets steps done.
    Raises: SettingsError; InputError; TransportError if ImageNet weights cannot be downloaded.
    """
    from luigi_tasks.provenance import package_versions  # noqa: PLC0415 - reads the file system
    from luigi_tasks.training import finetune  # noqa: PLC0415 - NumPy, then TensorFlow
    from luigi_tasks.training.cluster import parse_cluster  # noqa: PLC0415 - as above
    from luigi_tasks.training.records import TunedBackbone, TunedRecord  # noqa: PLC0415 - as above

    started, settings = time.monotonic(), workspace.settings
    size, load = settings.model.input_size, workspace.pixel_loader(progress)
    release, weights = parent or ("", None)
    tuned = finetune.tune_backbone(
        finetune.TrainingImages.of(
            snapshot.split(TRAIN), snapshot.labels, lambda pictures: load(pictures, size, size)
        ),
        settings.model,
        settings.training,
        weights,
        settings.dataset.cache_dir / "activations",
        checkpoint or finetune.NoCheckpoint(),
        progress,
        parse_cluster(settings.training.cluster, index),
    )
    record = TunedRecord(
        history=tuned.history,
        parent=release,
        made_with=package_versions(),
        seconds=round(time.monotonic() - started, 3),
    )
    return TunedBackbone(record, tuned.weights)


def choose_calibration(workspace: Workspace, snapshot: Snapshot, scheme: str) -> tuple[Picture, ...]:
    """Return the calibration set of a scheme: that of a published release where its backbone was the same.

    With the same set, the next release differs from that one in its head alone. `[quantization] calibration`
    names a release whose set is required.

    Raises: SettingsError or InputError if that release has none, or its pictures are gone; TrustError;
        TransportError.
    """
    from luigi_tasks.quantization import calibration  # noqa: PLC0415 - only where something is converted
    from luigi_tasks.release.history import published_calibration  # noqa: PLC0415 - as above

    settings, pictures = workspace.settings, snapshot.split(TRAIN)
    count, named = settings.quantization.calibrated_on(scheme), settings.quantization.calibration
    # What was tuned is new with each snapshot, and so is its set: the snapshot alone decides it.
    if settings.tunes:
        return calibration.choose_calibration(pictures, count)
    state, key = workspace.published(), workspace.calibration_key(scheme, snapshot.digest)
    if named:
        return calibration.demand_calibration(published_calibration(state, named, key), named, pictures)
    pointer = state.channel(settings.release.channel)
    if pointer is not None:
        hashes = published_calibration(state, pointer.release, key)
        if found := calibration.recall_calibration(hashes, pointer.release, pictures):
            return found
    return calibration.choose_calibration(pictures, count)


def convert_backbone(
    workspace: Workspace,
    snapshot: Snapshot,
    scheme: str,
    tuned: TunedBackbone | None = None,
    progress: Progress = ignore_progress,
    *,
    calibration: Sequence[Picture] | None = None,
) -> Backbone:
    """Calibrate on pictures of the snapshot, and convert the backbone to TFLite: in float and in a scheme.

    Args:
        workspace: The run.
        snapshot: The pictures.
        scheme: One of `[quantization]`, e.g. `int8`.
        tuned: What `tune_backbone` returned; None: the initial weights.
        progress: Gets steps and pictures done.
        calibration: Pictures that set the scales; None: those of `choose_calibration`.
    Raises: SettingsError where the settings train the backbone and `tuned` is missing; InputError;
        TransportError; TrustError.
    """
    from luigi_tasks.backbone.records import Backbone, BackboneRecord  # noqa: PLC0415 - a run with nothing new
    from luigi_tasks.provenance import package_versions  # noqa: PLC0415 - as above
    from luigi_tasks.quantization.variants import convert_backbone as convert  # noqa: PLC0415 - TensorFlow

    settings, size = workspace.settings, workspace.settings.model.input_size
    if settings.tunes and tuned is None:
        raise SettingsError("These settings train the backbone: give what tune_backbone returned as `tuned`")
    chosen = calibration or choose_calibration(workspace, snapshot, scheme)
    pixels = workspace.pixel_loader(progress)(chosen, size, size)
    weights = tuned.weights if tuned is not None else None
    files, width = convert(settings.model, scheme, pixels, weights, progress, settings.training.seed)
    record = BackboneRecord(
        variants={name: hashlib.sha256(file).hexdigest() for name, file in files.items()},
        width=width,
        calibration=tuple(one.sha256 for one in chosen),
        made_with=package_versions(),
    )
    return Backbone(record, files, scheme, workspace.calibration_key(scheme, snapshot.digest))


def extract_features(
    workspace: Workspace,
    pictures: Sequence[Picture] | Sequence[ReadPicture],
    backbone: Backbone,
    scheme: str,
    *,
    known: Mapping[str, Mapping[str, NDArray[np.generic]]] | None = None,
    split: ShardSplit | None = None,
    progress: Progress = ignore_progress,
) -> FeatureRows:
    """Extract the backbone's features (embeddings) of pictures and of their augmented copies.

    Args:
        workspace: The run.
        pictures: A snapshot's, or those of one shard; undecodable ones are left out.
        backbone: The converted backbone.
        scheme: The scheme that it was converted for.
        known: Rows that were computed earlier, by name and content hash.
        split: The split of a shard's pictures, and the size of the whole training split, which decides the
            number of copies; None: `pictures` are a whole snapshot's.
        progress: Gets pictures done.
    Raises: InputError, also where `split` is missing for pictures without a split; TransportError;
        DeviceError if the runtime cannot run the backbone.
    """
    from luigi_tasks.dataset.splits import ShardSplit  # noqa: PLC0415 - a run with nothing to do
    from luigi_tasks.training.features import choose_rows, compute_rows  # noqa: PLC0415 - NumPy

    settings, size = workspace.settings, workspace.settings.model.input_size
    usable = {one.sha256: one for one in pictures if one.sha256}
    hashes = sorted(usable)
    if split is None:
        split = ShardSplit.of(pictures)
    portions = settings.training.portions(split.train_pictures)
    chosen = [usable[one] for one in hashes]
    return compute_rows(
        backbone.files,
        choose_rows(hashes, scheme, portions, split.holdout),
        hashes,
        workspace.pixel_loader(progress)(chosen, size, size),  # type: ignore[arg-type]
        known or {},
        progress,
        flip=settings.training.horizontal_flip,
    )


def train_head(
    training: TrainingSettings,
    snapshot: Snapshot,
    backbone: Backbone,
    features: Sequence[FeatureRows],
    scheme: str,
    progress: Progress = ignore_progress,
) -> TrainedHead:
    """Train the head on the features of the snapshot's training split.

    Args:
        training: How.
        snapshot: The pictures.
        backbone: The backbone that the features come from.
        features: Features of all pictures of the snapshot, in any number of parts; of more pictures, too.
        scheme: The scheme of the candidate.
        progress: Gets epochs done.
    """
    from luigi_tasks.backbone.extractor import quantization_of  # noqa: PLC0415 - the TFLite runtime
    from luigi_tasks.training.train import train  # noqa: PLC0415 - NumPy

    parameters = quantization_of(backbone.files[scheme])
    return train(snapshot, features, scheme, parameters, training, progress)


def find_doubtful(
    training: TrainingSettings,
    snapshot: Snapshot,
    backbone: Backbone,
    features: Sequence[FeatureRows],
    scheme: str,
    progress: Progress = ignore_progress,
) -> DoubtfulRecord:
    """List the pictures that probably stand in the wrong class.

    Args:
        training: Batch size, rate and regularization of the heads that judge.
        snapshot: The pictures; both splits are looked at.
        backbone: A backbone that did not learn from the labels: a tuned one knows the wrong ones.
        features: Its features of all pictures, in any number of parts.
        scheme: The scheme that it was converted for.
        progress: Gets epochs and pictures done.
    """
    from luigi_tasks.backbone.extractor import quantization_of  # noqa: PLC0415 - the TFLite runtime
    from luigi_tasks.labelling.doubtful import describe_doubts  # noqa: PLC0415 - Pillow
    from luigi_tasks.training.features import gather_rows  # noqa: PLC0415 - NumPy
    from luigi_tasks.training.label_noise import doubt_labels  # noqa: PLC0415 - NumPy

    rows = gather_rows(features, f"{scheme}_0", snapshot.pictures)
    parameters = quantization_of(backbone.files[scheme])
    return describe_doubts(snapshot, doubt_labels(snapshot, rows, parameters, training, progress))


def assemble_candidate(
    settings: PipelineSettings,
    snapshot: Snapshot,
    backbones: Sequence[Backbone],
    heads: Sequence[TrainedHead],
) -> Candidate:
    """Write the head into its backbone's TFLite file, and describe the result.

    Args:
        settings: The settings of the run.
        snapshot: The pictures.
        backbones: The converted backbone of each scheme that was tried; the candidate is in the last one.
        heads: The head of each.
    """
    from luigi_tasks.quantization.candidate import make_candidate  # noqa: PLC0415 - NumPy

    digest, labels = snapshot.digest, snapshot.labels
    return make_candidate(digest, labels, backbones, heads, settings.model, settings.release)


def evaluate(
    workspace: Workspace,
    candidate: Candidate,
    snapshot: Snapshot,
    heads: Sequence[TrainedHead],
    *,
    tuned: TunedRecord | None = None,
    progress: Progress = ignore_progress,
) -> Evaluated:
    """Measure the candidate's file and the deployed champion on the hold-out, judge, write the report.

    Args:
        workspace: The run.
        candidate: The candidate.
        snapshot: The pictures.
        heads: The heads of the schemes that were tried; the last one is the candidate's.
        tuned: What fine-tuning did, for the report.
        progress: Gets pictures done.
    Raises: DeviceError if the runtime cannot run a file; TrustError; TransportError; InputError.
    """
    from luigi_tasks.gate.evaluate import evaluate_candidate  # noqa: PLC0415 - NumPy
    from luigi_tasks.gate.records import Evaluated  # noqa: PLC0415 - as above
    from luigi_tasks.gate.report import load_thumbnails, render_report  # noqa: PLC0415 - as above
    from luigi_tasks.provenance import flatten_settings  # noqa: PLC0415 - as above
    from luigi_tasks.release import channel, history  # noqa: PLC0415 - as above

    settings, state = workspace.settings, workspace.published()
    holdout, pixels_of = snapshot.split(HOLDOUT), workspace.pixel_loader(progress)
    champion = channel.find_champion(state, settings.release.channel, candidate.record.release)
    evaluation, scores = evaluate_candidate(
        candidate,
        heads,
        history.load_champion(state, champion, settings),
        holdout,
        pixels_of,
        settings.gate,
        progress,
        utc_now(),
        holdout_percent=settings.dataset.holdout_percent,
        left_out=snapshot.left_out,
    )
    if evaluation.error_rates is not None:
        logger.info("The gate: %s", evaluation.error_rates.in_words())
    report = render_report(
        evaluation,
        snapshot=snapshot,
        training=heads[-1].record,
        tuned=tuned,
        quantization=candidate.record.quantization,
        settings=flatten_settings(settings),
        thumbnails=load_thumbnails(evaluation, heads[-1].record.doubted, snapshot.pictures, pixels_of),
        past=history.past_releases(state, evaluation.champion_release),
        left_out_place=workspace.left_out_place,
    )
    return Evaluated(evaluation, report, scores)


def find_champion(workspace: Workspace, release: str) -> str | None:
    """Return the release that a candidate of this id has to meet; None if nothing is deployed.

    Raises: TrustError; TransportError; SettingsError.
    """
    from luigi_tasks.release import channel  # noqa: PLC0415 - only where something was trained

    return channel.find_champion(workspace.published(), workspace.settings.release.channel, release)


def publish_release(
    workspace: Workspace,
    candidate: Candidate,
    evaluated: Evaluated,
    snapshot: Snapshot,
    progress: Progress = ignore_progress,
    evidence: Evidence | None = None,
) -> str:
    """Sign the release and upload it, then point the channel to it: data first, pointer last.

    With `[rollout] stages`, a rollout is started in the place of that; while another one runs, the release
    waits for its end. Returns in words what was done.

    Args:
        workspace: The run.
        candidate: The candidate.
        evaluated: The gate's decision, which must have passed.
        snapshot: The pictures.
        progress: Gets pictures done.
        evidence: Signed statements about what made the candidate; None: this program made it.
    Raises: InputError if the gate refused or held the candidate, evaluated another one, or saw other answers
        than the file gives now; SettingsError without keys; TrustError; TransportError (the earlier release
        stays current).
    """
    from luigi_tasks.evidence.release import Evidence  # noqa: PLC0415 - only where something is published
    from luigi_tasks.fleet.deployment import deploy  # noqa: PLC0415 - as above
    from luigi_tasks.release.publication import check_verdict, publish  # noqa: PLC0415 - as above

    release, proof = candidate.record.release, evidence or Evidence(workspace.ledger)
    check_verdict(release, evaluated)

    def sign() -> None:
        holdout, load = snapshot.split(HOLDOUT), workspace.pixel_loader(progress)
        settings, repository = workspace.settings, workspace.repository
        publish(repository, candidate, evaluated, holdout, load, settings, proof, progress)

    return deploy(workspace.fleet, release, sign)


def current_release(workspace: Workspace) -> str | None:
    """Return the release that the channel points to.

    Raises: TrustError; TransportError; SettingsError.
    """
    pointer = workspace.repository.load().channel(workspace.settings.release.channel)
    return None if pointer is None else pointer.release


def announce(workspace: Workspace) -> str:
    """Publish the retained announcement of the channel's release, or of the one that is rolled out.

    Raises: InputError if the channel does not exist; TransportError; SettingsError; TrustError.
    """
    from luigi_tasks.release import announcement  # noqa: PLC0415 - as in publish_release

    channel = workspace.settings.release.channel
    release = announcement.release_to_announce(workspace.repository.load(), channel)
    if release is None:
        msg = f"channel {channel}: nothing is published on it, so there is nothing to announce; run Deploy"
        raise InputError(msg)
    announcement.announce(workspace.broker, channel, release)
    return release


def roll_back(workspace: Workspace, release: str) -> None:
    """Point the channel back to an earlier release; the one that it leaves is withdrawn.

    Raises: SettingsError if the earlier release is not signed; InputError if the channel does not exist;
        TransportError; TrustError.
    """
    from luigi_tasks.release.channel import roll_channel_back  # noqa: PLC0415 - as in publish_release

    channel = workspace.settings.release.channel
    if workspace.repository.load().release(release) is None:
        msg = f"release {release}: not signed in {workspace.settings.store.url}; give one that is"
        raise SettingsError(msg)
    workspace.repository.publish(
        {}, lambda pointer: roll_channel_back(pointer, channel, release, at=utc_now()), channel
    )


def renew_signatures(workspace: Workspace) -> bool:
    """Sign what is published again where a signature has less than half of its lifetime left.

    Returns: Whether anything was signed.
    Raises: SettingsError without keys; TrustError; TransportError.
    """
    if not workspace.repository.needs_renewal():
        return False
    workspace.repository.renew()
    return True
