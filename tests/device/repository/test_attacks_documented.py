"""`docs/trust.md` names tests that exist."""

from __future__ import annotations

import collections
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


def test_each_test_that_the_table_of_attacks_names_exists():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (REPOSITORY / "docs/trust.md").read_text())
    assert len(named) > 40
    files = collections.defaultdict[str, str](str)  # two wings may have a file of one name
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        files[path.name] += path.read_text()
    assert [f"{file}::{test}" for file, test in named if f"def {test}(" not in files[file]] == []
