"""Records of the rollouts in the bucket: read, and changed by conditional writes alone.

    fleet/rollouts/<channel>/<id>.json      the rollout: plan, state, events
    fleet/rollouts/<channel>/current.json   which one the channel is in, and which release is queued

A rollout's record is written before `current.json` names it: one that nothing names never started. What the
record says is meant; the signed repository is brought to it by whoever looks next. So a machine that is
killed between two writes leaves nothing half done.
"""

from __future__ import annotations

import datetime
import hashlib
import secrets
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import encode_compact
from edge_client.contract.errors import InputError, TrustError
from edge_client.contract.names import check_name
from luigi_tasks.fleet.records import PLANNED, CurrentRollout, RolloutRecord, VerdictRecord

if TYPE_CHECKING:
    from edge_client.contract.documents import DocumentT
    from luigi_tasks.fleet.documents import Signed, SignedDocuments

FOLDER = "fleet/rollouts/"
VERDICTS_FOLDER = "fleet/verdicts/"
# A rollout that is looked at every minute for a month, with 10,000 devices that cannot run its release.
RECORD_LIMIT_BYTES = 16 << 20
VERDICT_LIMIT_BYTES = 16 << 20
_CURRENT = "current.json"
# Also there: which receiver was told what, see `events.py`.
_OTHERS = (_CURRENT, "told.json")
_EMPTY = "0" * 8


def record_key(channel: str, rollout: str) -> str:
    """Return the key of a rollout's record."""
    return f"{FOLDER}{check_name(channel, 'channel')}/{check_name(rollout, 'rollout id')}.json"


def current_key(channel: str) -> str:
    """Return the key of what a channel is in."""
    return f"{FOLDER}{check_name(channel, 'channel')}/{_CURRENT}"


def verdict_key(verdict: VerdictRecord) -> str:
    """Return the key of a verdict: the stage, the look, and the snapshots that it stands on.

    The same look at the same snapshots gives the same bytes, so that writing it twice changes nothing.
    """
    sources = ",".join(verdict.snapshots.values()).encode()
    digest = hashlib.sha256(sources).hexdigest()[:8] if verdict.snapshots else _EMPTY
    folder = f"{VERDICTS_FOLDER}{check_name(verdict.channel, 'channel')}/{verdict.rollout}"
    return f"{folder}/{verdict.stage:02d}-{verdict.look:06d}-{digest}.json"


def new_id(release: str, now: float) -> str:
    """Return the id of a new rollout, such as `20261127T223000-878b5af1-3f2a`.

    The order of its devices follows from it; a part of it is chance, so that nobody can choose that order.
    """
    time = datetime.datetime.fromtimestamp(now, datetime.timezone.utc)
    return check_name(f"{time:%Y%m%dT%H%M%S}-{release[:8]}-{secrets.token_hex(2)}", "rollout id")


