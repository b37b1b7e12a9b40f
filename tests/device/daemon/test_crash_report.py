"""What a crash of the daemon says of a release: only one inside its model counts."""

from __future__ import annotations

import faulthandler
import sys
from typing import TYPE_CHECKING

import pytest

from edge_client.daemon.crash_report import CRASH_FILE, crash_report, describe, find_end
from edge_client.daemon.watchdog import Hang
from edge_client.serving.probation import LastEnd

if TYPE_CHECKING:
    from collections.abc import Iterator

MAIN = (
    '  File "/x/edge_client/daemon/daemon.py", line 70 in wait\n'
    '  File "/x/edge_client/cli.py", line 1 in main'
)
PREDICT = (
    '  File "/x/ai_edge_litert/interpreter.py", line 990 in invoke\n'
    '  File "/x/edge_client/inference/classifier.py", line 200 in _infer\n'
    '  File "/x/edge_client/inference/classifier.py", line 150 in classify\n'
    '  File "/x/edge_client/serving/serving.py", line 240 in predict'
)
COMPARE = PREDICT.replace("in predict", "in compare")
DECODE = (
    '  File "/x/PIL/ImageFile.py", line 300 in load\n'
    '  File "/x/edge_client/sources/folder.py", line 9 in frames'
)

HANG, SOURCE_HANG = "The model hangs.\n", "The source hangs.\n"


def report(*threads: str, current: bool = True, signal: str = "Segmentation fault") -> str:
    """Return what Python's fault handler writes, the thread that crashed first."""
    heads = ["Current thread" if current and not number else "Thread" for number in range(len(threads))]
    parts = [
        f"{head} 0x00007f39270d26c0 (most recent call first):\n{thread}"
        for head, thread in zip(heads, threads, strict=True)
    ]
    return "\n\n".join([f"Fatal Python error: {signal}", *parts])


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (report(PREDICT, MAIN), LastEnd.SERVING_MODEL),
        (report(COMPARE, MAIN), LastEnd.SHADOW_MODEL),
        (report(PREDICT, MAIN, current=False), LastEnd.SERVING_MODEL),  # in a thread of the runtime's own
        (report(MAIN, PREDICT), LastEnd.UNKNOWN),  # `kill -SEGV` by a person
        (report(DECODE, MAIN), LastEnd.UNKNOWN),
        (report(MAIN, PREDICT, signal="Aborted"), LastEnd.UNKNOWN),  # the watchdog: the machine stood still
        (HANG + report(MAIN, PREDICT, signal="Aborted"), LastEnd.SERVING_MODEL),  # found to hang before
        (HANG + report(MAIN, COMPARE, signal="Aborted"), LastEnd.SHADOW_MODEL),
        (HANG + report(MAIN, DECODE, signal="Aborted"), LastEnd.UNKNOWN),
        (HANG + report(MAIN, PREDICT), LastEnd.UNKNOWN),
        (SOURCE_HANG + report(MAIN, DECODE, signal="Aborted"), LastEnd.SOURCE),
        (SOURCE_HANG + report(PREDICT, MAIN), LastEnd.SERVING_MODEL),
        (HANG, LastEnd.UNKNOWN),  # and killed
        (report(PREDICT, MAIN, signal="Aborted"), LastEnd.SERVING_MODEL),  # the runtime itself
        (report(PREDICT, MAIN, signal="Bus error"), LastEnd.UNKNOWN),  # a page that the disk cannot read
        ("", LastEnd.UNKNOWN),
        ("Fatal", LastEnd.UNKNOWN),
        ("\0" * 4096, LastEnd.UNKNOWN),
    ],
)
def test_only_a_crash_inside_a_model_counts_for_a_refusal(text, end):
    assert find_end(text) is end


@pytest.fixture
def handler() -> Iterator[None]:
    """Give the fault handler back to pytest."""
    yield
    faulthandler.enable(sys.__stderr__ or sys.stderr)


@pytest.mark.usefixtures("handler")
def test_a_report_is_read_once_told_in_one_line_and_removed_at_the_end(tmp_path, caplog):
    (tmp_path / CRASH_FILE).write_text(report(PREDICT, MAIN))
    with crash_report(tmp_path) as found:
        assert found.last_end is LastEnd.SERVING_MODEL
        assert (tmp_path / CRASH_FILE).read_text() == ""
    assert not (tmp_path / CRASH_FILE).exists()
    [record] = caplog.records
    assert (
        "Segmentation fault, in invoke of interpreter.py; it crashed inside the model" in record.getMessage()
    )
    with crash_report(tmp_path) as found:
        assert found.last_end is LastEnd.UNKNOWN
        found.note_hang(Hang.MODEL)
        assert (tmp_path / CRASH_FILE).read_text() == HANG
        found.note_hang(Hang.NONE)
        assert (tmp_path / CRASH_FILE).read_text() == ""
    assert describe("Fatal", LastEnd.UNKNOWN) == "Fatal"
