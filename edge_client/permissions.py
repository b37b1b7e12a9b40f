"""Files that this process may not read, and the command that lets it.

Imports nothing at its top: the child of an update check loads this before anything else.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def user_name(uid: int) -> str:
    """Return the name of a user, or the number where there is no name."""
    import pwd  # noqa: PLC0415

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def way_to_read(path: Path, *, secret: bool = False) -> str | None:
    """Return the command that lets this process read a file; None if it may, or the file is not there.

    Args:
        path: The file.
        secret: Whether other users of this machine must not read the file.
    """
    import shlex  # noqa: PLC0415

    for folder in reversed(path.parents):
        if folder.is_dir() and not os.access(folder, os.X_OK):
            return f"sudo chmod a+x {shlex.quote(str(folder))}"
    if not path.exists() or os.access(path, os.R_OK):
        return None
    quoted = shlex.quote(str(path))
    return f"sudo chown {user_name(os.geteuid())} {quoted}" if secret else f"sudo chmod a+r {quoted}"
