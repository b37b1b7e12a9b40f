"""Reading of the signed releases for the board: once for each signed version, many objects at a time.

What is read is verified by the signed metadata, so that its digest names it for ever: a document that was
read is not read again. What one release lacks is its own fault, and the others are shown.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from edge_client.contract.errors import EdgeError, InputError, SettingsError, TransportError
from edge_client.contract.names import GATE_FILE, RELEASE_FILE, release_target
from luigi_tasks.board.kept_values import KeptValues
from luigi_tasks.board.releases.judged_rows import JudgedReader
from luigi_tasks.board.releases.known import GateFigures, Kept, Published
from luigi_tasks.board.releases.rollout_log import RolloutLog
from luigi_tasks.board.releases.snapshot_child import Order, compare_in_child
from luigi_tasks.board.shared_reading import SharedReading
from luigi_tasks.storage.opening import open_store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edge_client.contract.release import ReleaseDocument
    from luigi_tasks.release.kept_snapshot import SnapshotChange
    from luigi_tasks.release.published import RepositoryState
    from luigi_tasks.release.verify import Proof
    from luigi_tasks.settings.values import PipelineSettings

T = TypeVar("T")
Comparing = Callable[[], Awaitable["SnapshotChange"]]

# Lists up to this size are compared in the board's own process: some 20,000 pictures, 20 ms.
SHORT_LIST_BYTES = 4 << 20

# So long a reading counts without another look at the store, unless the board was told of a change.
_KEEP_S = 3.0
_READERS = 16
# So long a page waits for another one that reads, where nothing is known yet, and where something is.
_WAIT_S, _WAIT_KNOWN_S = 6.0, 1.5
# Of releases without the gate's record among their files, statements of this size are read for a list.
_EVIDENCE_BYTES = 1 << 20
# What was gone from `work/` is asked for again after so long.
_GONE_S = 600.0
# Statements of more pictures than some 200,000 are left to `edge-keys verify`.
_PROOF_BYTES = 4 << 20
_KEPT_RELEASES = 16
_CHANGES = 64
# Files of a release that a viewer may have read at a click; a ResNet50 in float has 100 MB.
_FILES_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class _Known:
    """A reading: when it began, for which version, and what was read."""

    at: float
    version: str
    published: Published


class ReleaseReader:
    """Reads what is published, for all pages of a process.

    Args:
        settings: Settings of all sections.
    """

    def __init__(self, settings: PipelineSettings) -> None:
        self._settings = settings
        self._version = ""
        self._reading = SharedReading("releases", self._read_and_keep)
        self._documents: dict[str, ReleaseDocument] = {}
        self._gates: dict[str, tuple[float, GateFigures]] = {}
        self._busy = threading.Lock()
        self._comparing = asyncio.Lock()
        self._changes: KeptValues[SnapshotChange] = KeptValues(_CHANGES)
        self._kept: KeptValues[tuple[float, Kept]] = KeptValues(_KEPT_RELEASES)
        self._failed: tuple[float, EdgeError | None] = (0.0, None)
        self._known: _Known | None = None

    @functools.cached_property
    def _pool(self) -> concurrent.futures.ThreadPoolExecutor:
        return concurrent.futures.ThreadPoolExecutor(_READERS, "releases")

    @functools.cached_property
    def judged(self) -> JudgedReader:
        """Reads what the gate judged, published or not."""
        return JudgedReader(self._pool)

    @functools.cached_property
    def _log(self) -> RolloutLog:
        return RolloutLog(self._settings, self._pool)

    def read(self, version: str = "") -> Published:
        """Return what is published.

        Args:
            version: What the board was told of last; another one is read anew at once.
        While the store is away or slow, what was read last is returned with a note.

        Raises: TrustError if the repository cannot be trusted; TransportError; SettingsError.
        """
        asked_at, known = time.monotonic(), self._known
        if known is not None and known.version != version:
            known = None  # the pages were told that something else is published now
        if known is not None and asked_at - known.at < _KEEP_S:
            return known.published
        try:
            found = self._read_shared(version, asked_at + (_WAIT_S if known is None else _WAIT_KNOWN_S))
        except TransportError as e:
            if known is None:
                raise
            found, why = None, str(e)
        else:
            why = "the store answers slowly: what is shown was read a while ago"
        if found is not None:
            return found
        if known is not None:
            return dataclasses.replace(known.published, notes=(*known.published.notes, why))
        msg = "the releases are being read, and the store is slow; load this page again in a moment"
        raise TransportError(msg)

    def _read_shared(self, version: str, until: float) -> Published | None:
        """Return what is published in this version, or was after this call; None: it takes too long."""
        asked_at = time.monotonic()
        failed_at, error = self._failed
        if error is not None and asked_at - failed_at < _KEEP_S:
            raise error
        while (left_s := until - time.monotonic()) > 0:
            self._version = version
            found = self._reading.get(left_s)
            if found is not None and (found.version == version or found.at >= asked_at):
                return found.published
        return None

    def _read_and_keep(self) -> _Known:
        at, version = time.monotonic(), self._version
        try:
            self._known = _Known(at, version, self._read())
        except EdgeError as e:
            self._failed = time.monotonic(), e
            raise
        self._failed = 0.0, None
        return self._known

    def kept(self, published: Published, release: str) -> Kept:
        """Return what is kept of a release beside its document; each part that is missing says why."""
        from luigi_tasks.evidence.release import EVIDENCE_FILE  # noqa: PLC0415 - imports python-tuf

        digests = [published.digest(release, name) for name in (RELEASE_FILE, GATE_FILE, EVIDENCE_FILE)]
        name = (release, *digests, str(len(published.state.roots)))
        until, known = self._kept.get(name) or (0.0, None)
        if known is None or time.monotonic() > until:
            parts = _Parts()
            known = self._read_kept(published, release, parts)
            keep_s = _KEEP_S if parts.may_pass else _GONE_S
            self._kept.put(name, (time.monotonic() + keep_s, known))
        return known

    async def compare_pictures(
        self, releases: tuple[str, str], kept: tuple[Kept, Kept], compare: Comparing
    ) -> tuple[SnapshotChange | None, str]:
        """Return what differs in the pictures of two releases, or why that is not known.

        Args:
            releases: Their ids.
            kept: What is kept of each.
            compare: Compares short lists; raises TooLongError where a child has to.
        """
        from luigi_tasks.release.kept_gate import NotKeptError, TooLongError  # noqa: PLC0415 - as above

        for release, one in zip(releases, kept, strict=True):
            if one.snapshot is None:
                return None, f"{release}: {one.snapshot_missing}"
        name = tuple("" if one.snapshot is None else one.snapshot.digest for one in kept)
        change = self._changes.get(name)
        if change is not None:
            return change, ""
        try:
            change = await compare()
        except TooLongError:
            async with self._comparing:  # a child at a time
                found = await compare_in_child(Order(first=releases[0], second=releases[1]))
            change, missing = found.change, found.missing
            if change is None:
                return None, missing
        except NotKeptError as e:
            return None, str(e)
        self._changes.put(name, change)
        return change, ""

    def prove(self, published: Published, release: str) -> Proof:
        """Read every file of a release and verify it, and each statement.

        Raises: InputError if its files are too large for a page; TransportError while another release is
            verified; as `verify_release`.
        """
        from luigi_tasks.release.verify import verify_release  # noqa: PLC0415 - imports python-tuf

        folder = f"releases/{release}/"
        total = sum(one.length for path, one in published.state.files.items() if path.startswith(folder))
        if total > _FILES_BYTES:
            msg = (
                f"release {release}: {total / 1e6:.0f} MB are too much for a page: edge-keys verify {release}"
            )
            raise InputError(msg)
        if not self._busy.acquire(blocking=False):
            msg = "another release is being verified; load this page again in a moment"
            raise TransportError(msg)
        try:
            return verify_release(apart(published.state), release)
        finally:
            self._busy.release()

    def _read_kept(self, published: Published, release: str, parts: _Parts) -> Kept:
        from luigi_tasks.evidence.release import EVIDENCE_FILE  # noqa: PLC0415 - imports python-tuf
        from luigi_tasks.release.kept_gate import KeptGate, load_gate  # noqa: PLC0415 - as above
        from luigi_tasks.release.kept_snapshot import load_snapshot  # noqa: PLC0415 - as above
        from luigi_tasks.release.verify import trace_release  # noqa: PLC0415 - as above

        state = apart(published.state)
        gate, why_no_gate = parts.read(lambda: load_gate(state, release))
        proof, why_no_proof = None, ""
        if (published.size(release, EVIDENCE_FILE) or 0) > _PROOF_BYTES:
            why_no_proof = "its statements are long; this command follows them"
        else:
            proof, why_no_proof = parts.read(lambda: trace_release(state, release))
        document, snapshot, why_no_snapshot = published.documents.get(release), None, why_no_proof
        if proof is not None and document is not None:
            digest, shown = document.snapshot, proof
            snapshot, why_no_snapshot = parts.read(lambda: load_snapshot(state, shown, digest))
        return Kept(gate or KeptGate(missing=why_no_gate), proof, why_no_proof, snapshot, why_no_snapshot)

    def _load(self) -> RepositoryState:
        from luigi_tasks.release.published import TIMESTAMP_KEY, empty_state  # noqa: PLC0415 - as above

        if not self._settings.trust.root.exists():
            store = open_store(self._settings.store)
            if not store.exists(TIMESTAMP_KEY):
                return empty_state(store)
        return self._log.repository.load()

    def _read(self) -> Published:
        state = self._load()
        order = tuple(state.releases())
        faults: dict[str, str] = {}
        documents = self._each(order, lambda one: self._document(state, one), faults)
        gates = self._each(order, lambda one: self._gate(state, one), faults)
        channels = _channels(state)
        wrong: dict[str, str] = {}
        pointers = self._each(channels, state.channel, wrong)
        rollouts = self._each(channels, state.rollout, wrong)
        log = self._log.read(state) if state.roots else self._log.nothing()
        self._forget(state)
        return Published(
            state,
            order,
            documents,
            gates,
            faults,
            pointers,
            rollouts,
            log,
            tuple(dict.fromkeys([*wrong.values(), *log.faults])),
        )

    def _each(
        self, names: Iterable[str], read: Callable[[str], T | None], faults: dict[str, str]
    ) -> dict[str, T]:
        """Return what is read of each name, many at a time, in their order."""

        def one(name: str) -> tuple[str, T | None, str]:
            try:
                return name, read(name), ""
            except SettingsError:  # of all of them
                raise
            except EdgeError as e:
                return name, None, str(e)

        found = {}
        for name, value, fault in self._pool.map(one, names):
            if fault:
                faults.setdefault(name, fault)
            elif value is not None:
                found[name] = value
        return found

    def _document(self, state: RepositoryState, release: str) -> ReleaseDocument | None:
        digest = str(state.files[release_target(release, RELEASE_FILE)].hashes["sha256"])
        if digest not in self._documents:
            document = state.release(release)
            if document is None:
                return None
            self._documents[digest] = document
        return self._documents[digest]

    def _gate(self, state: RepositoryState, release: str) -> GateFigures:
        from luigi_tasks.evidence.release import EVIDENCE_FILE  # noqa: PLC0415 - imports python-tuf
        from luigi_tasks.release.kept_gate import load_gate  # noqa: PLC0415 - as above

        signed = state.files.get(release_target(release, GATE_FILE))
        if signed is None:
            signed = state.files.get(release_target(release, EVIDENCE_FILE))
            if signed is not None and signed.length > _EVIDENCE_BYTES:
                return GateFigures()  # its statements are long: the page of the release reads them
        digest = "" if signed is None else f"{release} {signed.hashes['sha256']}"
        until, known = self._gates.get(digest, (0.0, None))
        if known is None or time.monotonic() > until:
            kept = load_gate(apart(state), release)
            known = GateFigures.of(kept)
            is_kept = kept.evaluation is not None
            self._gates[digest] = float("inf") if is_kept else time.monotonic() + _GONE_S, known
        return known

    def _forget(self, state: RepositoryState) -> None:
        """Drop what no signed file has any more."""
        digests = {str(one.hashes["sha256"]) for one in state.files.values()}
        for digest in [one for one in self._documents if one not in digests]:
            del self._documents[digest]
        for name in [one for one in self._gates if one and one.split(" ")[1] not in digests]:
            del self._gates[name]


class _Parts:
    """Parts of a release, each read for itself.

    Attributes:
        may_pass: Whether one is missing for a reason that may pass.
    """

    def __init__(self) -> None:
        self.may_pass = False

    def read(self, read: Callable[[], T]) -> tuple[T | None, str]:
        """Return a part, or why there is none."""
        try:
            return read(), ""
        except EdgeError as e:
            self.may_pass |= isinstance(e, TransportError)
            return None, str(e)


def apart(state: RepositoryState) -> RepositoryState:
    """Return the state for one reading: what it reads is not kept."""
    from luigi_tasks.release.published import RepositoryState  # noqa: PLC0415 - imports python-tuf

    return RepositoryState(state.store, state.roots, state.published, state.known, state.contents)


def _channels(state: RepositoryState) -> list[str]:
    """Return the channels that the signed repository names."""
    paths = (path.partition("/") for path in state.files)
    return sorted(
        {name.removesuffix(".json") for folder, _, name in paths if folder in {"channels", "rollouts"}}
    )
