"""Messages between the pipeline and the child that runs a TFLite file; both sides bound what they accept.

Pictures and answers lie in shared memory, whose descriptor comes with the request: a pipe would cost a third
of the time that an int8 network needs for a picture.
"""

from __future__ import annotations

import enum
import math

import msgspec

from edge_client.contract.release import Normalization  # noqa: TC001 - msgspec reads it at run time

MESSAGE_LIMIT_BYTES = 65536


class Act(enum.Enum):
    """What the child is asked to do."""

    LOAD_FEATURES = "load_features"
    LOAD_CLASSIFIER = "load_classifier"
    RUN = "run"
    RUN_ALONE = "run_alone"
    PARSE = "parse"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request; the shared memory holds the model, or the pictures and then room for the answers.

    Attributes:
        act: What to do.
        number: Comes back with the replies.
        size_bytes: Of the shared memory.
        model_bytes: Size of the model.
        pictures: How many.
        outputs: Number of the classifier's labels.
        normalization: Of the classifier.
        memory_bytes: What parsing may take.
    """

    act: Act
    number: int
    size_bytes: int
    model_bytes: int = 0
    pictures: int = 0
    outputs: int = 0
    normalization: Normalization | None = None
    memory_bytes: int = 0


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """A model that the child has open.

    Attributes:
        given: Height, width and channels of one picture.
        answer: Shape of one picture's answer.
        dtype: NumPy type of the answers.
        scale: Real value of one step of an int8 feature.
        zero_point: The int8 value of 0.0.
        runtime: Name and version of the runtime.
        tells_strangers: Whether the classifier has the output `known`.
    """

    given: tuple[int, int, int]
    answer: tuple[int, ...]
    dtype: str
    runtime: str
    scale: float = 1.0
    zero_point: int = 0
    tells_strangers: bool = False


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A reply.

    Attributes:
        number: The request's.
        done: How many more of its pictures are answered.
        loaded: The model, once it is open.
        fault: Why the request failed; empty: it did not.
        refused: Whether the file is at fault (InputError), and not the runtime (DeviceError).
    """

    number: int
    done: int = 0
    loaded: Loaded | None = None
    fault: str = ""
    refused: bool = False


def answers_at(loaded: Loaded, pictures: int) -> int:
    """Return where the answers begin behind so many pictures: the next multiple of 64 bytes."""
    return (pictures * math.prod(loaded.given) + 63) // 64 * 64
