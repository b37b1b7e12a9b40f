"""The board as a process of its own, on a free loopback port."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from typing import TYPE_CHECKING, Any

from local_services import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

_ADDRESS = re.compile(r"Board: (http[^\s;]+)")
_START_S = 120.0


class RunningBoard(contextlib.AbstractContextManager["RunningBoard"]):
    """`edge-fleet board` with the settings of a file.

    Args:
        luigi_cfg: The file.
        environment: Further variables of the process.

    Attributes:
        url: Its address, with the slash at the end.
        log: What it wrote so far.
    """

    def __init__(self, luigi_cfg: Path, environment: dict[str, str] | None = None) -> None:
        self._environment = {**os.environ, "LUIGI_CONFIG_PATH": str(luigi_cfg), **(environment or {})}
        self._port = 0
        self.log = ""
        self.url = ""
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, on the same port as before."""
        command = [sys.executable, "-m", "luigi_tasks.edge_fleet", "board", "--port", str(self._port)]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=self._environment
        )
        addresses: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=(self.process, addresses), daemon=True).start()
        try:
            self.url = addresses.get(timeout=_START_S * PATIENCE)
        except queue.Empty:
            self.stop()
            msg = f"the board did not start:\n{self.log}"
            raise RuntimeError(msg) from None
        self._port = int(self.url.split(":")[2].partition("/")[0])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; return its exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(number)
        try:
            return self.process.wait(60 * PATIENCE)
        finally:
            self.process.kill()
            self.process = None

    def json(self, path: str = "") -> Any:
        """Return what a page answers to a program."""
        request = urllib.request.Request(self.url + path, headers={"Accept": "application/json"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=60 * PATIENCE) as answer:  # noqa: S310
            return json.loads(answer.read())

    def _read(self, process: subprocess.Popen[str], addresses: queue.Queue[str]) -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                self.log += line
                if found := _ADDRESS.search(line):
                    addresses.put(found[1])
