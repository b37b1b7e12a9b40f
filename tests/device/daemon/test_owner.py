"""Root beside a service of its own user: the state folder stays that user's, whatever root runs there."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest
from local_services import wait_until

from edge_client.offline.export import export_bundle
from edge_client.settings.file import load_settings
from tests.fakes.device_daemon import LIMIT_S, REPOSITORY, DaemonUnderTest, assert_answers
from tests.fault_table import Kind

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user"),
]

SERVICE = 65533
BY_ROOT = "root's commands on a service's state folder"


@functools.cache
def environment_for_others() -> tuple[str, dict[str, str]]:
    """A Python with the device's libraries that every user of this machine can run."""
    same_version = f"/usr/bin/python3.{sys.version_info.minor}"
    libraries = os.pathsep.join([str(REPOSITORY), sysconfig.get_path("purelib")])
    for python, path in ((sys.executable, ""), (same_version, libraries)):
        environment = {**os.environ, "PYTHONPATH": path or os.environ.get("PYTHONPATH", "")}
        try:
            tried = subprocess.run(
                [python, "-c", "import edge_client, numpy, tuf"],
                env=environment,
                user=SERVICE,
                group=SERVICE,
                extra_groups=[],
                check=False,
                capture_output=True,
            )
        except OSError:
            continue
        if tried.returncode == 0:
            return python, environment
    pytest.skip(f"neither {sys.executable} nor {same_version} can be run by other users")


