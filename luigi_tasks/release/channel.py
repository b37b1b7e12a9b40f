"""Pointer of a channel, as pure functions: the release that a candidate has to beat, and its moves."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.errors import InputError
from edge_client.contract.release import ChannelDocument
from edge_client.contract.times import parse_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from luigi_tasks.release.published import RepositoryState


def find_champion(state: RepositoryState, channel: str, release: str) -> str | None:
    """Return the release to beat: the channel's, or the one before it if that is the candidate itself.

    Args:
        state: What is published.
        channel: The channel that the candidate is for.
        release: Id that the candidate would be published under.
    """
    pointer = state.channel(channel)
    if pointer is None:
        return None
    if pointer.release != release:
        return pointer.release
    document = state.release(release)
    return document.parent if document is not None and document.parent else None


def point_channel(
    pointer: ChannelDocument | None, channel: str, release: str, *, share_percent: float, at: str
) -> ChannelDocument:
    """Return the pointer after a new release was published on the channel."""
    return ChannelDocument(
        channel=channel,
        release=release,
        share_percent=share_percent,
        withdrawn=pointer.withdrawn if pointer is not None else (),
        moved_at=at,
        retry_since=pointer.retry_since if pointer is not None else "",
    )


def roll_channel_back(
    pointer: ChannelDocument | None, channel: str, release: str, *, at: str
) -> ChannelDocument:
    """Return the pointer after a person rolled the channel back to an earlier release.

    The release that it pointed to is withdrawn: no run publishes it again until data or settings change.
    Raises: InputError if there is no such channel.
    """
    if pointer is None:
        msg = f"channel {channel}: nothing was published on it, so it cannot be rolled back"
        raise InputError(msg)
    withdrawn = [one for one in (*pointer.withdrawn, pointer.release) if one != release]
    return ChannelDocument(
        channel=channel,
        release=release,
        share_percent=100.0,
        withdrawn=tuple(dict.fromkeys(withdrawn)),
        moved_at=at,
        retry_since=pointer.retry_since,
    )


def allow_retry(pointer: ChannelDocument | None, channel: str, release: str, *, at: str) -> ChannelDocument:
    """Return the pointer that lets devices which refused its release try it again.

    Args:
        pointer: The channel's pointer.
        channel: Its name.
        release: The release that a person wants to be tried again.
        at: UTC, ISO 8601, as `utc_now` gives it.
    Raises: InputError if the channel does not point to the release: nothing else would be tried.
    """
    if pointer is None or pointer.release != release:
        points = "nothing" if pointer is None else pointer.release
        msg = f"channel {channel}: points to {points}; devices try only what it points to, so give that"
        raise InputError(msg)
    if at <= pointer.retry_since:  # this machine's clock is behind that of the one before
        later = parse_time(pointer.retry_since) + datetime.timedelta(milliseconds=1)
        at = later.isoformat(timespec="milliseconds")
    return msgspec.structs.replace(pointer, retry_since=at)


def move_pointer(
    state: RepositoryState, move: Callable[[ChannelDocument | None], ChannelDocument], channel: str
) -> ChannelDocument:
    """Return a channel's new pointer, later than the one before.

    A channel that lost its pointer keeps what was withdrawn from it.
    """
    before = state.channel(channel)
    pointer = move(before)
    if before is not None:
        return msgspec.structs.replace(pointer, moved_at=_later(pointer.moved_at, before.moved_at))
    withdrawn = tuple(one for one in state.withdrawn(channel) if one != pointer.release)
    return msgspec.structs.replace(pointer, withdrawn=withdrawn)


def _later(moved_at: str, before: str) -> str:
    """Return the time of a move, later than the one before also where this machine's clock is behind.

    So a pointer that is older than another was there before it.
    """
    if not before or moved_at > before:
        return moved_at
    return (parse_time(before) + datetime.timedelta(milliseconds=1)).isoformat(timespec="milliseconds")
