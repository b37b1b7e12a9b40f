"""The chain from a snapshot to a candidate: each result stands on the inputs that it names."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from luigi_tasks.evidence.ledger import Entry

SNAPSHOTS = "work/snapshots/"
SUMMARY_FILE = "summary.json"
# From an evaluation down to a snapshot there are seven records.
DEPTH_AT_MOST = 32


@dataclasses.dataclass(frozen=True)
class Chain:
    """What was found of a chain.

    Attributes:
        entries: Signed results by key, inputs before what was made of them.
        faults: What is wrong, one sentence a link.
        stale: Keys of the results that stand on a broken link, inputs first.
    """

    entries: dict[str, Entry]
    faults: tuple[str, ...]
    stale: tuple[str, ...]


class _Walk:
    def __init__(self, find: Callable[[str], Entry | None]) -> None:
        self._find = find
        self.entries: dict[str, Entry] = {}
        self.faults: dict[str, None] = {}
        self.stale: dict[str, None] = {}
        self._seen: dict[str, bool] = {}
        self._path: list[str] = []

    def visit(self, key: str) -> bool:
        """Follow a result down to its snapshot; return whether it stands."""
        if key in self._path:
            self.faults[f"{key}: stands on itself"] = None
            return False
        if len(self._path) == DEPTH_AT_MOST:
            self.faults[f"{key}: stands below {DEPTH_AT_MOST} others; no step does"] = None
            return False
        if key not in self._seen:
            self._path.append(key)
            self._seen[key] = self._stands(key)
            self._path.pop()
        return self._seen[key]

    def _stands(self, key: str) -> bool:
        entry = self._find(key)
        if entry is None or entry.statement is None:
            self.faults[f"{key}: missing, or not signed by this pipeline"] = None
            return False
        stands = key.startswith(SNAPSHOTS) or self._check_inputs(key, entry.statement.inputs)
        if stands:
            self.entries[key] = entry
        else:
            self.stale[key] = None
        return stands

    def _check_inputs(self, key: str, inputs: dict[str, str]) -> bool:
        if not inputs and not key.startswith("work/batches/"):
            self.faults[f"{key}: names nothing that it was made of"] = None
            return False
        # All of them, so that one walk names every fault.
        standing = [self._check_input(key, uri, sha256) for uri, sha256 in inputs.items()]
        return all(standing)

    def _check_input(self, key: str, uri: str, sha256: str) -> bool:
        record = record_of(uri)
        if not self.visit(record):
            return False
        if self.entries[record].files.get(uri.rpartition("/")[2]) == sha256 and sha256:
            return True
        self.faults[f"{uri}: not the one that {key} was made of (that had SHA-256 {sha256[:12]}...)"] = None
        return False


def record_of(uri: str) -> str:
    """Return the key of the record that a file of a result belongs to."""
    if uri.startswith(SNAPSHOTS):
        return f"{uri.rpartition('/')[0]}/{SUMMARY_FILE}"
    return uri


def walk_chain(find: Callable[[str], Entry | None], tops: Sequence[str]) -> Chain:
    """Follow results down to the snapshots that they were made of.

    Args:
        find: Returns a signed result by key, None where there is none.
        tops: Keys of the results.
    """
    walk = _Walk(find)
    for one in tops:
        walk.visit(one)
    return Chain(walk.entries, tuple(walk.faults), tuple(walk.stale))
