"""Verification of a signed release by anybody who has the root: what made it, step by step.

It needs what devices can read, and no private key: the signed metadata, the files of the release, and the
statements published with it (`evidence/release.py`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.errors import InputError, TrustError
from edge_client.contract.names import LABELS_FILE, MODEL_FILE, release_target
from luigi_tasks.evidence.chain import walk_chain
from luigi_tasks.evidence.ledger import Entry
from luigi_tasks.evidence.release import EVIDENCE_FILE, release_address
from luigi_tasks.evidence.statement import PUBLICATION_STEP, open_statement, step_of
from luigi_tasks.release.signing import work_keys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from securesystemslib.signer import Key

    from luigi_tasks.evidence.statement import Statement
    from luigi_tasks.release.published import RepositoryState

CANDIDATES, EVALUATIONS = "work/candidates/", "work/evaluations/"


@dataclasses.dataclass(frozen=True)
class ProvenStep:
    """A step of the chain, as its statement tells it.

    Attributes:
        step: e.g. `TrainModel`.
        address: Key of its record.
        finished: UTC, ISO 8601.
        sha256: Hex digest of the record.
        keyid: Id of the work key that signed.
        made_with: Versions of code and packages.
        settings: Settings of the run.
    """

    step: str
    address: str
    finished: str
    sha256: str
    keyid: str
    made_with: Mapping[str, str]
    settings: Mapping[str, str]

    @classmethod
    def of(cls, statement: Statement, keyid: str) -> ProvenStep:
        """Describe a statement."""
        definition = statement.predicate.build_definition
        return cls(
            step=statement.step,
            address=statement.address,
            finished=statement.predicate.run_details.metadata.finished_on,
            sha256=statement.record_sha256,
            keyid=keyid,
            made_with=definition.internal_parameters,
            settings=definition.external_parameters.settings,
        )


@dataclasses.dataclass(frozen=True)
class Proof:
    """What is proven of a release.

    Attributes:
        release: Its id.
        model_sha256: Hex digest of its signed model.
        steps: Steps of the chain, inputs first, the publication last.
        faults: Broken links, one sentence each; empty: all of it holds.
    """

    release: str
    model_sha256: str
    steps: tuple[ProvenStep, ...]
    faults: tuple[str, ...]

    def in_words(self) -> str:
        """Return a table of the steps, and the versions and settings that they have."""
        rows = [("step", "finished", "code", "sha256", "work key", "address")]
        rows += [
            (
                one.step,
                one.finished[:19],
                one.made_with.get("code", ""),
                one.sha256[:12],
                one.keyid[:12],
                one.address,
            )
            for one in self.steps
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        versions = dict.fromkeys(
            ", ".join(f"{name} {version}" for name, version in one.made_with.items() if name != "code")
            for one in self.steps
        )
        lines += [f"made with: {one}" for one in versions]
        lines += [f"release {self.release}: model.tflite has SHA-256 {self.model_sha256}"]
        return "".join(f"{line}\n" for line in lines)

    def to_json(self) -> str:
        """Return the same as one JSON object, with the settings of each step."""
        return msgspec.json.encode({"ok": not self.faults, **dataclasses.asdict(self)}).decode() + "\n"


def verify_release(state: RepositoryState, release: str) -> Proof:
    """Follow a release back to the pictures that it was made of.

    Args:
        state: What is published, verified with the roots.
        release: Its id.
    Raises: InputError if it is not signed; TrustError if a file is not the signed one; SettingsError if no
        root names a work key; TransportError.
    """
    for name in _signed_files(state, release):  # raises where the store holds something else
        state.read(release_target(release, name))
    return trace_release(state, release)


def trace_release(state: RepositoryState, release: str) -> Proof:
    """Follow a release back to its pictures by the statements alone: its other files are not read.

    Args:
        state: What is published, verified with the roots.
        release: Its id.
    Raises: As `verify_release`.
    """
    files = _signed_files(state, release)
    if not files:
        known = ", ".join(state.releases()[-5:]) or "none"
        msg = f"release {release}: not signed here (any more); the newest are {known}"
        raise InputError(msg)
    model = files.get(MODEL_FILE, "")
    if EVIDENCE_FILE not in files:
        fault = f"{EVIDENCE_FILE}: missing; the release was published before there was evidence"
        return Proof(release, model, (), (fault,))
    data = state.read(release_target(release, EVIDENCE_FILE))
    entries, faults = _open_lines(data, work_keys(state.roots))
    own = entries.get(release_address(release))
    if own is None or own.statement is None:
        return Proof(
            release, model, (), (*faults, f"{release_address(release)}: no statement about the release")
        )
    del files[EVIDENCE_FILE]
    faults += _compare_files(release, files, own.files)
    proven, broken = _follow(entries, own.statement.inputs, files)
    steps = [ProvenStep.of(one.statement, one.keyid) for one in (*proven, own) if one.statement is not None]
    return Proof(release, model, tuple(steps), (*faults, *broken))


def _signed_files(state: RepositoryState, release: str) -> dict[str, str]:
    """Return the digests of a release's files by name; not those that another publication may add or drop."""
    folder = release_target(release, MODEL_FILE).rpartition("/")[0] + "/"
    found = {
        path.removeprefix(folder): file.hashes["sha256"]
        for path, file in state.files.items()
        if path.startswith(folder)
    }
    # Compressed models and patches are made from the model.
    return {name: sha256 for name, sha256 in found.items() if not name.startswith(f"{MODEL_FILE}.")}


