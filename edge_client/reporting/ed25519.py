"""Ed25519 signatures by the OpenSSL that this process has in memory anyway, for Python's `ssl`.

`cryptography` has an OpenSSL of its own, which takes 8 MB of a device's memory; securesystemslib takes 19 MB.
A Python whose OpenSSL is built into it (not that of Debian) has no such library: `cryptography` signs there.
Source: EVP_DigestSign(3) and EVP_PKEY_new_raw_private_key(3) of OpenSSL 1.1.1 and later; RFC 8032.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import re
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable

KEY_BYTES, SIGNATURE_BYTES = 32, 64
_ED25519 = 1087  # NID_ED25519
_LIBRARY = re.compile(r"\s(/\S*/libcrypto[^/\s]*\.so[^/\s]*)$", re.MULTILINE)
_POINTER, _BYTES, _SIZE = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
# Name, result and arguments.
_FUNCTIONS = (
    ("EVP_PKEY_new_raw_private_key", _POINTER, (ctypes.c_int, _POINTER, _BYTES, _SIZE)),
    ("EVP_PKEY_get_raw_public_key", ctypes.c_int, (_POINTER, _BYTES, ctypes.POINTER(_SIZE))),
    ("EVP_MD_CTX_new", _POINTER, ()),
    ("EVP_MD_CTX_free", None, (_POINTER,)),
    ("EVP_DigestSignInit", ctypes.c_int, (_POINTER, _POINTER, _POINTER, _POINTER, _POINTER)),
    ("EVP_DigestSign", ctypes.c_int, (_POINTER, _BYTES, ctypes.POINTER(_SIZE), _BYTES, _SIZE)),
)


@dataclasses.dataclass(frozen=True)
class Ed25519Key:
    """A private key.

    Attributes:
        public: Its public half, 32 bytes.
        sign: Returns the signature of a message, 64 bytes.
    """

    public: bytes
    sign: Callable[[bytes], bytes] = dataclasses.field(repr=False)


def load_ed25519(seed: bytes) -> Ed25519Key:
    """Return the key of 32 secret bytes, which stays in memory for as long as the process."""
    library = find_openssl()
    return _by_cryptography(seed) if library is None else _by_openssl(library, seed)


def find_openssl() -> ctypes.CDLL | None:
    """Return the OpenSSL that `ssl` uses; None if it cannot be used from here."""
    if not ssl.HAS_TLSv1_3:  # OpenSSL before 1.1.1
        return None
    with contextlib.suppress(OSError, AttributeError):
        found = _LIBRARY.search(Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace"))
        if found is None:
            return None
        library = ctypes.CDLL(found[1])  # in memory already
        for name, result, arguments in _FUNCTIONS:
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        return library
    return None


def _by_openssl(library: ctypes.CDLL, seed: bytes) -> Ed25519Key:
    key = library.EVP_PKEY_new_raw_private_key(_ED25519, None, seed, len(seed))
    public, size = ctypes.create_string_buffer(KEY_BYTES), _SIZE(KEY_BYTES)
    _check(key and library.EVP_PKEY_get_raw_public_key(key, public, ctypes.byref(size)) == 1)

    def sign(message: bytes) -> bytes:
        context = library.EVP_MD_CTX_new()
        _check(context)
        try:
            signature, length = ctypes.create_string_buffer(SIGNATURE_BYTES), _SIZE(SIGNATURE_BYTES)
            begun = library.EVP_DigestSignInit(context, None, None, None, key) == 1
            arguments = (signature, ctypes.byref(length), message, len(message))
            _check(begun and library.EVP_DigestSign(context, *arguments) == 1)
            return signature.raw[: length.value]
        finally:
            library.EVP_MD_CTX_free(context)

    return Ed25519Key(public.raw, sign)


def _by_cryptography(seed: bytes) -> Ed25519Key:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - see above

    key = Ed25519PrivateKey.from_private_bytes(seed)
    return Ed25519Key(key.public_key().public_bytes_raw(), key.sign)


def _check(done: object) -> None:
    if not done:
        msg = "OpenSSL cannot sign with Ed25519 here (a FIPS module, or no memory): remove [device] key_file"
        raise DeviceError(msg)
