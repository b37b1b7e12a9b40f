"""The one place through which results come into `work/` and out of it: signed when saved, checked when read.

What the work key did not sign for its very place, or what has other bytes than were signed, counts as absent:
whoever can write the bucket can make the pipeline compute something again, never believe it. A statement is
written last and marks the step as done; an empty one stands for a result that was given up.

Where there is no `[trust] root`, results stay unsigned, and nothing can be published.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from typing import TYPE_CHECKING

from edge_client.contract.errors import SettingsError, TransportError, TrustError
from edge_client.contract.times import utc_now
from luigi_tasks.evidence.statement import (
    STATEMENT_LIMIT_BYTES,
    ForeignKeyError,
    Statement,
    make_statement,
    sign_statement,
    statement_key,
    step_of,
    verify_statement,
)
from luigi_tasks.logs import LUIGI_LOGGER
from luigi_tasks.storage.store import TooLargeError, read_existing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from securesystemslib.signer import Key, Signer

    from luigi_tasks.settings.values import PipelineSettings
    from luigi_tasks.storage.store import Store

# Another machine may be between two writes of the same result; they are milliseconds apart.
TRIES = 3
PAUSE_S = 0.3
# Kinds of results that may be very many in one run.
UNSIGNED, DISOWNED = "unsigned", "disowned"
BINARY = "application/octet-stream"
JSON = "application/json"

logger = logging.getLogger(LUIGI_LOGGER)


class EvidenceError(TransportError):
    """A result is gone, or is not what was signed: computed again, it may be."""


@dataclasses.dataclass(frozen=True)
class WorkTrust:
    """The keys of statements, opened at first use.

    Attributes:
        keys: Returns the trusted public keys by id.
        signer: Returns the signer.
        disowned: Returns the ids of the keys that do not count any more, since they may be stolen.
    """

    keys: Callable[[], Mapping[str, Key]]
    signer: Callable[[], Signer]
    disowned: Callable[[], AbstractSet[str]] = frozenset


@dataclasses.dataclass(frozen=True)
class Entry:
    """A result that was signed.

    Attributes:
        sha256: Hex digest of its record; empty where results are unsigned.
        files: Hex digest of each file by name, the record's too.
        statement: What was signed; None where results are unsigned.
        envelope: The signed statement, as it lies in the store.
        keyid: Id of the key that signed it.
    """

    sha256: str = ""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    statement: Statement | None = None
    envelope: bytes = b""
    keyid: str = ""


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a result, to be saved."""

    name: str
    data: bytes
    content_type: str = BINARY