def _open_lines(data: bytes, keys: Mapping[str, Key]) -> tuple[dict[str, Entry], list[str]]:
    entries: dict[str, Entry] = {}
    faults = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            statement, keyid = open_statement(line, keys)
            expected = step_of(statement.address) or PUBLICATION_STEP
            if statement.step != expected:
                msg = f"it is of step {statement.step[:80]}, {expected} was expected"
                raise TrustError(msg)
        except TrustError as e:
            faults.append(f"{EVIDENCE_FILE}, line {number}: {e}")
            continue
        entries[statement.address] = Entry(statement.record_sha256, statement.files, statement, line, keyid)
    return entries, faults


def _compare_files(release: str, signed: Mapping[str, str], stated: Mapping[str, str]) -> list[str]:
    return [
        f"{release_target(release, name)}: the statement about the release is about another file"
        for name in sorted({*signed, *stated})
        if signed.get(name) != stated.get(name)
    ]


def _follow(
    entries: Mapping[str, Entry], tops: Mapping[str, str], files: Mapping[str, str]
) -> tuple[list[Entry], list[str]]:
    """Return the results of the chain, inputs first, and what is wrong with it."""
    candidates = [key for key in tops if key.startswith(CANDIDATES)]
    evaluations = [key for key in tops if key.startswith(EVALUATIONS)]
    if len(candidates) != 1 or len(evaluations) != 1:
        reason = "the release names no candidate and evaluation: a program published it, not the tasks"
        return [], [reason]
    chain = walk_chain(entries.get, [*candidates, *evaluations])
    faults = list(chain.faults)
    for key, sha256 in tops.items():
        if key in chain.entries and chain.entries[key].sha256 != sha256:
            faults.append(f"{key}: not the one that the release was made of")
    made, judged = chain.entries.get(candidates[0]), chain.entries.get(evaluations[0])
    if made is not None:
        faults += [
            f"{candidates[0]}: its {name} is not the one that is signed"
            for name in (MODEL_FILE, LABELS_FILE)
            if made.files.get(name) != files.get(name)
        ]
    if judged is not None and judged.statement is not None and candidates[0] not in judged.statement.inputs:
        faults.append(f"{evaluations[0]}: an evaluation of another candidate")
    return list(chain.entries.values()), faults
