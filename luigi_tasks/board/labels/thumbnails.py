"""Small copies of pictures, made once: on the disk below `[board] state_dir`, by the picture's digest."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from edge_client.contract.text import one_line
from luigi_tasks.board.kept_values import KeptValues

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from pathlib import Path

logger = logging.getLogger("edge-fleet")

# Of a grid, and to look closely; in pixels.
SMALL, LARGE = 144, 800
# Large ones are made as they are asked for, so many stay.
_LARGE_KEPT = 200
_FAULTS_KEPT = 1000
_NAME = re.compile(r"([0-9a-f]{64})-(\d+)\.jpg")


class Thumbnails:
    """Small copies, and what could not be copied.

    Args:
        folder: Where they lie; made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._faults: KeptValues[str] = KeptValues(_FAULTS_KEPT)

    def find(self, sha256: str, side: int) -> bytes | None:
        """Return a copy that was made before.

        Raises: InputError if none could be made.
        """
        fault = self._faults.get(sha256)
        if fault is not None:
            raise InputError(fault)
        with contextlib.suppress(OSError):
            return self._path(sha256, side).read_bytes()
        return None

    def keep(self, sha256: str, side: int, data: bytes) -> None:
        """Keep a copy; a disk that is full costs the next reader time, nothing else."""
        try:
            if side == LARGE:
                self._thin()
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                file.write(data)
            os.replace(file.name, self._path(sha256, side))  # noqa: PTH105 - a text
        except OSError as e:
            logger.warning("Label: %s", one_line(str(e)))

    def refuse(self, sha256: str, fault: str) -> None:
        """Remember that a picture cannot be shown, so that it is not tried again for each reader."""
        self._faults.put(sha256, fault)

    def keep_only(self, wanted: AbstractSet[str]) -> None:
        """Remove the copies of all other pictures: what was thrown away must not stay here."""
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                found = _NAME.fullmatch(path.name)
                if found is None or found[1] not in wanted:
                    path.unlink()

    def _thin(self) -> None:
        large = list(self._folder.glob(f"*-{LARGE}.jpg"))
        for path in sorted(large, key=lambda one: one.stat().st_mtime)[: -_LARGE_KEPT or None]:
            path.unlink(missing_ok=True)

    def _path(self, sha256: str, side: int) -> Path:
        return self._folder / f"{sha256}-{side}.jpg"
