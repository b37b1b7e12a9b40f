"""The key that a device signs its reports with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner, Signature

from edge_client.contract.errors import SettingsError, TrustError
from edge_client.contract.report import DeviceReport
from edge_client.contract.signed_report import open_report, seal_report
from edge_client.reporting import ed25519 as own
from edge_client.reporting.report_key import ReportKeyFile, find_exposure, read_report_key

pytestmark = pytest.mark.runtime

REPORT = DeviceReport(fleet="shop", device="camera-1", channel="stable", warning='é, "quoted"')


@pytest.fixture(params=["openssl", "cryptography"])
def signs(request, monkeypatch) -> None:
    """Both ways to sign; Python's OpenSSL must be usable where the tests run, as it is on Debian."""
    if request.param == "cryptography":
        monkeypatch.setattr(own, "find_openssl", lambda: None)
    elif own.find_openssl() is None:
        pytest.skip("this Python has its OpenSSL built in")


@pytest.mark.usefixtures("signs")
def test_the_example_of_the_standard_is_signed_as_it_says():
    """RFC 8032, section 7.1, test 2."""
    key = own.load_ed25519(bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
    assert key.public.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert key.sign(b"\x72").hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )


@pytest.mark.usefixtures("signs")
def test_a_signed_report_is_what_securesystemslib_verifies(tmp_path):
    signer = CryptoSigner.generate_ed25519()
    file = tmp_path / "device.pem"
    file.write_bytes(signer.private_bytes)
    key = read_report_key(file)
    assert key.keyid == signer.public_key.keyid
    found = open_report(seal_report(REPORT, key), "a topic", signer.public_key)
    assert (found.report, found.is_signed) == (REPORT, True)
    assert seal_report(REPORT, key) == seal_report(REPORT, signer)
    with pytest.raises(TrustError):
        open_report(seal_report(REPORT, key), "a topic", CryptoSigner.generate_ed25519().public_key)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=5000), st.binary(min_size=32, max_size=32))
def test_both_libraries_sign_alike(message, seed):
    theirs = own._by_cryptography(seed)
    key = own.load_ed25519(seed)
    assert (key.public, key.sign(message)) == (theirs.public, theirs.sign(message))


def test_a_key_of_openssl_is_read(tmp_path):
    file = tmp_path / "device.pem"
    if (program := shutil.which("openssl")) is None:
        pytest.skip("no openssl command")
    subprocess.run([program, "genpkey", "-algorithm", "ed25519", "-out", file], check=True)
    public = serialization.load_pem_private_key(file.read_bytes(), None).public_key()
    assert isinstance(public, ed25519.Ed25519PublicKey)
    signed = read_report_key(file).sign(b"text")
    assert isinstance(signed.signature, str)
    assert Signature(signed.keyid, signed.signature).to_dict()
    public.verify(bytes.fromhex(signed.signature), b"text")


def private_pem(key: Any, password: bytes | None = None) -> Any:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def other_files() -> dict[str, bytes]:
    key = ed25519.Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return {
        "empty": b"",
        "public": public,
        "other kind": private_pem(ec.generate_private_key(ec.SECP256R1())),
        "passphrase": private_pem(key, b"secret"),
        "cut": private_pem(key)[:70],
        "no base64": b"-----BEGIN PRIVATE KEY-----\n\xff\xfe!\n-----END PRIVATE KEY-----\n",
        "huge": b"x" * 1_000_000,
    }


@pytest.mark.parametrize("name", other_files())
def test_another_file_is_named_with_the_way_out(tmp_path, caplog, name):
    file = tmp_path / "device.pem"
    file.write_bytes(other_files()[name])
    with pytest.raises(SettingsError, match=r"key_file .*no private Ed25519 key.*edge-fleet enroll"):
        read_report_key(file)
    found = ReportKeyFile(str(file))
    assert found.key() is None
    assert "reports are not signed until then" in found.warnings[0]
    found.key()
    assert len(caplog.records) == 1, "told once"


def test_a_key_that_others_may_read_is_warned_of(tmp_path):
    file = tmp_path / "device.pem"
    file.write_bytes(CryptoSigner.generate_ed25519().private_bytes)
    for mode, exposed in ((0o600, False), (0o640, False), (0o644, True), (0o602, True)):
        file.chmod(mode)
        assert (find_exposure(file) is not None) == exposed
        assert (ReportKeyFile(str(file)).warnings != ()) == exposed


def test_a_key_that_is_exchanged_signs_from_then_on(tmp_path):
    old, new = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
    file = tmp_path / "device.pem"
    file.write_bytes(old.private_bytes)
    file.chmod(0o600)
    found = ReportKeyFile(str(file))

    def key_id() -> str:
        key = found.key()
        assert key is not None
        return key.keyid

    assert key_id() == old.public_key.keyid
    (tmp_path / "next.pem").write_bytes(new.private_bytes)
    (tmp_path / "next.pem").chmod(0o600)
    (tmp_path / "next.pem").rename(file)
    assert key_id() == new.public_key.keyid
    assert not found.warnings
    file.unlink()
    assert key_id() == new.public_key.keyid
    assert "are signed with the key that was in it" in found.warnings[0]


def test_signing_loads_no_library_of_signatures(tmp_path):
    if own.find_openssl() is None:
        pytest.skip("this Python has its OpenSSL built in")
    file = tmp_path / "device.pem"
    file.write_bytes(CryptoSigner.generate_ed25519().private_bytes)
    code = (
        "import sys, pathlib\n"
        "from edge_client.contract.report import DeviceReport\n"
        "from edge_client.contract.signed_report import seal_report\n"
        "from edge_client.reporting.report_key import read_report_key\n"
        "key = read_report_key(pathlib.Path(sys.argv[1]))\n"
        "assert seal_report(DeviceReport(fleet='f', device='d', channel='c'), key)\n"
        "assert not {'cryptography', 'securesystemslib'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code, file], check=True)
