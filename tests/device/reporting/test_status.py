"""What goes out, and how often."""

from __future__ import annotations

import threading

import pytest

from edge_client.contract.documents import decode_document
from edge_client.contract.errors import DeviceError
from edge_client.contract.messages import STATUS_LIMIT_BYTES, DeviceStatus, InboxMetrics, SinkMetrics
from edge_client.reporting import status as status_module
from edge_client.reporting.status import KEPT_AT_ONCE, StatusBoard, read_status


class Board:
    def __init__(self, folder, interval_s: float = 0.05) -> None:
        self.sent: list[DeviceStatus] = []
        self.folder = folder
        self.board = StatusBoard(
            DeviceStatus(device="c", channel="stable", state="starting"),
            file=folder / "status.json",
            publish=self._publish,
            interval_s=interval_s,
        )

    def _publish(self, payload: bytes) -> bool:
        self.sent.append(
            decode_document(DeviceStatus, payload, source="status", limit_bytes=STATUS_LIMIT_BYTES)
        )
        return True


@pytest.fixture
def board(tmp_path) -> Board:
    return Board(tmp_path)


def test_the_first_status_is_published_and_stored(board):
    assert board.board.step()
    assert [status.state for status in board.sent] == ["starting"]
    assert read_status(board.folder).state == "starting"


def test_a_change_is_published_at_once(tmp_path):
    board = Board(tmp_path, interval_s=3600)
    board.board.step()
    threading.Timer(0.05, lambda: board.board.change(state="serving", release="r")).start()
    assert board.board.step()
    assert (board.sent[-1].state, board.sent[-1].release) == ("serving", "r")
    assert board.sent[-1].changed_at
    assert read_status(tmp_path).release == "r"


def test_no_flood_of_changes_wears_out_the_card(board, monkeypatch):
    writes: list[bytes] = []
    monkeypatch.setattr(status_module, "write_durably", lambda _file, payload: writes.append(payload))
    for number in range(200):
        board.board.change(last_error=f"junk {number}")
        board.board.step()
    assert (len(board.sent), len(writes)) == (200, KEPT_AT_ONCE)
    board.board.keep()  # a person asks
    board.board.step()
    assert b"junk 199" in writes[-1]
    board.board.change(last_error=None)
    board.board.close()
    board.board.step()
    assert len(writes) == KEPT_AT_ONCE + 2


def test_nothing_new_sends_nothing(board):
    board.board.step()
    board.board.change(state="starting")
    assert board.board.step()
    assert len(board.sent) == 1


def test_counts_are_published_once_an_interval_and_not_stored(board):
    board.board.step()
    before = (board.folder / "status.json").stat().st_mtime_ns
    for latency_ms in (1.0, 2.0, 9.0):
        board.board.count(latency_ms)
    board.board.step()
    assert (board.sent[-1].frames, board.sent[-1].latency_ms) == (3, 2.0)
    assert len(board.sent) == 2
    assert (board.folder / "status.json").stat().st_mtime_ns == before


def test_latency_is_the_median_of_the_last_hundred(board):
    for _ in range(100):
        board.board.count(50.0)
    for _ in range(100):
        board.board.count(2.0)
    assert board.board.status.latency_ms == 2.0
    assert board.board.status.frames == 200


def test_after_a_reconnect_the_same_status_is_published_again(board):
    board.board.step()
    board.board.send_again()
    board.board.step()
    assert len(board.sent) == 2


def test_closing_stores_the_last_counts(board):
    board.board.step()
    board.board.count(1.0)
    board.board.close()
    assert not board.board.step()
    assert read_status(board.folder).frames == 1


def test_an_endless_error_text_is_cut(board):
    board.board.change(last_error="x" * 1_000_000)
    board.board.step()
    assert len(board.sent[-1].last_error) == 4000


def test_a_full_disk_does_not_stop_the_status(board, caplog):
    board.folder.joinpath("status.json").mkdir()
    assert board.board.step()
    assert len(board.sent) == 1
    assert "status.json" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"), [(None, "edge-client run"), (b"{", "rewrites it at its next start")]
)
def test_an_unreadable_status_names_the_remedy(tmp_path, content, message):
    if content is not None:
        (tmp_path / "status.json").write_bytes(content)
    with pytest.raises(DeviceError, match=message):
        read_status(tmp_path)


def test_texts_from_outside_are_one_printable_line(board):
    hostile = "store says \x1b[2J\nERROR edge_client.fake: gone\u202e\x9b\u2028" + "\u202e" * 10_000
    board.board._live_fields = lambda: {
        "warning": hostile,
        "inbox": InboxMetrics(waiting=1, error=hostile),
        "sinks": {"mqtt": SinkMetrics(error=hostile)},
    }
    board.board.change(last_error=hostile, why=hostile)
    board.board.step()
    told = board.sent[-1]
    for text in (told.warning, told.last_error, told.why, told.inbox.error, told.sinks["mqtt"].error):
        assert text is not None
        assert text.isprintable()
        assert text.startswith(r"store says \x1b[2J\nERROR edge_client.fake: gone\u202e\x9b\u2028")
    assert read_status(board.folder) == told
