"""`scripts/install-device` in real user lands of Bookworm and Trixie, from nothing to serving and back."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.fakes.tiny_model import plain_picture
from tests.fakes.tiny_release import png
from tests.fakes.tuf_repository import TufRepository
from tests.fakes.userland import Userland, skip_without_userlands

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("EDGE_TEST_USERLANDS"),
        reason="installs into Bookworm and Trixie as root, in two minutes: EDGE_TEST_USERLANDS=1",
    ),
]
LIMIT_S = 60.0
RESULTS = "var/lib/edge-client/results.jsonl"


@pytest.fixture
def userland(tmp_path):
    skip_without_userlands()
    opened = []

    def enter(release, *, boot=False):
        opened.append(Userland(release, tmp_path, boot=boot))
        return opened[-1]

    yield enter
    for one in opened:
        one.close()


@pytest.fixture
def store():
    with TufRepository() as repository:
        repository.publish_tiny()
        yield repository


def first_flags(land, store, *flags):
    (land.root / "root/root.json").write_bytes(store.root)
    (land.root / "root/root.json").chmod(0o600)
    return ("--yes", "--base-url", store.url, "--root", "/root/root.json", "--device-id", "barn", *flags)


def seen_label(land, label, name):
    """Put a picture where the camera would, and return what the daemon says of it."""
    (land.root / "var/lib/edge-client/camera" / name).write_bytes(png(plain_picture(label)))
    return json.loads(wait_for(land.root / RESULTS, name))["label"]


def wait_for(file, text):
    """Return the first line of a file that has a text, once it is there."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        for line in file.read_text().splitlines() if file.exists() else []:
            if text in line:
                return line
        time.sleep(0.05)
    pytest.fail(f"{file}: no {text}")


def kill_at(land, line, *flags):
    """Run the installer, and kill it once it says a line; what it started lives on."""
    command = land.command("/home/pi/edge-fleet/scripts/install-device", "--wheels", "/stick", *flags)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert any(re.search(line, said) for said in running.stdout)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)


def mode(path: Path):
    found = path.stat()
    return found.st_uid, oct(found.st_mode & 0o777)


def as_service(land, *words):
    return land.run(
        "setpriv", "--reuid=edge-client", "--regid=edge-client", "--init-groups", *words
    ).returncode


def test_bookworm_from_nothing_to_serving_upgraded_and_removed(userland, store):
    can_boot = shutil.which("systemd-nspawn") is not None
    land = userland("bookworm", boot=can_boot)
    if not can_boot:
        land.boot_stand_in()
    (land.root / "root/key").write_text('access_key_id = "id"\nsecret_access_key = "hidden"\n')
    more = ("--set", f"sinks.json_lines=/{RESULTS}", "--access-key-file", "/root/key")
    flags = first_flags(land, store, *more)

    # Killed in the middle, twice; the last run completes what they left.
    kill_at(land, "install /home", *flags)
    kill_at(land, "let /opt/edge-client be", *flags)
    installed = land.install(*flags)
    assert installed.returncode == 0, installed.stderr + installed.stdout
    assert "hidden" not in installed.stdout + installed.stderr
    assert seen_label(land, "red", "one.png") == "red"
    check_rights(land)
    assert land.run("edge-client", "doctor").returncode == 0

    # An upgrade that does not start: what was there before serves again, with its settings.
    daemon = land.checkout / "edge_client/daemon/daemon.py"
    good = daemon.read_text()
    daemon.write_text("raise RuntimeError('a faulty upgrade')\n")
    before = (land.root / "opt/edge-client").readlink()
    refused = land.install("--fleet", "other")
    assert refused.returncode == 1, refused.stderr + refused.stdout
    assert "serves again" in refused.stderr
    assert (land.root / "opt/edge-client").readlink() == before
    assert 'fleet = "other"' not in (land.root / "etc/edge-client/device.toml").read_text()
    assert seen_label(land, "blue", "two.png") == "blue"

    # A good one, which gets a Pi camera as well.
    daemon.write_text(good)
    version = land.checkout / "edge_client/__init__.py"
    version.write_text(version.read_text().replace("0.1.0", "0.1.1"))
    upgraded = land.install("--camera", "picamera")
    assert upgraded.returncode == 0, upgraded.stderr
    assert "edge-client 0.1.1" in upgraded.stdout
    told = land.run("edge-client", "doctor").stdout
    assert re.search(r"ok +source +picamera", told), told
    assert '"source":"picamera-0"' in wait_for(land.root / RESULTS, "picamera-0")
    check_camera_breaks_under_numpy_2(land)

    check_removal(land)


