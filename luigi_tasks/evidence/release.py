"""Evidence of a release: the statements of the chain that made it, published next to it.

One envelope a line, inputs before what was made of them; the last one is about the release itself.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge_client.contract.errors import TrustError
from edge_client.contract.names import LABELS_FILE, MODEL_FILE
from luigi_tasks.evidence.chain import Chain, walk_chain
from luigi_tasks.evidence.ledger import EvidenceError
from luigi_tasks.evidence.statement import PUBLICATION_STEP, strip_envelope
from luigi_tasks.logs import LUIGI_LOGGER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from luigi_tasks.evidence.ledger import Ledger

EVIDENCE_FILE = "evidence.intoto.jsonl"

logger = logging.getLogger(LUIGI_LOGGER)


def release_address(release: str) -> str:
    """Return the address in the statement about a release."""
    return f"releases/{release}/release.json"


class Evidence:
    """Signed statements about what made a candidate.

    Args:
        ledger: Signs.
        tops: Keys of the candidate and of its evaluation, in this order; none where a program made both in
            its memory.
    Raises: EvidenceError if the chain is broken; what stands on the broken link is given up then.
    """

    def __init__(self, ledger: Ledger, tops: Sequence[str] = ()) -> None:
        self._ledger = ledger
        self._tops = tops
        self._chain = self._trace(tops)

    def _trace(self, tops: Sequence[str]) -> Chain:
        chain = walk_chain(self._ledger.find, tops)
        faults, stale = list(chain.faults), list(chain.stale)
        for key in tops[1:]:
            entry = chain.entries.get(key)
            if entry is not None and entry.statement is not None and tops[0] not in entry.statement.inputs:
                faults.append(f"{key}: an evaluation of another candidate")
                stale.append(key)
        if not faults:
            return chain
        for one in faults:
            if not self._ledger.was_named(one.partition(": ")[0]):
                logger.warning("Evidence: %s; what stands on it is computed again", one)
        for key in stale:
            self._ledger.withdraw(key)
        msg = (
            f"the evidence is broken: {'; '.join(faults)}. Run again; if it is so each time, find out who "
            "else writes work/"
        )
        raise EvidenceError(msg)

    def write(self, release: str, files: Mapping[str, str]) -> bytes:
        """Return `evidence.intoto.jsonl`.

        Args:
            release: The release's id.
            files: Hex SHA-256 of each of its files by name.
        Raises: SettingsError if nothing can be signed; TrustError if the model is not the proven candidate's.
        """
        for key in self._tops[:1]:
            proven = self._chain.entries[key].files
            for name in (MODEL_FILE, LABELS_FILE):
                if proven.get(name) != files.get(name):
                    msg = f"release {release}: {name} is not the one that {key} was signed with; run again"
                    raise TrustError(msg)
        inputs = {key: self._chain.entries[key].sha256 for key in self._tops}
        _, envelope, _ = self._ledger.sign(PUBLICATION_STEP, release_address(release), files, inputs)
        chain = (strip_envelope(one.envelope, one.keyid) for one in self._chain.entries.values())
        return b"".join(line + b"\n" for line in (*chain, envelope))
