"""Encrypted keys: made, used, replaced, and never replaced by plain ones without a word."""

from __future__ import annotations

import dataclasses
import getpass
import os
import shutil
import stat
import subprocess
import sys

import pytest

from edge_client.contract.errors import InputError, SettingsError
from luigi_tasks.edge_keys import main
from luigi_tasks.release.key_files import ENCRYPTED_MARK
from luigi_tasks.release.keys import make_keys
from luigi_tasks.release.rollouts_key import load_rollouts_key
from luigi_tasks.release.signing import load_root, load_roots, open_signers, open_work_signer
from tests.fakes.trust import trust_settings

ROOT_SECRET = "five words for the root"
SECRET = "four words for luigi"


@pytest.fixture
def secrets(tmp_path):
    """Files with passphrases, by name."""
    files = {"root": ROOT_SECRET, "pipeline": SECRET, "wrong": "not these words at all", "short": "short"}
    for name, content in files.items():
        (tmp_path / name).write_text(f"{content}\n")
    return {name: str(tmp_path / name) for name in files}


@pytest.fixture
def encrypted(tmp_path, secrets):
    """A set whose keys are all encrypted, made by the command."""
    folder = tmp_path / "keys"
    options = ["--root-passphrase-file", secrets["root"], "--passphrase-file", secrets["pipeline"]]
    assert main(["make", str(folder), *options]) == 0
    return folder


@pytest.fixture
def terminal(monkeypatch):
    """Somebody at a terminal, who answers what the test says."""
    answers: list[str] = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(getpass, "getpass", lambda _prompt: answers.pop(0))
    return answers


def is_encrypted(path) -> bool:
    return ENCRYPTED_MARK in path.read_bytes()


def with_passphrase(folder, file: str):
    return dataclasses.replace(trust_settings(folder), passphrase_file=file)


