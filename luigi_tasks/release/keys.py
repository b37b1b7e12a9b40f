"""Creation and rotation of the signing keys.

A rotation takes effect when one file appears: `device/N.root.json`, the new root. Before that, the new keys
are next to the old ones and no root names them; after it, the pipeline uses them, because it uses the newest
root next to `[trust] root`. The remaining work (root.json for new devices, old keys to `retired/`) is done by
the next run if this one was interrupted. The pipeline publishes the roots at its next Deploy, or at once with
`edge-keys publish` (`repository.py`).

The rollouts key needs no root (`rollouts_key.py`): a new one takes effect when `device/rollouts-key.json`
names it.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import sys
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError, SettingsError
from edge_client.contract.names import ROLLOUTS_ROLE
from edge_client.contract.times import current_time
from edge_client.disk import disk_errors, sync_folder, write_durably
from luigi_tasks.release.key_files import (
    NotAKeyError,
    Passphrases,
    is_encrypted,
    open_key,
    read_keyid,
    write_key,
)
from luigi_tasks.release.rollouts_key import (
    PublicKey,
    RolloutsKey,
    load_rollouts_key,
    rollouts_key_path,
    write_rollouts_key,
)
from luigi_tasks.release.signing import (
    DISOWNS_FIELD,
    PIPELINE_ROLES,
    WORK_ROLE,
    check_successor,
    load_root,
    load_roots,
    root_file,
    work_keyids,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from securesystemslib.signer import CryptoSigner, Key
    from tuf.api.metadata import Metadata, Root

ROOT_YEARS = 5
ROOT_ROLE = "root"


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Changes in a new root.

    Attributes:
        roles: Roles that get new keys; empty: the root is only renewed.
        root_keys: Number of root keys; None: as many as before. Only where root is among `roles`.
        threshold: Number of root keys that must sign a root; None: as many as before.
        stolen: Whether an attacker may have the old keys: content signed by them alone is disowned.
        years: Lifetime of the new root.
    """

    roles: tuple[str, ...] = ()
    root_keys: int | None = None
    threshold: int | None = None
    stolen: bool = False
    years: int = ROOT_YEARS


def make_keys(
    folder: Path,
    *,
    root_keys: int = 1,
    threshold: int = 1,
    years: int = ROOT_YEARS,
    root_passphrase: str | None = None,
    passphrase: str | None = None,
) -> None:
    """Write a new set of keys and the root document that names them.

    Args:
        folder: Gets `root/root-N.pem`, `pipeline/{targets,snapshot,timestamp,work,rollouts}.pem`,
            `device/root.json` and `device/rollouts-key.json`.
        root_keys: Number of root keys.
        threshold: Number of root keys that must sign a new root.
        years: Lifetime of the root document.
        root_passphrase: Encrypts the root keys; None: they are plain.
        passphrase: Encrypts the pipeline's keys; None: they are plain.
    Raises: InputError if `folder` has keys already: devices could never follow new ones.
    """
    from tuf.api.metadata import Metadata, Root  # noqa: PLC0415

    check_vacant(folder)
    _check_threshold(threshold, root_keys)
    root = Root(consistent_snapshot=True, expires=_in_years(years))
    files = {folder / "root" / f"root-{number}.pem": ROOT_ROLE for number in range(1, root_keys + 1)}
    files |= {folder / "pipeline" / f"{role}.pem": role for role in PIPELINE_ROLES}
    signers = _write_keys(files, root_passphrase, passphrase)
    [rollouts] = _write_keys({_rollouts_file(folder, 1): ROLLOUTS_ROLE}, None, passphrase).values()
    key = RolloutsKey(since_root=root.version, key=PublicKey.of(rollouts.public_key))
    write_rollouts_key(_root_path(folder), key)
    for path, signer in signers.items():
        _name_key(root, signer.public_key, files[path])
    root.roles[ROOT_ROLE].threshold = threshold
    metadata = Metadata(root)
    _sign(metadata, [signer for path, signer in signers.items() if files[path] == ROOT_ROLE])
    _write_root(_root_path(folder), metadata.to_bytes())


