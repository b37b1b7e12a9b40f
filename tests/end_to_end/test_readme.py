"""The Python block of the README, run as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("luigi", reason="the device's environments have no Luigi")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_block_from_python_trains_on_the_digits_and_classifies_one_picture(tmp_path):
    [block] = re.findall(
        r"^```python\n(.*?)^```$", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(block.splitlines()) <= 25
    # A home and a folder of its own: neither settings nor caches of this machine.
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    verdict, answer = run.stdout.strip().splitlines()
    assert verdict == "passed"
    label, scores = answer.split(" ", 1)
    assert scores.startswith(f"{{'{label}': "), "the best of three answers is right"
    assert (tmp_path / "edge-models").is_dir()
