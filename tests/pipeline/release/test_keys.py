"""`edge-keys`, through its command line."""

from __future__ import annotations

import stat

from luigi_tasks.edge_keys import main
from luigi_tasks.release.signing import load_root

PLAIN = "--no-root-passphrase"


def test_makes_a_full_set_with_the_root_apart(tmp_path, capsys):
    assert main(["make", str(tmp_path), PLAIN]) == 0
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert made == {
        "root/root-1.pem",
        "pipeline/targets.pem",
        "pipeline/snapshot.pem",
        "pipeline/timestamp.pem",
        "pipeline/work.pem",
        "pipeline/rollouts.pem",
        "device/root.json",
        "device/rollouts-key.json",
    }
    printed = capsys.readouterr().out
    assert "OFFLINE" in printed
    assert "device.toml" in printed


def test_private_keys_are_readable_by_their_owner_alone(tmp_path):
    main(["make", str(tmp_path), PLAIN])
    for path in tmp_path.rglob("*.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_never_overwrites_keys(tmp_path, capsys):
    main(["make", str(tmp_path), PLAIN])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["make", str(tmp_path), PLAIN]) == 1
    assert "holds keys already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_several_root_keys_with_a_threshold(tmp_path):
    assert main(["make", str(tmp_path), PLAIN, "--root-keys", "3", "--threshold", "2"]) == 0
    role = load_root(tmp_path / "device/root.json").signed.roles["root"]
    assert (len(role.keyids), role.threshold) == (3, 2)


def test_a_threshold_that_cannot_be_met_is_refused(tmp_path, capsys):
    assert main(["make", str(tmp_path), PLAIN, "--threshold", "2"]) == 1
    assert "threshold 2 of 1" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.pem"))