def add_rollouts_key(folder: Path, passphrase: str | None = None) -> bool:
    """Give a folder of an earlier version its rollouts key; no other key is needed.

    Args:
        folder: Folder that `make_keys` wrote.
        passphrase: Encrypts the key; None: it is plain.
    Returns: Whether there was none.
    Raises: SettingsError if `folder` has no root, or its other keys are encrypted and this one would not be.
    """
    root = load_root(_root_path(folder))
    if load_rollouts_key(_root_path(folder)) is not None:
        return False
    _replace_rollouts_key(folder, None, root.signed.version, passphrase, stolen=False)
    return True


def _replace_rollouts_key(
    folder: Path, old: RolloutsKey | None, since_root: int, passphrase: str | None, *, stolen: bool
) -> None:
    """Write a new rollouts key, then the file that names it."""
    if passphrase is None:
        _check_plain(folder)
    version = 1 if old is None else old.version + 1
    [signer] = _write_keys({_rollouts_file(folder, version): ROLLOUTS_ROLE}, None, passphrase).values()
    earlier = () if old is None or stolen else (*old.earlier, old.key)
    key = RolloutsKey(
        version=version, since_root=since_root, key=PublicKey.of(signer.public_key), earlier=earlier
    )
    write_rollouts_key(_root_path(folder), key)


def _rollouts_file(folder: Path, version: int) -> Path:
    return folder / "pipeline" / f"{ROLLOUTS_ROLE}{f'-v{version}' if version > 1 else ''}.pem"


def check_vacant(folder: Path) -> None:
    """Refuse a folder that has keys already: devices could never follow new ones.

    Raises: InputError.
    """
    if any(folder.rglob("*.pem")) or _root_path(folder).exists():
        msg = f"{folder}: holds keys already; choose another folder"
        raise InputError(msg)


def rotate_keys(
    folder: Path,
    rotation: Rotation,
    passphrases: Passphrases | None = None,
    *,
    root_passphrase: str | None = None,
    passphrase: str | None = None,
) -> int:
    """Write a new root with new keys; the old keys move to `retired/`.

    Interrupted at any moment, it leaves a working set of keys: the old one or the new one. For the rollouts
    key alone there is no new root, and no root key is needed.

    Args:
        folder: Folder that `make_keys` wrote; in `root/`, as many keys as the threshold requires.
        rotation: The changes.
        passphrases: Of the root keys in the folder.
        root_passphrase: Encrypts new root keys; None: that of the old ones, if they are encrypted.
        passphrase: Encrypts new keys of the pipeline; None: they are plain.
    Returns: The newest root's version.
    Raises: SettingsError if root keys or passphrases are missing; InputError; TrustError if the roots are
        damaged.
    """
    finish_rotation(folder)
    old, passphrases = load_root(_root_path(folder)), passphrases or Passphrases()
    rollouts = _demand_rollouts_key(folder) if ROLLOUTS_ROLE in rotation.roles else None
    if rotation.roles == (ROLLOUTS_ROLE,) and not rotation.stolen:
        _replace_rollouts_key(folder, rollouts, old.signed.version, passphrase, stolen=False)
        finish_rotation(folder)
        return old.signed.version
    signers = _open_root_signers(folder, old, passphrases)
    if passphrase is None and any(role != ROOT_ROLE for role in rotation.roles):
        _check_plain(folder)
    if root_passphrase is None and any(map(is_encrypted, _root_key_files(folder))):
        root_passphrase = passphrases.known[-1]
    files = _new_root_files(folder, old.signed, rotation)
    new_keys = _write_keys(files, root_passphrase, passphrase)
    new = _build_root(old, rotation, {path: (files[path], one.public_key) for path, one in new_keys.items()})
    new_signers = [one for path, one in new_keys.items() if files[path] == ROOT_ROLE]
    _sign(new, [*signers, *new_signers])
    path, version = _root_path(folder), new.signed.version
    check_successor(old, new, f"new root {version}")
    if rollouts is not None:  # before the root, which disowns it after a theft
        _replace_rollouts_key(folder, rollouts, version, passphrase, stolen=rotation.stolen)
    _add_root(path, new)
    finish_rotation(folder)
    return version