class Rollouts:
    """The records of one fleet."""

    def __init__(self, documents: SignedDocuments) -> None:
        self.documents = documents

    def current(self, channel: str) -> Signed[CurrentRollout] | None:
        """Return what a channel is in; None if it never was in anything."""
        return self._load(CurrentRollout, current_key(channel))

    def find(self, channel: str, rollout: str) -> Signed[RolloutRecord] | None:
        """Return a rollout; None if there is no such."""
        return self._load(RolloutRecord, record_key(channel, rollout))

    def _load(self, kind: type[DocumentT], key: str) -> Signed[DocumentT] | None:
        try:
            return self.documents.load(kind, key, limit_bytes=RECORD_LIMIT_BYTES)
        except TrustError as e:
            msg = (
                f"{e}. If its key was replaced as stolen: `edge-fleet rollouts --accept`, on the machine "
                "that looked at rollouts before, ends what ran and signs again what it saw"
            )
            raise TrustError(msg) from e

    def load(self, channel: str, rollout: str) -> Signed[RolloutRecord]:
        """Return a rollout that must be there.

        Raises: InputError if it is gone; TrustError; TransportError.
        """
        found = self.find(channel, rollout)
        if found is None:
            msg = (
                f"{self.documents.store.url(record_key(channel, rollout))}: missing, and the channel is in "
                "this rollout. Nothing is moved: restore the object from the bucket's versions, or end the "
                "rollout with `edge-fleet abort`"
            )
            raise InputError(msg)
        return found

    def save(self, record: RolloutRecord, etag: str | None) -> RolloutRecord:
        """Write a record under the next version, if it is still the one that was read; return it.

        Raises: StoreConflictError if somebody else changed it meanwhile; SettingsError, TransportError.
        """
        record = msgspec.structs.replace(record, version=self._newest_version(record) + 1)
        self.documents.save(record_key(record.channel, record.id), record, etag)
        self.note(record)
        return record

    def save_current(self, current: CurrentRollout, etag: str | None) -> None:
        """Write what a channel is in, if it is still what was read; raises as `save`."""
        self.documents.save(current_key(current.channel), current, etag)

    def save_verdict(self, verdict: VerdictRecord) -> str:
        """Write a verdict, unless it is there; return its key."""
        key = verdict_key(verdict)
        if not self.documents.store.exists(key):
            self.documents.save(key, verdict, None)
        return key

    def listed(self, channel: str) -> dict[str, str]:
        """Return the ids of a channel's rollouts, as the bucket lists them, with their records' ETags."""
        folder = f"{FOLDER}{check_name(channel, 'channel')}/"
        return {
            one.key.removeprefix(folder).removesuffix(".json"): one.etag
            for one in self.documents.store.list_folder(folder)
            if not one.key.endswith(_OTHERS)
        }

    def find_all(self, channel: str, faults: list[str]) -> list[RolloutRecord]:
        """Return the rollouts of a channel, oldest first, without those that never started.

        Args:
            channel: The channel.
            faults: Gets what cannot be trusted, which is left out.
        """
        running, found = "", []
        try:
            current = self.current(channel)
            running = current.document.rollout if current is not None else ""
        except TrustError as e:
            faults.append(str(e))
        for name in self.listed(channel):
            try:
                signed = self.find(channel, name)
            except TrustError as e:
                faults.append(str(e))
                continue
            if signed is not None and (signed.document.state != PLANNED or name == running):
                found.append(signed.document)
        return sorted(found, key=lambda record: (record.created_at, record.id))

    def verdicts(self, record: RolloutRecord) -> list[str]:
        """Return the keys of a rollout's verdicts, oldest first."""
        folder = f"{VERDICTS_FOLDER}{record.channel}/{record.id}/"
        return [one.key for one in self.documents.store.list_folder(folder)]

    def verdict(self, key: str) -> VerdictRecord | None:
        """Return a verdict; None if there is none."""
        found = self.documents.load(VerdictRecord, key, limit_bytes=VERDICT_LIMIT_BYTES)
        return None if found is None else found.document

    def is_older(self, record: RolloutRecord) -> bool:
        """Whether this machine has seen a newer version of a record: somebody put a copy back."""
        if self.documents.seen is None:
            return False
        newest = self.documents.seen.newest(record_key(record.channel, record.id))
        return newest is not None and newest.version > record.version

    def _newest_version(self, record: RolloutRecord) -> int:
        seen = self.documents.seen
        newest = None if seen is None else seen.newest(record_key(record.channel, record.id))
        return max(record.version, newest.version if newest is not None else 0)

    def note(self, record: RolloutRecord) -> None:
        """Remember the version of a record on this machine."""
        if self.documents.seen is not None:
            key = record_key(record.channel, record.id)
            self.documents.seen.note(key, record.version, digest_of(record))


def digest_of(record: RolloutRecord) -> str:
    """Return the SHA-256 of a record's content, hex."""
    return hashlib.sha256(encode_compact(record)).hexdigest()
