"""Keys and passwords of a device: made here, handed over in its bundle, and kept nowhere else.

- The key of its reports: Ed25519. The registry has the public half.
- Its broker password, of which the broker gets a line as `mosquitto_passwd` writes it.
- Or its client certificate (ECDSA on P-256, which AWS IoT Core takes too), signed by a CA of the operator.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import hashlib
import secrets
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from edge_client.contract.times import current_time

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

# mosquitto_passwd's own number. The password is random: nobody guesses it, however fast hashing is. A broker
# hashes at each connection, and a fleet that comes back after a loss of power connects at once.
_ITERATIONS = 101
_SALT_BYTES, _HASH_BYTES = 12, 64
_PASSWORD_BYTES = 24
CERTIFICATE_DAYS = 3650


@dataclasses.dataclass(frozen=True)
class KeyTexts:
    """A key pair, or a certificate with its key; PEM.

    Attributes:
        private: The private key, without a passphrase: nobody is there to type it.
        public: The public key, or the certificate.
    """

    private: bytes = dataclasses.field(repr=False)
    public: bytes


def make_signing_key() -> KeyTexts:
    """Return a new Ed25519 key, for a device's reports or a collector's snapshots."""
    from cryptography.hazmat.primitives import serialization as s  # noqa: PLC0415 - `edge-fleet --help`
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - as above

    key = Ed25519PrivateKey.generate()
    return KeyTexts(
        key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()),
        key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo),
    )


def make_password() -> str:
    """Return a new random password."""
    return secrets.token_urlsafe(_PASSWORD_BYTES)


def password_line(user: str, password: str) -> str:
    """Return a line of Mosquitto's password file.

    Source: mosquitto_passwd of Mosquitto 2.0, `$7$`: PBKDF2 with SHA-512.
    """
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS, _HASH_BYTES)
    texts = (base64.b64encode(one).decode() for one in (salt, digest))
    return f"{user}:$7${_ITERATIONS}${'$'.join(texts)}"


class CertificateAuthority:
    """The operator's CA of client certificates.

    Args:
        certificate: Its certificate, PEM.
        key: Its private key, PEM, without a passphrase.
    Raises: InputError if one of them cannot be used, or they do not belong together.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        from cryptography import x509  # noqa: PLC0415 - `edge-fleet --help`
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: PLC0415 - as above
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

        try:
            self._certificate = x509.load_pem_x509_certificate(certificate.read_bytes())
            found = load_pem_private_key(key.read_bytes(), None)
        except OSError as e:
            msg = f"{e.filename}: {e.strerror}; give the CA's certificate and key"
            raise InputError(msg) from e
        except (ValueError, TypeError) as e:
            msg = f"{certificate}, {key}: no certificate and key in PEM without a passphrase ({e})"
            raise InputError(msg) from e
        if not isinstance(found, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey)):
            msg = f"{key}: RSA, ECDSA or Ed25519 is needed; make the CA with one of them"
            raise InputError(msg)
        if found.public_key() != self._certificate.public_key():
            msg = f"{key} is not the key of {certificate}; give the two that belong together"
            raise InputError(msg)
        self._key = found

    def certify(self, device: str, days: int = CERTIFICATE_DAYS) -> KeyTexts:
        """Return a certificate whose name (CN) is the device's id, and its key."""
        from cryptography.hazmat.primitives import hashes  # noqa: PLC0415 - as above
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415

        key = _new_certificate_key()
        digest = None if isinstance(self._key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        unsigned = _certificate(device, key, self._certificate.subject, self._certificate, days)
        signed = unsigned.sign(self._key, digest)
        return _as_texts(signed, key)


def self_signed(device: str, days: int = CERTIFICATE_DAYS) -> KeyTexts:
    """Return a certificate that a device's own key signed, for a broker that knows each one by itself."""
    from cryptography import x509  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.x509.oid import NameOID  # noqa: PLC0415

    key = _new_certificate_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    return _as_texts(_certificate(device, key, name, None, days).sign(key, hashes.SHA256()), key)


def _new_certificate_key() -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - as above

    return ec.generate_private_key(ec.SECP256R1())


def _certificate(
    device: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    authority: x509.Certificate | None,
    days: int,
) -> x509.CertificateBuilder:
    """Return a client certificate without its signature."""
    from cryptography import x509  # noqa: PLC0415 - as above
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: PLC0415

    now = current_time()
    issuer_key = authority.public_key() if authority is not None else key.public_key()
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # a device's clock may be behind
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key),  # type: ignore[arg-type]
            critical=False,
        )
    )


def _as_texts(signed: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyTexts:
    from cryptography.hazmat.primitives import serialization as s  # noqa: PLC0415 - as above

    return KeyTexts(
        key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()),
        signed.public_bytes(s.Encoding.PEM),
    )
