"""Who decides, and why, for the fleet's records."""

from __future__ import annotations

import getpass
import os
import socket

from edge_client.contract.errors import InputError
from edge_client.contract.text import one_line

# Characters of a reason, and of a person's name.
HISTORY_CHARACTERS = 500


def person() -> str:
    """Return who runs this, such as `ann@board`."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


def for_history(text: str, name: str) -> str:
    """Return what a person wrote, as a rollout's history keeps it: one line, without control characters.

    Args:
        text: Reason, or name of the person.
        name: Of the option or field, for the message.
    Raises: InputError if it is empty or too long.
    """
    text = one_line(text.strip())
    if not text or len(text) > HISTORY_CHARACTERS:
        msg = f"{name}: give 1 to {HISTORY_CHARACTERS} characters, for the rollout's history"
        raise InputError(msg)
    return text
