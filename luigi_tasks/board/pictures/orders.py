"""Orders to the child that decodes pictures, and its replies; both sides bound what they accept.

The picture and the reply lie in anonymous memory (memfd_create(2)), whose descriptors come with the order.
The first byte of the reply is the stage that the work reached, which tells a picture that crashed its decoder
from a model that crashed the runtime; the rest is MessagePack, written at once at the end.
"""

from __future__ import annotations

import msgspec

MESSAGE_LIMIT_BYTES = 65536
# A thumbnail, or two inputs of models as PNG, and 100,000 labels.
REPLY_LIMIT_BYTES = 32 << 20
STAGE_BYTES = 1


class ReleaseFolder(msgspec.Struct, frozen=True, kw_only=True):
    """A release on this machine's disk, as a device has it in a slot.

    Attributes:
        release: Its id.
        folder: Has `release.json`, `model.tflite` and `labels.txt`.
        digest: Hex SHA-256 of `release.json`, as the repository signs it; the document names the rest.
    """

    release: str
    folder: str
    digest: str


class PictureOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What is done with a picture.

    Attributes:
        name: Its name for messages.
        start: Where the picture starts in the memory.
        size_bytes: Its size there.
        memory_bytes: What the work may take on top of what the child has.
        processor_s: Processor time that it may take.
        side: Longest side of a thumbnail; 0: none is made.
        releases: Classify with each of these.
    """

    name: str
    start: int
    size_bytes: int
    memory_bytes: int
    processor_s: int
    side: int = 0
    releases: tuple[ReleaseFolder, ...] = ()


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How the process of an order ended, as `subprocess` has it."""

    returncode: int


class ReleaseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a release says of a picture.

    Attributes:
        release: Its id.
        fault: Why it says nothing; empty: it does.
        refused: Whether the release is at fault (InputError), and not this machine (DeviceError).
        label: Best label.
        index: Its number.
        confidence: Its score in [0, 1].
        sure: See `Prediction`.
        known: See `Prediction`.
        latency_ms: Fitting the pixels and inference, on this machine, after one picture to warm up.
        scores: Each label with its score, best first.
        given: What the model saw, as PNG.
        height: Of the model's input.
        width: Of the model's input.
    """

    release: str
    fault: str = ""
    refused: bool = False
    label: str = ""
    index: int = 0
    confidence: float = 0.0
    sure: bool = True
    known: float | None = None
    latency_ms: float = 0.0
    scores: tuple[tuple[str, float], ...] = ()
    given: bytes = b""
    height: int = 0
    width: int = 0


class PictureReply(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an order.

    Attributes:
        fault: Why nothing came; empty: something did.
        refused: Whether the picture is at fault (InputError), and not this machine (DeviceError).
        height: Rows of the upright picture.
        width: Its columns.
        decoding_ms: Duration of decoding.
        thumbnail: JPEG.
        answers: One for each release.
    """

    fault: str = ""
    refused: bool = False
    height: int = 0
    width: int = 0
    decoding_ms: float = 0.0
    thumbnail: bytes = b""
    answers: tuple[ReleaseAnswer, ...] = ()
