"""The board over 1,000 and 100,000 devices: time of its pages, memory, open streams, size of a page.

The real process over a bucket in a folder: a registry, snapshots whose reports have all their figures, a
signed release, a rollout that runs. Pages are asked over HTTP, one after the other: devices sorted by each
column, filtered by each field, by words, the last pages, as page and as JSON; and all other pages.

    python benchmarks/board.py [--json] [--sizes 1000,100000] [--streams 100] [--rounds 3]

    page_ms_p95      95th percentile of all requests at the largest size; `_1000` at 1,000 devices
    page_ms_max      the slowest of them
    streams          open streams that were told of a change: another snapshot is written meanwhile
    rss_mb           memory of the board at its peak, with these streams, while all pages are asked
    load_s           from the new snapshot until the first stream was told
    loader_rss_mb    memory of the child that makes the index, at its peak
    index_mb         the index on the disk
    page_kb          the heaviest page with all its files, not compressed
    first_paint_ms   the page Fleet at 1,000 devices in Chromium, the middle of five; if there is one
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import json
import re
import statistics
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "scripts")]

from board_site import CHANNEL, ROLLOUT, BoardSite  # noqa: E402 - found through the line above

from luigi_tasks.board.index.queries import SORTS  # noqa: E402 - as above
from tests.fakes.chromium import running_chromium  # noqa: E402 - as above
from tests.fakes.running_board import RunningBoard  # noqa: E402 - as above

_WAIT_S = 600.0
_FILTERS = (
    "q=cam-0",
    "q=shop-12 heard",
    "q=cam outdoor passed pi4",
    "q=nothing-has-this",
    "site=shop-7",
    "class=pi3",
    "tag=outdoor",
    "heard=quiet",
    "state=passed",
    "online=no",
    "enrolled=yes",
    "odd=drift",
    f"channel={CHANNEL}",
    f"channel={CHANNEL}&tag=outdoor&heard=heard&online=yes&q=cam",
)
_JSON = {"Accept": "application/json"}
_PARTS = re.compile(r'(?:src|href)="([^"]*/static/[^"]+)"')
_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--sizes", default="1000,100000", help="numbers of devices (default 1000,100000)")
    parser.add_argument("--streams", type=int, default=100, help="open streams (default 100)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each page is asked (default 3)")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    for size in sorted(int(one) for one in options.sizes.split(",")):
        figures |= measure(size, options.streams, options.rounds)
    if options.json:
        print(json.dumps({"benchmark": "board", "figures": figures}))
    else:
        print("\n".join(f"{name:24} {value:,}" for name, value in figures.items()))
    return 0


def measure(devices: int, streams: int, rounds: int) -> dict[str, float]:
    """Return the figures at one size; those without a size in their name are of the largest."""
    with tempfile.TemporaryDirectory() as folder:
        site = BoardSite(Path(folder), devices)
        site.write()
        with RunningBoard(site.luigi_cfg) as board:
            wait_for_index(board, devices)
            told, load_s, loader_mb = tell_streams(board, site, streams, rounds)
            asked = told.times
            figures: dict[str, float] = {
                f"page_ms_p95_{devices}": round(percentile(asked, 0.95), 1),
                "page_ms_p95": round(percentile(asked, 0.95), 1),
                "page_ms_p50": round(statistics.median(asked), 1),
                "page_ms_max": round(max(asked), 1),
                "pages": len(asked),
                "streams": told.streams,
                "rss_mb": round(told.rss_mb),
                "load_s": round(load_s, 1),
                "loader_rss_mb": round(loader_mb),
                "index_mb": round((Path(folder) / "board/index.sqlite").stat().st_size / 1e6),
                "page_kb": round(heaviest_page(board) / 1000),
            }
            if devices <= 1000:
                figures |= first_paint(board)
            return figures


class Told:
    """What a board with open streams did: how long pages took, which streams were told, its memory."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.streams = 0
        self.rss_mb = 0.0


def tell_streams(board: RunningBoard, site: BoardSite, number: int, rounds: int) -> tuple[Told, float, float]:
    """Open streams, ask all pages, write a snapshot; return what was told, and what another index cost."""
    told, open_streams = Told(), [open_stream(board) for _ in range(number)]
    first = [next_snapshot(stream, "") for stream in open_streams]
    told.times = ask_all(board, rounds)
    site.snapshot(time.time())
    began, loader, done = time.monotonic(), LoaderMemory(board), threading.Event()
    watching = threading.Thread(target=loader.watch, args=(done,), daemon=True)
    watching.start()
    versions = []
    load_s = 0.0
    for stream, before in zip(open_streams, first, strict=True):
        versions.append(next_snapshot(stream, before))
        load_s = load_s or time.monotonic() - began
    done.set()
    watching.join()
    told.streams = sum(one != before for one, before in zip(versions, first, strict=True))
    told.times += ask_all(board, 1)
    told.rss_mb = memory_mb(pid_of(board), "VmHWM")
    for stream in open_streams:
        stream.close()
    return told, load_s, loader.peak_mb


