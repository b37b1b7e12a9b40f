"""What the tests of the release wing share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from luigi_tasks.release.keys import make_keys

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with a full set of keys."""
    make_keys(tmp_path / "keys")
    return tmp_path / "keys"
