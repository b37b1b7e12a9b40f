"""Signing keys: their files, the roots that name them, and the signatures of metadata.

A root is replaced by a newer one that it signed. `[trust] root` is the initial trusted root; earlier and
later versions are next to it as `N.root.json`, as `edge-keys` writes them.

Keys are securesystemslib signers: a folder of PKCS#8 PEM files (`key_files.py`), or a URI for a KMS or HSM.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge_client.contract.errors import SettingsError, TrustError
from edge_client.contract.names import ROLLOUTS_ROLE
from luigi_tasks.release.rollouts_key import KEY_FILE, keys_by_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from securesystemslib.signer import Key, Signer
    from tuf.api.metadata import Metadata, Root

    from luigi_tasks.release.key_files import Passphrases
    from luigi_tasks.release.rollouts_key import RolloutsKey
    from luigi_tasks.settings.values import TrustSettings

ONLINE_ROLES = ("targets", "snapshot", "timestamp")
# Signs statements about the pipeline's own results, nothing that devices read. Root names its keys in a field
# of this name: TUF has no such role, and its clients keep unknown fields.
WORK_ROLE = "work"
# Roles whose keys a root names; targets name that of ROLLOUTS_ROLE.
PIPELINE_ROLES = (*ONLINE_ROLES, WORK_ROLE)
ROLE_MARK = "{role}"
# Field of a signed root: content that only keys of earlier roots signed must not be signed again.
DISOWNS_FIELD = "x-edge-disowns-earlier"


def load_root(path: Path) -> Metadata[Root]:
    """Read the trusted root metadata.

    Raises: SettingsError if the file is missing, TrustError if it is not a self-signed root.
    """
    from securesystemslib.exceptions import StorageError  # noqa: PLC0415
    from tuf.api.exceptions import RepositoryError  # noqa: PLC0415
    from tuf.api.metadata import Metadata, Root  # noqa: PLC0415

    try:
        root = Metadata[Root].from_file(str(path))
        root.verify_delegate(Root.type, root)
    except StorageError as e:
        msg = f"{path.absolute()}: no trusted root metadata; run `edge-keys make` or correct [trust] root"
        raise SettingsError(msg) from e
    except RepositoryError as e:
        msg = f"{path}: not a root document signed by its own keys ({e}); use the one that `edge-keys` made"
        raise TrustError(msg) from e
    return root


def load_roots(path: Path) -> list[Metadata[Root]]:
    """Read the trusted root and the chain of roots before and after it, oldest first.

    Args:
        path: `[trust] root`; the others are next to it as `N.root.json`, without gaps.
    Raises: As `load_root`; TrustError if a root is not signed by the one before it.
    """
    roots = [load_root(path)]
    while (older := root_file(path, roots[0].signed.version - 1)).is_file():
        found = load_root(older)
        check_successor(found, roots[0], path)
        roots.insert(0, found)
    while (newer := root_file(path, roots[-1].signed.version + 1)).is_file():
        found = load_root(newer)
        check_successor(roots[-1], found, newer)
        roots.append(found)
    return roots


def root_file(path: Path, version: int) -> Path:
    """Return the path of another version of the root at `path`."""
    return path.with_name(f"{version}.root.json")


def trusted_roots(roots: Sequence[Metadata[Root]]) -> Iterator[Metadata[Root]]:
    """Yield the roots whose signatures count, newest first, back to one that disowns the roots before it."""
    for root in reversed(roots):
        yield root
        if root.signed.unrecognized_fields.get(DISOWNS_FIELD):
            return


def disowning_version(roots: Sequence[Metadata[Root]]) -> int:
    """Return the version of the newest root that disowns the roots before it; 0: none does."""
    versions = [one.signed.version for one in roots if one.signed.unrecognized_fields.get(DISOWNS_FIELD)]
    return max(versions, default=0)


def check_successor(before: Metadata[Root], after: Metadata[Root], path: Path | str) -> None:
    """Check that a root, at `path`, is the version after `before`, signed by the keys of both.

    Raises: TrustError.
    """
    from tuf.api.exceptions import RepositoryError  # noqa: PLC0415
    from tuf.api.metadata import Root  # noqa: PLC0415

    try:
        before.verify_delegate(Root.type, after)
        after.verify_delegate(Root.type, after)
        if after.signed.version == before.signed.version + 1:
            return
        reason = f"versions {before.signed.version} and {after.signed.version}"
    except RepositoryError as e:
        reason = str(e)
    msg = (
        f"{path}: does not follow root version {before.signed.version} next to it ({reason}); use both "
        "from the folder in which `edge-keys rotate` wrote them"
    )
    raise TrustError(msg)


def work_keyids(root: Root) -> list[str]:
    """Return the ids of the work keys that a root names; empty if it names none.

    Raises: TrustError if the root's field has another form.
    """
    named = root.unrecognized_fields.get(WORK_ROLE)
    if named is None:
        return []
    try:
        return [keyid for keyid in named["keyids"] if root.keys[keyid]]
    except (KeyError, TypeError) as e:
        msg = f"root version {root.version}: its field {WORK_ROLE!r} names no keys of it ({e!r})"
        raise TrustError(msg) from e


def work_keys(roots: Sequence[Metadata[Root]]) -> dict[str, Key]:
    """Return the keys, by id, whose statements about the pipeline's results count.

    Args:
        roots: The chain, oldest first. Keys that were replaced count on, unless a later root disowns them.
    Raises: SettingsError if the newest root names no work key.
    """
    if not work_keyids(roots[-1].signed):
        raise _no_work_key(roots[-1].signed)
    return {
        keyid: root.signed.keys[keyid] for root in trusted_roots(roots) for keyid in work_keyids(root.signed)
    }


def disowned_work_keys(roots: Sequence[Metadata[Root]]) -> frozenset[str]:
    """Return the ids of the work keys that do not count any more, since a later root disowns them."""
    named = {keyid for root in roots for keyid in work_keyids(root.signed)}
    return frozenset(named - work_keys(roots).keys())


def open_work_signer(root: Root, settings: TrustSettings) -> Signer:
    """Return the signer of statements about the pipeline's results.

    Raises: SettingsError if the root names no work key, or the key is missing.
    """
    keyids = work_keyids(root)
    if not keyids:
        raise _no_work_key(root)
    return _open(root.keys, settings, WORK_ROLE, keyids, 1)[0]


def _no_work_key(root: Root) -> SettingsError:
    return SettingsError(
        f"[trust] root: version {root.version} names no work key, which signs the pipeline's results; run "
        f"`edge-keys rotate FOLDER --role {WORK_ROLE}` with the root keys, then `edge-keys publish`"
    )


def open_signers(root: Root, settings: TrustSettings, role: str) -> list[Signer]:
    """Return as many signers for `role` as its threshold asks.

    Raises: SettingsError if a key is missing or not named by the root.
    """
    needed = root.roles[role]
    return _open(root.keys, settings, role, needed.keyids, needed.threshold)


class NamesRolloutsKey(Protocol):
    """What is published, as far as the rollouts key is asked for."""

    @property
    def rollouts_key(self) -> RolloutsKey | None:
        """The key that the next targets name."""


def rollout_keys(state: NamesRolloutsKey) -> Mapping[str, Key]:
    """Return the keys, by id, whose signatures under the fleet's documents count.

    Those that were replaced in routine count on; those of before a theft do not.
    Raises: SettingsError if there is no rollouts key.
    """
    if state.rollouts_key is None:
        raise _no_rollouts_key()
    return keys_by_id(state.rollouts_key)


def open_rollout_signer(state: NamesRolloutsKey, settings: TrustSettings) -> Signer:
    """Return the signer of channels, rollouts and the fleet's documents.

    Raises: SettingsError if there is no rollouts key, or not on this machine.
    """
    if state.rollouts_key is None:
        raise _no_rollouts_key()
    keyid = state.rollouts_key.key.keyid
    return _open(keys_by_id(state.rollouts_key), settings, ROLLOUTS_ROLE, [keyid], 1)[0]


def _no_rollouts_key() -> SettingsError:
    return SettingsError(
        f"[trust] root: no rollouts key, which signs rollouts: run `edge-keys add-rollouts-key FOLDER`, put "
        f"{KEY_FILE} next to [trust] root and {ROLLOUTS_ROLE}.pem into [trust] keys, then run `edge-keys "
        "publish`"
    )


def _open(
    keys: Mapping[str, Key], settings: TrustSettings, role: str, keyids: Sequence[str], threshold: int
) -> list[Signer]:
    from luigi_tasks.release.key_files import (  # noqa: PLC0415 - a run with nothing to sign
        PASSPHRASE_VARIABLE,
        Passphrases,
        read_passphrase,
    )

    signers: list[Signer] = []
    faults: list[str] = []
    passphrases = Passphrases(way_out=f"[trust] passphrase_file, or {PASSPHRASE_VARIABLE}, names its file")
    if (passphrase := read_passphrase(settings.passphrase_file, PASSPHRASE_VARIABLE)) is not None:
        passphrases.known = (passphrase,)
    for place in _key_places(settings.keys, role, threshold):
        for keyid in keyids:
            try:
                signers.append(_open_signer(place, passphrases, keys[keyid]))
                break
            except (SettingsError, OSError, ValueError, TypeError) as e:
                faults.append(str(e) if isinstance(e, SettingsError) else f"{place}: {e}")
    if len(signers) < threshold:
        msg = (
            f"{len(signers)} of {threshold} keys for role {role} can sign: "
            f"{'; '.join(dict.fromkeys(faults)) or 'none found'}. Put the keys that `edge-keys make` or "
            f"`rotate` wrote into [trust] keys ({settings.keys})"
        )
        raise SettingsError(msg)
    return signers


def _open_signer(place: str | Path, passphrases: Passphrases, key: Key) -> Signer:
    from securesystemslib.signer import Signer  # noqa: PLC0415

    from luigi_tasks.release.key_files import open_key  # noqa: PLC0415 - as above

    if isinstance(place, Path):
        return open_key(place, passphrases, key)
    return Signer.from_priv_key_uri(place, key)


def _key_places(keys: str, role: str, threshold: int) -> Sequence[str | Path]:
    """Return the files that may hold a role's keys, or the URI of one elsewhere."""
    if ROLE_MARK in keys:
        return [keys.replace(ROLE_MARK, role)]
    folder = Path(keys).expanduser().absolute()
    paths = sorted(folder.glob(f"{role}.pem")) + sorted(folder.glob(f"{role}-*.pem"))
    return [*(paths or [folder / f"{role}.pem"])][: max(threshold, 1) * 8]
