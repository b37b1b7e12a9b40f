"""What the page *Try* shows: releases to choose from, and what they say of a picture."""

from __future__ import annotations

import base64
import dataclasses
from typing import TYPE_CHECKING

from edge_client.contract.errors import EdgeError, InputError

if TYPE_CHECKING:
    from edge_client.contract.release import OperatingPoint, ReleaseDocument
    from edge_client.contract.rollout import RolloutDocument
    from luigi_tasks.board.pictures.orders import PictureReply, ReleaseAnswer
    from luigi_tasks.board.releases.known import Published

# Choices that follow a channel; every other one is the id of a release.
BY_CHANNEL, BY_ROLLOUT = "channel:", "rollout:"
SURE, UNSURE, UNKNOWN = "sure", "unsure", "unknown"
# A choice names a release by the start of its id, as the other pages do.
_ID_SHOWN = 12
_CHANNELS_LISTED, _RELEASES_LISTED = 20, 100


@dataclasses.dataclass(frozen=True)
class Choice:
    """A release to choose.

    Attributes:
        value: `channel:NAME`, `rollout:NAME` (`rollout:NAME:CLASS`: for a device class), or a release's id.
        name: For people.
        release: Its id now.
    """

    value: str
    name: str
    release: str


@dataclasses.dataclass(frozen=True)
class TryModel:
    """The page before a picture is there.

    Attributes:
        channel: The channel whose release answers unless another one is chosen.
        channels: Choices by channel.
        releases: Choices by id, newest first.
        signed: How many releases there are.
        problem: Why nothing can be tried; empty: something can.
        runtime: Whether a TFLite runtime is installed on this machine.
        limit_bytes: Largest picture.
    """

    channel: str
    channels: tuple[Choice, ...] = ()
    releases: tuple[Choice, ...] = ()
    signed: int = 0
    problem: str = ""
    runtime: bool = True
    limit_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a release says of a picture; the first fields are those of `edge-client classify --json`.

    Attributes:
        label: Best label; empty where there is a fault.
        confidence: Its score.
        sure: Whether a device would act on it.
        known: How much the picture resembles those that the model knows; None: it does not tell.
        top: Score of each label, best first.
        latency_ms: On this machine.
        verdict: `sure`, `unsure` or `unknown` (a stranger); empty where there is a fault.
        why: The reason, with the release's limits.
        threshold: Score from which on this label is sure; None: all scores are, or none is.
        release: Id of the release.
        chosen: How it was chosen.
        model_sha256: Of its model.
        made_at: UTC, ISO 8601.
        architecture: Its network.
        accuracy: On the hold-out.
        device_class: Devices that it is for; empty: all.
        height: Rows that the model takes.
        width: Columns.
        input_png: What the model saw, base64; empty: not asked for.
        fault: Why it says nothing; empty: it does.
    """

    label: str
    confidence: float
    sure: bool
    known: float | None
    top: dict[str, float]
    latency_ms: float
    verdict: str
    why: str
    threshold: float | None
    release: str
    chosen: str
    model_sha256: str
    made_at: str
    architecture: str
    accuracy: float
    device_class: str
    height: int
    width: int
    input_png: str
    fault: str


@dataclasses.dataclass(frozen=True)
class TriedPicture:
    """A picture and what releases say of it.

    Attributes:
        file: Name that the picture came with; empty: none.
        size_bytes: Size of its file.
        height: Rows, upright.
        width: Columns, upright.
        decoding_ms: On this machine.
        answers: One for each release.
        agree: Whether all releases give the same label; None: only one answered.
        thumbnail_jpeg: A small copy, base64; empty: not asked for.
        fault: Why there is no answer; empty: there is one.
    """

    file: str
    size_bytes: int
    height: int = 0
    width: int = 0
    decoding_ms: float = 0.0
    answers: tuple[Answer, ...] = ()
    agree: bool | None = None
    thumbnail_jpeg: str = ""
    fault: str = ""


def read_choices(published: Published, channel: str) -> tuple[tuple[Choice, ...], tuple[Choice, ...]]:
    """Return the releases to choose: by channel, and by id.

    Args:
        published: The signed releases.
        channel: The channel that comes first.
    """
    names = sorted({*published.pointers, *published.rollouts}, key=lambda one: (one != channel, one))
    by_channel = [one for name in names[:_CHANNELS_LISTED] for one in _choices_of(published, name)]
    newest = [*reversed(published.order)][:_RELEASES_LISTED]
    return tuple(by_channel), tuple(Choice(one, _name_of(published, one), one) for one in newest)


def _choices_of(published: Published, channel: str) -> list[Choice]:
    found = []
    pointer, rollout = published.pointers.get(channel), _running(published, channel)
    if pointer is not None:
        name = f"{channel}: current release, {short(pointer.release)}"
        found.append(Choice(f"{BY_CHANNEL}{channel}", name, pointer.release))
    if rollout is not None:
        name = f"{channel}: being rolled out, {short(rollout.release)}"
        found.append(Choice(f"{BY_ROLLOUT}{channel}", name, rollout.release))
        for device_class, release in sorted(rollout.variants.items()):
            name = f"{channel}: being rolled out to class {device_class}, {short(release)}"
            found.append(Choice(f"{BY_ROLLOUT}{channel}:{device_class}", name, release))
    return found


def _running(published: Published, channel: str) -> RolloutDocument | None:
    rollout = published.rollouts.get(channel)
    return rollout if rollout is not None and rollout.id else None


def _name_of(published: Published, release: str) -> str:
    document = published.documents.get(release)
    if document is None:
        return f"{short(release)}, unreadable"
    made = f", {document.created_at[:16].replace('T', ' ')} UTC" if document.created_at else ""
    return f"{short(release)}{made}{f', for class {document.device_class}' if document.device_class else ''}"


def short(release: str) -> str:
    """Return the start of a release's id."""
    return release[:_ID_SHOWN]


