"""The end of a command that found something wrong, and has a text to show nevertheless."""

from __future__ import annotations

from edge_client.contract.errors import InputError


class FoundFaultsError(InputError):
    """A command did its work, and what it found is not well.

    Attributes:
        text: What it has to show.
        code: Exit code.
    """

    def __init__(self, message: str, text: str, code: int) -> None:
        super().__init__(message)
        self.text = text
        self.code = code