class ServiceUnderTest(DaemonUnderTest):
    """A daemon that runs as a user of its own, and commands that root runs."""

    def __init__(self, folder: Path, *parts: object) -> None:
        super().__init__(folder, *parts)  # type: ignore[arg-type]
        self.user = SERVICE
        self.state_dir.mkdir()
        for path in (self.state_dir, self.camera):
            os.chown(path, SERVICE, SERVICE)

    def command(self, name: str, *arguments: str) -> list[str]:
        python, _ = environment_for_others()
        return [python, *super().command(name, *arguments)[1:]]

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command("run"),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment_for_others()[1],
                user=self.user,
                group=self.user,
                extra_groups=[],
                umask=0o027,
            )

    def ask(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command as root, with the umask of a careful one."""
        return subprocess.run(
            self.command(name, *arguments),
            capture_output=True,
            text=True,
            check=False,
            env=environment_for_others()[1],
            umask=0o077,
        )

    def assert_owned(self) -> None:
        owners = {}
        for path in [self.state_dir, *self.state_dir.rglob("*")]:
            with contextlib.suppress(FileNotFoundError):  # the daemon writes files anew meanwhile
                owners[path] = path.lstat().st_uid
        assert {path: owner for path, owner in owners.items() if owner != SERVICE} == {}
        assert self.state_dir in owners


@pytest.fixture
def service(repository, mqtt_broker, fleet):
    environment_for_others()
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # others may not enter pytest's
    folder.chmod(0o755)
    service = ServiceUnderTest(folder, repository, mqtt_broker, fleet)
    yield service
    if service.process is not None and service.process.poll() is None:
        service.process.kill()
        service.process.wait()
    shutil.rmtree(folder)


def stick(service, path: Path) -> Path:
    """A bundle that root alone can read, as on a stick that root mounted."""
    export_bundle(load_settings(service.file), path)
    path.chmod(0o600)
    return path


def test_root_beside_a_service_leaves_nothing_that_it_cannot_read(
    service, repository, watcher, tmp_path, faults
):
    first = repository.publish_tiny(0).release
    with faults.injected(Kind.STATE, BY_ROOT, "import without a daemon"):
        done = service.ask("import", str(stick(service, tmp_path / "first.tar")))
        assert done.returncode == 0, done.stderr
        service.assert_owned()
        service.start()
        watcher.wait_release(first)
    with faults.injected(Kind.STATE, BY_ROOT, "update and status"):
        second = repository.publish_tiny(1).release
        assert service.ask("update").returncode == 0
        watcher.wait_release(second)
        assert service.ask("status").returncode == 0
        service.assert_owned()
    with faults.injected(Kind.STATE, BY_ROOT, "import beside the daemon"):
        third = repository.publish_tiny(2).release
        path = stick(service, tmp_path / "third.tar")
        done = service.ask("import", str(path))
        assert done.returncode == 0, done.stderr
        watcher.wait_release(third)
        assert_answers(service, watcher, third)
        service.assert_owned()


def taken_by_root(service, *names: str) -> None:
    """As version 0.1 did, whose `sudo edge-client import` took files over."""
    for name in names:
        path = service.state_dir / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        path.chmod(0o600)
        os.chown(path, 0, 0)


def test_what_root_once_made_in_the_state_folder_heals(service, repository, watcher, tmp_path, faults):
    release = repository.publish_tiny(0).release
    assert service.ask("import", str(stick(service, tmp_path / "first.tar"))).returncode == 0
    taken_by_root(service, "lock", "status.json", "slots.json")
    with faults.injected(Kind.STATE, "files that root once made", "lock, status.json, slots.json, by itself"):
        service.start()
        watcher.wait_release(release)
        assert service.ask("update").returncode == 0, "the daemon can be reached"
        assert service.terminate() == 0
    with faults.injected(Kind.STATE, "files that root once made", "all others, by `sudo edge-client doctor`"):
        shadow = tmp_path / "shadow"
        shadow.write_text("root:*:")
        (service.state_dir / "hard").hardlink_to(shadow)
        (service.state_dir / "soft").symlink_to(shadow)
        taken_by_root(service, "slots.json", "slots.copy.json", "metadata/timestamp.json")
        os.chown(service.state_dir / "metadata", 0, 0)
        assert "ok   state folder" in service.ask("doctor").stdout
        assert shadow.stat().st_uid == 0
        for name in ("hard", "soft"):
            (service.state_dir / name).unlink()
        service.assert_owned()
        repository.stop()
        service.start()
        watcher.wait_release(release)
        assert_answers(service, watcher, release)
        repository.start()


def test_root_that_serves_on_a_folder_of_a_user_without_a_name_stays_root(service, repository, watcher):
    """As in a container with a folder of the machine around it, whose user may not open the camera."""
    release = repository.publish_tiny(0).release
    service.user = 0
    service.start()
    watcher.wait_release(release)
    assert Path(f"/proc/{service.process.pid}").stat().st_uid == 0
    assert service.ask("update").returncode == 0


def test_another_user_is_told_whose_command_it_is(service, repository, tmp_path):
    repository.publish_tiny(0)
    path = stick(service, tmp_path / "first.tar")
    path.chmod(0o644)
    tmp_path.chmod(0o755)
    shutil.copy(path, service.folder / "first.tar")
    done = subprocess.run(
        service.command("import", str(service.folder / "first.tar")),
        capture_output=True,
        text=True,
        check=False,
        env=environment_for_others()[1],
        user=SERVICE - 1,
        group=SERVICE - 1,
        extra_groups=[],
    )
    assert done.returncode == 5
    assert f"belongs to {SERVICE}; run `sudo -u '#{SERVICE}' " in done.stderr
    assert f"import --config {service.folder}/device.toml {service.folder}/first.tar`" in done.stderr


def test_files_that_the_service_may_not_read_are_named_with_the_command(service, repository, watcher, faults):
    release = repository.publish_tiny(0).release
    root, password = service.folder / "root.json", service.folder / "password"
    password.write_text("secret")
    service.settings["broker"] |= {"username": "camera-1", "password_file": str(password)}
    for file in (root, password):
        file.chmod(0o600)
    with faults.injected(Kind.STATE, "files that the service may not read", "root.json, a password"):
        service.start()
        assert service.process.wait(LIMIT_S) == 5, "the unit starts it again"
        checked = service.ask("doctor").stdout
        for command in (f"sudo chmod a+r {root}", f"sudo chown {SERVICE} {password}"):
            assert f"run `{command}`" in checked
        root.chmod(0o644)
        service.start()
        wait_until(lambda: "password_file" in service.log, "the password to be missed")
        wait_until(lambda: release in service.ask("status").stdout, "the release, without a broker")
        os.chown(password, SERVICE, SERVICE)
        watcher.wait_release(release)
        assert_answers(service, watcher, release)
