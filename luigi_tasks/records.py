"""What the steps write down for each other: the documents of the pipeline, in the order of its flow.

Light on purpose: a run with nothing to do reads these, and must not pay for NumPy or Pillow.
"""

from __future__ import annotations

import msgspec

from edge_client.contract.documents import Document
from edge_client.contract.release import HoldOut, Preprocessing  # noqa: TC001 - msgspec resolves them

TRAIN, HOLDOUT = "train", "holdout"


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One picture of a listing, before it is read.

    Attributes:
        path: Relative, with /; the first part is the class.
        size: Bytes.
        version: Changes when the content may have changed: mtime in ns, the ETag, or what names an
            archive's content on every machine.
    """

    path: str
    size: int
    version: str


class ReadPicture(Entry, frozen=True, array_like=True, gc=False):
    """A picture that was read once.

    Attributes:
        sha256: Hex digest of the file's content; empty if it cannot be decoded.
        fault: Why it cannot be decoded, else empty.
        batch: Key of the batch that read it, which its features lie with.
    """

    sha256: str
    fault: str
    batch: str


class Inventory(Document, frozen=True, kw_only=True):
    """All pictures of a listing, as they were read; also one batch of them."""

    pictures: tuple[ReadPicture, ...]


class InventoryPointer(Document, frozen=True, kw_only=True):
    """Where the newest inventory of a dataset lies: a hint that saves reading pictures again."""

    key: str


class NewBatch(Document, frozen=True, kw_only=True):
    """Pictures that one task reads."""

    key: str
    pictures: tuple[Entry, ...]


class Plan(Document, frozen=True, kw_only=True):
    """How a listing is read. The first worker makes it, all others follow it.

    Attributes:
        inventory: Key of the inventory that the known pictures are looked up in; empty: none.
        gone: Paths in the inventory that are not taken from it: removed, changed, or to be read again.
        new: Batches to read.
        batches: Keys of all batches that hold a picture of the listing.
    """

    inventory: str
    gone: tuple[str, ...]
    new: tuple[NewBatch, ...]
    batches: tuple[str, ...]


class Picture(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One picture.

    Attributes:
        path: Where its source has it.
        sha256: Hex digest of the file's content.
        label: Its class.
        split: `train` or `holdout`.
    """

    path: str
    sha256: str
    label: str
    split: str


class Snapshot(Document, frozen=True, kw_only=True):
    """All pictures of a run.

    Attributes:
        digest: 20 hex digits over hashes, labels and splits; not over paths.
        labels: The classes, sorted; the model's outputs have this order.
        pictures: Sorted by hash, so that renaming files changes nothing.
        skipped: Undecodable pictures that were left out.
    """

    digest: str
    labels: tuple[str, ...]
    pictures: tuple[Picture, ...]
    skipped: tuple[str, ...] = ()

    def split(self, name: str) -> tuple[Picture, ...]:
        """Return the pictures of one split."""
        return tuple(picture for picture in self.pictures if picture.split == name)


class SnapshotSummary(Document, frozen=True, kw_only=True):
    """What most steps need of a snapshot: small, however many pictures there are."""

    digest: str
    labels: tuple[str, ...]
    train_pictures: int
    holdout_pictures: int
    skipped: int

    @classmethod
    def of(cls, snapshot: Snapshot) -> SnapshotSummary:
        """Summarize."""
        return cls(
            digest=snapshot.digest,
            labels=snapshot.labels,
            train_pictures=len(snapshot.split(TRAIN)),
            holdout_pictures=len(snapshot.split(HOLDOUT)),
            skipped=len(snapshot.skipped),
        )


class TunedRecord(Document, frozen=True, kw_only=True):
    """What fine-tuning did to the backbone; its weights lie beside.

    Attributes:
        history: Loss and accuracy of each epoch.
        parent: Release whose weights it started from; empty: the backbone's own.
        made_with: Package versions.
        seconds: Wall-clock time.
    """

    history: dict[str, tuple[float, ...]]
    parent: str
    made_with: dict[str, str]
    seconds: float


class Lineage(Document, frozen=True, kw_only=True):
    """What a release was made from, for a warm start.

    Attributes:
        tuned: Folder of the tuned backbone's weights.
    """

    tuned: str


class BackboneRecord(Document, frozen=True, kw_only=True):
    """A frozen backbone in its TFLite forms, which lie beside as `<form>-<sha256>.tflite`.

    Attributes:
        forms: SHA-256 of each form's file: `float`, and the candidate's scheme.
        width: Features a picture.
        calibration: Content hashes of the pictures that set its scales and int8 ranges.
        made_with: Package versions.
    """

    forms: dict[str, str]
    width: int
    calibration: tuple[str, ...]
    made_with: dict[str, str]


class CalibrationSet(msgspec.Struct, frozen=True, kw_only=True):
    """The pictures that set a backbone's scales and int8 ranges.

    Attributes:
        backbone: Key of what they were chosen for: the network, its weights, how it is quantized.
        scheme: e.g. `int8`.
        pictures: Content hashes, in the order in which they were shown.
    """

    backbone: str
    scheme: str
    pictures: tuple[str, ...]


class Calibration(Document, frozen=True, kw_only=True):
    """`calibration.json` of a release: who has the pictures can make the same file again.

    Attributes:
        sets: One for each scheme that was tried; the last is that of the release.
    """

    sets: tuple[CalibrationSet, ...]


