"""The table of injected faults: what fails is counted, also in parallel processes and in one that crashes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = """
import os
import pytest
from tests.fault_table import Kind

@pytest.mark.parametrize("bit", range(3))
def test_flips(faults, bit):
    with faults.injected(Kind.BIT_FLIPS, "slots.json", "one bit flipped"):
        assert bit != 1

def test_record(faults):
    faults.record("newer release", "killed", "open in disk", 5)
    assert faults.sample(range(1000), by_default=3) == faults.sample(range(1000), by_default=3)
    assert len(faults.sample(range(1000), by_default=3)) == 3

def test_forged(faults):
    faults.record("candidate", "forged", kind=Kind.EVIDENCE)

def test_ends_without_a_word(faults):
    assert False

def test_crashes(faults):
    os._exit(3)

def test_is_none():
    raise RuntimeError
"""


def test_the_table_counts_what_failed_also_in_parallel(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    page = tmp_path / "faults.md"
    root = str(Path(__file__).parents[1])
    options = "-p tests.fault_table -p no:cacheprovider -n 2 -m faults --print-faults --fault-table"
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options.split(), str(page), "test_some.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    words = [line.split() for line in ended.stdout.splitlines()]
    assert ["Bit", "flips", "slots.json", "one", "bit", "flipped", "3", "2", "-"] in words
    assert ["Power,", "kills,", "network", "newer", "release", "killed", "5", "5", "-"] in words
    assert ["Evidence", "candidate", "forged", "1", "-", "1"] in words
    assert "without a serving device: 1 (of 8)\nforged and signed: 0 (of 1)\n" in ended.stdout
    assert "fault tests that failed elsewhere: 2\n" in ended.stdout
    assert "  test_some.py::test_ends_without_a_word\n" in ended.stdout
    assert "  test_some.py::test_crashes\n" in ended.stdout
    assert "| slots.json | one bit flipped | 3 | 2 |\n" in page.read_text()
    assert "| `open in disk` | 5 |\n" in page.read_text()
