"""What the gate judged lately, published or not: its signed records in `work/`."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import decode_document
from edge_client.contract.errors import TrustError
from edge_client.contract.names import REPORT_FILE
from luigi_tasks.evidence.statement import (
    STATEMENT_LIMIT_BYTES,
    STATEMENT_SUFFIX,
    statement_key,
    step_of,
    verify_statement,
)
from luigi_tasks.gate.records import Evaluation, without_pictures
from luigi_tasks.release.kept_gate import GATE_LIMIT_BYTES, NotKeptError, read_proven, statement_keys
from luigi_tasks.release.verify import EVALUATIONS

if TYPE_CHECKING:
    from luigi_tasks.evidence.statement import Statement
    from luigi_tasks.release.published import RepositoryState
    from luigi_tasks.storage.store import ListedObject, Store

_NAME = re.compile(r"[A-Za-z0-9]{1,128}")
_RECORD = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class Judged:
    """A candidate that the gate judged.

    Attributes:
        name: Names its evaluation in `work/`.
        evaluation: The gate's record, without pictures and confusions.
    """

    name: str
    evaluation: Evaluation


def list_judged(store: Store, at_most: int) -> list[ListedObject]:
    """Return the newest statements about evaluations, the newest first."""
    listed = [
        one
        for one in store.list_folder(EVALUATIONS)
        if one.key.endswith(f"/evaluation{STATEMENT_SUFFIX}") and one.size_bytes
    ]
    listed.sort(key=lambda one: one.written_at or 0.0, reverse=True)
    return listed[:at_most]


def name_of(listed: ListedObject) -> str:
    """Return the name of an evaluation by the key of its statement."""
    return listed.key.removeprefix(EVALUATIONS).partition("/")[0]


def load_judged(state: RepositoryState, name: str) -> Judged:
    """Return what the gate said of a candidate.

    Args:
        state: What is published; its roots name who may sign.
        name: Name of the evaluation.
    Raises: NotKeptError if it is gone or nothing proves it; InputError if it cannot be read; TransportError.
    """
    key, statement = _find(state, name)
    data = read_proven(state, key, statement.record_sha256)
    found = decode_document(Evaluation, data, source=state.store.url(key), limit_bytes=GATE_LIMIT_BYTES)
    found = without_pictures(found)
    candidate = msgspec.structs.replace(found.candidate, confusion=())
    return Judged(name, msgspec.structs.replace(found, candidate=candidate))


def load_judged_report(state: RepositoryState, name: str) -> bytes:
    """Return the gate's report of a candidate, HTML; raises as `load_judged`."""
    key, statement = _find(state, name)
    place = key.rpartition("/")[0] + f"/{REPORT_FILE}"
    return read_proven(state, place, statement.files.get(REPORT_FILE, ""))


def _find(state: RepositoryState, name: str) -> tuple[str, Statement]:
    key = f"{EVALUATIONS}{name}/{_RECORD}"
    url = state.store.url(key)
    if not _NAME.fullmatch(name):
        msg = f"evaluation {name[:40]!r}: no such name"
        raise NotKeptError(msg)
    sealed = state.store.get(statement_key(key), limit_bytes=STATEMENT_LIMIT_BYTES)
    if sealed is None or not sealed.data:
        msg = f"{url}: not kept any more"
        raise NotKeptError(msg)
    try:
        statement, _ = verify_statement(sealed.data, statement_keys(state), key, step_of(key))
    except TrustError as e:
        msg = f"{url}: {e}"
        raise NotKeptError(msg) from e
    return key, statement
