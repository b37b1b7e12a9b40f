"""Root acts as the owner of the state folder, so that no file of root keeps the service's user out of it.

`sudo edge-client import` beside a service of its own user would otherwise leave files that the service can
neither read nor replace. Before a command touches the state folder, root gives back what it once made there
and becomes the owner for good, with the owner's groups: also the children act as that user, and nothing
below a folder that a less privileged user may write is ever opened by root.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import shlex
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import edge_client
from edge_client.contract.errors import DeviceError
from edge_client.permissions import user_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

logger = logging.getLogger(__name__)

_ROOT = 0


def act_as_owner(
    state_dir: Path, *, apart_from: Collection[Path] = (), serving_user: int | None = None
) -> None:
    """Become the owner of the state folder, where root runs this; refuse users who could only do harm.

    Args:
        state_dir: State folder; nothing happens where it is not there yet, or belongs to root.
        apart_from: Folders below it whose content is somebody else's.
        serving_user: User of the daemon that runs there, or is about to.
    Raises: DeviceError with the command to run instead.
    """
    try:
        owner = state_dir.stat()
    except OSError:
        return  # the command itself makes it, or names the fault
    user = os.geteuid()
    if user == serving_user == _ROOT and user_name(owner.st_uid).isdecimal():
        # In a container, root serves on a folder of a user that only the machine around it knows.
        return
    if user == _ROOT != owner.st_uid:
        _give_back(state_dir, owner, apart_from)
        _become(owner, state_dir)
    elif user not in {_ROOT, owner.st_uid} and not os.access(state_dir, os.W_OK | os.X_OK):
        msg = (
            f"{state_dir} belongs to {user_name(owner.st_uid)}; run `{_as_user(owner.st_uid)}`, or give it "
            f"to this user: `sudo chown -R {user_name(user)} {shlex.quote(str(state_dir))}`"
        )
        raise DeviceError(msg)


def _become(owner: os.stat_result, state_dir: Path) -> None:
    """Take the identity of a user, for good.

    Raises: DeviceError if that is impossible, or the user could not run this program.
    """
    try:
        entry = pwd.getpwuid(owner.st_uid)
    except KeyError:
        entry = None
    try:
        if entry is None:
            os.setgroups([])
        else:
            os.initgroups(entry.pw_name, entry.pw_gid)
        os.setgid(owner.st_gid if entry is None else entry.pw_gid)
        os.setuid(owner.st_uid)
    except OSError as e:
        msg = (
            f"{state_dir} belongs to {user_name(owner.st_uid)}, whom this root cannot become "
            f"({e.strerror}); run `{_as_user(owner.st_uid)}`"
        )
        raise DeviceError(msg) from e
    if entry is not None:
        os.environ.update(HOME=entry.pw_dir, USER=entry.pw_name, LOGNAME=entry.pw_name)
    _check_installation(owner.st_uid, state_dir)
    logger.info("%s belongs to %s: continuing as that user", state_dir, user_name(owner.st_uid))


def _check_installation(uid: int, state_dir: Path) -> None:
    """Raise DeviceError unless this process, which was root, can still run Python and load this package."""
    for path in (Path(sys.executable), Path(edge_client.__file__)):
        readable = os.access(path, os.R_OK | (os.X_OK if path == Path(sys.executable) else 0))
        if not readable:
            msg = (
                f"{state_dir} belongs to {user_name(uid)}, who may not read {path}: install edge-client "
                f"where every user can read it, such as /opt/edge-client, and run `{_as_user(uid)}`"
            )
            raise DeviceError(msg)


def _as_user(uid: int) -> str:
    """Return this command line, run by another user."""
    name = user_name(uid)
    if name.isdecimal():
        name = f"'#{name}'"  # as sudo(8) takes numbers
    program = sys.argv[0]
    if program.endswith(".py"):
        program = f"{sys.executable} -m edge_client.cli"
    return f"sudo -u {name} {program} {shlex.join(sys.argv[1:])}".rstrip()


def _give_back(state_dir: Path, owner: os.stat_result, apart_from: Collection[Path]) -> None:
    """Give to the owner what root made below a folder; never fails, and follows no link.

    The owner may change the folder meanwhile. So a file's owner is changed by the descriptor that was
    looked at, and a file that has a second name, which may lie anywhere, is left alone.
    """
    spared = {path.resolve() for path in apart_from}
    with contextlib.suppress(OSError):
        for folder, folders, files, descriptor in os.fwalk(state_dir):
            folders[:] = [name for name in folders if Path(folder, name).resolve() not in spared]
            for opened, found in _made_by_root(descriptor, [*folders, *files]):
                if stat.S_ISDIR(found.st_mode) or found.st_nlink == 1:
                    with contextlib.suppress(OSError):
                        os.fchown(opened, owner.st_uid, owner.st_gid)


def _made_by_root(folder: int, names: list[str]) -> Iterator[tuple[int, os.stat_result]]:
    """Yield descriptor and state of each file and folder that belongs to root."""
    for name in names:
        try:
            opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except OSError:
            continue
        try:
            found = os.fstat(opened)
            if found.st_uid == _ROOT and (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
                yield opened, found
        finally:
            os.close(opened)