def _add_root(path: Path, new: Metadata[Root]) -> None:
    """Write a new root next to the one at `path`, of which a copy stays under its version."""
    version = new.signed.version
    if not (before := root_file(path, version - 1)).exists():
        with disk_errors(path):
            _write_root(before, path.read_bytes())
    _write_root(root_file(path, version), new.to_bytes())


def _demand_rollouts_key(folder: Path) -> RolloutsKey:
    if (found := load_rollouts_key(_root_path(folder))) is None:
        path = rollouts_key_path(_root_path(folder))
        msg = f"{path}: missing, so there is no rollouts key to replace; run `edge-keys add-rollouts-key`"
        raise InputError(msg)
    return found


def finish_rotation(folder: Path) -> None:
    """Finish a rotation that was interrupted; safe at any time.

    Raises: SettingsError, TrustError, DeviceError.
    """
    path = _root_path(folder)
    newest = load_roots(path)[-1]
    if newest.signed.version > load_root(path).signed.version:
        with disk_errors(path):
            _write_root(path, root_file(path, newest.signed.version).read_bytes())
    retired = folder / "retired" / f"{_today()}-before-root-{newest.signed.version}"
    rollouts = load_rollouts_key(path)
    current = {*newest.signed.keys, *([] if rollouts is None else [rollouts.key.keyid])}
    for key, keyid in _read_keyids(_key_files(folder, rollouts)).items():
        if keyid not in current:
            _move(key, retired / key.parent.name / key.name)


def _check_plain(folder: Path) -> None:
    """Refuse to replace encrypted keys of the pipeline by plain ones without a word.

    Raises: SettingsError.
    """
    for path in sorted((folder / "pipeline").glob("*.pem")):
        if is_encrypted(path):
            msg = f"{path}: encrypted; give a passphrase for the new keys too: --passphrase-file FILE"
            raise SettingsError(msg)


def _new_root_files(folder: Path, old: Root, rotation: Rotation) -> dict[Path, str]:
    """Return the files of the new keys, with their roles.

    Raises: InputError for a threshold that cannot be met.
    """
    files: dict[Path, str] = {}
    for role in _of_root(rotation):
        count = len(_keyids(old, role)) or 1
        if role == ROOT_ROLE:
            count = rotation.root_keys or count
            _check_threshold(rotation.threshold or old.roles[role].threshold, count)
        files |= _new_files(folder, role, old.version + 1, count)
    return files


def _build_root(
    old: Metadata[Root], rotation: Rotation, keys: Mapping[Path, tuple[str, Key]]
) -> Metadata[Root]:
    """Return the next root, unsigned, with new keys and their roles."""
    from tuf.api.metadata import Metadata  # noqa: PLC0415

    root = copy.deepcopy(old.signed)
    root.version += 1
    root.expires = _in_years(rotation.years)
    root.unrecognized_fields.pop(DISOWNS_FIELD, None)
    if rotation.stolen:
        root.unrecognized_fields[DISOWNS_FIELD] = True
    for role in _of_root(rotation):
        _revoke_keys(root, role)
    if ROOT_ROLE in rotation.roles:
        root.roles[ROOT_ROLE].threshold = rotation.threshold or old.signed.roles[ROOT_ROLE].threshold
    for role, key in keys.values():
        _name_key(root, key, role)
    return Metadata(root)


def _of_root(rotation: Rotation) -> list[str]:
    """Return the roles among those of a rotation whose keys the root names."""
    return [role for role in rotation.roles if role != ROLLOUTS_ROLE]


def _keyids(root: Root, role: str) -> list[str]:
    return work_keyids(root) if role == WORK_ROLE else list(root.roles[role].keyids)


def _name_key(root: Root, key: Key, role: str) -> None:
    if role != WORK_ROLE:
        root.add_key(key, role)
        return
    root.keys[key.keyid] = key
    root.unrecognized_fields[WORK_ROLE] = {"keyids": [*work_keyids(root), key.keyid], "threshold": 1}


