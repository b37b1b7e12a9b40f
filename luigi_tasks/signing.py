"""Signing keys: where they lie and how metadata gets its signatures.

Keys are securesystemslib signers: a folder of PKCS#8 PEM files here, or a URI for a KMS or HSM.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import SettingsError, TrustError

if TYPE_CHECKING:
    from securesystemslib.signer import Signer
    from tuf.api.metadata import Metadata, Root

    from luigi_tasks.settings import TrustSettings

ONLINE_ROLES = ("targets", "snapshot", "timestamp")
ROLE_MARK = "{role}"


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
        msg = f"{path}: no trusted root metadata there; run `edge-keys make` or correct [trust] root"
        raise SettingsError(msg) from e
    except RepositoryError as e:
        msg = f"{path}: not a root document signed by its own keys ({e}); take the one `edge-keys` made"
        raise TrustError(msg) from e
    return root


def open_signers(root: Root, settings: TrustSettings, role: str) -> list[Signer]:
    """Return as many signers for `role` as its threshold asks.

    Raises: SettingsError if a key is missing or is not one that the root names.
    """
    from securesystemslib.signer import Signer  # noqa: PLC0415

    needed = root.roles[role]
    signers: list[Signer] = []
    faults: list[str] = []
    for uri in _key_uris(settings.keys, role, needed.threshold):
        for keyid in needed.keyids:
            try:
                signers.append(Signer.from_priv_key_uri(uri, root.keys[keyid]))
                break
            except (OSError, ValueError, TypeError) as e:
                faults.append(f"{uri}: {e}")
    if len(signers) < needed.threshold:
        msg = (
            f"{len(signers)} of {needed.threshold} keys for role {role} can sign: "
            f"{'; '.join(dict.fromkeys(faults)) or 'none found'}. Put the keys that `edge-keys make` wrote "
            f"where [trust] keys says ({settings.keys})"
        )
        raise SettingsError(msg)
    return signers


def _key_uris(keys: str, role: str, threshold: int) -> list[str]:
    if ROLE_MARK in keys:
        return [keys.replace(ROLE_MARK, role)]
    folder = Path(keys).expanduser().absolute()
    paths = sorted(folder.glob(f"{role}.pem")) + sorted(folder.glob(f"{role}-*.pem"))
    return [f"file2:{path}" for path in paths or [folder / f"{role}.pem"]][: max(threshold, 1) * 8]
