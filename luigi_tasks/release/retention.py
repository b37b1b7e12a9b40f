"""What stays signed: every device reads all of the targets' metadata at every release."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.contract.names import is_patch
from edge_client.contract.release import ChannelDocument
from luigi_tasks.release.pointers import decode_pointer, named_by, read_pointer
from luigi_tasks.release.published import NOT_FOR_DEVICES, releases_in_order
from luigi_tasks.release.rollouts_key import is_pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from tuf.api.metadata import TargetFile

    from luigi_tasks.release.published import RepositoryState


def drop_old(
    signed: dict[str, TargetFile],
    state: RepositoryState,
    changed: Mapping[str, bytes],
    keep_releases: int,
    in_use: Callable[[], Collection[str] | None],
) -> None:
    """Drop releases beyond `keep_releases` that no channel, rollout or device needs, and patches of such.

    A release that is newer than all that are named keeps its patches: its rollout may be about to begin.

    Args:
        signed: All signed files, which are changed.
        state: What was published.
        changed: Content of pointers and rollout documents that move now, by target path.
        keep_releases: `[trust] keep_releases`.
        in_use: Returns the releases that devices have; None: unknown, and no release is dropped. It is asked
            only if there is one to drop.
    """
    pointers = [
        decode_pointer(path, changed[path]) if path in changed else read_pointer(state, path)
        for path in filter(is_pointer, signed)
    ]
    named = {one for pointer in pointers for one in named_by(pointer)}
    withdrawn = {
        one for pointer in pointers if isinstance(pointer, ChannelDocument) for one in pointer.withdrawn
    }
    order = releases_in_order(signed)
    old = set(order[: max(len(order) - keep_releases, 0)]) - named
    if old:
        used = in_use()
        old = set() if used is None else old.difference(used)
    newest_named = max((number for number, one in enumerate(order) if one in named), default=-1)
    patched = {*named, *order[newest_named + 1 :]} - (withdrawn - named)
    for path in list(signed):
        folder, _, rest = path.partition("/")
        release, _, name = rest.partition("/")
        is_unneeded = is_patch(name) and release not in patched
        if folder == "releases" and (release in old or is_unneeded or name in NOT_FOR_DEVICES):
            del signed[path]
