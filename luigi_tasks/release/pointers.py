"""Where channels and rollouts point: the signed documents, and the releases that they name."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Union

from edge_client.contract.documents import decode_document
from edge_client.contract.names import channel_target, rollout_target
from edge_client.contract.release import CHANNEL_LIMIT_BYTES, ChannelDocument
from edge_client.contract.rollout import ROLLOUT_LIMIT_BYTES, RolloutDocument
from edge_client.contract.times import parse_time
from luigi_tasks.release.rollouts_key import CHANNELS_FOLDER

if TYPE_CHECKING:
    from luigi_tasks.release.published import RepositoryState

Pointer = Union[ChannelDocument, RolloutDocument]  # noqa: UP007 - evaluated at run time by Python 3.10


def document_path(document: Pointer) -> str:
    """Return the signed target path of a document."""
    if isinstance(document, ChannelDocument):
        return channel_target(document.channel)
    return rollout_target(document.channel)


def decode_pointer(path: str, data: bytes) -> Pointer:
    """Parse a channel's pointer or a rollout document.

    Raises: InputError.
    """
    if path.startswith(CHANNELS_FOLDER):
        return decode_document(ChannelDocument, data, source=path, limit_bytes=CHANNEL_LIMIT_BYTES)
    return decode_document(RolloutDocument, data, source=path, limit_bytes=ROLLOUT_LIMIT_BYTES)


def read_pointer(state: RepositoryState, path: str) -> Pointer:
    """Return a published pointer or rollout document.

    Raises: As `RepositoryState.read`; InputError.
    """
    return decode_pointer(path, state.read(path))


def needed_by(pointer: Pointer) -> tuple[str, ...]:
    """Return the releases that devices install by a document."""
    if isinstance(pointer, ChannelDocument):
        return (pointer.release,)
    return tuple(dict.fromkeys((pointer.release, *pointer.variants.values()))) if pointer.id else ()


def named_by(pointer: Pointer) -> tuple[str, ...]:
    """Return the releases that stay published with their patches for a document."""
    if isinstance(pointer, ChannelDocument) or not (pointer.id and pointer.from_release):
        return needed_by(pointer)
    return (*needed_by(pointer), pointer.from_release)


def is_before(moved_at: str, other: str) -> bool:
    """Whether a document was moved before another; what is no time was before all."""
    return parse_time(moved_at) < parse_time(other)


def just_after(at: str) -> str:
    """Return the time a millisecond later, UTC, ISO 8601; the end of time itself has none."""
    try:
        return (parse_time(at) + datetime.timedelta(milliseconds=1)).isoformat(timespec="milliseconds")
    except OverflowError:
        return at


def later(moved_at: str, before: str) -> str:
    """Return the time of a move, later than the one before also where this machine's clock is behind.

    So a document that is older than another was there before it.
    """
    return moved_at if not before or is_before(before, moved_at) else just_after(before)
