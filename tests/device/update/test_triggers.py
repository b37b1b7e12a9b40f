"""Announcements come from an untrusted broker: read strictly, or refused in one printable line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.contract.documents import encode_document
from edge_client.contract.errors import InputError
from edge_client.contract.messages import Announcement
from edge_client.update.triggers import ANNOUNCEMENTS_KEPT, Trigger, UpdateTriggers, read_announcement

TOPIC = "edge/f/channels/stable"


def read(payload: bytes) -> str:
    return read_announcement(payload, topic=TOPIC, channel="stable")


def test_a_valid_announcement_names_its_release():
    announcement = Announcement(channel="stable", release="feedbeef", announced_at="now")
    assert read(encode_document(announcement)) == "feedbeef"


@pytest.mark.parametrize("name", ["", "a\nWARNING all is well", "\x1b[2J", "../x", "a/b", "+", "ä", "x" * 65])
def test_a_name_that_would_spoil_log_or_path_is_refused_in_one_printable_line(name):
    with pytest.raises(InputError, match="release id") as caught:
        read(encode_document(Announcement(channel="stable", release=name, announced_at="")))
    assert str(caught.value).isprintable()
    assert TOPIC in str(caught.value)


def read_or_refuse(payload: bytes) -> str | InputError:
    try:
        return read(payload)
    except InputError as e:
        return e


@given(st.binary(max_size=200) | st.text(max_size=80).map(str.encode))
def test_any_bytes_are_read_or_refused_in_one_printable_line(payload):
    assert str(read_or_refuse(payload)).isprintable()


@given(st.text(max_size=100), st.text(max_size=100))
def test_any_names_are_read_or_refused_in_one_printable_line(channel, release):
    announcement = Announcement(channel=channel, release=release, announced_at="")
    assert str(read_or_refuse(encode_document(announcement))).isprintable()


def test_each_content_waits_once_and_only_the_newest_ones():
    triggers = UpdateTriggers()
    for number in range(1000):
        triggers.announce(b"0")
        triggers.announce(str(number % 100).encode())
    waiting = triggers.wait(0).announcements
    assert len(waiting) == ANNOUNCEMENTS_KEPT
    assert {one.payload for one in waiting} == {b"0", *(str(number).encode() for number in range(85, 100))}
    assert triggers.wait(0) == Trigger()


def test_junk_takes_the_place_of_no_announcement():
    triggers = UpdateTriggers(read)
    true = encode_document(Announcement(channel="stable", release="feedbeef", announced_at="now"))
    triggers.announce(true)
    for number in range(1000):
        triggers.announce(b"junk %d" % number)
    trigger = triggers.wait(0)
    assert [one.release for one in trigger.announcements] == ["feedbeef"]
    assert "not a valid Announcement" in trigger.malformed


def test_a_request_is_not_lost_among_announcements():
    triggers = UpdateTriggers()
    triggers.announce(b"1")
    triggers.request(forgiving=True)
    triggers.request()
    triggers.announce(b"2")
    trigger = triggers.wait(0)
    assert (trigger.requested, trigger.forgiving) == (True, True)
    assert [one.payload for one in trigger.announcements] == [b"1", b"2"]
    assert triggers.wait(0) == Trigger()


def test_closing_ends_a_wait():
    triggers = UpdateTriggers()
    triggers.close()
    assert triggers.wait(60) == Trigger()
