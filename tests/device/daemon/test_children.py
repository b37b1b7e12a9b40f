"""What children of a daemon, and commands that it runs, get from it: no secret, no folder of a stranger."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from local_services import wait_until

from edge_client.children import FOLDER, environment, python_command
from edge_client.contract.errors import DeviceError
from edge_client.settings.file import load_settings
from edge_client.update.check_process import UpdateCheck
from tests.fakes.device_daemon import REPOSITORY, assert_answers

SECRET = "0123456789abcdef-of-the-store"
# As the script `edge-client` starts it: the folder in which it was started is not on its path.
START = (
    f"import sys; sys.path[0] = {str(REPOSITORY)!r}; "
    "from edge_client.cli import main; sys.exit(main(sys.argv[1:]))"
)
# Reads the environment of each process that it may read, again and again, while the daemon starts children.
SPY = """
echo started > "$1/started"
while [ ! -e "$1/end" ]; do
  cat /proc/[0-9]*/environ >> "$1/seen" 2>/dev/null
done
cat /proc/$PPID/environ > "$1/parent" 2>/dev/null
echo ended > "$1/ended"
"""


def as_ordinary_user() -> list[str]:
    """Return the command that takes root's capabilities away, where the tests run as root."""
    if os.geteuid():
        return []
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-U", "true"], check=False).returncode:
        pytest.skip("root may read every process, and cannot give that up here (unshare -U)")
    return [unshare, "-U"]


def commands_of_children() -> list[str]:
    tasks = Path("/proc/self/task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    return [Path(f"/proc/{child}/cmdline").read_text() for child in children]


@pytest.fixture
def settings(tmp_path):
    file = tmp_path / "device.toml"
    file.write_text(
        f'[device]\nid = "c"\nstate_dir = "{tmp_path}/state"\n[trust]\nroot = "root.json"\n'
        f'[store]\nbase_url = "file://{tmp_path}"\n[source]\npath = "{tmp_path}"\n'
    )
    return load_settings(file)


@pytest.mark.native  # what others see is the emulator's, whose daemon in a user namespace never reports
@pytest.mark.runtime
def test_no_child_gets_the_secrets_or_modules_of_a_folder(daemon, watcher, repository, tmp_path):
    """The daemon is started in a folder with a module of a stranger, and has the keys in its environment."""
    spy, stranger = tmp_path / "spy", tmp_path / "stranger"
    spy.mkdir()
    stranger.mkdir()
    (spy / "spy.sh").write_text(SPY)
    for module in ("msgspec", "numpy", "pickle", "edge_client"):
        (stranger / f"{module}.py").write_text(
            f"import os; os._exit(open({str(spy / 'ran')!r}, 'w').write('x'))"
        )
    daemon.settings["action"] = {"labels": "red", "on_command": f"sh {spy}/spy.sh {spy}", "timeout_s": 60.0}
    first = repository.publish_tiny(0).release
    command = [*as_ordinary_user(), sys.executable, "-c", START, *daemon.command("run")[3:]]
    secrets = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET}
    with (daemon.folder / "log").open("ab") as log:
        daemon.process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=stranger, env={**os.environ, **secrets}
        )
    watcher.wait_release(first)
    daemon.drop("red")
    wait_until((spy / "started").exists, "the command", 20.0)
    second = repository.publish_tiny(1).release
    watcher.announce(second)
    watcher.wait_release(second)
    (spy / "end").touch()
    wait_until((spy / "ended").exists, "the end of the command", 20.0)
    seen = (spy / "seen").read_bytes()
    assert b"EDGE_LABEL=red" in seen, "it may read its own"
    assert SECRET.encode() not in seen
    assert (spy / "parent").read_bytes() == b""
    assert not (spy / "ran").exists(), daemon.log
    assert_answers(daemon, watcher, second)
    assert daemon.ask("status").returncode == daemon.ask("update").returncode == 0, "signals reach it"


def test_a_machine_without_threads_keeps_no_pipe_and_no_process(settings, monkeypatch):
    def refuse(_timer: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Timer, "start", refuse)
        for _ in range(3):
            with pytest.raises(DeviceError, match="no thread can be started"):
                UpdateCheck().run(settings, "software", expecting=True)
    assert len(list(descriptors.iterdir())) == before
    assert "check_child" not in "".join(commands_of_children())


@pytest.mark.parametrize("module", ["update.check_child", "inbox.upload_child", "serving.model_trial"])
def test_a_child_whose_daemon_was_killed_meanwhile_ends_in_silence(module):
    half_an_order = b"" if module == "serving.model_trial" else pickle.dumps("order" * 99)[:40]
    command = python_command(f"edge_client.{module}")
    ended = subprocess.run(
        command, input=half_an_order, capture_output=True, env=environment(), cwd=FOLDER, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, b"", b"")