class Ledger:
    """Signed results of one store.

    Args:
        store: The store.
        trust: The keys; None: results are unsigned.
        settings: Settings of the run, for the statements.

    Attributes:
        epoch: Grows when a result is given up: addresses that depend on it may change.
    """

    def __init__(
        self, store: Store, trust: WorkTrust | None = None, settings: PipelineSettings | None = None
    ) -> None:
        self.store = store
        self.epoch = 0
        self._trust = trust
        self._settings = settings
        self._known: dict[str, Entry] = {}
        self._last = ("", b"")  # the record that was read last: whoever finds one mostly loads it
        self._named = set[str]()
        self._told = set[str]()  # kinds of records that a warning named
        self._started = utc_now()

    def was_named(self, key: str) -> bool:
        """Whether the log names a record as absent already."""
        return key in self._named

    def begin(self) -> None:
        """Begin a step: forget what was seen, since other machines may have changed it, and note the time."""
        self._known.clear()
        self._last = ("", b"")
        self._started = utc_now()

    def check_signer(self) -> None:
        """Refuse a machine that cannot sign its results, before it computes any.

        Raises: SettingsError.
        """
        if self._trust is not None:
            self._open_signer(self._trust)

    # Reading

    def find(self, key: str) -> Entry | None:
        """Return what was signed for a record and still lies there; None, with a warning, for anything else.

        Args:
            key: Key of the record.
        """
        if key not in self._known:
            found = self._look(key) if self._trust is not None else self._look_unsigned(key)
            if found is None:
                return None
            self._known[key] = found
        return self._known[key]

    def entry(self, key: str) -> Entry:
        """Return what was signed for a record that must exist.

        Raises: EvidenceError.
        """
        found = self.find(key)
        if found is None:
            msg = f"{self.store.url(key)}: missing, or not what was signed; run again to compute it"
            raise EvidenceError(msg)
        return found

    def load(self, key: str) -> bytes:
        """Return a record.

        Raises: EvidenceError.
        """
        self.entry(key)
        last, data = self._last
        if last == key:
            self._last = ("", b"")
            return data
        return self.read(key, key.rpartition("/")[2])

    def read(self, key: str, name: str) -> bytes:
        """Return a file of a result.

        Args:
            key: Key of the record.
            name: Name of the file in the record's folder.
        Raises: EvidenceError if it is not what was signed; the result is given up then.
        """
        place = key.rpartition("/")[0] + "/" + name
        if self._trust is None:
            return read_existing(self.store, place)
        is_gone = False
        for number in range(TRIES):
            if number:
                self._known.pop(key, None)
                time.sleep(PAUSE_S)
            wanted = self.entry(key).files.get(name, "")
            try:
                found = self.store.get(place)
            except TooLargeError:
                break
            if found is not None and hashlib.sha256(found.data).hexdigest() == wanted:
                return found.data
            is_gone = found is None
        msg = self.give_up(key, f"{name} is {'gone' if is_gone else 'not the file that was signed'}")
        raise EvidenceError(msg)

    def give_up(self, key: str, reason: str) -> str:
        """Mark a step as not done, with a warning; return the warning."""
        self._tell(key, reason)
        self.withdraw(key)
        return f"{self.store.url(key)}: {reason}; run again"

    def withdraw(self, key: str) -> None:
        """Mark a step as not done."""
        if self._trust is not None:
            # Not removed: the pipeline needs no right to delete what lies in work/.
            self.store.put(statement_key(key), b"", content_type=JSON)
        self._named.add(key)
        self._known.pop(key, None)
        self.epoch += 1

    def _look(self, key: str) -> Entry | None:
        reason = ""
        for number in range(1 if key in self._named else TRIES):
            if number:
                time.sleep(PAUSE_S)
            try:
                sealed = self.store.get(statement_key(key), limit_bytes=STATEMENT_LIMIT_BYTES)
            except TooLargeError as e:
                reason = str(e)
                break
            if sealed is None or not sealed.data:
                if key in self._named or not self.store.exists(key):
                    return None
                reason = ""
                if UNSIGNED in self._told:
                    break
                continue  # it may be written just now
            found = self._verify(key, sealed.data)
            if found is None:
                return None
            statement, keyid = found
            reason = self._compare_record(key, statement.record_sha256)
            if not reason:
                return Entry(statement.record_sha256, statement.files, statement, sealed.data, keyid)
        if reason:
            self._tell(key, reason)
        else:
            self._tell_unsigned(key)
        return None

    def _verify(self, key: str, data: bytes) -> tuple[Statement, str] | None:
        """Return the statement of a record, and the id of its key; None, with a warning, if it is none."""
        keys = self._keys()  # a fault of the roots is none of this record
        try:
            return verify_statement(data, keys, key, step_of(key))
        except ForeignKeyError as e:
            self._tell_foreign(key, e)
        except TrustError as e:
            self._tell(key, str(e))
        return None

    def _compare_record(self, key: str, sha256: str) -> str:
        """Read a record, and keep it if it is the one that was signed; return what is wrong with it."""
        try:
            found = self.store.get(key)  # within the limit of its kind
        except TooLargeError as e:
            return str(e)
        if found is None:
            return "the record is gone"
        if hashlib.sha256(found.data).hexdigest() != sha256:
            return "not the record that was signed"
        self._last = (key, found.data)
        return ""

    def _look_unsigned(self, key: str) -> Entry | None:
        if not self.store.exists(key):
            return None
        if not self._known and self.store.exists(statement_key(key)):
            msg = (
                f"{self.store.url(key)}: results here are signed, and this machine has no [trust] root. Give "
                "it device/root.json and pipeline/work.pem, of `edge-keys make`; it needs no other key"
            )
            raise SettingsError(msg)
        return Entry()

    def _keys(self) -> Mapping[str, Key]:
        return self._trust.keys() if self._trust is not None else {}

    def _tell_unsigned(self, key: str) -> None:
        """Name a record that nobody signed."""
        reason = (
            "no statement of this pipeline: it was made by an earlier version, or put there by somebody else"
        )
        self._tell_one_of_many(key, UNSIGNED, reason)

    def _tell_foreign(self, key: str, error: ForeignKeyError) -> None:
        """Name a record that no trusted key signed; after a theft, all of them are: as unsigned ones."""
        disowned = self._trust.disowned() if self._trust is not None else frozenset()
        if key in self._named or not error.keyids & disowned:
            self._tell(key, f"{error}, or this machine lacks a newer root, which names it")
            return
        reason = f"{error}, a key that `edge-keys rotate --stolen` replaced"
        self._tell_one_of_many(key, DISOWNED, reason)

    def _tell_one_of_many(self, key: str, kind: str, reason: str) -> None:
        """Name a record: the first one of its kind in a run in a warning, the others as news."""
        self._named.add(key)
        level = logging.INFO if kind in self._told else logging.WARNING
        self._told.add(kind)
        logger.log(
            level,
            "%s: %s. Such results count as absent and are computed again; others are named without a warning",
            self.store.url(key),
            reason,
        )

    def _tell(self, key: str, reason: str) -> None:
        if key not in self._named:
            self._named.add(key)
            logger.warning("%s: %s; it counts as absent and is computed again", self.store.url(key), reason)

    # Writing

    def save(
        self,
        record: File,
        folder: str,
        files: Sequence[File] = (),
        inputs: Iterable[str] = (),
        *,
        replace: bool = False,
    ) -> None:
        """Save a result: its files, its record, and last the statement about all of them.

        Args:
            record: The record.
            folder: Key of the folder, ending in /.
            files: The other files.
            inputs: Keys of the records that the result was made of.
            replace: Whether a signed result that is there is replaced; else it counts, since another machine
                was faster.
        Raises: SettingsError if the result cannot be signed; EvidenceError if an input is gone.
        """
        key = folder + record.name
        if not replace and self._trust is not None:
            self._known.pop(key, None)
            if self.find(key) is not None:
                return
        for one in (*files, record):
            self.store.put(folder + one.name, one.data, content_type=one.content_type)
        if self._trust is None:
            self._known[key] = Entry()
            self._tell_no_root()
            return
        digests = {one.name: hashlib.sha256(one.data).hexdigest() for one in (*files, record)}
        statement, envelope, keyid = self.sign(step_of(key), key, digests, self.describe_inputs(inputs))
        self.store.put(statement_key(key), envelope, content_type=JSON)
        self._known[key] = Entry(digests[record.name], digests, statement, envelope, keyid)
        self._last = ("", b"")

    def describe_inputs(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the digest of each input by key, as this process saw it; of a snapshot, all files."""
        found: dict[str, str] = {}
        for key in keys:
            entry, folder = self.entry(key), key.rpartition("/")[0] + "/"
            found[key] = entry.sha256
            if key.startswith("work/snapshots/"):
                found |= {folder + name: sha256 for name, sha256 in entry.files.items()}
        return found

    def sign(
        self, step: str, address: str, files: Mapping[str, str], inputs: Mapping[str, str]
    ) -> tuple[Statement, bytes, str]:
        """Return a statement, its signed envelope, and the id of the key.

        Raises: SettingsError without keys.
        """
        from luigi_tasks.provenance import flatten_settings, package_versions  # noqa: PLC0415 - NumPy

        if self._trust is None:
            raise SettingsError(
                "[trust] root does not exist, so nothing can be signed; run `edge-keys make`, or correct it"
            )
        settings = flatten_settings(self._settings) if self._settings is not None else {}
        statement = make_statement(
            step, address, files, inputs, package_versions(), settings, self._started, utc_now()
        )
        signer = self._open_signer(self._trust)
        return statement, sign_statement(statement, signer), signer.public_key.keyid

    @staticmethod
    def _open_signer(trust: WorkTrust) -> Signer:
        try:
            return trust.signer()
        except SettingsError as e:
            msg = (
                f"This machine cannot sign its results: {e}. A machine that computes needs device/root.json "
                "([trust] root) and pipeline/work.pem ([trust] keys), and no other key"
            )
            raise SettingsError(msg) from e

    def _tell_no_root(self) -> None:
        if UNSIGNED not in self._told:
            self._told.add(UNSIGNED)
            logger.info("[trust] root does not exist: results stay unsigned, and nothing can be published")