def _revoke_keys(root: Root, role: str) -> None:
    """Name no key for a role any more; a key that another role has too stays among the root's keys."""
    if role != WORK_ROLE:
        for keyid in _keyids(root, role):
            root.revoke_key(keyid, role)
        return
    revoked = work_keyids(root)
    root.unrecognized_fields.pop(WORK_ROLE, None)
    for keyid in revoked:
        if not any(keyid in one.keyids for one in root.roles.values()):
            del root.keys[keyid]


def _new_files(folder: Path, role: str, version: int, count: int) -> dict[Path, str]:
    """Return the files of a role's new keys, next to the old ones; `open_signers` finds those that fit."""
    place = folder / ("root" if role == ROOT_ROLE else "pipeline")
    numbers = [""] if count == 1 and role != ROOT_ROLE else [f"-{n}" for n in range(1, count + 1)]
    return {place / f"{role}-v{version}{number}.pem": role for number in numbers}


def _open_root_signers(folder: Path, root: Metadata[Root], passphrases: Passphrases) -> list[CryptoSigner]:
    """Return the root keys in the folder.

    Raises: SettingsError if there are too few to sign a root, or a passphrase is missing or wrong.
    """
    role = root.signed.roles[ROOT_ROLE]
    found = [
        open_key(path, passphrases)
        for path, keyid in _read_keyids(_root_key_files(folder), passphrases).items()
        if keyid in role.keyids
    ]
    if len(found) < role.threshold:
        msg = (
            f"{folder / 'root'}: holds {len(found)} of the {role.threshold} root keys that must sign a new"
            " root; nothing was changed. Fetch them from where they are kept offline, and put them there"
            " while this runs. If they are lost, no key can be replaced any more: make new ones with"
            " `edge-keys make`, and give every device the new root.json by hand"
        )
        raise SettingsError(msg)
    return found


def _read_keyids(files: Iterable[Path], passphrases: Passphrases | None = None) -> dict[Path, str]:
    """Return the ids of private keys by file; other files are skipped."""
    keyids = {}
    for path in files:
        try:
            keyids[path] = read_keyid(path, passphrases)
        except NotAKeyError as e:
            sys.stderr.write(f"edge-keys: {path} is left as it is: {e}\n")
    return keyids


def _root_key_files(folder: Path) -> list[Path]:
    return sorted((folder / "root").glob("root-*.pem"))


def _key_files(folder: Path, rollouts: RolloutsKey | None) -> Iterator[Path]:
    yield from _root_key_files(folder)
    for role in (*PIPELINE_ROLES, *([] if rollouts is None else [ROLLOUTS_ROLE])):
        yield from sorted((folder / "pipeline").glob(f"{role}*.pem"))


def _move(source: Path, place: Path) -> None:
    """Move a file durably: at any moment it is in one of the two folders."""
    with disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        for folder in (place.parent, place.parent.parent, place.parent.parent.parent):
            folder.chmod(0o700)
        source.replace(place)
        sync_folder(place.parent)
        sync_folder(source.parent)


def _sign(metadata: Metadata[Root], signers: Sequence[CryptoSigner]) -> None:
    for signer in signers:
        metadata.sign(signer, append=True)


def _write_keys(
    files: Mapping[Path, str], root_passphrase: str | None, passphrase: str | None
) -> dict[Path, CryptoSigner]:
    """Generate a key for each file."""
    from securesystemslib.signer import CryptoSigner  # noqa: PLC0415

    signers = {path: CryptoSigner.generate_ed25519() for path in files}
    for path, signer in signers.items():
        write_key(path, signer, root_passphrase if files[path] == ROOT_ROLE else passphrase)
    return signers


def _write_root(path: Path, data: bytes) -> None:
    """Write a root document, which is public: anybody may read it, whatever the umask."""
    write_durably(path, data, mode=0o644)


def _check_threshold(threshold: int, root_keys: int) -> None:
    if not 1 <= threshold <= root_keys:
        msg = f"threshold {threshold} of {root_keys} root keys: give 1 to {root_keys}"
        raise InputError(msg)


def _root_path(folder: Path) -> Path:
    return folder / "device" / "root.json"


def _in_years(years: int) -> datetime.datetime:
    later = current_time() + datetime.timedelta(days=365 * years)
    return later.replace(microsecond=0)


def _today() -> str:
    return current_time().date().isoformat()
