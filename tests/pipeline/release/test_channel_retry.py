"""The signed word that lets devices try a release again, on the pipeline's side."""

from __future__ import annotations

import pytest

from edge_client.contract.errors import InputError
from edge_client.contract.release import ChannelDocument
from luigi_tasks.release.channel import allow_retry, point_channel, roll_channel_back

AT = "2026-11-27T09:00:00.000+00:00"
LATER = "2026-11-27T09:00:01.000+00:00"


def test_each_word_is_later_than_the_one_before_also_where_a_clock_is_behind():
    pointer = ChannelDocument(channel="stable", release="r1", withdrawn=("r0",))
    first = allow_retry(pointer, "stable", "r1", at=LATER)
    second = allow_retry(first, "stable", "r1", at=AT)
    assert (first.retry_since, second.retry_since) == (LATER, "2026-11-27T09:00:01.001+00:00")
    assert (second.release, second.withdrawn, second.share_percent) == ("r1", ("r0",), 100.0)


@pytest.mark.parametrize("pointer", [None, ChannelDocument(channel="stable", release="r2")])
def test_only_what_the_channel_points_to_can_be_tried_again(pointer):
    with pytest.raises(InputError, match="devices try only what it points to"):
        allow_retry(pointer, "stable", "r1", at=AT)


def test_the_word_outlives_a_move_of_the_channel():
    """A device that was off meanwhile hears it too."""
    pointer = allow_retry(ChannelDocument(channel="stable", release="r1"), "stable", "r1", at=AT)
    moved = point_channel(pointer, "stable", "r2", share_percent=5.0, at=LATER)
    back = roll_channel_back(moved, "stable", "r1", at=LATER)
    assert (moved.retry_since, back.retry_since) == (AT, AT)