def test_nobody_to_ask_is_an_error_that_names_both_ways(tmp_path):
    """As cron or a script runs it: no terminal, no option."""
    run = subprocess.run(
        [sys.executable, "-m", "luigi_tasks.edge_keys", "make", str(tmp_path / "keys")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "--root-passphrase-file" in run.stderr
    assert "--no-root-passphrase" in run.stderr
    assert not (tmp_path / "keys").exists()


def test_the_prompt_asks_twice(tmp_path, terminal, capsys):
    terminal += [ROOT_SECRET, "other words, mistyped"]
    assert main(["make", str(tmp_path / "keys")]) == 1
    assert "differ" in capsys.readouterr().err
    assert not (tmp_path / "keys").exists()
    terminal += [ROOT_SECRET, ROOT_SECRET]
    assert main(["make", str(tmp_path / "keys")]) == 0
    assert is_encrypted(tmp_path / "keys/root/root-1.pem")
    assert not is_encrypted(tmp_path / "keys/pipeline/targets.pem")


def test_a_short_passphrase_is_refused(tmp_path, secrets, capsys):
    assert main(["make", str(tmp_path / "keys"), "--root-passphrase-file", secrets["short"]]) == 1
    assert "at least 12" in capsys.readouterr().err
    (tmp_path / "empty").write_text("")
    assert main(["make", str(tmp_path / "keys"), "--root-passphrase-file", str(tmp_path / "empty")]) == 1
    assert "its first line is the passphrase" in capsys.readouterr().err


def test_every_private_key_is_encrypted_and_nobody_else_may_read_it(encrypted):
    assert len(list(encrypted.rglob("*.pem"))) == 6
    for path in encrypted.rglob("*.pem"):
        assert is_encrypted(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_root_is_readable_by_all_whatever_the_umask(tmp_path):
    """It is public, and the service that reads it has a user of its own."""
    before = os.umask(0o077)
    try:
        make_keys(tmp_path / "keys")
        assert main(["rotate", str(tmp_path / "keys")]) == 0
    finally:
        os.umask(before)
    for name in ("root.json", "1.root.json", "2.root.json"):
        assert stat.S_IMODE((tmp_path / "keys/device" / name).stat().st_mode) == 0o644


def test_the_pipeline_signs_with_the_passphrase_of_its_settings(encrypted, secrets, monkeypatch):
    root = load_root(encrypted / "device/root.json").signed
    faults = {"": "encrypted, and no passphrase was given", secrets["wrong"]: "wrong passphrase"}
    for file, fault in faults.items():
        with pytest.raises(SettingsError, match=rf"targets\.pem: {fault}; \[trust\] passphrase_file"):
            open_signers(root, with_passphrase(encrypted, file), "targets")
    assert open_signers(root, with_passphrase(encrypted, secrets["pipeline"]), "targets")
    monkeypatch.setenv("EDGE_KEYS_PASSPHRASE_FILE", secrets["pipeline"])
    assert open_work_signer(root, trust_settings(encrypted))


def test_a_passphrase_that_plain_keys_do_not_need_does_no_harm(tmp_path, secrets):
    make_keys(tmp_path / "keys")
    root = load_root(tmp_path / "keys/device/root.json").signed
    assert open_signers(root, with_passphrase(tmp_path / "keys", secrets["pipeline"]), "targets")


def test_rotation_needs_the_passphrase_and_changes_nothing_without(encrypted, secrets, capsys):
    before = {path: path.read_bytes() for path in encrypted.rglob("*") if path.is_file()}
    for file, fault in (("", "no passphrase was given"), (secrets["wrong"], "wrong passphrase")):
        options = ["--root-passphrase-file", file] if file else []
        for command in ("rotate", "renew"):
            assert main([command, str(encrypted), *options]) == 1
            said = capsys.readouterr().err
            assert "root-1.pem: " in said
            assert fault in said
            assert "--root-passphrase-file" in said
    assert {path: path.read_bytes() for path in encrypted.rglob("*") if path.is_file()} == before


def test_rotated_keys_stay_encrypted(encrypted, secrets, capsys):
    root = ["--root-passphrase-file", secrets["root"]]
    assert main(["rotate", str(encrypted), *root]) == 1
    assert "--passphrase-file" in capsys.readouterr().err
    assert main(["rotate", str(encrypted), "--root", *root]) == 0
    assert main(["rotate", str(encrypted), "--stolen", *root, "--passphrase-file", secrets["pipeline"]]) == 0
    assert len(list((encrypted / "pipeline").glob("*.pem"))) == 5
    assert [path.name for path in (encrypted / "root").iterdir()] == ["root-v2-1.pem"]
    assert all(map(is_encrypted, encrypted.rglob("*.pem")))
    newest = load_roots(encrypted / "device/root.json")[-1].signed
    assert newest.version == 3
    for role in ("targets", "snapshot", "timestamp"):
        assert open_signers(newest, with_passphrase(encrypted, secrets["pipeline"]), role)
    assert main(["renew", str(encrypted), *root]) == 0


def test_a_rollouts_key_beside_encrypted_keys_is_encrypted_too(encrypted, secrets, capsys):
    for path in ("pipeline/rollouts.pem", "device/rollouts-key.json"):
        (encrypted / path).unlink()
    shutil.rmtree(encrypted / "root")  # offline: no root key is needed
    secret = ["--passphrase-file", secrets["pipeline"]]
    for number, command in enumerate((["add-rollouts-key"], ["rotate", "--role", "rollouts"]), start=1):
        assert main([*command, str(encrypted)]) == 1
        assert "--passphrase-file" in capsys.readouterr().err
        assert main([*command, str(encrypted), *secret]) == 0
        [key] = (encrypted / "pipeline").glob("rollouts*.pem")
        assert is_encrypted(key)
        named = load_rollouts_key(encrypted / "device/root.json")
        assert named is not None
        assert named.version == number


def test_plain_root_keys_are_replaced_by_encrypted_ones(tmp_path, secrets):
    make_keys(tmp_path / "keys")
    assert main(["rotate", str(tmp_path / "keys"), "--root", "--root-passphrase-file", secrets["root"]]) == 0
    assert is_encrypted(tmp_path / "keys/root/root-v2-1.pem")


def test_a_person_is_asked_three_times(encrypted, terminal, capsys):
    terminal += ["wrong words", "wrong words again", "wrong"]
    assert main(["renew", str(encrypted)]) == 1
    assert "wrong passphrase" in capsys.readouterr().err
    terminal += ["wrong words", ROOT_SECRET]
    assert main(["renew", str(encrypted)]) == 0


def test_root_keys_of_several_persons_have_passphrases_of_their_own(tmp_path, terminal):
    keys = tmp_path / "keys"
    make_keys(keys, root_keys=2, threshold=2, root_passphrase="the words of the first")
    reencrypt(keys / "root/root-2.pem", "the words of the first", "the words of the second")
    terminal += ["the words of the second", "the words of the first"]  # the second file does not name its key
    assert main(["renew", str(keys)]) == 0
    assert not terminal


def reencrypt(path, old: str, new: str) -> None:
    """As `openssl pkcs8 -topk8` does it: the key's id is not in the file any more."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    key = serialization.load_pem_private_key(path.read_bytes(), old.encode())
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(new.encode()),
        )
    )


def test_the_interface_for_programs_encrypts_only_when_told(tmp_path):
    make_keys(tmp_path / "plain")
    assert not any(map(is_encrypted, (tmp_path / "plain").rglob("*.pem")))
    with pytest.raises(InputError, match="holds keys already"):
        make_keys(tmp_path / "plain")
