"""The board where only its own extra is installed."""

from __future__ import annotations

import importlib.metadata
import os
import re
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

_SETUP = Path(__file__).parents[2] / "setup.py"
_BROUGHT = {"flatbuffers"}  # by LiteRT


def without_the_pipeline(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return variables for a process that imports no package of `[pipeline]` that `[board]` has not."""
    told: dict[str, Any] = {}
    patch.setattr("setuptools.setup", told.update)
    patch.chdir(_SETUP.parent)
    runpy.run_path(str(_SETUP))
    extras = told["extras_require"]
    there = _names(extras["board"]) | _names(told["install_requires"]) | _BROUGHT
    missing = _names(extras["pipeline"]) - there
    modules = [
        module
        for module, brought_by in importlib.metadata.packages_distributions().items()
        if {_plain(one) for one in brought_by} <= missing
    ]
    assert {"tensorflow", "cv2", "sklearn"} <= set(modules)
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({modules!r}))\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))}


def _names(requirements: list[str]) -> set[str]:
    return {_plain(re.split(r"[^\w.-]", one)[0]) for one in requirements}


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
