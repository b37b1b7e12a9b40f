"""Lists the inbox for the page Label, in a process of its own: see `luigi_tasks/label_listing.py`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import subprocess
import tempfile
import threading
import time
from typing import TYPE_CHECKING

from edge_client import children
from edge_client.contract.text import one_line
from luigi_tasks.labelling.folder import LISTING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

logger = logging.getLogger("edge-fleet")

# Frames at a desk; the rest waits in the inbox.
MOST = 10_000
# The inbox is listed again after so long, also where nothing says that it changed; or after a fault, or where
# the folder is gone.
AGE_S, AGAIN_S = 300.0, 30.0
# So long without a frame read, and it hangs.
_SILENCE_S = 300.0
_ERROR_BYTES = 4000


@dataclasses.dataclass(frozen=True)
class ListerState:
    """How far a listing is.

    Attributes:
        is_running: Whether one runs.
        done: Frames read.
        total: Frames to read.
        error: Why the last one failed; empty: it did not.
        ended_at: When the last one ended, seconds since 1970; 0: none did.
    """

    is_running: bool = False
    done: int = 0
    total: int = 0
    error: str = ""
    ended_at: float = 0.0


class Lister:
    """Starts listings, one at a time.

    Args:
        folder: Labelling folder.
        changed: Called from another thread whenever the folder has changed.
    """

    def __init__(self, folder: Path, changed: Callable[[], None]) -> None:
        self._folder = folder
        self._changed = changed
        self._lock = threading.Lock()
        self._reason: object = None
        self.state = ListerState()

    def start_if_due(self, reason: object, age_s: float = AGE_S) -> None:
        """Start a listing if none runs and the last is old, or was made for another reason.

        Args:
            reason: Changes when the inbox has changed, as far as that is known.
            age_s: So old it may be.
        """
        with self._lock:
            is_whole = not self.state.error and (self._folder / LISTING).is_file()
            is_old = time.time() - self.state.ended_at > (age_s if is_whole else AGAIN_S)
            if self.state.is_running or not (is_old or reason != self._reason):
                return
            self._reason = reason
            self.state = dataclasses.replace(self.state, is_running=True, done=0, total=0)
        threading.Thread(target=self._run, name="label-listing", daemon=True).start()

    def _run(self) -> None:
        error = "the listing did not start"
        try:
            error = self._list()
        except OSError as e:
            error = f"the listing could not be started: {e}"
        finally:
            if error:
                logger.warning("Label: %s", error)
            self.state = ListerState(error=error, ended_at=time.time())
            self._changed()

    def _list(self) -> str:
        """Run the process; return what was wrong, or ""."""
        module = children.python_command("luigi_tasks.label_listing")
        command = [*module, str(self._folder.absolute()), str(MOST)]
        with tempfile.TemporaryFile() as errors:
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**children.environment(), **children.secrets()},
            ) as process:
                silence = _Silence(process)
                for line in process.stdout or ():
                    silence.heard()
                    self._note(line)
                silence.end()
            if process.returncode == 0:
                return ""
            errors.seek(-min(_ERROR_BYTES, errors.tell()), os.SEEK_END)
            said = errors.read().decode(errors="replace").strip().splitlines()
            return one_line(said[-1]) if said else f"the listing ended with {process.returncode}"

    def _note(self, line: str) -> None:
        if line == "first\n":
            self._changed()
            return
        with contextlib.suppress(ValueError):
            done, total = map(int, line.split())
            self.state = dataclasses.replace(self.state, done=done, total=total)


class _Silence:
    """Kills a process that says nothing for too long."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._timer: threading.Timer | None = None
        self.heard()

    def heard(self) -> None:
        """Begin to wait anew."""
        self.end()
        self._timer = threading.Timer(_SILENCE_S, self._process.kill)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """Wait no more."""
        if self._timer is not None:
            self._timer.cancel()
