"""What the gate found of a signed release, where that is kept, and what proves it.

A release carries it as a signed file. One that was published before there was such a file has a signed
statement with the digest of the gate's record: that counts, as long as it still lies in `work/`. The report
lies there alone, since it shows pictures.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import decode_document, decoder_of
from edge_client.contract.errors import InputError, SettingsError, TrustError
from edge_client.contract.names import GATE_FILE, REPORT_FILE, release_target
from luigi_tasks.evidence.release import EVIDENCE_FILE, release_address
from luigi_tasks.evidence.statement import open_statement
from luigi_tasks.gate.records import Evaluation
from luigi_tasks.release.signing import work_keys
from luigi_tasks.release.verify import EVALUATIONS
from luigi_tasks.storage.store import TooLargeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from securesystemslib.signer import Key

    from luigi_tasks.evidence.statement import Statement
    from luigi_tasks.release.published import RepositoryState

# A confusion matrix of 3,000 classes.
GATE_LIMIT_BYTES = 64 << 20
SIGNED, PROVEN = "signed", "proven"


@dataclasses.dataclass(frozen=True)
class KeptGate:
    """The gate's record of a release.

    Attributes:
        evaluation: The record; None: it is not kept, or nothing proves it.
        origin: `signed`: a file of the release; `proven`: in `work/`, with the digest that its statement has.
        missing: Why there is none.
    """

    evaluation: Evaluation | None = None
    origin: str = ""
    missing: str = ""


class NotKeptError(InputError):
    """A result of a release is gone, or nothing proves it."""


class TooLongError(NotKeptError):
    """A result is larger than its reader takes."""


def load_gate(state: RepositoryState, release: str) -> KeptGate:
    """Return what the gate found of a release.

    Raises: TrustError if a signed file is another one in the store; InputError if a record is damaged or of a
            newer version; TransportError.
    """
    path = release_target(release, GATE_FILE)
    if path in state.files:
        return KeptGate(_decode(state.read(path), path, release), SIGNED)
    try:
        key, _, sha256 = _find_evaluation(state, release)
        data = read_proven(state, key, sha256)
        return KeptGate(_decode(data, state.store.url(key), release), PROVEN)
    except NotKeptError as e:
        return KeptGate(missing=str(e))


def load_report(state: RepositoryState, release: str) -> bytes:
    """Return the gate's report of a release, HTML.

    Raises: NotKeptError if it is gone, or is not the one that was signed; as `load_gate`.
    """
    key, evidence, sha256 = _find_evaluation(state, release)
    judged = find_statement(evidence, statement_keys(state), key)
    if judged is None or judged.record_sha256 != sha256 or REPORT_FILE not in judged.files:
        msg = f"{EVIDENCE_FILE} of release {release}: no statement about the report"
        raise NotKeptError(msg)
    return read_proven(state, key.rpartition("/")[0] + f"/{REPORT_FILE}", judged.files[REPORT_FILE])


def _find_evaluation(state: RepositoryState, release: str) -> tuple[str, bytes, str]:
    """Return key and digest of the gate's record by the statement about the release, and all statements."""
    path = release_target(release, EVIDENCE_FILE)
    if path not in state.files:
        raise NotKeptError("the release was published before there was evidence: nothing proves a record")
    evidence = state.read(path)
    own = find_statement(evidence, statement_keys(state), release_address(release))
    if own is None:
        msg = f"{EVIDENCE_FILE}: no statement about the release that a trusted work key signed"
        raise NotKeptError(msg)
    for key, sha256 in own.inputs.items():
        if key.startswith(EVALUATIONS):
            return key, evidence, sha256
    raise NotKeptError("the release names no evaluation: a program published it, not the tasks")


def statement_keys(state: RepositoryState) -> Mapping[str, Key]:
    """Return the keys whose statements count; raises NotKeptError if the root names none."""
    try:
        return work_keys(state.roots)
    except SettingsError as e:  # a root from before there were work keys
        raise NotKeptError(str(e)) from e


def find_statement(evidence: bytes, keys: Mapping[str, Key], address: str) -> Statement | None:
    """Return the signed statement about an address; of the others, maybe thousands, none is verified."""
    for line in reversed(evidence.splitlines()):
        try:
            payload = base64.b64decode(decoder_of(_Sealed).decode(line).payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
            continue
        if address.encode() not in payload:
            continue
        try:
            statement, _ = open_statement(line, keys)
        except TrustError:
            continue
        if statement.address == address:
            return statement
    return None


def read_proven(state: RepositoryState, key: str, sha256: str, limit_bytes: int = GATE_LIMIT_BYTES) -> bytes:
    """Return an object of `work/` whose digest a trusted key signed.

    Raises: NotKeptError if it is gone or another one; TooLongError; TransportError.
    """
    url = state.store.url(key)
    try:
        found = state.store.get(key, limit_bytes=limit_bytes)
    except TooLargeError as e:
        msg = f"{url}: over {limit_bytes >> 20} MiB, which is too long for a page"
        raise TooLongError(msg) from e
    if found is None:
        msg = f"{url}: not kept any more"
        raise NotKeptError(msg)
    if hashlib.sha256(found.data).hexdigest() != sha256:
        msg = f"{url}: not what was signed with the release; it is not shown"
        raise NotKeptError(msg)
    return found.data


def _decode(data: bytes, source: str, release: str) -> Evaluation:
    found = decode_document(Evaluation, data, source=source, limit_bytes=GATE_LIMIT_BYTES)
    if found.release != release:
        msg = f"{source}: about release {found.release[:80]!r}, not {release}"
        raise TrustError(msg)
    return found


class _Sealed(msgspec.Struct):
    payload: str