class FeaturesRecord(Document, frozen=True, kw_only=True):
    """Features of one batch, which lie beside as `<sha256>.npz`.

    Attributes:
        pictures: Content hashes of the rows, by name: `<form>_<view>`.
        sha256: Hex digest of the file.
        computed: Rows that were computed and not taken from an earlier batch.
    """

    pictures: dict[str, tuple[str, ...]]
    sha256: str
    computed: int


class TrainingRecord(Document, frozen=True, kw_only=True):
    """What training did; the head and its answers lie beside.

    Attributes:
        history: Loss and accuracy of each epoch, of the head and of a tuned backbone before it.
        made_with: Package versions.
        seconds: Wall-clock time of the head's training.
        train_pictures: Pictures of the training split.
        float_drop_points: What the candidate's form loses against float on the hold-out, by features.
        class_drop_points: What the class loses that loses most, one picture forgiven.
    """

    history: dict[str, tuple[float, ...]]
    made_with: dict[str, str]
    seconds: float
    train_pictures: int
    float_drop_points: float
    class_drop_points: float


class Rung(Document, frozen=True, kw_only=True):
    """One scheme that was tried, on the hold-out.

    Attributes:
        scheme: Its name.
        accuracy: Of its file, 0-1.
        float_drop_points: What it loses against float.
        class_drop_points: What the class loses that loses most, one picture forgiven.
        model_bytes: Size of its file.
        latency_ms_p50: Preprocessing and inference, one thread.
    """

    scheme: str
    accuracy: float
    float_drop_points: float
    class_drop_points: float
    model_bytes: int
    latency_ms_p50: float | None


class QuantizationRecord(Document, frozen=True, kw_only=True):
    """How the file was made.

    Attributes:
        scheme: The one that was taken, e.g. `int8`.
        calibration: Of each scheme that was tried, in that order.
        operators: Highest version of each operator in the file.
        made_with: Package versions.
        rungs: All schemes that were tried, where the first one lost too much.
    """

    scheme: str
    calibration: tuple[CalibrationSet, ...]
    operators: dict[str, int]
    made_with: dict[str, str]
    rungs: tuple[Rung, ...] = ()


class Candidate(Document, frozen=True, kw_only=True):
    """`candidate.json`, beside `model.tflite`.

    Attributes:
        release: The id that it would be published under.
        model_sha256: Hex digest of `model.tflite`.
        labels: Label of each output.
        preprocessing: Pixels to input.
        snapshot: Digest of the pictures that made it.
        quantization: How it was quantized.
    """

    release: str
    model_sha256: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    snapshot: str
    quantization: QuantizationRecord


class Check(Document, frozen=True, kw_only=True):
    """One promise that a candidate must keep.

    Attributes:
        name: What was looked at.
        limit: The setting's value.
        measured: The candidate's.
        unit: Of both.
        passed: Whether it holds.
        reason: One sentence for a person if it does not, else empty.
    """

    name: str
    limit: float
    measured: float
    unit: str
    passed: bool
    reason: str = ""


class Verdict(Document, frozen=True, kw_only=True):
    """The decision, with every check behind it."""

    passed: bool
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]


class ClassFigures(Document, frozen=True, kw_only=True):
    """One class on the hold-out; precision is 0 where the model never says it."""

    label: str
    support: int
    precision: float
    recall: float


class Mistake(Document, frozen=True, kw_only=True):
    """A picture that was taken for something else."""

    path: str
    sha256: str
    truth: str
    predicted: str
    confidence: float


class Measurement(Document, frozen=True, kw_only=True):
    """One model on one list of pictures.

    Attributes:
        accuracy: Share of right answers, 0-1.
        pictures: How many were shown.
        labels: The classes, in the order of rows and columns.
        classes: Precision and recall of each.
        confusion: Counts; rows are truths, columns answers.
        latency_ms_p50: Preprocessing and inference, one thread, pictures one after another; None where
            no file was run.
        latency_ms_p90: The slowest tenth begins here.
        runtime: What ran it.
        mistakes: The most confident wrong answers, worst first.
        hold_out: How often each label was the answer, and how sure; None in records from before there
            was one.
    """

    accuracy: float
    pictures: int
    labels: tuple[str, ...]
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    latency_ms_p50: float | None
    latency_ms_p90: float | None
    runtime: str
    mistakes: tuple[Mistake, ...]
    hold_out: HoldOut | None = None


class Evaluation(Document, frozen=True, kw_only=True):
    """The gate's record of a candidate.

    Attributes:
        release: The id that the candidate would be published under.
        candidate: The candidate's file.
        float_model: The float network, same pictures.
        champion: The deployed model on the pictures whose class it knows; None if there is none.
        champion_release: Its id.
        champion_note: How the comparison was made, or why there is none.
        model_bytes: Size of the candidate's file.
        verdict: The decision.
        at: UTC, ISO 8601.
    """

    release: str
    candidate: Measurement
    float_model: Measurement
    champion: Measurement | None
    champion_release: str | None
    champion_note: str
    model_bytes: int
    verdict: Verdict
    at: str


class SkippedObject(Document, frozen=True, kw_only=True):
    """An object of the inbox that is not used, and why."""

    key: str
    reason: str


class LabellingRecord(Document, frozen=True, kw_only=True):
    """`listing.json` in a folder that a person labels: what was listed.

    Attributes:
        digest: Of the inbox and of what else decides the folder, see `labelling.folder_digest`.
        pictures: Frames listed.
        waiting: Frames in the inbox that were too many for this folder.
        skipped: Objects that could not be listed.
    """

    digest: str
    pictures: int
    waiting: int
    skipped: tuple[SkippedObject, ...]