def resolve(published: Published, value: str) -> Choice:
    """Return the release that a choice means now.

    Raises: InputError if there is none.
    """
    folder = next((one for one in (BY_CHANNEL, BY_ROLLOUT) if value.startswith(one)), "")
    if not folder:
        return Choice(value, "chosen by its id", value)
    channel, _, device_class = value.removeprefix(folder).partition(":")
    if folder == BY_CHANNEL:
        pointer = published.pointers.get(channel)
        if pointer is None:
            known = ", ".join([*published.pointers][:_CHANNELS_LISTED]) or "none"
            msg = f"channel {channel[:80]!r} points to no release; channels: {known}"
            raise InputError(msg)
        return Choice(value, f"current release of {channel}", pointer.release)
    rollout = _running(published, channel)
    if rollout is None:
        msg = f"channel {channel[:80]!r}: nothing is being rolled out there; choose its current release"
        raise InputError(msg)
    if not device_class:
        return Choice(value, f"being rolled out on {channel}", rollout.release)
    release = rollout.variants.get(device_class)
    if release is None:
        msg = f"rollout {rollout.id} has no variant for class {device_class[:80]!r}"
        raise InputError(msg)
    return Choice(value, f"being rolled out on {channel} to class {device_class}", release)


def document_of(published: Published, release: str) -> ReleaseDocument:
    """Return the document of a release.

    Raises: InputError if there is no such release, or its document cannot be read.
    """
    document = published.documents.get(release)
    if document is None:
        msg = f"release {release[:80]!r} is not signed here; `edge-fleet releases` lists those that are"
        raise InputError(published.faults.get(release) or msg)
    return document


def answer_of(
    choice: Choice, document: ReleaseDocument, found: ReleaseAnswer, *, shows: bool, top: int
) -> Answer:
    """Return what a release says, with its reasons.

    Args:
        choice: The release.
        document: Its document.
        found: What it says.
        shows: Whether what the model saw is part of it.
        top: So many labels; 0: all.
    """
    verdict, why, threshold = ("", "", None) if found.fault else judge(document.operating_point, found)
    return Answer(
        label=found.label,
        confidence=round(found.confidence, 6),
        sure=found.sure and not found.fault,
        known=None if found.known is None else round(found.known, 6),
        top={label: round(score, 6) for label, score in found.scores[: top or None]},
        latency_ms=round(found.latency_ms, 3),
        verdict=verdict,
        why=why,
        threshold=threshold,
        release=choice.release,
        chosen=choice.name,
        model_sha256=document.model_sha256,
        made_at=document.created_at,
        architecture=document.architecture,
        accuracy=document.accuracy,
        device_class=document.device_class,
        height=found.height,
        width=found.width,
        input_png=base64.b64encode(found.given).decode() if shows else "",
        fault=found.fault,
    )


def judge(point: OperatingPoint | None, found: ReleaseAnswer) -> tuple[str, str, float | None]:
    """Return `sure`, `unsure` or `unknown`, why, and the threshold of the label."""
    if point is None:
        return SURE, "this release has no thresholds: every answer counts as sure", None
    threshold = point.thresholds[found.index]
    if found.known is not None and point.least_known is not None and found.known < point.least_known:
        why = (
            f"it resembles no class that the model learned: known is {found.known:.2f}, "
            f"and below {point.least_known:.2f} a picture counts as a stranger"
        )
        return UNKNOWN, why, threshold
    goal = f"{point.precision:.0%} of the sure answers"
    if threshold is None:
        return UNSURE, f"never sure of this label: no score makes {goal} right", None
    if not found.sure:
        return UNSURE, f"below {threshold:.1%}, from which on {goal} with this label were right", threshold
    return SURE, f"from {threshold:.1%} on, {goal} with this label were right", threshold


def picture_of(file: str, size_bytes: int, reply: PictureReply, answers: tuple[Answer, ...]) -> TriedPicture:
    """Return a picture with its answers."""
    labels = [one.label for one in answers if not one.fault]
    return TriedPicture(
        file=file,
        size_bytes=size_bytes,
        height=reply.height,
        width=reply.width,
        decoding_ms=round(reply.decoding_ms, 3),
        answers=answers,
        agree=len(set(labels)) == 1 if len(labels) > 1 else None,
        thumbnail_jpeg=base64.b64encode(reply.thumbnail).decode(),
    )


def fault_of(file: str, size_bytes: int, error: EdgeError) -> TriedPicture:
    """Return a picture that got no answer."""
    return TriedPicture(file=file, size_bytes=size_bytes, fault=str(error))