def check_rights(land):
    """Check that the service reads what it needs and writes none of it, and the checkout is untouched."""
    settings = land.root / "etc/edge-client"
    assert mode(settings / "root.json") == (0, "0o644")
    assert mode(settings / "device.toml") == mode(settings / "access-key.toml") == (0, "0o640")
    assert "hidden" not in (settings / "device.toml").read_text()
    assert as_service(land, "test", "-r", "/etc/edge-client/access-key.toml") == 0
    assert as_service(land, "test", "-w", "/etc/edge-client/root.json") == 1
    assert "video" in land.run("id", "-nG", "edge-client").stdout.split()
    assert not list(land.checkout.rglob("*.egg-info"))
    assert not list(land.checkout.rglob("__pycache__"))


def check_camera_breaks_under_numpy_2(land):
    """Check that NumPy is the system's, and that with another picamera2's stand-in breaks as the real one."""
    used = land.run(
        "/opt/edge-client/bin/python", "-c", "import numpy as n; print(n.__version__, n.__file__)"
    )
    assert re.match(r"1\.24\.\d+ /usr/lib/python3/dist-packages/", used.stdout), used.stdout
    land.run("/opt/edge-client/bin/pip", "install", "--no-index", "--find-links", "/stick", "numpy>=2")
    broken = land.run("/opt/edge-client/bin/python", "-c", "import picamera2")
    assert "numpy.dtype size changed" in broken.stderr


def check_removal(land):
    removed = land.install("--uninstall")
    assert removed.returncode == 0, removed.stderr
    for gone in ("opt/edge-client", "etc/systemd/system/edge-client.service", "usr/local/bin/edge-client"):
        assert not os.path.lexists(land.root / gone), gone
    assert (land.root / "etc/edge-client/device.toml").exists()
    assert (land.root / RESULTS).exists()
    assert land.run("systemctl", "is-active", "edge-client").stdout.strip() in {"inactive", ""}
    assert land.install("--uninstall", "--purge", "--yes").returncode == 0
    for gone in ("etc/edge-client", "var/lib/edge-client", "opt/edge-client.d"):
        assert not os.path.lexists(land.root / gone), gone
    assert land.run("id", "edge-client").returncode == 1


def test_trixie_tells_who_may_not_install_and_takes_over_what_was_installed_by_hand(userland, store):
    land = userland("trixie")
    check_refusals(land)
    land.boot_stand_in()
    by_hand = (
        "mkdir -p /opt/edge-client/bin && cp /bin/false /opt/edge-client/bin/edge-client && "
        "install -d /etc/edge-client && useradd --system --groups video edge-client && "
        "install -d -o edge-client /var/lib/edge-client /var/lib/edge-client/camera && "
        "sed 's/^RestartSec=5$/RestartSec=7/' /home/pi/edge-fleet/configs/edge-client.service "
        ">/etc/systemd/system/edge-client.service"
    )
    assert land.run("sh", "-c", by_hand).returncode == 0
    settings = land.root / "etc/edge-client/device.toml"
    settings.write_text(
        f'[device]\nid = "mine"\n[store]\nbase_url = "{store.url}"  # mine\n[broker]\nhost = ""\n'
        f'[source]\npath = "/var/lib/edge-client/camera"\n[sinks]\njson_lines = "/{RESULTS}"\n'
    )
    (land.root / "etc/edge-client/root.json").write_bytes(store.root)
    (land.root / "etc/edge-client/root.json").chmod(0o600)
    text = settings.read_text()

    installed = land.install()
    assert installed.returncode == 0, installed.stderr + installed.stdout
    assert settings.read_text() == text
    assert mode(land.root / "etc/edge-client/root.json") == (0, "0o644")
    assert seen_label(land, "red", "one.png") == "red"
    assert (land.root / "opt/edge-client").readlink() == Path("/opt/edge-client.d/1")
    calls = (land.root / "var/log/systemctl").read_text().splitlines()
    assert calls == ["daemon-reload", "enable edge-client", "restart edge-client"]
    kept = land.root / "etc/systemd/system/edge-client.service.before"
    assert "RestartSec=7" in kept.read_text()


def check_refusals(land):
    """Check what is said to somebody who is not root, gives too little, or has a 32-bit system."""
    program = "/home/pi/edge-fleet/scripts/install-device"
    asked = land.run("setpriv", "--reuid=1000", "--clear-groups", program, "--yes")
    assert asked.returncode == 1
    assert f"sudo {program} --yes" in asked.stderr
    asked = land.install("--yes")
    assert asked.returncode == 2
    assert "--base-url and --root" in asked.stderr
    dpkg = land.root / "usr/local/bin/dpkg"
    dpkg.write_text("#!/bin/sh\necho armhf\n")
    dpkg.chmod(0o755)
    asked = land.install("--yes")
    assert asked.returncode == 1
    assert "32-bit system (armhf) on a 64-bit kernel" in asked.stderr
    dpkg.unlink()
