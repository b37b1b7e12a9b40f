"""Rollouts whose records no trusted key signed: what a person can do about them.

After `edge-keys rotate --stolen` nothing counts that the old key signed alone: a thief may have signed it
too. The signed rollout document is gone with it, so the devices are at the steady release. On a person's word
the machine signs again what it had itself seen, by digest, as the history. The rollout that ran is ended; the
next Deploy, or a person, starts it again from its first stage. What the machine did not see stays unsigned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.contract.documents import decode_document
from edge_client.contract.errors import InputError, TrustError
from luigi_tasks.fleet import stages
from luigi_tasks.fleet.documents import peek_envelope
from luigi_tasks.fleet.records import ENDED, CurrentRollout, RolloutRecord
from luigi_tasks.fleet.rollouts import RECORD_LIMIT_BYTES, current_key, digest_of, record_key

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from edge_client.contract.documents import DocumentT
    from luigi_tasks.fleet.documents import SignedDocuments
    from luigi_tasks.fleet.rollouts import Rollouts
    from luigi_tasks.fleet.stages import Moment

WHY = "no trusted key signs its record any more; a person accepted what this machine saw of it"


def accept_rollouts(rollouts: Rollouts, channel: str, when: Moment, end_signed: Callable[[], None]) -> str:
    """Sign the rollouts of a channel again as far as this machine saw them; return in words what was done.

    Safe to repeat: what the channel is in is written last.

    Args:
        rollouts: The records.
        channel: The channel.
        when: Time and person.
        end_signed: Ends whatever rollout is signed for the channel.
    Raises: SettingsError on a machine without the key; StoreConflictError if somebody changes them meanwhile;
        TransportError.
    """
    accepted, unknown = list[str](), list[str]()
    for name in rollouts.listed(channel):
        try:
            rollouts.find(channel, name)
        except (TrustError, InputError):
            (accepted if _accept_record(rollouts, channel, name, when) else unknown).append(name)
    words = [f"{name}: signed again" for name in accepted]
    words += [f"{name}: this machine did not see it like this; it stays unsigned" for name in unknown]
    try:
        rollouts.current(channel)
    except (TrustError, InputError):
        end_signed()
        words.append(_accept_current(rollouts, channel, unknown))
    return f"channel {channel}: {'; '.join(words) or 'all of it is signed by a trusted key; nothing to do'}"


def _accept_record(rollouts: Rollouts, channel: str, name: str, when: Moment) -> bool:
    """Sign a record again, ended, if it is the newest that this machine saw; return whether it is."""
    key, seen = record_key(channel, name), rollouts.documents.seen
    newest = seen.newest(key) if seen is not None else None
    record, etag = _peek(rollouts.documents, RolloutRecord, key)
    if record is None or newest is None or digest_of(record) != newest.digest:
        return False
    rollouts.save(record if record.state in ENDED else stages.abort(record, WHY, when), etag)
    return True


def _accept_current(rollouts: Rollouts, channel: str, unknown: Collection[str]) -> str:
    """Write that no rollout runs; what waits is queued again by the next Deploy."""
    before, etag = _peek(rollouts.documents, CurrentRollout, current_key(channel))
    last, ran = (before.last, before.rollout) if before is not None else ("", "")
    is_known = last in rollouts.listed(channel) and last not in unknown
    rollouts.save_current(CurrentRollout(channel=channel, last=last if is_known else ""), etag)
    return f"rollout {ran} is ended, and may be started again" if ran else "no rollout runs"


def _peek(documents: SignedDocuments, kind: type[DocumentT], key: str) -> tuple[DocumentT | None, str | None]:
    """Return a document, whoever signed it (None: it is none), and its version."""
    found = documents.store.get(key, limit_bytes=RECORD_LIMIT_BYTES)
    if found is None:
        return None, None
    source = documents.store.url(key)
    try:
        payload = peek_envelope(found.data, source)
        return decode_document(kind, payload, source=source, limit_bytes=RECORD_LIMIT_BYTES), found.etag
    except InputError:
        return None, found.etag
