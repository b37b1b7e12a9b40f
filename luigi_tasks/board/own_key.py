"""Whether this machine has the rollouts key, so that people can decide on the board."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.contract.errors import EdgeError, TransportError
from luigi_tasks.board.shared_reading import SharedReading

if TYPE_CHECKING:
    from luigi_tasks.fleet.documents import SignedDocuments

# An answer takes requests: a page waits so long for it, and then shows the one before.
_WAIT_S = 1.0


class OwnKey:
    """Asks for it, as often as pages want to know; one at a time.

    Args:
        documents: What the key signs.
    """

    def __init__(self, documents: SignedDocuments) -> None:
        self._documents = documents
        self._fault = ""
        self._reading = SharedReading("rollouts key", self._read)

    def fault(self) -> str:
        """Return why this machine cannot sign what a person decides; empty: nothing says that it cannot."""
        found = self._reading.get(_WAIT_S)
        return self._fault if found is None else found

    def _read(self) -> str:
        try:
            self._documents.keys.signer()
            self._fault = ""
        except TransportError:
            pass  # a store that is away says nothing of the key; who decides is told of it
        except EdgeError as e:
            self._fault = f"this machine has no rollouts key, so nothing can be decided here: {e}"
        return self._fault
