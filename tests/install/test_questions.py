"""The questions of `scripts/install-device`, at a terminal."""

import os
import platform
import pty
from pathlib import Path

import pytest

from luigi_tasks.release.keys import make_keys

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = REPOSITORY / "scripts/install-device"


@pytest.fixture
def root(tmp_path):
    codename = (
        platform.freedesktop_os_release().get("VERSION_CODENAME") if Path("/etc/os-release").exists() else ""
    )
    if codename not in {"bookworm", "trixie"} or Path("/etc/edge-client/device.toml").exists():
        pytest.skip("asks on Debian Bookworm and Trixie, where no device is installed yet")
    make_keys(tmp_path / "keys")
    return tmp_path / "keys/device/root.json"


def talk(answers, *flags):
    """Run the installer at a terminal, answer its questions, and return what the terminal shows."""
    process, terminal = pty.fork()
    if process == 0:
        os.execv(PROGRAM, [str(PROGRAM), "--dry-run", *flags])  # noqa: S606
    shown = ""
    try:
        while True:
            shown += os.read(terminal, 4096).decode()
            if answers and shown.rstrip().endswith(answers[0][0]):
                os.write(terminal, f"{answers.pop(0)[1]}\n".encode())
    except OSError:  # the terminal is closed
        pass
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, shown
    assert not answers, shown
    return shown


def test_questions_lead_to_settings_and_secrets_are_not_shown(root):
    shown = talk(
        [
            ("file:///…):", "s3://bucket"),
            ("file:///…):", "https://s3.example.com/edge-models"),
            ("[no]:", "yes"),
            ("Access key id:", "AKIA"),
            ("Secret access key:", "hidden-key"),
            ("[root.json]:", "/nowhere"),
            ("[root.json]:", str(root)),
            ("[fleet]:", ""),
            ("[stable]:", "canary"),
            ("[none]:", "192.168.1.5:1884"),
            ("[none]:", "camera-1"),
            ("Password at the broker:", "hidden-word"),
            ("camera]:", "rtsp://user:hidden-word@camera/1"),
        ]
    )
    for line in (
        '+base_url = "https://s3.example.com',
        '+access_key_file = "/etc/edge-client/access-key.toml"',
        '+channel = "canary"',
        '+host = "192.168.1.5"',
        "+port = 1884",
        '+username = "camera-1"',
        '+password_file = "/etc/edge-client/broker-password"',
        '+kind = "video"',
    ):
        assert f"would: settings: {line}" in shown, shown
    assert "give http(s)://" in shown
    assert "/nowhere: No such file" in shown
    assert "hidden-key" not in shown
    assert shown.count("hidden-word") == 1  # typed as the camera's address, and echoed by the terminal


def test_flags_leave_only_the_other_questions(root):
    given = ("--base-url", "file:///srv/models", "--root", str(root), "--broker", "none")
    shown = talk([("[fleet]:", ""), ("[stable]:", "")], *given, "--camera", "/dev/video0")
    assert '+path = "/dev/video0"' in shown
    assert "Address of" not in shown
