"""What the board has read of the signed releases."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edge_client.contract.names import release_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_client.contract.release import ChannelDocument, ReleaseDocument
    from edge_client.contract.rollout import RolloutDocument
    from luigi_tasks.board.releases.rollout_log import KnownRollouts
    from luigi_tasks.release.kept_gate import KeptGate
    from luigi_tasks.release.kept_snapshot import KeptSnapshot
    from luigi_tasks.release.published import RepositoryState
    from luigi_tasks.release.verify import Proof


@dataclasses.dataclass(frozen=True)
class GateFigures:
    """What a list shows of the gate's record.

    Attributes:
        interval: Interval of the accuracy on the hold-out at 95 %.
        pictures: Pictures of the hold-out.
        outcome: `passed`, `refused` or `thin`; empty: not known.
    """

    interval: tuple[float, float] | None = None
    pictures: int | None = None
    outcome: str = ""

    @classmethod
    def of(cls, kept: KeptGate) -> GateFigures:
        """Take the figures of a record; none where there is no record."""
        if kept.evaluation is None:
            return cls()
        found = kept.evaluation.candidate
        return cls(found.interval, found.pictures, kept.evaluation.verdict.outcome)


@dataclasses.dataclass(frozen=True)
class Published:
    """The signed releases at one moment.

    Attributes:
        state: The verified repository; what is large is read by `apart` of it.
        order: Ids of the releases, oldest first.
        documents: What could be read of them.
        gates: What the gate found of each.
        faults: What is wrong with a release, in a sentence.
        pointers: Steady pointer by channel.
        rollouts: Signed rollout document by channel.
        log: The rollouts that were.
        notes: What could not be read besides.
    """

    state: RepositoryState
    order: tuple[str, ...]
    documents: Mapping[str, ReleaseDocument]
    gates: Mapping[str, GateFigures]
    faults: Mapping[str, str]
    pointers: Mapping[str, ChannelDocument]
    rollouts: Mapping[str, RolloutDocument]
    log: KnownRollouts
    notes: tuple[str, ...]

    def digest(self, release: str, file: str) -> str:
        """Return the SHA-256 of a file of a release, hex; empty: it has no such file."""
        signed = self.state.files.get(release_target(release, file))
        return "" if signed is None else str(signed.hashes["sha256"])

    def size(self, release: str, file: str) -> int | None:
        """Return the size of a file of a release; None: it has no such file."""
        signed = self.state.files.get(release_target(release, file))
        return None if signed is None else int(signed.length)

    def has(self, release: str) -> bool:
        """Whether a release is signed."""
        return release in self.order


@dataclasses.dataclass(frozen=True)
class Kept:
    """What was read of one release beside its document.

    Attributes:
        gate: What the gate found.
        proof: What is proven; None: see `proof_missing`.
        proof_missing: Why nothing is.
        snapshot: Its pictures; None: see `snapshot_missing`.
        snapshot_missing: Why they are not known.
    """

    gate: KeptGate
    proof: Proof | None = None
    proof_missing: str = ""
    snapshot: KeptSnapshot | None = None
    snapshot_missing: str = ""