def ask_all(board: RunningBoard, rounds: int) -> list[float]:
    """Ask each page so many times; return the milliseconds of each request."""
    address = urllib.parse.urlsplit(board.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    times = []
    for turn in range(rounds):
        for path, headers in pages(turn):
            began = time.perf_counter()
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            answer.read()
            times.append(1000 * (time.perf_counter() - began))
            if answer.status != 200:
                msg = f"{path}: {answer.status}"
                raise SystemExit(msg)
    return times


def pages(turn: int) -> list[tuple[str, dict[str, str]]]:
    """Return the addresses of a round; words that nobody asked for before are among them."""
    queries = [""]
    for sort in SORTS:
        queries += [
            f"sort={sort}&order={order}&page={page}" for order in ("", "desc") for page in (1, 999999)
        ]
    for filters in (*_FILTERS, f"q=cam-0{turn}"):
        queries += [
            filters,
            f"{filters}&sort=latency_ms&order=desc",
            f"{filters}&sort=last_seen&page={turn + 2}",
        ]
    found: list[tuple[str, dict[str, str]]] = [
        (f"/?{urllib.parse.quote(one, safe='=&')}", {}) for one in queries
    ]
    found += [(path, _JSON) for path, _ in found[::5]]
    others = ("releases", f"rollouts/{CHANNEL}", "rollouts", "label", "try", "pipeline", "devices/cam-000007")
    return found + [(f"/{one}", {}) for one in (*others, f"rollouts/{CHANNEL}/{ROLLOUT}")]


def open_stream(board: RunningBoard) -> http.client.HTTPResponse:
    """Open a stream of changes."""
    address = urllib.parse.urlsplit(board.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=_WAIT_S)
    connection.request("GET", "/streams")
    return connection.getresponse()


def next_snapshot(stream: http.client.HTTPResponse, before: str) -> str:
    """Return the version of the next snapshot that a stream tells, other than the one before."""
    topic = ""
    while True:
        line = stream.readline().decode().strip()
        name, _, value = line.partition(": ")
        if name == "event":
            topic = value
        elif name == "data" and topic == "snapshot" and value != before:
            return value


class LoaderMemory:
    """Memory of the children of a board."""

    def __init__(self, board: RunningBoard) -> None:
        self._board = pid_of(board)
        self.peak_mb = 0.0

    def watch(self, done: threading.Event) -> None:
        """Look at it until it is enough."""
        children = Path(f"/proc/{self._board}/task")
        while not done.wait(0.05):
            for task in children.iterdir():
                for child in _read(task / "children").split():
                    self.peak_mb = max(self.peak_mb, memory_mb(int(child), "VmHWM"))


def wait_for_index(board: RunningBoard, devices: int) -> None:
    """Wait until the board has read the fleet."""
    until = time.monotonic() + _WAIT_S
    while board.json("?rows=1")["state"]["rows"] < devices:
        if time.monotonic() > until:
            raise SystemExit(board.log)
        time.sleep(0.2)


def heaviest_page(board: RunningBoard) -> int:
    """Return the bytes of the heaviest page with its files."""
    address = urllib.parse.urlsplit(board.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    sizes: dict[str, int] = {}

    def size_of(path: str) -> tuple[int, str]:
        connection.request("GET", path)
        body = connection.getresponse().read()
        return len(body), body.decode(errors="replace")

    heaviest = 0
    for path in (
        "/",
        "/releases",
        f"/rollouts/{CHANNEL}",
        "/label",
        "/try",
        "/pipeline",
        "/devices/cam-000007",
    ):
        total, text = size_of(path)
        for part in set(_PARTS.findall(text)):
            if part not in sizes:
                sizes[part] = size_of(part)[0]
            total += sizes[part]
        heaviest = max(heaviest, total)
    return heaviest


def first_paint(board: RunningBoard) -> dict[str, float]:
    """Return when Chromium first shows something of the page Fleet."""
    if importlib.util.find_spec("playwright") is None:
        return {}
    times = []
    with running_chromium() as browser:
        if browser is None:
            return {}
        for _ in range(5):
            page = browser.new_context().new_page()
            page.goto(board.url, wait_until="load")
            page.wait_for_function(f"{_PAINT} > 0")
            times.append(float(page.evaluate(_PAINT)))
            page.context.close()
    return {"first_paint_ms": round(statistics.median(times))}


def percentile(values: list[float], share: float) -> float:
    """Return the value below which a share of all lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def pid_of(board: RunningBoard) -> int:
    """Return the process of a board."""
    if board.process is None:
        raise SystemExit("the board does not run")
    return board.process.pid


def memory_mb(process: int, field: str) -> float:
    """Return a figure of a process's memory; 0: it is gone."""
    found = re.search(rf"{field}:\s+(\d+) kB", _read(Path(f"/proc/{process}/status")))
    return int(found[1]) / 1024 if found else 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
