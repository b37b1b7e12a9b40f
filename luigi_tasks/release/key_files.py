"""Private keys in files: PKCS#8 PEM, plain or encrypted with a passphrase.

The id of an encrypted key stands before its PEM block, where the format leaves room for text: which key a
file holds is known without its passphrase.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError, SettingsError
from edge_client.disk import disk_errors, write_durably

if TYPE_CHECKING:
    from collections.abc import Callable

    from securesystemslib.signer import CryptoSigner, Key

# PKCS#8's derivation of the key is fast (PBKDF2), so short passphrases can be guessed.
PASSPHRASE_CHARACTERS = 12
PROMPTS = 3
KEYID_MARK = "keyid: "
ENCRYPTED_MARK = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
# Environment variables that name a file with a passphrase.
PASSPHRASE_VARIABLE = "EDGE_KEYS_PASSPHRASE_FILE"  # noqa: S105 - the name of a variable
ROOT_PASSPHRASE_VARIABLE = "EDGE_KEYS_ROOT_PASSPHRASE_FILE"  # noqa: S105 - as above


class NotAKeyError(SettingsError):
    """A file holds no private key."""


@dataclasses.dataclass
class Passphrases:
    """Passphrases of encrypted keys.

    Attributes:
        known: Passphrases to try.
        ask: Asks a person for the passphrase of a file; None: nobody is there.
        way_out: How to give one, for messages.
    """

    known: tuple[str, ...] = ()
    ask: Callable[[Path], str] | None = None
    way_out: str = ""


def read_passphrase(file: str, variable: str) -> str | None:
    """Return the passphrase in a file's first line; None if neither the file nor the variable is given.

    Args:
        file: Path; empty: the one that the environment variable names, if any.
        variable: The environment variable.
    Raises: SettingsError if the file cannot be read or is empty.
    """
    path = file or os.environ.get(variable, "")
    if not path:
        return None
    try:
        passphrase = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()[0]
    except (OSError, UnicodeDecodeError, IndexError) as e:
        msg = f"passphrase file {path}: cannot be read ({e!r}); its first line is the passphrase"
        raise SettingsError(msg) from e
    if not passphrase:
        msg = f"passphrase file {path}: its first line is empty; write the passphrase there"
        raise SettingsError(msg)
    return passphrase


def check_passphrase(passphrase: str) -> str:
    """Return a passphrase for new keys.

    Raises: InputError if it is too short.
    """
    if len(passphrase) < PASSPHRASE_CHARACTERS:
        msg = (
            f"the passphrase has {len(passphrase)} characters; give at least {PASSPHRASE_CHARACTERS}, for "
            "example five words"
        )
        raise InputError(msg)
    return passphrase


def is_encrypted(path: Path) -> bool:
    """Whether a file holds an encrypted key."""
    return ENCRYPTED_MARK in _read(path)


def read_keyid(path: Path, passphrases: Passphrases | None = None) -> str:
    """Return the id of the key in a file; one that says it needs no passphrase for that.

    Raises: NotAKeyError if there is no key, or an encrypted one without its id.
    """
    data = _read(path)
    first = data.split(b"\n", 1)[0].decode(errors="replace")
    if ENCRYPTED_MARK in data and first.startswith(KEYID_MARK):
        return first.removeprefix(KEYID_MARK).strip()
    if ENCRYPTED_MARK in data and passphrases is None:
        msg = f"{path}: encrypted, and its first line is not `{KEYID_MARK}...`"
        raise NotAKeyError(msg)
    return str(open_key(path, passphrases or Passphrases()).public_key.keyid)


def open_key(path: Path, passphrases: Passphrases, public_key: Key | None = None) -> CryptoSigner:
    """Return the signer of the key in a file.

    Args:
        path: The file.
        passphrases: Tried for an encrypted key; one that nobody knows is asked for.
        public_key: The key's public half as the root names it; default: as the private key has it.
    Raises: NotAKeyError if there is no key; SettingsError without its passphrase; ValueError if it
        is not that of `public_key`.
    """
    from securesystemslib.signer import CryptoSigner  # noqa: PLC0415

    data = _read(path)
    if ENCRYPTED_MARK not in data:
        return CryptoSigner(_load(path, data, None), public_key)  # type: ignore[arg-type]
    for passphrase in passphrases.known:
        if (key := _load(path, data, passphrase)) is not None:
            return CryptoSigner(key, public_key)  # type: ignore[arg-type]
    for _ in range(PROMPTS if passphrases.ask is not None else 0):
        passphrase = passphrases.ask(path)  # type: ignore[misc]
        if (key := _load(path, data, passphrase)) is not None:
            passphrases.known = (*passphrases.known, passphrase)
            return CryptoSigner(key, public_key)  # type: ignore[arg-type]
    is_wrong = bool(passphrases.known or passphrases.ask)
    fault = "wrong passphrase" if is_wrong else "encrypted, and no passphrase was given"
    msg = f"{path}: {fault}; {passphrases.way_out}"
    raise SettingsError(msg)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        msg = f"{path}: cannot be read ({e.strerror or e})"
        raise NotAKeyError(msg) from e


def _load(path: Path, data: bytes, passphrase: str | None) -> object | None:
    """Return the private key; None if the passphrase is wrong."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        return load_pem_private_key(data, None if passphrase is None else passphrase.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        if passphrase is not None and isinstance(e, ValueError):
            return None
        msg = f"{path}: not a readable key ({e})"
        raise NotAKeyError(msg) from e


def write_key(path: Path, signer: CryptoSigner, passphrase: str | None) -> None:
    """Write a key, readable by its owner alone, in a folder that only he may enter; encrypted if asked to."""
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    data = signer.private_bytes
    if passphrase is not None:
        data = f"{KEYID_MARK}{signer.public_key.keyid}\n".encode() + load_pem_private_key(
            data, None
        ).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase.encode()))
    with disk_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
    write_durably(path, data)  # its files are readable by their owner alone
