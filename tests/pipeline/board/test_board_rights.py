"""Who may do what on the board, as an attacker would try it."""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

import pytest
from local_services import PATIENCE

from tests.fakes.command_fleet import CommandFleet
from tests.fakes.running_board import RunningBoard
from tests.pipeline.board.conftest import board_settings

JSON = {"Accept": "application/json"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A board over a bucket with keys, for all tests of this file."""
    folder = tmp_path_factory.mktemp("rights")
    with (
        pytest.MonkeyPatch.context() as patch,
        RunningBoard(
            board_settings(CommandFleet(folder, patch), folder, "url = https://example.org/fleet")
        ) as running,
    ):
        yield running


class Answer:
    """What the board answered."""

    def __init__(self, answer):
        self.status, self.headers, self.body = answer.status, answer.headers, answer.read()

    @property
    def text(self):
        return self.body.decode()

    @property
    def error(self):
        return json.loads(self.body)["error"]


def ask(board, method, path, headers=None, body=None):
    """Return what the board answers over HTTP, with exactly these headers."""
    url = urlsplit(board.url)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=10 * PATIENCE)
    try:
        connection.request(method, path, body, headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}


@pytest.mark.parametrize("host", ["rebound.example", "127.0.0.1.rebound.example", "localhost@x", "", "a b"])
def test_a_name_that_somebody_gave_the_boards_address_is_refused(shared, host):
    answer = ask(shared, "GET", "/", {**JSON, "Host": host})
    assert answer.status in {400, 421}
    if answer.status == 421:
        assert "[board] url or hosts" in answer.error


@pytest.mark.parametrize(
    "host", ["127.0.0.1:1", "[::1]", "localhost", "LOCALHOST.", "a.localhost:80", "example.org"]
)
def test_addresses_and_own_names_are_answered(shared, host):
    assert ask(shared, "GET", "/", {**JSON, "Host": host}).status == 200


FOREIGN = {
    "another site": {"Sec-Fetch-Site": "cross-site", "Origin": "https://example.org"},
    "another host of the same site": {"Sec-Fetch-Site": "same-site"},
    "an origin": {"Origin": "https://evil.example"},
    "a sandboxed frame": {"Origin": "null"},
    "an origin that begins like ours": {"Origin": "https://example.org.evil.example"},
    "an origin with a name in front": {"Origin": "https://example.org@evil.example"},
    "another port": {"Origin": "https://example.org:444"},
    "another scheme": {"Origin": "http://example.org"},
    "a page": {"Referer": "https://evil.example/https://example.org/"},
    "nothing said": {},
}


@pytest.mark.parametrize("said", FOREIGN.values(), ids=FOREIGN)
def test_a_change_that_no_page_of_the_board_sent_is_refused(shared, said):
    answer = ask(shared, "POST", "/fleet/sign-out", {**JSON, **said}, b"csrf=")
    assert answer.status == 403
    assert "not of this board" in answer.error or "Bearer" in answer.error
