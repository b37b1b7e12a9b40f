"""The board over 1,000 and 100,000 devices: time of its pages, memory, open streams, size of a page.

The real process over a bucket in a folder: a registry, a snapshot whose reports have all their figures, a
signed release, a rollout that runs. Pages are asked over HTTP, one after the other, cold queries among them:
the table of devices sorted by each column and filtered by each field, its last pages, and all other pages.

    python benchmarks/board.py [--json] [--devices 1000,100000] [--streams 100] [--rounds 3]

    page_ms_p95      95th percentile of all requests at the largest number of devices; `_1000` at 1,000
    streams          open streams that were told of a change; another snapshot is written meanwhile
    rss_mb           memory of the board with these streams open, while another index is made and after that
    loader_rss_mb    memory of the child that makes the index, at its peak; load_s: how long it took
    page_kb          the heaviest page with all its files, not compressed
    first_paint_ms   the Fleet page at 1,000 devices in Chromium, if there is one
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "scripts")]

import msgspec  # noqa: E402 - found through the line above
from board_site import BoardSite  # noqa: E402 - as above

from tests.fakes.running_board import RunningBoard  # noqa: E402 - as above

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
