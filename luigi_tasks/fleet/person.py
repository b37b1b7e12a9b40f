"""Who decides, for the fleet's records."""

from __future__ import annotations

import getpass
import os
import socket


def person() -> str:
    """Return who runs this, such as `ann@board`."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"
