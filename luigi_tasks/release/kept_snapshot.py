"""The pictures that a release was made of, where their list lies in `work/` and a statement proves it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import decode_document, decoder_of
from edge_client.contract.errors import InputError
from edge_client.contract.names import release_target
from luigi_tasks.dataset.records import SnapshotSummary
from luigi_tasks.evidence.chain import SNAPSHOTS
from luigi_tasks.evidence.release import EVIDENCE_FILE
from luigi_tasks.release.kept_gate import NotKeptError, find_statement, read_proven, statement_keys

if TYPE_CHECKING:
    from luigi_tasks.evidence.statement import Statement
    from luigi_tasks.release.published import RepositoryState
    from luigi_tasks.release.verify import Proof

# Some 600,000 pictures, of which a process that compares two lists takes 400 MB.
PICTURES_LIMIT_BYTES = 128 << 20
_SUMMARY_BYTES = 16 << 20
_PICTURES_FILE = "pictures.json"


@dataclasses.dataclass(frozen=True)
class KeptSnapshot:
    """The pictures of a release, counted.

    Attributes:
        digest: Names the list: hashes, labels, splits and groups.
        address: Key of its summary in the store.
        learned: Pictures that were learned from.
        held_out: Pictures that judged.
        left_out: Files that were not used.
    """

    digest: str
    address: str
    learned: int
    held_out: int
    left_out: int


@dataclasses.dataclass(frozen=True)
class SnapshotChange:
    """The pictures of two releases, compared by content.

    Attributes:
        both: Pictures of both.
        gone: Pictures of the first alone.
        new: Pictures of the second alone.
        relabelled: Pictures of both that have another label now.
        moved: Pictures of both that went from learning to judging, or back.
    """

    both: int
    gone: int
    new: int
    relabelled: int
    moved: int


def load_snapshot(state: RepositoryState, proof: Proof, digest: str) -> KeptSnapshot:
    """Return the pictures of a release, counted.

    Args:
        state: What is published.
        proof: What is proven of the release.
        digest: Digest of its snapshot, of its document.
    Raises: NotKeptError if the summary is gone or is another one; TransportError.
    """
    for step in proof.steps:
        if not step.address.startswith(SNAPSHOTS):
            continue
        data = read_proven(state, step.address, step.sha256, _SUMMARY_BYTES)
        found = decode_document(
            SnapshotSummary, data, source=state.store.url(step.address), limit_bytes=_SUMMARY_BYTES
        )
        if found.digest == digest:
            learned, judge = found.train_pictures, found.holdout_pictures
            return KeptSnapshot(digest, step.address, learned, judge, found.left_out)
    msg = f"snapshot {digest[:20] or 'unknown'}: no statement of the release names it"
    raise NotKeptError(msg)


def compare_snapshots(
    state: RepositoryState,
    first: tuple[str, KeptSnapshot],
    second: tuple[str, KeptSnapshot],
    limit_bytes: int = PICTURES_LIMIT_BYTES,
) -> SnapshotChange:
    """Return what differs in the pictures of two releases.

    Args:
        state: What is published.
        first: Id of the release, and its snapshot.
        second: As `first`.
        limit_bytes: Largest list that is read.
    Raises: NotKeptError if a list is gone or is another one; TooLongError; TransportError.
    """
    before = _load_pictures(state, *first, limit_bytes)
    after = _load_pictures(state, *second, limit_bytes)
    both = before.keys() & after.keys()
    return SnapshotChange(
        both=len(both),
        gone=len(before) - len(both),
        new=len(after) - len(both),
        relabelled=sum(before[one][0] != after[one][0] for one in both),
        moved=sum(before[one][1] != after[one][1] for one in both),
    )


class _Picture(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Start of a row of `dataset.records.Picture`."""

    path: str
    sha256: str
    label: str = ""
    split: str = ""


class _Pictures(msgspec.Struct, frozen=True):
    pictures: tuple[_Picture, ...]


def _load_pictures(
    state: RepositoryState, release: str, snapshot: KeptSnapshot, limit_bytes: int
) -> dict[bytes, tuple[str, str]]:
    """Return label and split of each picture, by its content's hash."""
    key = snapshot.address.rpartition("/")[0] + f"/{_PICTURES_FILE}"
    evidence = state.read(release_target(release, EVIDENCE_FILE))
    statement: Statement | None = find_statement(evidence, statement_keys(state), snapshot.address)
    sha256 = "" if statement is None else statement.files.get(_PICTURES_FILE, "")
    data = read_proven(state, key, sha256, limit_bytes)
    places: dict[tuple[str, str], tuple[str, str]] = {}  # few: the pictures share them
    try:
        found = decoder_of(_Pictures).decode(data).pictures
        pairs = ((bytes.fromhex(one.sha256), (one.label, one.split)) for one in found)
        return {digest: places.setdefault(place, place) for digest, place in pairs}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as e:
        msg = f"{state.store.url(key)}: no list of pictures: {e}"
        raise InputError(msg) from e
