"""The key of the delegated role `rollouts`, which signs where channels and rollouts point.

`targets.json` names the key, so that a new one needs the targets key and no new root. Which key it is to
name stands in `rollouts-key.json` next to `[trust] root`, public as the root is; the private half is
`rollouts.pem` among the pipeline's keys. A key has a number: a machine whose file is older than what is
published names the published one. Source: TUF specification 1.0.34, section 4.5 (delegations).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import InputError, SettingsError
from edge_client.contract.names import ROLLOUTS_ROLE
from edge_client.disk import write_durably

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from securesystemslib.signer import Key
    from tuf.api.metadata import Delegations, TargetFile, Targets

# Target paths that the role may sign; clients ask it for no others.
CHANNELS_FOLDER, ROLLOUTS_FOLDER = "channels/", "rollouts/"
ROLLOUTS_PATHS = (f"{CHANNELS_FOLDER}*.json", f"{ROLLOUTS_FOLDER}*.json")
KEY_FILE = "rollouts-key.json"
KEY_FILE_LIMIT_BYTES = 1 << 20
# Field of the signed delegation with what TUF does not know of the key.
KEY_FIELD = "x-edge-rollouts-key"


class PublicKey(msgspec.Struct, frozen=True, kw_only=True):
    """A public key as TUF writes it."""

    keyid: str
    keytype: str
    scheme: str
    keyval: dict[str, str]

    @classmethod
    def of(cls, key: Key) -> PublicKey:
        """Describe a key."""
        return cls(keyid=key.keyid, keytype=key.keytype, scheme=key.scheme, keyval=dict(key.keyval))

    def open(self) -> Key:
        """Return the key.

        Raises: InputError if it is none.
        """
        from securesystemslib.signer import Key  # noqa: PLC0415 - a run with nothing to do

        fields: dict[str, Any] = {"keytype": self.keytype, "scheme": self.scheme, "keyval": dict(self.keyval)}
        try:
            return Key.from_dict(self.keyid, fields)
        except (KeyError, TypeError, ValueError) as e:
            msg = f"rollouts key {self.keyid[:12]}: not a public key ({e!r})"
            raise InputError(msg) from e


class RolloutsKey(Document, frozen=True, kw_only=True):
    """`rollouts-key.json`: the key that targets are to name for the role.

    Attributes:
        version: Number of the key; a higher one replaces a lower one.
        since_root: Version of the root that came with it; a later root that disowns earlier ones disowns it.
        key: The key.
        earlier: Keys that were replaced in routine: documents of the fleet that they signed still count.
    """

    version: int = 1
    since_root: int = 0
    key: PublicKey
    earlier: tuple[PublicKey, ...] = ()


def is_pointer(path: str) -> bool:
    """Whether a signed file says where a channel or a rollout points: whether the role may sign it."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/" in {CHANNELS_FOLDER, ROLLOUTS_FOLDER} and name.endswith(".json")


def pointers_of(rollouts: Targets) -> dict[str, TargetFile]:
    """Return the files that the role signs, as far as they are its to sign."""
    return {path: file for path, file in rollouts.targets.items() if is_pointer(path)}


def rollouts_key_path(root: Path) -> Path:
    """Return the path of the public key; `root` is `[trust] root`."""
    return root.with_name(KEY_FILE)


def load_rollouts_key(root: Path) -> RolloutsKey | None:
    """Return the key in the file next to `[trust] root`; None if there is no such file.

    Raises: SettingsError if it cannot be read.
    """
    path = rollouts_key_path(root)
    try:
        data = path.read_bytes()
        return decode_document(RolloutsKey, data, source=str(path), limit_bytes=KEY_FILE_LIMIT_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, InputError) as e:
        msg = f"{path}: cannot be used ({e}); copy it again from the folder in which `edge-keys` wrote it"
        raise SettingsError(msg) from e


def write_rollouts_key(root: Path, key: RolloutsKey) -> None:
    """Write the file, which is public: anybody may read it, whatever the umask."""
    write_durably(rollouts_key_path(root), encode_document(key), mode=0o644)


def delegate(key: RolloutsKey) -> Delegations:
    """Return the delegation that names the key."""
    from tuf.api.metadata import DelegatedRole, Delegations  # noqa: PLC0415 - a run with nothing to do

    role = DelegatedRole(
        ROLLOUTS_ROLE, [key.key.keyid], threshold=1, terminating=True, paths=[*ROLLOUTS_PATHS]
    )
    field = {KEY_FIELD: {"version": key.version, "since_root": key.since_root}}
    keys = {one.keyid: one.open() for one in (*key.earlier, key.key)}
    return Delegations(keys, {ROLLOUTS_ROLE: role}, unrecognized_fields=field)


def delegated_key(targets: Targets | None) -> RolloutsKey | None:
    """Return the key that signed targets name; None if they delegate nothing.

    Raises: InputError if the delegation has another form.
    """
    delegations = None if targets is None else targets.delegations
    role = None if delegations is None or delegations.roles is None else delegations.roles.get(ROLLOUTS_ROLE)
    if delegations is None or role is None:
        return None
    field = delegations.unrecognized_fields.get(KEY_FIELD)
    try:
        [keyid] = role.keyids
        keys = {one: PublicKey.of(key) for one, key in delegations.keys.items()}
        numbers = msgspec.convert(field, dict[str, int])
        return RolloutsKey(
            version=numbers["version"],
            since_root=numbers["since_root"],
            key=keys[keyid],
            earlier=tuple(key for one, key in keys.items() if one != keyid),
        )
    except (ValueError, KeyError, msgspec.ValidationError) as e:
        msg = f"targets.json: the delegation to {ROLLOUTS_ROLE} is not one that the pipeline makes ({e!r})"
        raise InputError(msg) from e


def newest_key(published: RolloutsKey | None, local: RolloutsKey | None, disowns: int) -> RolloutsKey | None:
    """Return the key that the next targets name.

    Args:
        published: What the published targets name.
        local: What is next to `[trust] root`.
        disowns: Newest version of the root that disowns earlier ones; 0: none does.
    """
    usable = [one for one in (published, local) if one is not None]
    if local is not None and local.since_root < disowns:
        usable.remove(local)
    return max(usable, key=lambda one: one.version, default=None)


def keys_by_id(key: RolloutsKey | None) -> dict[str, Key]:
    """Return the keys, by id, whose signatures under the fleet's documents count."""
    keys: Iterable[PublicKey] = () if key is None else (key.key, *key.earlier)
    return {one.keyid: one.open() for one in keys}
